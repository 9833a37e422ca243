"""Forecasts corrected by the errors of earlier ones."""

from pathlib import Path

import numpy as np
import pytest

from lib.baselines import targets
from lib.bias_correction import (
    AROUND_HOURS,
    DAILY_DECAY,
    DAILY_WEIGHT,
    DAYS,
    HALF_LIFE_HOURS,
    PRIOR_HOURS,
    RECENT_HOURS,
    corrected,
    earlier_starts,
    steps_back,
)
from lib.calibration import targets_of
from lib.runs import open_run, score_run, start_run
from model.variants import VARIANTS
from tests.conftest import load, tiny_series, write_dataset
from tests.test_missing import scores_by_definition

DAY, HORIZON, SENSORS = 48, 4, 3
HOUR = DAY // 24


def samples(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return forecasts and targets (B, N, P), with gaps, and which sensors are imputed (B, N)."""
    draw = np.random.default_rng(1)
    series = draw.normal(100, 20, (starts[-1] + HORIZON, SENSORS)).astype(np.float32)
    series[draw.random(series.shape) < 0.05] = np.nan
    target = series[starts[:, None] + np.arange(HORIZON)].transpose(0, 2, 1)
    forecast = draw.normal(100, 20, target.shape).astype(np.float32)
    return forecast, target, draw.random((len(starts), SENSORS)) < 0.1


def by_definition(
    forecast: np.ndarray, target: np.ndarray, starts: np.ndarray, imputed: np.ndarray, at: int, ahead: int, sensor: int
) -> float:
    """Return one corrected forecast, by the formulas of the module."""
    if imputed[at, sensor]:
        return float(forecast[at, sensor, ahead])
    total, weights = 0.0, float(PRIOR_HOURS * HOUR)
    for past in range(len(starts)):
        step = starts[past] + ahead  # of the target
        error = target[past, sensor, ahead] - forecast[past, sensor, ahead]
        if step >= starts[at] or np.isnan(error) or imputed[past, sensor]:
            continue
        age = starts[at] - 1 - step
        weight = 0.5 ** (age / (HALF_LIFE_HOURS * HOUR)) * (age < RECENT_HOURS * HOUR)
        for days in range(1, DAYS + 1):
            near = abs(starts[at] + ahead - days * DAY - step) <= round(AROUND_HOURS * HOUR)
            weight += near * DAILY_WEIGHT * DAILY_DECAY ** (days - 1)
        total, weights = total + weight * error, weights + weight
    return float(forecast[at, sensor, ahead]) + total / weights


def test_a_correction_is_that_of_its_definition() -> None:
    starts = np.flatnonzero(np.random.default_rng(0).random(9 * DAY) < 0.8) + 100  # some are left out
    forecast, target, imputed = samples(starts)
    made = corrected(forecast, target, starts, DAY, imputed)
    for at in (0, 1, 5, 40, 200, len(starts) - 1):
        for ahead in range(HORIZON):
            for sensor in range(SENSORS):
                expected = by_definition(forecast, target, starts, imputed, at, ahead, sensor)
                assert made[at, sensor, ahead] == pytest.approx(expected, abs=1e-3)
    assert made.dtype == np.float32
    none = corrected(forecast, target, starts, DAY)
    assert np.array_equal(none, corrected(forecast, target, starts, DAY, np.zeros_like(imputed)))


def test_nothing_from_the_label_start_on_is_known() -> None:
    starts = np.arange(50, 50 + 9 * DAY)
    forecast, target, imputed = samples(starts)
    before = corrected(forecast, target, starts, DAY, imputed)
    for place in (3, DAY, 8 * DAY):
        later = starts[:, None] + np.arange(HORIZON) >= starts[place]
        changed = np.where(later[:, None], np.float32(7), target)
        after = corrected(forecast, changed, starts, DAY, imputed)
        assert np.array_equal(before[: place + 1], after[: place + 1])
        assert not np.array_equal(before[place + 1 :], after[place + 1 :])


def test_the_earlier_forecasts_asked_for_are_all_that_count() -> None:
    starts = np.arange(10 * DAY)
    forecast, target, _ = samples(starts)
    whole = corrected(forecast, target, starts, DAY)
    for now in (5, 2 * DAY, 9 * DAY + 3):
        earlier = earlier_starts(np.array([now]), HORIZON, DAY)
        assert len(earlier) == 0 or earlier[0] >= now - steps_back(DAY)
        some = np.append(earlier, now)
        np.testing.assert_allclose(corrected(forecast[some], target[some], some, DAY)[-1], whole[now], atol=1e-3)
        assert len(some) < 220
    for_many = earlier_starts(np.array([400, 401]), HORIZON, DAY)
    both = np.union1d(earlier_starts(np.array([400]), HORIZON, DAY), earlier_starts(np.array([401]), HORIZON, DAY))
    assert np.array_equal(for_many, both)


def test_a_bias_that_stays_goes_and_one_that_ends_is_forgotten() -> None:
    starts = np.arange(20 * DAY)
    target = np.full((len(starts), 1, HORIZON), 100, dtype=np.float32)
    target[10 * DAY :] = 90
    left = np.abs(corrected(np.full_like(target, 90), target, starts, DAY) - target).max(axis=(1, 2))
    assert left[0] == 10
    assert left[9 * DAY] < 3
    assert left[10 * DAY] > 7
    assert left[-1] < 0.01


@pytest.mark.parametrize("rule", ["keep", "missing"])
def test_a_run_is_scored_with_its_correction(rule: str, tmp_path: Path) -> None:
    flow = tiny_series()
    flow[306:326, 2] = flow[306 - DAY : 326 - DAY, 2]  # imputed, as only later values say: it counts in corrections
    path = write_dataset(tmp_path, flow, fine_tune_epochs=0)
    settings = ["Training.max_batches=3", "Training.bias_correction=on", "Model.variant=stid", f"Data.imputed={rule}"]
    config = load(path, settings)
    run = start_run(config, tmp_path / "out", "run")
    run.trainer.fit()
    of_network = {split: run.trainer.test(split) for split in ("val", "test")}
    metrics = score_run(run)
    starts = {split: run.prepared.label_starts[split] for split in of_network}
    target = {split: targets(run.prepared, starts[split], config.data.num_for_predict) for split in of_network}
    assert any(np.isnan(part).any() for part in target.values()) == (rule == "missing")
    known = {split: targets_of(run.prepared.observed, starts[split], config.data.num_for_predict) for split in starts}
    both = [np.concatenate([part[split] for split in of_network]) for part in (known, starts)]
    forecasts = np.concatenate([evaluation.forecast for evaluation in of_network.values()])  # type: ignore[misc]
    expected = np.split(corrected(forecasts, both[0], both[1], config.data.steps_per_day), [len(starts["val"])])
    saved = run.folder.read_predictions()["forecast"]
    assert np.array_equal(saved, expected[1])
    assert metrics["test"]["overall"] == pytest.approx(scores_by_definition(saved, target["test"]), rel=1e-5)
    assert metrics["best_val_mae"] == pytest.approx(np.nanmean(np.abs(expected[0] - target["val"])), rel=1e-5)
    assert metrics["uncorrected"]["overall"] == of_network["test"].errors.overall() != metrics["test"]["overall"]
    table = run.folder.metrics_table.read_text()
    assert f"STID (uncorrected),overall,{metrics['uncorrected']['overall']['mae']}" in table
    again = open_run(run.folder, VARIANTS, "cpu").evaluations()["test"].forecast
    assert again is not None
    assert np.array_equal(again, saved)
