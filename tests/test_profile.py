"""The historical profile: an average over earlier days, which nothing from the label start on enters."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.prepared import Prepared, prepare
from lib.data.profile import OTHER_KIND, SAME_KIND, HistoricalProfile, historical_profile
from lib.data.windowing import Calendar, WindowShape
from lib.data.windows import Windows
from tests.conftest import REAL_DATA, tiny_series

POINTS_PER_HOUR = 12
DAY = 24 * POINTS_PER_HOUR
HORIZON = 6


def prepared(days: int = 12, sensors: int = 2, missing_rule: str = "error", gaps: int = 0, seed: int = 0) -> Prepared:
    series = tiny_series(days, sensors, DAY, seed)
    if gaps:
        draw = np.random.default_rng(seed)
        series[draw.integers(len(series), size=gaps), draw.integers(sensors, size=gaps)] = np.nan
    shape = WindowShape(0, 1, 2, HORIZON, POINTS_PER_HOUR)
    return prepare(series, shape, {}, missing_rule)


def profile_of(prepared: Prepared, first_step: int = 0, carried: bool = False, decay: float = 0) -> HistoricalProfile:
    middle = float(prepared.scaling.to_raw(np.zeros(1))[0])
    rows = len(prepared.flow) if carried else prepared.training_rows
    return historical_profile(prepared.truth, rows, Calendar(DAY, first_step), middle, decay)


def plain_profile(
    prepared: Prepared, calendar: Calendar, step: int, end: int, rows: int, decay: float = 0
) -> np.ndarray:
    """Return the profile at a step of the series, (N,), by the days whose step at that time is before `end`."""
    training = prepared.truth[:rows].astype(np.float64)
    weekend = ("Saturday", "Sunday")
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", *weekend)
    today = names[calendar.step_of_week(step) // DAY]
    averages = []
    for sensor in range(training.shape[1]):
        flows, weights = [], []
        for other in range(step % DAY, min(end, len(training)), DAY):
            near = training[max(0, other - 2) : other + 3, sensor]
            if np.isnan(near).all():
                continue
            day = names[calendar.step_of_week(other) // DAY]
            same_kind = (day in weekend) == (today in weekend)
            flows.append(np.nanmean(near))
            weight = 1 if day == today else SAME_KIND if same_kind else OTHER_KIND
            weights.append(weight * (1 - decay) ** ((step - other) // DAY))
        assert flows
        averages.append(np.average(flows, weights=weights))
    return np.array(averages)


@pytest.mark.parametrize(("gaps", "carried", "decay"), [(0, False, 0), (3000, False, 0), (0, True, 0.3)])
def test_it_is_the_weighted_average_of_the_days_before(gaps: int, carried: bool, decay: float) -> None:
    series, first_step = prepared(gaps=gaps, missing_rule="interpolate" if gaps else "error"), 5 * DAY + 7
    calendar, profile = Calendar(DAY, first_step), profile_of(series, first_step, carried, decay)
    rows = len(series.flow) if carried else series.training_rows
    for step in np.random.default_rng(1).integers(4 * DAY, len(series.flow), size=40):
        expected = plain_profile(series, calendar, int(step), int(step), rows, decay)
        np.testing.assert_allclose(profile.series[step], expected, rtol=1e-5)
        whole = plain_profile(series, calendar, int(step), len(series.flow), rows, decay)
        np.testing.assert_allclose(profile.week[calendar.step_of_week(int(step))], whole, rtol=1e-5)


def test_after_the_training_rows_it_stands_still_unless_it_is_carried_on() -> None:
    series, calendar = prepared(), Calendar(DAY)
    profile, carried = profile_of(series), profile_of(series, carried=True)
    rows = series.training_rows
    later = np.arange(rows, len(series.flow))
    np.testing.assert_array_equal(profile.series[later], profile.week[calendar.step_of_week(later)])
    np.testing.assert_array_equal(carried.series[:rows], profile.series[:rows])
    assert (carried.series[rows + DAY :] != profile.series[rows + DAY :]).all()


def test_on_the_first_day_it_is_the_middle_of_the_range() -> None:
    series = prepared(days=3)
    middle = (series.minimum[0] + series.maximum[0]) / 2
    np.testing.assert_allclose(profile_of(series).series[:DAY], middle, rtol=1e-5)


@pytest.mark.parametrize("carried", [False, True])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_nothing_from_the_label_start_on_enters(carried: bool, data: st.DataObject) -> None:
    series = prepared()
    begins = 3 * DAY - HORIZON  # in the evening, so that it has no value at the times of the next morning
    if carried:
        missing = np.zeros(series.flow.shape, dtype=bool)
        missing[:begins, 0] = True
        series = replace(series, missing=missing)
        later = st.integers(series.training_rows, len(series.flow) - HORIZON)
        start = data.draw(st.integers(begins, begins + HORIZON) | later)
    else:
        start = data.draw(st.sampled_from(series.label_starts["train"].tolist()))
    step = data.draw(st.integers(start, min(start + DAY, len(series.flow) - 1)))

    def given_to_the_sample(flow: np.ndarray) -> torch.Tensor:
        changed = replace(series, flow=flow)
        profile = profile_of(changed, carried=carried, decay=0.04).series
        windows = Windows(changed, HORIZON, Calendar(DAY), torch.device("cpu"), profile=profile)
        batch = windows.batch(torch.tensor([start]))
        assert batch.inputs.profile is not None
        return batch.inputs.profile

    other = series.flow.copy()
    other[step] += 100
    assert torch.equal(given_to_the_sample(series.flow), given_to_the_sample(other))


def test_on_real_flow_it_is_as_good_in_training_as_later() -> None:
    path = REAL_DATA / "YINCHUAN" / "YINCHUAN.npz"
    if not path.exists():
        pytest.skip("the real data is not here")
    series = prepare(np.load(path)["data"], WindowShape(0, 3, 9, 12, 12), {})
    calendar = Calendar.starting(datetime(2021, 8, 4, 8, 15), POINTS_PER_HOUR)
    assert calendar.first_step == 2 * DAY + 99  # a Wednesday
    profile = profile_of(series, calendar.first_step)
    steps = np.arange(series.label_starts["train"][0], series.training_rows)
    past = np.abs(series.flow[steps] - profile.series[steps]).mean()
    all_days = np.abs(series.flow[steps] - profile.week[calendar.step_of_week(steps)]).mean()
    later = np.arange(series.training_rows, len(series.flow))
    unseen = np.abs(series.flow[later] - profile.series[later]).mean()
    # The mean of all training days is deceptively close to the values that it holds.
    assert all_days < 0.8 * unseen
    assert 0.85 * unseen < past < 1.15 * unseen
