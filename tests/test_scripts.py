"""The scripts as a user runs them: from any folder, with right and with wrong input."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lib.files import REPOSITORY_ROOT, load_json
from tests.conftest import Call, DatasetMaker, tiny_series

SCRIPTS = ("PrepareData.py", "create_dtw.py", "run.py")

pytestmark = pytest.mark.usefixtures("no_figures")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_scripts_in_sequence(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset()
    assert call("PrepareData.py", "--config", config, "--materialize", tmp_path / "windows.npz") == 0
    assert (
        "train    200 samples, label starts 48 (2018-03-06 00:00:00) .. 247 (2018-03-10 03:30:00)"
        in capsys.readouterr().out
    )
    assert call("create_dtw.py", "--config", config) == 0
    (record,) = (tmp_path / "TINY").glob("TINY_dtw_*.json")
    assert load_json(record)["method"] == "exact"
    prepared_by_hand = {path: path.read_bytes() for path in (tmp_path / "TINY").iterdir()}
    capsys.readouterr()
    assert call("run.py", "--config", config, "--output", tmp_path / "out", "--name", "one", "--seed", "5") == 0
    output = capsys.readouterr()
    assert "is missing" not in output.out
    assert output.out.index("parameters on cpu") < output.out.index("epoch   1")
    assert "last value" in output.out
    assert output.err == ""  # no progress bar where nobody watches
    assert {path: path.read_bytes() for path in (tmp_path / "TINY").iterdir()} == prepared_by_hand
    assert load_json(tmp_path / "out" / "TINY" / "one" / "metrics.json")["seed"] == 5


def test_missing_and_stale_files_are_made_with_a_line_that_says_so(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset()
    prepared = tmp_path / "TINY" / "TINY_w0d1h2p3.npz"
    distance_made = re.compile(r"/TINY/TINY_dtw_\w{12}\.npy is missing: making it\n")
    start = ("run.py", "--config", config, "--dry-run")
    assert call(*start) == 0
    output = capsys.readouterr().out
    assert f"{prepared} is missing: making it" in output
    assert distance_made.search(output)

    assert call(*start) == 0
    assert "making it" not in capsys.readouterr().out

    np.savez(tmp_path / "TINY" / "TINY.npz", data=tiny_series(seed=1))
    assert call(*start) == 0
    output = capsys.readouterr().out
    assert f"{prepared} is stale" in output
    assert distance_made.search(output)

    assert call("create_dtw.py", "--config", config, "--method", "fastdtw", "--radius", "2") == 0
    assert "fastdtw is approximate" in capsys.readouterr().out
    assert call(*start, "--set", "Graph.dtw_method=fastdtw", "--set", "Graph.dtw_radius=2") == 0
    assert "making it" not in capsys.readouterr().out
    assert call(*start) == 0
    assert "making it" not in capsys.readouterr().out


def test_a_dry_run_keeps_nothing(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset()
    call("PrepareData.py", "--config", config)
    call("create_dtw.py", "--config", config)
    before = files_below(tmp_path)
    assert call("run.py", "--config", config, "--dry-run", "--output", tmp_path / "out") == 0
    assert files_below(tmp_path) == before
    assert re.search(r"dry run, .*: \d+\.\d s, peak memory \d+\.\d\d GiB", capsys.readouterr().out)


def test_a_run_never_overwrites_another(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    start = ("run.py", "--config", config, "--output", tmp_path / "out")
    assert call(*start, "--name", "one") == 0
    folder = tmp_path / "out" / "TINY" / "one"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert call(*start, "--name", "one") == 2
    assert capsys.readouterr().err == f"error: --name: found a run in {folder}, expected a new name, or --resume\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert call(*start) == 0
    assert call(*start) == 0
    assert len(list((tmp_path / "out" / "TINY").iterdir())) == 3


def test_resuming_a_finished_run_gives_its_results_again(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    call("run.py", "--config", config, "--output", tmp_path / "out", "--name", "one")
    folder = tmp_path / "out" / "TINY" / "one"
    before = (folder / "metrics.json").read_bytes()
    assert call("run.py", "--resume", folder) == 0
    assert (folder / "metrics.json").read_bytes() == before
    capsys.readouterr()
    assert call("run.py", "--resume", folder, "--seed", "2") == 2
    assert "--resume: found --seed too, expected the run's own settings alone" in capsys.readouterr().err
    assert call("run.py", "--resume", folder.parent / "once") == 2
    assert "found no run here (settings.ini is missing) (did you mean 'one'?)" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_examples(script: str, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(script, "--help") == 0
    assert f"python {script} --" in capsys.readouterr().out


def test_a_script_starts_from_any_folder() -> None:
    command = [sys.executable, str(REPOSITORY_ROOT / "PrepareData.py"), "--config", "configurations/DEMO.cnf"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder, _: (folder / "TINY.npz").unlink(),
            r"TINY\.npz: no such file, expected an npz archive with data",
        ),
        (lambda folder, _: (folder / "TINY.csv").unlink(), r"TINY\.csv: no such file"),
        (
            lambda _, config: replace_text(config, "num_of_vertices = 5", "num_of_vertices = 6"),
            r"TINY\.npz data: found 5 sensors, expected num_of_vertices = 6",
        ),
        (
            lambda folder, _: replace_text(folder / "TINY.csv", "3,4,1.0", "3,9,1.0"),
            r"TINY\.csv row 5: column 'to': found sensor 9, expected a position 0\.\.4 \(ids need an id_filename\)",
        ),
        (
            lambda _, config: replace_text(config, "num_of_weeks = 0", "num_of_weeks = 2"),
            r"TINY\.npz data: found 384 rows, expected at least \d+ for windows of 2 weeks, 1 days, 2 hours",
        ),
        (
            lambda folder, _: np.savez(folder / "TINY.npz", data=np.array([{}])),
            r"TINY\.npz: found a pickled object, expected plain numeric arrays",
        ),
        (
            lambda _, config: replace_text(config, "epochs = 1\nfine", "epoch = 1\nfine"),
            r"\[Training\] epoch: found unknown key 'epoch', expected a key of .* \(did you mean 'epochs'\?\)",
        ),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_input_gives_one_message_and_writes_nothing(
    script: str,
    spoil: Callable[[Path, Path], object],
    message: str,
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_dataset()
    if script == "create_dtw.py" and "csv" in message:
        pytest.skip("DTW needs no links")
    spoil(tmp_path / "TINY", config)
    before = files_below(tmp_path)
    assert call(script, "--config", config, *(["--output", tmp_path / "out"] if script == "run.py" else [])) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err), shown.err
    assert all(line.startswith("error: ") for line in shown.err.splitlines())
    assert "Traceback" not in shown.err
    assert files_below(tmp_path) == before


def test_all_wrong_settings_are_listed_at_once(
    make_dataset: DatasetMaker, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset()
    wrong = ["--set", "Training.epochs=-1", "--set", "Model.variant=relased", "--seed", "x"]
    assert call("run.py", "--config", config, *wrong) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "(did you mean 'released'?)" in "".join(lines)


def test_a_device_that_is_not_there(make_dataset: DatasetMaker, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run.py", "--config", make_dataset(), "--device", "mps", "--dry-run") == 2
    assert "[Runtime] device: found 'mps', expected what PyTorch" in capsys.readouterr().err


def test_weights_are_tested_without_training_and_exported(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    start = ("run.py", "--config", config, "--output", tmp_path / "out")
    exported = tmp_path / "epoch1"
    assert call(*start, "--name", "trained", "--export", exported) == 0
    trained = load_json(tmp_path / "out" / "TINY" / "trained" / "metrics.json")

    capsys.readouterr()
    assert call(*start, "--name", "again", "--test-only", "--weights", exported) == 0
    assert "lacks its Laplacian encoding" in capsys.readouterr().out
    again = load_json(tmp_path / "out" / "TINY" / "again" / "metrics.json")
    assert again["test"] == trained["test"]
    assert again["epochs"] == 0
    assert call("run.py", "--resume", tmp_path / "out" / "TINY" / "again") == 0  # trains nothing
    assert load_json(tmp_path / "out" / "TINY" / "again" / "metrics.json") == again

    own = tmp_path / "out" / "TINY" / "trained" / "best.pt"
    assert call(*start, "--name", "own", "--test-only", "--weights", own) == 0
    assert load_json(tmp_path / "out" / "TINY" / "own" / "metrics.json")["test"] == trained["test"]

    capsys.readouterr()
    assert call(*start, "--name", "wrong", "--test-only", "--weights", exported, "--set", "Training.num_layers=2") == 2
    shown = capsys.readouterr().err
    assert shown.startswith(
        f"error: {exported}: missing decoder.layers.1.feed_forward_gcn.att.linears.0.bias; missing "
    )
    assert shown.count("\n") == 1
    assert call(*start, "--test-only") == 2
    assert not (tmp_path / "out" / "TINY" / "wrong").exists()


def test_several_seeds_make_a_run_each_and_go_on_where_they_stopped(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_dataset(fine_tune_epochs=0)
    start = ("run.py", "--config", config, "--output", tmp_path / "out", "--set", "Training.max_batches=2", "--seed")
    assert call(*start, "3", "4") == 0
    runs = tmp_path / "out" / "TINY"
    assert {path.name for path in runs.iterdir()} == {"paper-seed3", "paper-seed4"}
    assert [load_json(runs / f"paper-seed{seed}" / "metrics.json")["seed"] for seed in (3, 4)] == [3, 4]
    capsys.readouterr()
    assert call(*start, "3", "4", "5") == 0
    assert capsys.readouterr().out.count("epoch   1") == 1
    assert call(*start, "3", "x") == 2


def test_recipes_and_seeds_make_a_run_each_with_both_in_its_name(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path
) -> None:
    start = ("run.py", "--config", make_dataset(), "--output", tmp_path / "out", "--epochs", 1, "--fine-tune-epochs", 0)
    small = [f"--set=Training.{change}" for change in ("max_batches=1", "d_model=8", "num_layers=1", "nb_head=2")]
    assert call(*start, *small, "--recipe", "released", "stid", "--seed", 1, 2) == 0
    assert call(*start, *small, "--recipe", "released", "stid", "--name", "short") == 0
    assert call(*start, *small, "--recipe", "stid", "--seed", 1, 2, "--name", "one") == 0
    runs = tmp_path / "out" / "TINY"
    variants = {path.name: load_json(path / "metrics.json")["variant"] for path in runs.iterdir()}
    assert variants == {
        **{"released-seed1": "released", "released-seed2": "released", "stid-seed1": "stid", "stid-seed2": "stid"},
        **{"short-released-seed0": "released", "short-stid-seed0": "stid", "one-seed1": "stid", "one-seed2": "stid"},
    }
