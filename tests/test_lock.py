"""requirements.lock: it holds what requirements.txt and requirements-dev.txt ask for, pinned and with hashes."""

import re
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.files import REPOSITORY_ROOT

LOCK = (REPOSITORY_ROOT / "requirements.lock").read_text(encoding="utf-8")
PLACES = [
    {
        "python_full_version": f"{python}.1",
        "python_version": python,
        "sys_platform": system,
        "platform_machine": machine,
    }
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def locked() -> Iterator[tuple[Requirement, list[str]]]:
    """Yield the lines of the lock, each with its hashes."""
    for line in LOCK.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            yield Requirement(requirement), hashes


def wanted() -> list[Requirement]:
    lines = [
        line.partition("#")[0].strip()
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (REPOSITORY_ROOT / name).read_text(encoding="utf-8").splitlines()
    ]
    return [Requirement(line) for line in lines if line]


def test_every_line_is_one_version_with_hashes() -> None:
    lines = list(locked())
    assert len(lines) > len(wanted())  # what they need in turn is locked too
    for requirement, hashes in lines:
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert "*" not in pin.version
        assert requirement.url is None
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", item) for item in hashes)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place.values()))
def test_the_lock_satisfies_the_requirements_everywhere(place: dict[str, str]) -> None:
    versions: dict[str, str] = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(place):
            name = canonicalize_name(requirement.name)
            assert name not in versions  # markers that overlap
            (pin,) = requirement.specifier
            versions[name] = pin.version
    for requirement in wanted():
        if requirement.marker is not None and not requirement.marker.evaluate(place):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement}: requirements.lock has {version}"
