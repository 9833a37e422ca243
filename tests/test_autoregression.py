"""The linear autoregression on the topology graph: what it finds, what it may look at, and how it is rolled out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lib.autoregression
from lib.autoregression import LEAST_MISS, PENALTY, autoregression_lags, graph_autoregression
from lib.config import load_config
from lib.data import Calendar, Prepared, WindowShape, prepare
from lib.experiments import COEFFICIENTS, SETTINGS, resume_experiment, start_experiment
from lib.preparation import calendar
from lib.usual_flow import UsualFlow, usual_flow
from model.build import build_model, restore_model
from model.graph_autoregression import GraphAutoregression
from tests.conftest import write_dataset

DAY = 48  # so that half an hour is one step
SENSORS = 6
LEVEL = 100.0
NEAR = np.abs(np.subtract.outer(np.arange(SENSORS), np.arange(SENSORS))) < 3


def prepared_of(deviation: np.ndarray) -> tuple[Prepared, UsualFlow]:
    """Return a series (T, N) that deviates from a flow of 100, which is what is usual."""
    flow = (LEVEL + deviation).astype(np.float32)
    prepared = prepare(flow[:, :, None], WindowShape(0, 1, 2, 3, DAY // 24), "source", "interpolate")
    return prepared, UsualFlow(np.full((7 * DAY, flow.shape[1]), LEVEL, np.float32), np.full_like(flow, LEVEL))


def fitted(deviation: np.ndarray, near: np.ndarray = NEAR, steps_per_day: int = DAY) -> np.ndarray:
    prepared, usual = prepared_of(deviation)
    return graph_autoregression(prepared, usual, near, Calendar(steps_per_day))


def fitted_rows(deviation: np.ndarray, steps_per_day: int = DAY) -> np.ndarray:
    return deviation[steps_per_day : prepared_of(deviation)[0].training_rows]


def simulated(coefficients: np.ndarray, steps: int = 3000, noise: float = 3.0, seed: int = 0) -> np.ndarray:
    """Return deviations (T, N) that follow an autoregression with double exponential noise."""
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
    deviation = simulated(along_a_road())
    assert not fitted(deviation)[:, ~NEAR].any()
    alone = np.eye(SENSORS, dtype=bool)
    np.testing.assert_array_equal(fitted(deviation, alone) != 0, alone[None])


def test_incidents_do_not_decide() -> None:
    deviation = simulated(along_a_road())
    clean = fitted(deviation)
    deviation[np.random.default_rng(1).integers(500, 1500, size=20), 2] += 400
    training = fitted_rows(deviation)
    least_squares = np.linalg.lstsq(training[:-1], training[1:, 2], rcond=None)[0]
    # What the sensor before it tells of sensor 2; that the sensor itself stays where it is, is not true any more.
    robust_shift, plain_shift = fitted(deviation)[0, 1, 2] - clean[0, 1, 2], least_squares[1] - clean[0, 1, 2]
    assert abs(robust_shift) < 0.06 < abs(plain_shift)


@pytest.mark.parametrize("factor", [0.1, 3.0, 10.0])
def test_units_do_not_matter(factor: float) -> None:
    deviation = simulated(along_a_road(), steps=600)
    np.testing.assert_allclose(fitted(factor * deviation), fitted(deviation), atol=2e-3)
    scaled = deviation * np.where(np.arange(SENSORS) == 1, factor, 1)
    expected = fitted(deviation)
    expected[:, 1] /= factor
    expected[:, :, 1] *= factor
    np.testing.assert_allclose(fitted(scaled), expected, atol=2e-3 * max(factor, 1 / factor))


def test_it_looks_at_training_rows_after_the_first_day_alone() -> None:
    prepared, usual = prepared_of(simulated(along_a_road(), steps=600))
    fit = graph_autoregression(prepared, usual, NEAR, Calendar(DAY))
    counted = slice(DAY, prepared.training_rows)
    flow = prepared.flow + 50
    flow[counted] = prepared.flow[counted]
    elsewhere = graph_autoregression(replace(prepared, flow=flow), usual, NEAR, Calendar(DAY))
    np.testing.assert_array_equal(elsewhere, fit)
    flow[counted] *= np.random.default_rng(4).uniform(0.5, 2, flow[counted].shape)
    assert (graph_autoregression(replace(prepared, flow=flow), usual, NEAR, Calendar(DAY)) != fit).any()


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
def test_a_series_of_little_more_than_a_day_has_hardly_any(rows: int) -> None:
    deviation = simulated(along_a_road(), steps=600)
    steps_per_day = len(fitted_rows(deviation, 0)) - rows
    lags = autoregression_lags(steps_per_day)
    assert lags == 7
    found = fitted(deviation, steps_per_day=steps_per_day)
    assert np.isfinite(found).all()
    assert found.any() == (rows > lags)


def test_what_comes_before_the_usual_is_known_does_not_count() -> None:
    """Where a sensor's values begin later, so does what is usual of it; with none at all, it has no part."""
    deviation = simulated(along_a_road())
    begin = 500
    deviation[:begin, 2] = np.nan
    late, usual = prepared_of(deviation)
    fit = graph_autoregression(late, usual, NEAR, Calendar(DAY))
    misleading = usual.series.copy()
    misleading[: begin + DAY, 2] -= 1000
    np.testing.assert_array_equal(
        graph_autoregression(late, replace(usual, series=misleading), NEAR, Calendar(DAY)), fit
    )
    misleading[begin + DAY, 2] -= 1000
    assert (graph_autoregression(late, replace(usual, series=misleading), NEAR, Calendar(DAY)) != fit).any()
    np.testing.assert_allclose(fit[:, NEAR], along_a_road()[:, NEAR], atol=0.06)

    deviation[DAY:, 2] = np.nan
    deviation[:DAY, 2] = 1
    without = fitted(deviation)
    assert np.isfinite(without).all()
    assert not without[:, :, 2].any()


