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
        "command": [_script(), *sys.argv[1:]],
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


def _versions() -> dict[str, str]:
    """Return the version of each package that is installed; fastdtw need not be."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _script() -> str:
    """Return the script that runs, from the repository's root where it is one of its own."""
    script = Path(sys.argv[0]).resolve()
    return script.relative_to(REPOSITORY_ROOT).as_posix() if script.is_relative_to(REPOSITORY_ROOT) else script.name


def _git(*arguments: str) -> str:
    """Return what git prints, or nothing where this is not a checkout."""
    try:
        command = ["git", "-C", str(REPOSITORY_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
