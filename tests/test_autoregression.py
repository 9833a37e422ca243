"""The linear autoregression on the topology graph: what it finds, what it may look at, and how it is rolled out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lib.data.autoregression
from lib.checkpoints import load_checkpoint, save_checkpoint
from lib.data.autoregression import LEAST_ERROR, PENALTY, autoregression_lags
from lib.data.prepared import Prepared, prepare
from lib.data.preparing import calendar_for
from lib.data.profile import HistoricalProfile
from lib.data.windowing import Calendar, WindowShape
from lib.errors import InputError
from lib.runs import TrainingRun, profile_for, resume_run, start_run
from model.graph_autoregression import GraphAutoregression
from model.variants import VARIANTS
from tests.conftest import dense_fit, dense_graphs, load, write_dataset

DAY = 48  # so that half an hour is one step
SENSORS = 6
PROFILE = 2000.0
NEAR = np.abs(np.subtract.outer(np.arange(SENSORS), np.arange(SENSORS))) < 3


def prepared_of(residual: np.ndarray) -> tuple[Prepared, HistoricalProfile]:
    """Return a series (T, N) that is such a residual and a historical profile of `PROFILE`."""
    flow = (PROFILE + residual).astype(np.float32)
    prepared = prepare(flow[:, :, None], WindowShape(0, 1, 2, 3, DAY // 24), {}, "interpolate")
    return prepared, HistoricalProfile(
        np.full((7 * DAY, flow.shape[1]), PROFILE, np.float32), np.full_like(flow, PROFILE)
    )


def fitted(residual: np.ndarray, near: np.ndarray = NEAR, steps_per_day: int = DAY) -> np.ndarray:
    prepared, profile = prepared_of(residual)
    return dense_fit(prepared, profile, near, Calendar(steps_per_day))


def fitted_rows(residual: np.ndarray, steps_per_day: int = DAY) -> np.ndarray:
    return residual[steps_per_day : prepared_of(residual)[0].training_rows]


def simulated(coefficients: np.ndarray, steps: int = 3000, noise: float = 3.0, seed: int = 0) -> np.ndarray:
    """Return residuals (T, N) that follow an autoregression with double exponential noise."""
    lags, sensors, _ = coefficients.shape
    draw = np.random.default_rng(seed).laplace(scale=noise, size=(steps, sensors))
    for step in range(lags, steps):
        draw[step] += sum(draw[step - 1 - lag] @ coefficients[lag] for lag in range(lags))
    return draw


def along_a_road(lags: int = 1) -> np.ndarray:
    """Return coefficients by which half of what passes a sensor reaches the next one a step later."""
    coefficients = np.zeros((lags, SENSORS, SENSORS))
    for sensor in range(1, SENSORS):
        coefficients[0, sensor - 1, sensor] = 0.5
    coefficients[lags - 1] += 0.3 * np.eye(SENSORS)
    return coefficients


@pytest.mark.parametrize(("lags", "steps_per_day"), [(1, DAY), (3, 3 * DAY)])
def test_it_finds_what_made_the_series(lags: int, steps_per_day: int) -> None:
    assert autoregression_lags(steps_per_day) == lags
    expected = along_a_road(lags)
    found = fitted(simulated(expected), steps_per_day=steps_per_day)
    np.testing.assert_allclose(found, expected, atol=0.06)
    # Sensors that tell nothing of a sensor are all but out.
    assert np.abs(found[:, (expected == 0).all(axis=0)]).mean() < 0.005


def test_only_sensors_near_each_other_tell_of_each_other() -> None:
    residual = simulated(along_a_road())
    assert not fitted(residual)[:, ~NEAR].any()
    alone = np.eye(SENSORS, dtype=bool)
    np.testing.assert_array_equal(fitted(residual, alone) != 0, alone[None])


def test_incidents_do_not_decide() -> None:
    residual = simulated(along_a_road())
    clean = fitted(residual)
    residual[np.random.default_rng(1).integers(500, 1500, size=20), 2] += 400
    training = fitted_rows(residual)
    least_squares = np.linalg.lstsq(training[:-1], training[1:, 2], rcond=None)[0]
    # What the sensor before it tells of sensor 2; that the sensor itself stays where it is, is not true any more.
    robust_shift, plain_shift = fitted(residual)[0, 1, 2] - clean[0, 1, 2], least_squares[1] - clean[0, 1, 2]
    assert abs(robust_shift) < 0.06 < abs(plain_shift)


@pytest.mark.parametrize("factor", [0.1, 3.0, 10.0])
def test_units_do_not_matter(factor: float) -> None:
    residual = simulated(along_a_road(), steps=600)
    np.testing.assert_allclose(fitted(factor * residual), fitted(residual), atol=2e-3)
    scaled = residual * np.where(np.arange(SENSORS) == 1, factor, 1)
    expected = fitted(residual)
    expected[:, 1] /= factor
    expected[:, :, 1] *= factor
    np.testing.assert_allclose(fitted(scaled), expected, atol=2e-3 * max(factor, 1 / factor))


def test_it_looks_at_training_rows_after_the_first_day_alone() -> None:
    prepared, profile = prepared_of(simulated(along_a_road(), steps=600))
    fit = dense_fit(prepared, profile, NEAR, Calendar(DAY))
    counted = slice(DAY, prepared.training_rows)
    flow = prepared.flow + 50
    flow[counted] = prepared.flow[counted]
    elsewhere = dense_fit(replace(prepared, flow=flow), profile, NEAR, Calendar(DAY))
    np.testing.assert_array_equal(elsewhere, fit)
    flow[counted] *= np.random.default_rng(4).uniform(0.5, 2, flow[counted].shape)
    assert (dense_fit(replace(prepared, flow=flow), profile, NEAR, Calendar(DAY)) != fit).any()


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
def test_a_series_of_little_more_than_a_day_has_hardly_any(rows: int) -> None:
    residual = simulated(along_a_road(), steps=600)
    steps_per_day = len(fitted_rows(residual, 0)) - rows
    lags = autoregression_lags(steps_per_day)
    assert lags == 7
    found = fitted(residual, steps_per_day=steps_per_day)
    assert np.isfinite(found).all()
    assert found.any() == (rows > lags)


def test_steps_without_a_profile_do_not_count() -> None:
    """Where a sensor's values begin later, so does its profile; with none at all, the sensor has no part."""
    residual = simulated(along_a_road())
    begin = 500
    residual[:begin, 2] = np.nan
    late, profile = prepared_of(residual)
    fit = dense_fit(late, profile, NEAR, Calendar(DAY))
    misleading = profile.series.copy()
    misleading[: begin + DAY, 2] -= 1000
    np.testing.assert_array_equal(dense_fit(late, replace(profile, series=misleading), NEAR, Calendar(DAY)), fit)
    misleading[begin + DAY, 2] -= 1000
    assert (dense_fit(late, replace(profile, series=misleading), NEAR, Calendar(DAY)) != fit).any()
    np.testing.assert_allclose(fit[:, NEAR], along_a_road()[:, NEAR], atol=0.06)

    residual[DAY:, 2] = np.nan
    residual[:DAY, 2] = 1
    without = fitted(residual)
    assert np.isfinite(without).all()
    assert not without[:, :, 2].any()


