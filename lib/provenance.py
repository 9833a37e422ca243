"""Provenance: what a result depends on beside its settings."""

import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lib.devices import describe_device
from lib.files import REPOSITORY_ROOT

PACKAGES = ("torch", "numpy", "scipy", "pandas", "matplotlib", "fastdtw")


def provenance(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return time, command, commit, versions, hardware and the number of processes, by name."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(),
        "git_commit": _git("rev-parse", "HEAD") or None,
        "git_changes": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": platform.platform(),
        "device": device.type,
        "hardware": describe_device(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def command() -> list[str]:
    """Return what follows `python` in the command that runs, as it is typed at the repository's root."""
    script = Path(sys.argv[0]).resolve()
    if not script.is_relative_to(REPOSITORY_ROOT):
        return [script.name, *sys.argv[1:]]
    own = script.relative_to(REPOSITORY_ROOT)
    if len(own.parts) == 2 and (script.parent / "__init__.py").exists():
        return ["-m", ".".join(own.with_suffix("").parts), *sys.argv[1:]]
    return [own.as_posix(), *sys.argv[1:]]


def _versions() -> dict[str, str]:
    """Return the version of each package that is installed; fastdtw need not be."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _git(*arguments: str) -> str:
    """Return what git prints, or nothing where this is not a checkout."""
    try:
        command = ["git", "-C", str(REPOSITORY_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
