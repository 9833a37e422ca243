"""What scripts print: any text on any terminal, and a reader who leaves early, cost neither work nor exit code."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.errors import EXIT_FAILED, run_script
from lib.files import REPOSITORY_ROOT

SCRIPT = """
import sys
from pathlib import Path
from lib.errors import InputError, run_script

def main():
    for _ in range(int(sys.argv[1])):
        print("12.3 ± 0.4, Straße 银川 \\udc80")
        print("progress ±", file=sys.stderr)
    Path("done").write_text("")
    if sys.argv[2:]:
        raise InputError("sensor 'é': found ±")

run_script(main)
"""


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY_ROOT), **settings}


PLAIN = rb"12.3 +- 0.4, Stra\xdfe \u94f6\u5ddd \udc80"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, PLAIN),
        ({"PYTHONIOENCODING": "ascii:strict", "LANG": "C"}, PLAIN),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, PLAIN),
        ({"PYTHONIOENCODING": "latin-1"}, b"12.3 \xb1 0.4, Stra\xdfe " + rb"\u94f6\u5ddd \udc80"),
        ({"LANG": "C"}, "12.3 ± 0.4, Straße 银川 ".encode() + rb"\udc80"),
    ],
)
def test_a_letter_that_the_terminal_lacks_is_written_in_others(
    settings: dict[str, str], shown: bytes, script: Path, tmp_path: Path
) -> None:
    command = [sys.executable, script, "1", "fail"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment(**settings))
    assert done.returncode == 2
    assert done.stdout == shown + b"\n"
    assert done.stderr.count(b"\n") == 2
    assert done.stderr.splitlines()[1].startswith(b"error: sensor '")
    assert b"Error" not in done.stderr


@pytest.mark.parametrize("errors_too", [False, True])
@pytest.mark.parametrize("lines", [1, 20_000], ids=["told at the end", "told on the way"])
def test_work_goes_on_when_the_reader_of_a_pipe_has_left(
    lines: int, errors_too: bool, script: Path, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, script, str(lines)],
            stdout=closed,
            stderr=closed if errors_too else subprocess.PIPE,
            cwd=tmp_path,
            env=environment(),
        )
    assert done.returncode == 0
    assert (tmp_path / "done").exists()
    assert errors_too or set(done.stderr.splitlines()) == {"progress ±".encode()}


@pytest.mark.parametrize(
    ("allocate", "size"),
    [(lambda: torch.empty(2**60), r"\d+ bytes"), (lambda: np.empty(2**58, np.float32), "1.00 EiB")],
    ids=["PyTorch", "NumPy"],
)
def test_memory_that_is_short_is_told_in_a_line(
    allocate: Callable[[], None], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(allocate)
    assert end.value.code == EXIT_FAILED
    assert re.fullmatch(rf"error: found no memory for {size}, expected smaller sizes: .+\n", capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="shape"):
        run_script(lambda: torch.ones(2).view(3))
