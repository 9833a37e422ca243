"""Baselines on series where their answer is known."""

import numpy as np
import pytest

from lib.baselines import BASELINES, score_baselines, targets
from lib.data import Prepared, WindowShape, prepare

STEPS_PER_DAY, HORIZON = 24, 3


def prepared_series(flow: np.ndarray) -> Prepared:
    return prepare(flow[:, :, None], WindowShape(0, 1, 2, HORIZON, 1), "")


def forecast(name: str, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    starts = prepared.label_starts["test"]
    return BASELINES[name](prepared, starts, HORIZON, STEPS_PER_DAY), targets(prepared, starts, HORIZON)


def daily(days: int = 12, sensors: int = 3) -> np.ndarray:
    one_day = np.random.default_rng(3).uniform(10, 90, (STEPS_PER_DAY, sensors))
    return np.tile(one_day, (days, 1))


@pytest.mark.parametrize("name", ["same time yesterday", "time-of-day mean"])
def test_a_series_that_repeats_daily_is_forecast_exactly(name: str) -> None:
    found, expected = forecast(name, prepared_series(daily()))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_last_value_repeats_what_was_before_the_label() -> None:
    prepared = prepared_series(daily())
    found, _ = forecast("last value", prepared)
    for sample, start in enumerate(prepared.label_starts["test"]):
        np.testing.assert_array_equal(found[sample], np.repeat(prepared.flow[start - 1][:, None], HORIZON, axis=1))


def test_ridge_finds_a_linear_law() -> None:
    draw = np.random.default_rng(4)
    steps = np.arange(400)[:, None]
    flow = 50 + draw.uniform(-0.05, 0.05, 4) * steps + 20  # straight lines: the last step and its slope say it all
    flow = flow + 10 * (-1.0) ** steps  # and an alternation, so that the last hour of one step is not enough
    prepared = prepare(flow[:, :, None], WindowShape(0, 1, 2, HORIZON, 12), "")
    found = BASELINES["ridge on the last hour"](prepared, prepared.label_starts["test"], HORIZON, 24 * 12)
    np.testing.assert_allclose(found, targets(prepared, prepared.label_starts["test"], HORIZON), rtol=1e-3)


def test_baselines_do_not_change_when_rows_after_the_training_rows_change() -> None:
    prepared = prepared_series(daily() + np.random.default_rng(5).normal(0, 5, (12 * STEPS_PER_DAY, 3)))
    starts = prepared.label_starts["val"][:1]
    before = BASELINES["time-of-day mean"](prepared, starts, HORIZON, STEPS_PER_DAY)
    prepared.flow[prepared.training_rows :] += 1000
    after = BASELINES["time-of-day mean"](prepared, starts, HORIZON, STEPS_PER_DAY)
    np.testing.assert_array_equal(before, after)


def test_all_baselines_are_scored_on_the_same_targets() -> None:
    prepared = prepared_series(daily())
    scored = score_baselines(prepared, "test", HORIZON, STEPS_PER_DAY)
    assert scored.keys() == BASELINES.keys()
    counts = {float(errors.count.sum()) for errors in scored.values()}
    assert counts == {len(prepared.label_starts["test"]) * 3.0 * HORIZON}
    overall = scored["time-of-day mean"].overall()
    assert overall["mae"] == pytest.approx(0, abs=1e-4)
