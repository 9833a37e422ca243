"""What a finished run leaves behind: a folder that explains itself."""

from pathlib import Path

import pytest
import torch

from lib.checkpoints import BEST, LAST
from lib.config import load_config
from lib.experiments import finish_experiment, start_experiment
from lib.files import load_json
from lib.preparation import prepared_for
from lib.reporting import read_log
from model.build import build_model
from tests.conftest import DatasetMaker


def test_a_run_explains_itself(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load_config(make_dataset(epochs=2, fine_tune_epochs=1))
    folder = tmp_path / "out" / "TINY" / "run"
    finish_experiment(start_experiment(config, tmp_path / "out", "run", build_model))
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = {path.stem for path in (folder / "figures").iterdir()}
    sensor = next(name for name in names if name.startswith("forecast_sensor"))
    drawn = {"training_curve", "error_by_horizon", "error_by_time_of_day", "error_map", "graphs", "kernels"}
    assert names == drawn | {"patch_positions", sensor}
    figures = {f"figures/{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    described = {"settings.ini", "environment.json", "log.jsonl", LAST, BEST}
    assert written == figures | described | {
        "metrics.json",
        "metrics.csv",
        "predictions.npz",
        "patch_positions.npz",
        "report.html",
    }
    assert load_config(folder / "settings.ini") == config

    log = read_log(folder)
    assert [entry["stage"] for entry in log] == ["teacher forcing", "teacher forcing", "fine-tuning"]
    assert [entry["learning_rate"] for entry in log] == pytest.approx([0.003, 0.003, 0.0003])
    metrics = load_json(folder / "metrics.json")
    best = min(log, key=lambda entry: entry["val_loss"])
    assert (metrics["best_epoch"], metrics["best_val_mae"]) == (best["epoch"], best["val_mae"])
    assert metrics["test_set"]["samples"] == len(prepared_for(config).label_starts["test"])
    environment = load_json(folder / "environment.json")
    assert environment["seed"] == 0
    assert environment["packages"]["torch"] == str(torch.__version__)
