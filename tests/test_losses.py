"""The losses against their definitions in NumPy, and what they decide: training, validation and the best epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.losses import HUBER_DELTA, LOSSES, loss_values, mean_loss
from lib.runs import TrainingRun, finish_run, start_run
from lib.training import Stage, evaluate
from tests.conftest import DatasetMaker, load, tiny_series

B, N, P = 3, 4, 5


def definition(name: str, error: np.ndarray) -> np.ndarray:
    size = np.abs(error)
    if name == "mae":
        return size
    if name == "mse":
        return error**2
    return np.where(size <= HUBER_DELTA, 0.5 * error**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))


def sample(heads: int, missing: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return forecasts, targets, and where these are observed; errors lie on both sides of Huber's delta."""
    torch.manual_seed(3)
    target = torch.rand(B, N, P, dtype=torch.float64) * 2 - 1
    shape = (heads, B, N, P) if heads else (B, N, P)
    forecast = target + HUBER_DELTA * torch.randn(shape, dtype=torch.float64)
    return forecast, target, torch.rand(B, N, P) < 0.7 if missing else None


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("heads", [0, 1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_definitions(name: str, heads: int, missing: bool) -> None:
    forecast, target, observed = sample(heads, missing)
    known = np.ones((B, N, P), dtype=bool) if observed is None else observed.numpy()
    values = definition(name, forecast.numpy() - target.numpy())
    np.testing.assert_allclose(loss_values(name, forecast, target, observed), np.where(known, values, 0), rtol=1e-12)
    mean = np.mean([head[known].mean() for head in values.reshape(-1, B, N, P)])  # each head counts the same
    assert mean_loss(name, forecast, target, observed).item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_observed_has_no_gradient(name: str) -> None:
    forecast, target, observed = sample(2, missing=True)
    assert observed is not None
    target = target.where(observed, 1e6)
    forecast.requires_grad_()
    mean_loss(name, forecast, target, observed).backward()
    assert forecast.grad is not None
    assert torch.equal(forecast.grad != 0, observed.expand_as(forecast))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_observed_targets_has_no_loss(name: str) -> None:
    forecast, target, _ = sample(2, missing=True)
    assert mean_loss(name, forecast, target, torch.zeros(B, N, P, dtype=torch.bool)).item() == 0


def start_stid(make_dataset: DatasetMaker, root: Path, loss: str, *changes: str) -> TrainingRun:
    """Start a run of STID on a series with gaps, in which low values are common and high ones rare."""
    series = 200 * (tiny_series(seed=1) / 200) ** 4
    series[np.random.default_rng(0).random(series.shape) < 0.1] = np.nan
    path = make_dataset(series, epochs=3, fine_tune_epochs=0)
    always = ["Model.variant=stid", f"Training.loss={loss}", "Data.missing=interpolate"]
    return start_run(load(path, [*always, *changes]), root / "out", loss)


def scaled_errors(run: TrainingRun, split: str) -> np.ndarray:
    """Return forecast less target of a split, in scaled units, by the weights that the network has now."""
    starts = run.prepared.label_starts[split]
    forecast = evaluate(run.trainer.model, run.trainer.windows, starts, 16, "", keep_forecast=True).forecast
    assert forecast is not None
    flow = np.stack([run.prepared.truth[start : start + forecast.shape[2]].T for start in starts])
    return (forecast.astype(np.float64) - flow) / run.prepared.scaling.raw_per_scaled


@pytest.mark.parametrize("name", LOSSES)
def test_training_and_validation_are_by_the_loss_that_is_set(
    name: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    run = start_stid(make_dataset, tmp_path, name, "Training.learning_rate=1e-12", "Training.epochs=1")
    expected = {split: np.nanmean(definition(name, scaled_errors(run, split))) for split in ("train", "val")}
    run.trainer.fit()
    (entry,) = run.folder.read_log()
    assert entry["train_loss"] == pytest.approx(expected["train"], rel=1e-5)
    assert entry["val_loss"] == pytest.approx(expected["val"], rel=1e-5)


@pytest.mark.parametrize("name", ["mae", "mse"])
def test_the_best_epoch_is_that_of_the_least_loss(
    name: str, make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_stid(make_dataset, tmp_path, name)
    network, scaling = run.trainer.model, run.prepared.scaling
    starts = run.prepared.label_starts["val"]
    flow = scaling.to_scaled(np.stack([run.prepared.truth[start : start + 3] for start in starts]))
    # One forecast for all: by the MAE the median is best, by the MSE the mean.
    constants = [np.nanmedian(flow), np.nanmean(flow), 1.0]

    def train_epoch(_stage: Stage, number: int) -> float:
        for parameter in network.prediction.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(network.prediction.bias, constants[number - 1])
        return 0.0

    monkeypatch.setattr(run.trainer, "_train_epoch", train_epoch)
    metrics = finish_run(run)
    errors = [constant - flow for constant in constants]
    losses = [np.nanmean(definition(name, error)) for error in errors]
    maes = [np.nanmean(np.abs(error)) * scaling.raw_per_scaled for error in errors]
    history = run.folder.read_log()
    assert [entry["val_loss"] for entry in history] == pytest.approx(losses, rel=1e-5)
    assert [entry["val_mae"] for entry in history] == pytest.approx(maes, rel=1e-5)
    best = {"mae": 1, "mse": 2}[name]
    assert [entry["best"] for entry in history] == [epoch <= best for epoch in (1, 2, 3)]
    assert (metrics["best_epoch"], metrics["best_val_mae"]) == (best, history[best - 1]["val_mae"])
    forecast = run.folder.read_predictions()["forecast"]
    np.testing.assert_allclose(forecast, scaling.to_raw(constants[best - 1]), rtol=1e-5)