def standardised_errors(coefficients: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations forecasts of the next step are wrong, (T - lags, N)."""
    lags = len(coefficients)
    forecast = sum(residual[lags - 1 - lag : -1 - lag] @ coefficients[lag] for lag in range(lags))
    errors: np.ndarray = np.abs(residual[lags:] - forecast) / residual.std(axis=0)
    return errors


def objective(coefficients: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return what the fit makes least, (N,): Huber's loss, and the norms of neighbours by a weight of the penalty."""
    scale, errors = residual.std(axis=0), standardised_errors(coefficients, residual)
    huber = np.where(errors > LEAST_ERROR, errors - LEAST_ERROR / 2, errors**2 / (2 * LEAST_ERROR)).sum(axis=0)
    norms = np.linalg.norm(coefficients / (scale / scale[:, None]), axis=0).sum(axis=0)
    return huber + PENALTY * np.sqrt(len(errors)) * weight * norms


def test_a_few_rounds_reach_the_least_sum_of_misses_and_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    residual = simulated(along_a_road(3), steps=900)
    training = fitted_rows(residual, 3 * DAY)
    few = fitted(residual, steps_per_day=3 * DAY)
    monkeypatch.setattr(lib.data.autoregression, "ROUNDS", 60)
    many = fitted(residual, steps_per_day=3 * DAY)
    # The weights of the errors have the mean 1, which the penalty is to stand against.
    weight = (1 / np.maximum(standardised_errors(many, training), LEAST_ERROR)).mean(axis=0)
    least = objective(many, training, weight)
    np.testing.assert_allclose(objective(few, training, weight), least, rtol=2e-3)
    draw = np.random.default_rng(2)
    for size in (0.002, 0.02, 0.2):
        for _ in range(10):
            other = many + size * draw.standard_normal(many.shape) * NEAR
            assert (objective(other, training, weight) > least * 0.99999).all()


@pytest.mark.parametrize("length", [3, 12])
def test_gaps_do_not_teach_persistence(length: int) -> None:
    residual = simulated(np.full((1, 1, 1), 0.5), steps=8000)
    whole = fitted(residual, np.ones((1, 1), dtype=bool))
    for first in np.random.default_rng(3).choice(8000 // length, size=800 // length, replace=False) * length:
        residual[first : first + length] = np.nan
    found = fitted(residual, np.ones((1, 1), dtype=bool))
    np.testing.assert_allclose(found, whole, atol=0.05)


def test_a_sensor_that_never_varies_has_no_part() -> None:
    residual = simulated(along_a_road(), steps=600)
    residual[:, 3] = 0
    found = fitted(residual)
    assert np.isfinite(found).all()
    assert np.abs(found[:, 3]).max() == np.abs(found[:, :, 3]).max() == 0


@torch.no_grad()
@pytest.mark.parametrize("lags", [1, 3])
def test_a_rollout_feeds_each_step_to_the_next(lags: int) -> None:
    coefficients = torch.from_numpy(along_a_road(lags)).float() + 0.1 * torch.randn(lags, SENSORS, SENSORS)
    values = torch.randn(4, SENSORS, 5)
    steps = list(values.unbind(dim=2))
    for _ in range(7):
        steps.append(sum(steps[-1 - lag] @ coefficients[lag] for lag in range(lags)))  # type: ignore[arg-type]
    graphs = dense_graphs(np.eye(SENSORS), np.ones((SENSORS, SENSORS)), torch.zeros(SENSORS, 1), coefficients)
    assert graphs.autoregression is not None
    model = GraphAutoregression(graphs.topology, graphs.autoregression, horizon=7)
    torch.testing.assert_close(model(values), torch.stack(steps[5:], dim=2))
    assert not list(model.parameters())
    assert not model.state_dict()  # they travel with the graphs


def coefficients_of(run: TrainingRun) -> torch.Tensor:
    """Return the coefficients (lags, N, N) that the network of a run has."""
    autoregression = run.trainer.model.get_submodule("members.0.autoregression")
    return autoregression.product.matrix.unflatten(1, (autoregression.lags, -1)).transpose(0, 1)  # type: ignore[union-attr,operator]


def test_a_run_is_given_what_was_fitted_on_its_graph(tmp_path: Path) -> None:
    config = load(write_dataset(tmp_path), ["Model.variant=residual_mlp", "Graph.hops=2"])
    run, calendar = start_run(config, tmp_path / "out", "run"), calendar_for(config)
    place = np.arange(run.prepared.flow.shape[1])
    near = np.abs(np.subtract.outer(place, place)) < 2  # the links are a chain
    profile = profile_for(config, run.prepared)
    assert profile is not None
    fit = dense_fit(run.prepared, profile, near, calendar)
    assert fit.any()
    np.testing.assert_array_equal(coefficients_of(run), fit.transpose(0, 2, 1))
    resumed = resume_run(run.folder, VARIANTS, None)
    assert torch.equal(coefficients_of(resumed), coefficients_of(run))


@pytest.mark.parametrize("switch", ["autoregression", "residual"])
def test_a_run_without_it_has_none(switch: str, tmp_path: Path) -> None:
    config = load(write_dataset(tmp_path), ["Model.variant=residual_mlp", f"Model.{switch}=off"])
    run = start_run(config, tmp_path / "out", "run")
    for each in (run, resume_run(run.folder, VARIANTS, None)):
        assert each.trainer.model.get_submodule("members.0").autoregression is None


def test_a_run_that_starts_from_weights_keeps_theirs(tmp_path: Path) -> None:
    config = load(write_dataset(tmp_path), ["Model.variant=residual_mlp"])
    first = start_run(config, tmp_path / "out", "first")
    checkpoint = load_checkpoint(first.folder.last)
    checkpoint["graphs"]["autoregression"] += 1
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    config = replace(config, training=replace(config.training, weights=tmp_path / "other.pt"))
    second = start_run(config, tmp_path / "out", "second")
    assert torch.equal(coefficients_of(second), coefficients_of(first) + 1)


@pytest.mark.parametrize("there", [True, False])
def test_weights_with_and_without_it_do_not_stand_in_for_each_other(there: bool, tmp_path: Path) -> None:
    path, variant = write_dataset(tmp_path), "Model.variant=residual_mlp"
    with_it, without = load(path, [variant]), load(path, [variant, "Model.autoregression=off"])
    first, second = (with_it, without) if there else (without, with_it)
    weights = start_run(first, tmp_path / "out", "first").folder.last
    found = "found an autoregression, expected none; .*autoregression on, this one off"
    if not there:
        found = "found no autoregression, expected one; .*autoregression off, this one on"
    second = replace(second, training=replace(second.training, weights=weights))
    with pytest.raises(InputError, match=rf"last\.pt: {found}"):
        start_run(second, tmp_path / "out", "second")
