"""STID: what it sees, the recipe that trains it, and the scripts that take its runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.interface import Inputs, Sizes
from lib.run_folder import RunFolder
from model.stid import STID, STIDSettings
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, dense_graphs

STEPS_PER_DAY, HISTORY, HORIZON = 24, 5, 4
SIZES = Sizes(steps_per_hour=1, weeks=0, days=0, hours=12, horizon=HORIZON, channels=8, layers=2, heads=2, dropout=0.5)


def stid(sensors: int) -> STID:
    torch.manual_seed(1)
    mask = torch.ones(sensors, sensors, dtype=torch.bool)
    return STID(dense_graphs(mask, mask, torch.zeros(sensors, 8)), SIZES, STIDSettings(history_steps=HISTORY)).eval()


def inputs_of(batch: int, sensors: int, steps: int = 12) -> Inputs:
    torch.manual_seed(2)
    series = torch.randn(batch, sensors, steps)
    return Inputs(series, series[:, :, -1], torch.randint(7 * STEPS_PER_DAY, (batch,)))


@pytest.mark.parametrize(("batch", "sensors"), [(1, 1), (3, 7)])
def test_forecasts_have_their_shape_and_are_the_same_however_asked(batch: int, sensors: int) -> None:
    model, inputs = stid(sensors), inputs_of(batch, sensors)
    forecast = model(inputs)
    assert forecast.shape == (batch, sensors, HORIZON)
    taught = inputs._replace(teacher=torch.randn(batch, sensors, HORIZON))
    torch.testing.assert_close(model(taught), forecast, rtol=0, atol=0)
    for sample in range(batch):  # samples do not see each other either
        alone = model(Inputs(*(part[[sample]] for part in inputs[:3])))
        torch.testing.assert_close(alone[0], forecast[sample])


def test_sensors_do_not_see_each_other() -> None:
    model, inputs = stid(6), inputs_of(2, 6)
    before = model(inputs)
    inputs.series[:, 2] += 1
    changed = (model(inputs) != before).any(dim=2)
    assert torch.equal(changed, (torch.arange(6) == 2).expand(2, 6))


def test_only_the_last_steps_of_the_input_are_read() -> None:
    model, inputs = stid(3), inputs_of(2, 3)
    series = inputs.series.requires_grad_()
    model(inputs).abs().sum().backward()
    assert series.grad is not None
    seen = (series.grad != 0).all(dim=(0, 1))
    assert seen.tolist() == [False] * (12 - HISTORY) + [True] * HISTORY
    assert torch.equal((series.grad != 0).any(dim=1).any(dim=0), seen)


def test_sensor_time_of_day_and_day_of_week_matter_and_nothing_else_of_time() -> None:
    model, (series, start, *_) = stid(3), inputs_of(1, 3)
    series, start = series[:, :1].expand(-1, 3, -1), start[:, :1].expand(-1, 3)  # all sensors measure the same

    def forecast(step: int) -> Tensor:
        return model(Inputs(series, start, torch.tensor([step])))

    by_step = torch.cat([forecast(step) for step in range(7 * STEPS_PER_DAY)])  # (steps, N, P)
    assert len({tuple(row.tolist()) for row in by_step.flatten(0, 1)}) == 7 * STEPS_PER_DAY * 3
    torch.testing.assert_close(forecast(3 + 7 * STEPS_PER_DAY), forecast(3), rtol=0, atol=0)


def test_every_weight_is_trained() -> None:
    model = stid(3).train()
    inputs = inputs_of(7 * STEPS_PER_DAY, 3)
    model(inputs._replace(step_of_week=torch.arange(7 * STEPS_PER_DAY))).abs().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.flatten(1).any(dim=1).all() if parameter.dim() > 1 else parameter.grad.any(), name


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_recipe_is_trained_once_with_each_seed_and_stands_beside_the_baselines(
    make_dataset: DatasetMaker,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lib.report.page.make_report", lambda folder, *_: folder.page.touch())
    path, out = make_dataset(extra="clip_grad_norm = 5\n"), tmp_path / "out" / "TINY"
    command = ["run.py", "--config", path, "--recipe", "stid", "--output", tmp_path / "out"]
    command += ["--set", "Training.epochs=1", "--set", "Training.d_model=4", "--seed"]
    assert call(*command, "3", "4", "3") == 0
    assert sorted(folder.name for folder in out.iterdir()) == ["stid-seed3", "stid-seed4"]
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("epoch   1") == 2
    runs = [RunFolder(out / f"stid-seed{seed}") for seed in (3, 4)]
    config = runs[0].read_config(VARIANTS)
    assert (config.variant.name, config.training.num_layers, config.training.schedule) == ("stid", 3, "cosine")
    assert (config.training.d_model, config.training.epochs) == (4, 1)  # --set wins
    assert config.training.clip_grad_norm == 5  # what the recipe does not say is the INI's

    metrics = [run.read_metrics() for run in runs]
    assert metrics[0]["baselines"] == metrics[1]["baselines"]
    for scores in metrics:  # each run's table has the baselines too
        last = scores["baselines"]["last value"]["overall"]
        for name, overall in (("STID", scores["test"]["overall"]), ("last value", last)):
            cells = [line.split("|")[2].strip() for line in shown.out.splitlines() if line.startswith(f"| {name} ")]
            assert f"{overall['mae']:.3f}" in cells

    before = bytes_below(tmp_path)
    assert call(*command, "3", "4") == 0
    assert "epoch" not in capsys.readouterr().out
    assert bytes_below(tmp_path) == before


def test_the_other_scripts_take_its_runs(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "out" / "TINY" / "mlp"
    changes = ["--set", "Model.variant=stid", "--set", "Model.history_steps=3", "--epochs", "1"]
    assert call("run.py", "--config", make_dataset(), "--output", tmp_path / "out", "--name", "mlp", *changes) == 0
    shown = capsys.readouterr().out
    assert "STID on the test split, by horizon" in shown
    assert "| STID                   |" in shown
    assert "DTG-LKNet" not in shown
    assert "left out" not in shown
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"training_curve", "error_by_horizon", "error_by_time_of_day", "error_map"} <= figures
    assert not {"graphs", "patch_positions", "kernels"} & figures
    assert "<title>STID on TINY: mlp</title>" in (run / "report.html").read_text()

    before = bytes_below(run)
    series, forecast = tmp_path / "TINY" / "TINY.npz", tmp_path / "forecast.csv"
    assert call("predict.py", "--run", run, "--input", series, "--output", forecast) == 0
    assert len(forecast.read_text().splitlines()) == 1 + 3 * 5
    assert "step 0 is taken for 2018-03-05 00:00:00, as in training" in capsys.readouterr().out
    assert call("erf_conv.py", "--run", run) == 2
    expected = f"error: --run: found variant = stid in {run}, expected paper, released, residual\n"
    assert capsys.readouterr().err == expected
    assert bytes_below(run) == before