def standardised_misses(coefficients: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations forecasts of the next step are wrong, (T - lags, N)."""
    lags = len(coefficients)
    forecast = sum(deviation[lags - 1 - lag : -1 - lag] @ coefficients[lag] for lag in range(lags))
    misses: np.ndarray = np.abs(deviation[lags:] - forecast) / deviation.std(axis=0)
    return misses


def objective(coefficients: np.ndarray, deviation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return what the fit makes least, (N,): Huber's loss, and the norms of neighbours by a weight of the penalty."""
    scale, misses = deviation.std(axis=0), standardised_misses(coefficients, deviation)
    huber = np.where(misses > LEAST_MISS, misses - LEAST_MISS / 2, misses**2 / (2 * LEAST_MISS)).sum(axis=0)
    norms = np.linalg.norm(coefficients / (scale / scale[:, None]), axis=0).sum(axis=0)
    return huber + PENALTY * np.sqrt(len(misses)) * weight * norms


def test_a_few_rounds_reach_the_least_sum_of_misses_and_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    deviation = simulated(along_a_road(3), steps=900)
    training = fitted_rows(deviation, 3 * DAY)
    few = fitted(deviation, steps_per_day=3 * DAY)
    monkeypatch.setattr(lib.autoregression, "ROUNDS", 60)
    many = fitted(deviation, steps_per_day=3 * DAY)
    # The weights of the misses have the mean 1, which the penalty is to stand against.
    weight = (1 / np.maximum(standardised_misses(many, training), LEAST_MISS)).mean(axis=0)
    least = objective(many, training, weight)
    np.testing.assert_allclose(objective(few, training, weight), least, rtol=2e-3)
    draw = np.random.default_rng(2)
    for size in (0.002, 0.02, 0.2):
        for _ in range(10):
            other = many + size * draw.standard_normal(many.shape) * NEAR
            assert (objective(other, training, weight) > least * 0.99999).all()


@pytest.mark.parametrize("length", [3, 12])
def test_gaps_do_not_teach_persistence(length: int) -> None:
    deviation = simulated(np.full((1, 1, 1), 0.5), steps=8000)
    whole = fitted(deviation, np.ones((1, 1), dtype=bool))
    for first in np.random.default_rng(3).choice(8000 // length, size=800 // length, replace=False) * length:
        deviation[first : first + length] = np.nan
    found = fitted(deviation, np.ones((1, 1), dtype=bool))
    np.testing.assert_allclose(found, whole, atol=0.05)


def test_a_sensor_that_never_varies_has_no_part() -> None:
    deviation = simulated(along_a_road(), steps=600)
    deviation[:, 3] = 0
    found = fitted(deviation)
    assert np.isfinite(found).all()
    assert np.abs(found[:, 3]).max() == np.abs(found[:, :, 3]).max() == 0


@torch.no_grad()
@pytest.mark.parametrize("lags", [1, 3])
def test_a_rollout_feeds_each_step_to_the_next(lags: int) -> None:
    model = GraphAutoregression(SENSORS, lags, horizon=7)
    values = torch.randn(4, SENSORS, 5)
    assert torch.equal(model(values), torch.zeros(4, SENSORS, 7))
    model.coefficients.copy_(torch.from_numpy(along_a_road(lags)) + 0.1 * torch.randn(lags, SENSORS, SENSORS))
    steps = list(values.unbind(dim=2))
    for _ in range(7):
        steps.append(sum(steps[-1 - lag] @ model.coefficients[lag] for lag in range(lags)))  # type: ignore[arg-type]
    torch.testing.assert_close(model(values), torch.stack(steps[5:], dim=2))


def test_a_run_is_given_what_was_fitted_on_its_graph(tmp_path: Path) -> None:
    config = load_config(write_dataset(tmp_path), ["Model.variant=perceptron", "Graph.hops=2"])
    experiment = start_experiment(config, tmp_path / "out", "run", build_model)
    model, prepared = experiment.trainer.model, experiment.prepared
    place = np.arange(prepared.flow.shape[1])
    near = np.abs(np.subtract.outer(place, place)) < 2  # the links are a chain
    fit = graph_autoregression(prepared, usual_flow(prepared, calendar(config)), near, calendar(config))
    assert fit.any()
    np.testing.assert_array_equal(model.get_buffer(COEFFICIENTS), fit)


def test_a_run_of_before_there_was_any_goes_on_without(tmp_path: Path) -> None:
    changes = ["Model.variant=perceptron", "Model.autoregression=off", "Training.max_batches=1"]
    path = write_dataset(tmp_path)
    experiment = start_experiment(load_config(path, changes), tmp_path / "out", "run", build_model)
    settings = experiment.folder / SETTINGS
    settings.write_text(settings.read_text().replace("autoregression = off\n", ""))
    resumed = resume_experiment(experiment.folder, restore_model, None)
    assert not resumed.config.model.autoregression
    assert load_config(path, changes[:1]).model.autoregression


def test_a_run_that_starts_from_weights_keeps_theirs(tmp_path: Path) -> None:
    config = load_config(write_dataset(tmp_path), ["Model.variant=perceptron"])
    first = start_experiment(config, tmp_path / "out", "first", build_model).trainer.model
    first.get_buffer(COEFFICIENTS).add_(1)

    def with_weights(*graphs: torch.Tensor, **arguments: Any) -> torch.nn.Module:
        model = build_model(*graphs, **arguments)
        model.load_state_dict(first.state_dict())
        return model

    second = start_experiment(config, tmp_path / "out", "second", with_weights).trainer.model
    assert torch.equal(second.get_buffer(COEFFICIENTS), first.get_buffer(COEFFICIENTS))
