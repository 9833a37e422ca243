"""`make gpu` does its parts one by one: what fails, lacks something or takes too long stops no other, and is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Part, parts
from lib.errors import EXIT_FAILED
from lib.files import REPOSITORY_ROOT, load_json
from tests.conftest import exit_code

LOG = "import pathlib, sys; run = pathlib.Path(sys.argv[1], 'PEMS08', 'gpu'); run.mkdir(parents=True)\n"
LOG += "run.joinpath('log.jsonl').write_text(sys.argv[2]); run.joinpath('last.pt').write_text('large')"
EPOCHS = '{"stage": "teacher forcing", "seconds": 9}\n{"stage": "teacher forcing", "seconds": 6}\n'
EPOCHS += '{"stage": "fine-tuning", "seconds": 12}\n'


def test_every_part_has_its_line_and_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(_device: str, _quick: bool, _data: Path, _output: Path, scratch: Path) -> Iterator[Part]:
        yield Part("fails", ["-c", "print('why'); raise SystemExit(3)"], 60)
        yield Part("lacks", ["-c", ""], 60, needs=["no_such_package"])
        yield Part("misses", ["-c", ""], 60, files=[Path("/no/such.npz")])
        yield Part("lasts", ["-c", "import time; print('begun', flush=True); time.sleep(600)"], 2)
        yield Part("trains", ["-c", LOG, str(scratch), EPOCHS], 60)

    monkeypatch.setattr(gpu, "parts", some)
    output = tmp_path / "out"
    arguments = ("--device", "cpu", "--output", output)
    assert exit_code(monkeypatch, gpu.main, "gpu.py", *arguments) == EXIT_FAILED
    results = {part["name"]: part["outcome"] for part in load_json(output / "summary.json")["parts"]}
    assert results == {
        "fails": "failed with exit code 3: see fails.log",
        "lacks": "left out: found no no_such_package",
        "misses": "left out: found no /no/such.npz",
        "lasts": "stopped at its limit of 2 s: what it had measured is kept",
        "trains": "done",
    }
    shown = capsys.readouterr().out
    assert all(outcome in shown for outcome in results.values())
    assert "the whole schedule, 50 + 25 epochs: 10 min" in shown  # of the last epoch of each stage
    assert (output / "fails.log").read_text() == "why\n"
    assert (output / "lasts.log").read_text().startswith("begun")
    assert [path.name for path in (output / "training").iterdir()] == ["log.jsonl"]

    monkeypatch.setattr(gpu, "parts", lambda *_: [Part("lacks", [], 60, needs=["no_such_package"])])
    assert exit_code(monkeypatch, gpu.main, "gpu.py", *arguments) == 0  # what a machine lacks is no failure


@pytest.mark.parametrize("quick", [False, True])
def test_all_parts_are_of_this_project_and_end_in_time(quick: bool, tmp_path: Path) -> None:
    done = list(parts("cuda", quick, tmp_path, tmp_path / "out", tmp_path / "scratch"))
    assert sum(part.seconds for part in done) + gpu.GRACE * len(done) < 9 * 60
    assert len({part.name for part in done}) == len(done)
    for part in done:
        script = part.arguments[0]
        if script == "-m":
            script = {"pytest": "pyproject.toml"}.get(part.arguments[1], part.arguments[1].replace(".", "/") + ".py")
        assert (REPOSITORY_ROOT / script).exists()
