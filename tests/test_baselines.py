"""Baselines on series where their answer is known, and what every one of them may see and is scored on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.baselines import BASELINES, score_baselines, targets
from lib.data.prepared import Prepared, prepare
from lib.data.windowing import Calendar, WindowShape

STEPS_PER_DAY, HORIZON = 24, 3
CALENDAR = Calendar(STEPS_PER_DAY, first_step=30)


def prepared_series(flow: np.ndarray, missing_rule: str = "error") -> Prepared:
    return prepare(flow[:, :, None], WindowShape(0, 1, 2, HORIZON, 1), {}, missing_rule)


def forecast(name: str, prepared: Prepared, calendar: Calendar = CALENDAR) -> tuple[np.ndarray, np.ndarray]:
    starts = prepared.label_starts["test"]
    return BASELINES[name].forecast(prepared, starts, HORIZON, calendar), targets(prepared, starts, HORIZON)


def repeated(period: int, rows: int, sensors: int = 3) -> np.ndarray:
    once = np.random.default_rng(3).uniform(10, 90, (period, sensors))
    return once[np.arange(rows) % period]


def noisy(rows: int = 12 * STEPS_PER_DAY, sensors: int = 3, gaps: bool = False) -> Prepared:
    draw = np.random.default_rng(5)
    flow = repeated(STEPS_PER_DAY, rows, sensors) + draw.normal(0, 5, (rows, sensors))
    if not gaps:
        return prepared_series(flow)
    for first in draw.integers(0, rows, 25):
        flow[first : first + draw.integers(1, 10), draw.integers(sensors)] = np.nan
    return prepared_series(flow, "interpolate")


# ------------------------------------------------------------------------------------------- what each forecasts


@pytest.mark.parametrize("name", ["same time yesterday", "time-of-day mean", "same time last week"])
def test_a_series_that_repeats_daily_is_forecast_exactly(name: str) -> None:
    found, expected = forecast(name, prepared_series(repeated(STEPS_PER_DAY, 12 * STEPS_PER_DAY)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["same time last week", "historical average"])
def test_a_series_that_repeats_weekly_is_forecast_exactly(name: str) -> None:
    prepared = prepared_series(repeated(7 * STEPS_PER_DAY, 21 * STEPS_PER_DAY))
    found, expected = forecast(name, prepared)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for daily in ("same time yesterday", "time-of-day mean"):
        assert np.abs(forecast(daily, prepared)[0] - expected).mean() > 5


def test_last_value_repeats_what_was_before_the_label() -> None:
    prepared = noisy()
    found, _ = forecast("last value", prepared)
    for sample, start in enumerate(prepared.label_starts["test"]):
        np.testing.assert_array_equal(found[sample], np.repeat(prepared.flow[start - 1][:, None], HORIZON, axis=1))


def six_training_rows(missing: list[tuple[int, int]]) -> Prepared:
    """Return values 1 .. 6 of a sensor and ten times these of another before the last training label start."""
    flow = np.outer(np.arange(1, 21), [1, 10]).astype(np.float32)
    gaps = np.zeros(flow.shape, dtype=bool)
    gaps[tuple(np.transpose(missing))] = True
    starts = {"train": np.array([5, 6]), "val": np.array([7]), "test": np.array([8])}
    limits = np.array([1.0]), np.array([200.0])
    return Prepared(flow, np.array([-1]), starts, *limits, {}, gaps if missing else None)


@pytest.mark.parametrize(
    ("name", "missing", "first", "second"),
    [
        # Half days from the second half of a Tuesday on: the training rows are steps 3 .. 8 of the week.
        ("time-of-day mean", [], [3, 4, 3, 4], [30, 40, 30, 40]),
        ("time-of-day mean", [(0, 0), (1, 1)], [4, 4, 4, 4], [30, 50, 30, 50]),
        # The forecast is of steps 1, 2, 3 and 4 of the week: the first two no training row has.
        ("historical average", [], [3, 4, 1, 2], [30, 40, 10, 20]),
        ("historical average", [(0, 0), (1, 1)], [4, 4, 4, 2], [30, 50, 10, 50]),
        # The first sensor is observed in the first half of days alone.
        ("historical average", [(0, 0), (2, 0), (4, 0)], [4, 4, 4, 2], [30, 40, 10, 20]),
    ],
)
def test_means_computed_by_hand(
    name: str, missing: list[tuple[int, int]], first: list[float], second: list[float]
) -> None:
    prepared = six_training_rows(missing)
    found = BASELINES[name].forecast(prepared, np.array([12]), 4, Calendar(steps_per_day=2, first_step=3))
    np.testing.assert_allclose(found, [[first, second]])


def test_after_a_gap_begins_the_last_observed_value_stands() -> None:
    prepared = six_training_rows([(7, 0), (8, 0), (9, 0), (10, 1)])
    found = BASELINES["last value"].forecast(prepared, np.array([9, 10, 11]), 2, Calendar(2))
    np.testing.assert_array_equal(found[:, :, 0], [[7, 90], [7, 100], [11, 100]])
    np.testing.assert_array_equal(found[:, :, 0], found[:, :, 1])
    found = BASELINES["same time yesterday"].forecast(prepared, np.array([10]), 2, Calendar(2))
    np.testing.assert_array_equal(found, [[[7, 7], [90, 100]]])


def test_ridge_finds_a_linear_law() -> None:
    draw = np.random.default_rng(4)
    steps = np.arange(400)[:, None]
    flow = 50 + draw.uniform(-0.05, 0.05, 4) * steps + 20  # straight lines: the last step and its slope say it all
    flow = flow + 10 * (-1.0) ** steps  # and an alternation, so that the last hour of one step is not enough
    prepared = prepare(flow[:, :, None], WindowShape(0, 1, 2, HORIZON, 12), {})
    found, expected = forecast("ridge on the last hour", prepared, Calendar(24 * 12))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_vector_autoregression_finds_a_linear_system() -> None:
    draw = np.random.default_rng(6)
    sensors, rows, lags = 4, 6000, 3
    laws = draw.normal(0, 0.2, (lags, sensors, sensors))  # laws[k] maps the values k + 1 steps ago
    flow = np.zeros((rows, sensors))
    for step in range(lags, rows):
        flow[step] = sum(flow[step - 1 - lag] @ laws[lag] for lag in range(lags)) + draw.normal(0, 1, sensors)
    scale, mean = np.array([1, 10, 100, 5]), np.array([50, 300, 900, 80])
    prepared = prepared_series(scale * flow + mean)
    found, truth = forecast("vector autoregression", prepared)

    past = [flow[prepared.label_starts["test"] - lag] for lag in range(1, lags + 1)]  # the last step first
    for step in range(HORIZON):
        past = [sum(values @ law for values, law in zip(past, laws, strict=False)), *past[:-1]]
        best = scale * past[0] + mean  # all that can be known: the noise to come cannot
        assert np.all(np.abs(found[:, :, step] - best).mean(axis=0) < 0.1 * scale)
        errors, least = np.abs(found[:, :, step] - truth[:, :, step]).mean(), np.abs(best - truth[:, :, step]).mean()
        assert errors == pytest.approx(least, rel=0.01)


def z_law(z: np.ndarray, penalty: float) -> np.ndarray:
    """Return the coefficients (3 N, N) of a vector autoregression of three lags on training rows z (rows, N)."""
    rows, sensors = z.shape
    x = np.array([np.concatenate([z[step - 1], z[step - 2], z[step - 3]]) for step in range(3, rows)])
    # Ridge regression is least squares with a row more for each coefficient, which pulls it to 0.
    x = np.concatenate([x, np.sqrt(penalty * rows) * np.eye(3 * sensors)])
    y = np.concatenate([z[3:], np.zeros((3 * sensors, sensors))])
    law: np.ndarray = np.linalg.lstsq(x, y)[0]
    return law


@pytest.mark.parametrize("penalty", [1e-6, 1.0])
def test_vector_autoregression_is_the_least_squares_solution(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.baselines.VAR_PENALTIES", (penalty,))
    prepared = noisy(rows=100)
    found, _ = forecast("vector autoregression", prepared)

    rows = prepared.training_rows
    training = prepared.flow[:rows].astype(np.float64)
    z = (prepared.flow - training.mean(axis=0)) / training.std(axis=0)
    law = z_law(z[:rows], penalty)
    for sample, start in enumerate(prepared.label_starts["test"]):
        past = list(z[:start])
        for _ in range(HORIZON):
            past.append(np.concatenate([past[-1], past[-2], past[-3]]) @ law)
        expected = np.array(past[-HORIZON:]) * training.std(axis=0) + training.mean(axis=0)
        np.testing.assert_allclose(found[sample], expected.T, rtol=1e-5)


def test_an_unstable_vector_autoregression_stays_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    penalty, horizon, rows = 1e-6, 3000, 3250
    monkeypatch.setattr("lib.baselines.VAR_PENALTIES", (penalty,))
    flow = np.full((rows, 1), 1.0)
    flow[:150, 0] = np.where(np.arange(150) % 2, 1.1, 0.9) ** 0.5 * 1.06 ** np.arange(150)  # the training rows and more
    prepared = prepare(flow[:, :, None], WindowShape(0, 0, 2, horizon, 1), {})
    found = BASELINES["vector autoregression"].forecast(prepared, np.array([150]), horizon, CALENDAR)[0, 0]

    training = prepared.flow[: prepared.training_rows, 0].astype(np.float64)
    assert len(training) <= 150
    z = (prepared.flow[:150, 0] - training.mean()) / training.std()
    law = z_law(z[: len(training), None], penalty)[:, 0]
    limit = 2 * np.abs(z[: len(training)]).max()
    free, held = list(z), list(z)
    with np.errstate(over="ignore"):
        for _ in range(horizon):
            free.append(np.array(free[:-4:-1]) @ law)
            held.append(np.clip(np.array(held[:-4:-1]) @ law, -limit, limit))
    assert np.abs(free[-1]) > np.finfo(np.float32).max
    np.testing.assert_allclose(found, np.array(held[150:]) * training.std() + training.mean(), rtol=1e-3)


# --------------------------------------------------------------------------------------------- what each may see


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_no_forecast_sees_its_future(name: str, gaps: bool) -> None:
    prepared = noisy(gaps=gaps)
    # The first samples share targets with the last of validation, where penalties are chosen.
    starts = prepared.label_starts["test"][HORIZON - 1 :]
    before = BASELINES[name].forecast(prepared, starts, HORIZON, CALENDAR)

    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(sample=st.integers(0, len(starts) - 1), seed=st.integers(0, 2**32 - 1), hide=st.booleans())
    def check(sample: int, seed: int, hide: bool) -> None:
        start, draw = starts[sample], np.random.default_rng(seed)
        flow = prepared.truth.copy()
        flow[start:] = draw.uniform(0, 1000, flow[start:].shape)
        if hide:
            flow[start:][draw.random(flow[start:].shape) < 0.5] = np.nan
        other = prepared_series(flow, "interpolate")
        after = BASELINES[name].forecast(other, starts[[sample]], HORIZON, CALENDAR)
        np.testing.assert_array_equal(after[0], before[sample])

    check()


@pytest.mark.parametrize("name", BASELINES)
def test_every_forecast_sees_its_past(name: str) -> None:
    prepared = noisy()
    starts = prepared.label_starts["test"][-1:]
    before = BASELINES[name].forecast(prepared, starts, HORIZON, CALENDAR)
    other = replace(prepared, flow=prepared.flow + 100)
    after = BASELINES[name].forecast(other, starts, HORIZON, CALENDAR)
    np.testing.assert_allclose(after, before + 100, rtol=1e-4)


@pytest.mark.parametrize("name", ["time-of-day mean", "historical average"])
def test_means_do_not_change_when_rows_after_the_training_rows_change(name: str) -> None:
    prepared = noisy()
    starts = prepared.label_starts["val"][:1]
    before = BASELINES[name].forecast(prepared, starts, HORIZON, CALENDAR)
    prepared.flow[prepared.training_rows :] += 1000
    np.testing.assert_array_equal(BASELINES[name].forecast(prepared, starts, HORIZON, CALENDAR), before)


# ----------------------------------------------------------------------------------------- what they are scored on


@pytest.mark.parametrize("gaps", [False, True])
def test_all_baselines_are_scored_on_the_same_targets(gaps: bool) -> None:
    prepared = noisy(gaps=gaps)
    scored = score_baselines(prepared, "test", HORIZON, CALENDAR)
    assert list(scored) == [
        "last value",
        "same time yesterday",
        "same time last week",
        "time-of-day mean",
        "historical average",
        "ridge on the last hour",
        "vector autoregression",
    ]
    truth = targets(prepared, prepared.label_starts["test"], HORIZON)
    assert np.isnan(truth).any() == gaps
    for name, (errors, measured) in scored.items():
        assert measured is None
        np.testing.assert_array_equal(errors.count, np.isfinite(truth).sum(axis=(0, 1)))
        expected = np.nanmean(np.abs(forecast(name, prepared)[0].astype(np.float64) - truth))
        assert errors.overall()["mae"] == pytest.approx(expected, rel=1e-6)


def test_what_would_look_back_before_the_series_is_left_out() -> None:
    weekly, daily = "same time last week", "same time yesterday"
    rows = 12 * STEPS_PER_DAY
    shape = WindowShape(0, 0, 2, HORIZON, 1)
    flow = noisy().flow[:rows, :, None]
    for length, left_out in ((rows, set()), (6 * STEPS_PER_DAY, {weekly}), (STEPS_PER_DAY, {weekly, daily})):
        scored = score_baselines(prepare(flow[:length], shape, {}), "test", HORIZON, CALENDAR)
        assert BASELINES.keys() - scored.keys() == left_out


def test_a_baseline_that_costs_more_than_a_network_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    name, prepared = "vector autoregression", noisy()
    sensors = prepared.flow.shape[1]
    assert BASELINES[name].most_sensors == 2000
    for most, left_out in ((sensors, set()), (sensors - 1, {name})):
        monkeypatch.setitem(BASELINES, name, BASELINES[name]._replace(most_sensors=most))
        assert BASELINES.keys() - score_baselines(prepared, "test", HORIZON, CALENDAR).keys() == left_out


@pytest.mark.parametrize("rows", [6, 7, 8, 12])
def test_the_shortest_series_have_finite_baselines(rows: int) -> None:
    prepared = prepare(noisy().flow[:rows, :, None], WindowShape(0, 0, 1, HORIZON, 1), {})
    scored = score_baselines(prepared, "test", HORIZON, CALENDAR)
    assert all(errors.absolute.isfinite().all() for errors, _ in scored.values())


def test_a_sensor_that_never_varies_and_copies_of_one_are_forecast_too() -> None:
    flow = noisy(sensors=4).flow.copy()
    flow[:, 1], flow[:, 2] = 7, flow[:, 0]
    prepared = prepared_series(flow)
    for name in ("ridge on the last hour", "vector autoregression"):
        found, _ = forecast(name, prepared)
        np.testing.assert_allclose(found[:, 1], 7, rtol=1e-5)
        np.testing.assert_allclose(found[:, 2], found[:, 0], rtol=1e-3)
