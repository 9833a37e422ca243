"""What a finished run leaves behind: a folder that explains itself."""

from pathlib import Path

import pytest
import torch

from lib.data.preparing import prepared_for
from lib.report.page import show_run
from lib.runs import finish_run, start_run
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load


def test_a_run_explains_itself(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=2, fine_tune_epochs=1))
    run = start_run(config, tmp_path / "out", "run")
    folder = run.folder
    assert folder.path == tmp_path / "out" / "TINY" / "run"
    assert not folder.is_finished()
    finish_run(run)
    assert folder.is_finished()
    show_run(folder, config)
    written = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    names = {path.stem for path in folder.figures.iterdir()}
    sensor = next(name for name in names if name.startswith("forecast_sensor"))
    drawn = {"training_curve", "error_by_horizon", "error_by_time_of_day", "error_map", "graphs", "kernels"}
    assert names == drawn | {"patch_positions", sensor}
    figures = {f"figures/{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert written == figures | {
        *("settings.ini", "environment.json", "log.jsonl", "last.pt", "best.pt"),
        *("metrics.json", "metrics.csv", "predictions.npz", "patch_positions.npz", "report.html"),
        *("intervals.npz", "intervals.json"),
    }
    assert folder.read_config(VARIANTS) == config

    log = folder.read_log()
    assert [entry["stage"] for entry in log] == ["teacher forcing", "teacher forcing", "fine-tuning"]
    assert [entry["learning_rate"] for entry in log] == pytest.approx([0.003, 0.003, 0.0003])
    metrics = folder.read_metrics()
    best = min(log, key=lambda entry: entry["val_loss"])
    assert (metrics["best_epoch"], metrics["best_val_mae"]) == (best["epoch"], best["val_mae"])
    assert metrics["test_set"]["samples"] == len(prepared_for(config).label_starts["test"])
    environment = folder.read_environment()
    assert environment["seed"] == 0
    assert environment["packages"]["torch"] == str(torch.__version__)
