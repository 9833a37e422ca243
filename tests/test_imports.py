"""Which module may load which: networks know nothing of files and runs, training and forecasting nothing of figures."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lib.files import REPOSITORY_ROOT


def imported_by(path: Path) -> set[str]:
    """Return what a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


LIB = sorted(
    ".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts)
    for path in (REPOSITORY_ROOT / "lib").rglob("[!_]*.py")
)


@pytest.mark.parametrize(
    ("loaded", "forbidden"),
    [
        (["predict"], ["matplotlib"]),
        (["benchmarks.gpu"], ["matplotlib", "scipy", "pandas", "fastdtw", "model"]),
        ([name for name in LIB if not name.startswith("lib.report")], ["lib.report", "matplotlib", "model"]),
        (LIB, ["model"]),
    ],
    ids=["predict", "make gpu", "lib without lib.report", "lib"],
)
def test_what_is_loaded_loads_nothing_else(loaded: list[str], forbidden: list[str]) -> None:
    assert loaded
    names = "".join(f"import {name}\n" for name in loaded)
    code = f"{names}import sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY_ROOT).stdout.split()
    assert set(loaded) <= set(shown)
    assert [name for name in shown for other in forbidden if f"{name}.".startswith(f"{other}.")] == []


def test_networks_import_of_lib_only_the_interface_the_kinds_of_settings_and_the_compiler() -> None:
    allowed = {"lib.interface", "lib.ini", "lib.compiled"}
    found = set()
    for path in (REPOSITORY_ROOT / "model").rglob("*.py"):
        of_lib = {name for name in imported_by(path) if name.split(".")[0] == "lib"}
        found |= {".".join(name.split(".")[:2]) for name in of_lib}
        assert found <= allowed, path
    assert found == allowed
