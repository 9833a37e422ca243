"""The STID-style MLP: what it sees, and the script that trains it and sets it beside the other baselines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.config import load_config
from lib.files import load_json
from model.stid import STID
from tests.conftest import Call, DatasetMaker

STEPS_PER_DAY, HISTORY, HORIZON = 24, 5, 4


def perceptron(sensors: int) -> STID:
    torch.manual_seed(1)
    mask = torch.ones(sensors, sensors, dtype=torch.bool)
    model = STID(
        mask,
        mask,
        torch.zeros(sensors, 8),
        steps_per_day=STEPS_PER_DAY,
        history_steps=HISTORY,
        horizon=HORIZON,
        channels=8,
        layers=2,
        dropout=0.5,
    )
    return model.eval()


def inputs(batch: int, sensors: int, steps: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    series = torch.randn(batch, sensors, steps)
    return series, series[:, :, -1], torch.randint(7 * STEPS_PER_DAY, (batch,))


@pytest.mark.parametrize(("batch", "sensors"), [(1, 1), (3, 7)])
def test_forecasts_have_their_shape_and_are_the_same_however_asked(batch: int, sensors: int) -> None:
    model, (series, start, step_of_week) = perceptron(sensors), inputs(batch, sensors)
    forecast = model.rollout(series, start, step_of_week)
    assert forecast.shape == (batch, sensors, HORIZON)
    teacher = torch.randn(batch, sensors, HORIZON)
    torch.testing.assert_close(model(series, teacher, step_of_week), forecast, rtol=0, atol=0)
    for sample in range(batch):  # samples do not see each other either
        alone = model.rollout(series[[sample]], start[[sample]], step_of_week[[sample]])
        torch.testing.assert_close(alone[0], forecast[sample])


def test_sensors_do_not_see_each_other() -> None:
    model, (series, start, step_of_week) = perceptron(6), inputs(2, 6)
    before = model.rollout(series, start, step_of_week)
    series[:, 2] += 1
    changed = (model.rollout(series, start, step_of_week) != before).any(dim=2)
    assert torch.equal(changed, (torch.arange(6) == 2).expand(2, 6))


def test_only_the_last_steps_of_the_input_are_read() -> None:
    model, (series, start, step_of_week) = perceptron(3), inputs(2, 3)
    series.requires_grad_()
    model.rollout(series, start, step_of_week).abs().sum().backward()
    assert series.grad is not None
    seen = (series.grad != 0).all(dim=(0, 1))
    assert seen.tolist() == [False] * (12 - HISTORY) + [True] * HISTORY
    assert torch.equal((series.grad != 0).any(dim=1).any(dim=0), seen)


def test_sensor_time_of_day_and_day_of_week_matter_and_nothing_else_of_time() -> None:
    model, (series, start, _) = perceptron(3), inputs(1, 3)
    series, start = series[:, :1].expand(-1, 3, -1), start[:, :1].expand(-1, 3)  # all sensors measure the same

    def forecast(step: int) -> Tensor:
        return model.rollout(series, start, torch.tensor([step]))

    by_step = torch.cat([forecast(step) for step in range(7 * STEPS_PER_DAY)])  # (steps, N, P)
    assert len({tuple(row.tolist()) for row in by_step.flatten(0, 1)}) == 7 * STEPS_PER_DAY * 3
    torch.testing.assert_close(forecast(3 + 7 * STEPS_PER_DAY), forecast(3), rtol=0, atol=0)


def test_every_weight_is_trained() -> None:
    model = perceptron(3).train()
    series, start, _ = inputs(7 * STEPS_PER_DAY, 3)
    model(series, start, torch.arange(7 * STEPS_PER_DAY)).abs().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.flatten(1).any(dim=1).all() if parameter.dim() > 1 else parameter.grad.any(), name


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_script_trains_each_seed_once_and_prints_all_baselines(
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_figures: None,
) -> None:
    del no_figures
    path, out = make_dataset(extra="clip_grad_norm = 5\n"), tmp_path / "out" / "TINY"
    command = ["baselines.py", "--config", path, "--output", tmp_path / "out"]
    command += ["--set", "Training.epochs=1", "--set", "Training.d_model=4", "--seed"]
    assert call(*command, "3", "4", "3") == 0
    assert sorted(folder.name for folder in out.iterdir()) == ["stid-seed3", "stid-seed4"]
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("epoch   1") == 2
    config = load_config(out / "stid-seed3" / "settings.ini")
    assert (config.model.variant, config.training.num_layers, config.training.schedule) == ("stid", 3, "cosine")
    assert (config.training.d_model, config.training.epochs) == (4, 1)  # --set wins
    assert config.training.clip_grad_norm == 5  # what the MLP has no choice of its own for is the INI's

    metrics = [load_json(out / f"stid-seed{seed}" / "metrics.json") for seed in (3, 4)]
    scores = [run["test"]["overall"]["mae"] for run in metrics]
    table = shown.out[shown.out.index("Baselines on the test split") :].splitlines()
    assert "mean ± sd of 2 seeds" in table[0]
    assert f"| {np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} |" in table[4]
    names = [line.split("|")[1].strip() for line in table[4:]]
    assert names == ["STID-style MLP", *metrics[0]["baselines"]]
    assert table[5].split("|")[2].strip() == f"{metrics[0]['baselines']['last value']['overall']['mae']:.3f}"
    assert metrics[0]["baselines"] == metrics[1]["baselines"]

    before = bytes_below(tmp_path)
    assert call(*command, "3", "4") == 0
    again = capsys.readouterr().out
    assert "epoch" not in again
    assert again[again.index("Baselines") :].splitlines() == table
    assert bytes_below(tmp_path) == before

    assert call(*command, "4") == 0
    assert "±" not in capsys.readouterr().out.splitlines()[-len(names)]


def test_the_other_scripts_take_its_runs(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "TINY" / "mlp"
    changes = ["--set", "Model.variant=stid", "--set", "Model.history_steps=3", "--epochs", "1"]
    assert call("run.py", "--config", make_dataset(), "--output", tmp_path / "out", "--name", "mlp", *changes) == 0
    shown = capsys.readouterr().out
    assert "STID-style MLP on the test split, by horizon" in shown
    assert "| STID-style MLP         |" in shown
    assert "DTG-LKNet" not in shown
    assert "left out" not in shown
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"training_curve", "error_by_horizon", "error_by_time_of_day", "error_map"} <= figures
    assert not {"graphs", "patch_positions", "kernels"} & figures
    assert "<title>STID-style MLP on TINY: mlp</title>" in (run / "report.html").read_text()

    before = bytes_below(run)
    series, forecast = tmp_path / "TINY" / "TINY.npz", tmp_path / "forecast.csv"
    assert call("predict.py", "--run", run, "--input", series, "--output", forecast) == 0
    assert len(forecast.read_text().splitlines()) == 1 + 3 * 5
    assert "step 0 is taken for 2018-03-05 00:00:00, as in training" in capsys.readouterr().out
    assert call("erf_conv.py", "--run", run) == 2
    expected = f"error: --run: found variant = stid in {run}, expected described, released, enhanced\n"
    assert capsys.readouterr().err == expected
    assert bytes_below(run) == before


def test_the_script_shows_examples_and_trains_nothing_else(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("baselines.py", "--help") == 0
    assert "python baselines.py --config" in capsys.readouterr().out
    command = ["baselines.py", "--config", make_dataset(), "--output", tmp_path / "out"]
    assert call(*command, "--set", "Model.variant=enhanced") == 2
    expected = "error: --set Model.variant: found enhanced, expected stid, the one that is trained here\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()
