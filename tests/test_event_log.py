"""`[Runtime] tensorboard = on`: TensorBoard's own reader finds what log.jsonl says, also after an interruption."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.event_log import NAMES
from lib.run_folder import RunFolder
from lib.runs import finish_run, resume_run, start_run
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, load


def scalars(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder.events))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("written_before_the_stop", [True, False])
def test_the_events_are_the_log_however_often_it_was_stopped(
    written_before_the_stop: bool, make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["Model.variant=stid", "Training.max_batches=1", "Training.epochs=3", "Runtime.tensorboard=on"]
    run = start_run(load(make_dataset(), changes), tmp_path / "out", "one")

    def stop_after_the_second(*_: object) -> str:
        if len(run.trainer.progress.history) == 2:
            raise KeyboardInterrupt
        return ""

    place = "epoch_line" if written_before_the_stop else "EventLog.record"
    with monkeypatch.context() as patched:
        patched.setattr(f"lib.runs.{place}", stop_after_the_second)
        with pytest.raises(KeyboardInterrupt):
            finish_run(run)
    finish_run(resume_run(run.folder, VARIANTS, None))

    log = run.folder.read_log()
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]  # three of stage 1, one of stage 2
    found = scalars(run.folder)
    assert len(list(run.folder.events.iterdir())) == 1
    for key, name in NAMES.items():
        if key in log[0]:
            assert found.pop(name) == [(entry["epoch"], pytest.approx(entry[key])) for entry in log]
    for step, minutes in enumerate(("030", "060", "090")):
        maes = [(entry["epoch"], pytest.approx(entry["val_mae_by_horizon"][step])) for entry in log]
        assert found.pop(f"validation_MAE_by_horizon/{minutes}_min") == maes
    assert not found


def test_it_is_the_same_experiment_with_events_and_without(make_dataset: DatasetMaker) -> None:
    path = make_dataset()
    assert load(path, ["Runtime.tensorboard=on"]).experiment == load(path).experiment


def test_without_the_package_one_line_says_so_before_anything_is_made(
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_dataset()
    before = set(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert call("run.py", "--config", path, "--set", "Runtime.tensorboard=on", "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "error: [Runtime] tensorboard = on: found no package that writes its files, expected one: "
        "pip install tensorboard\n"
    )
    assert set(tmp_path.rglob("*")) == before
