"""What is usual: a mean over other days, that no target of a sample enters, whatever is missing."""

from datetime import datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data import Calendar, Prepared, Windows, WindowShape, prepare
from lib.usual_flow import OTHER_DAYS, usual_flow
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
    return prepare(series, shape, "source", missing_rule)


def plain_usual(prepared: Prepared, calendar: Calendar, step: int, own_step: int | None) -> np.ndarray:
    """Return what is usual at a step of the series, (N,), by loops over days, as the docstring has it."""
    training = prepared.truth[: prepared.training_rows].astype(np.float64)
    usual = []
    for sensor in range(training.shape[1]):
        all_days, same_weekday = [], []
        for other in range(step % DAY, len(training), DAY):
            near = training[max(0, other - 2) : other + 3, sensor]
            if other == own_step or np.isnan(near).all():
                continue
            all_days.append(np.nanmean(near))
            if calendar.step_of_week(other) == calendar.step_of_week(step):
                same_weekday.append(all_days[-1])
        mean = np.mean(all_days) if all_days else np.nanmean(training[:, sensor])
        usual.append((sum(same_weekday) + OTHER_DAYS * mean) / (len(same_weekday) + OTHER_DAYS))
    return np.array(usual)


@pytest.mark.parametrize("gaps", [0, 3000])
def test_it_is_the_mean_of_the_other_days(gaps: int) -> None:
    series, calendar = prepared(gaps=gaps, missing_rule="interpolate" if gaps else "error"), Calendar(DAY, 5 * DAY + 7)
    usual = usual_flow(series, calendar)
    for step in np.random.default_rng(1).integers(len(series.flow), size=40):
        expected = plain_usual(series, calendar, int(step), int(step))
        np.testing.assert_allclose(usual.series[step], expected, rtol=1e-5)
        whole = plain_usual(series, calendar, int(step), None)
        np.testing.assert_allclose(usual.week[calendar.step_of_week(int(step))], whole, rtol=1e-5)


def test_steps_after_the_training_rows_have_that_of_their_time_of_the_week() -> None:
    series, calendar = prepared(), Calendar(DAY)
    usual = usual_flow(series, calendar)
    later = np.arange(series.training_rows, len(series.flow))
    np.testing.assert_array_equal(usual.series[later], usual.week[calendar.step_of_week(later)])


def test_with_one_day_it_is_the_mean_of_the_sensor() -> None:
    series = prepared(days=2)
    assert series.training_rows < 2 * DAY
    usual = usual_flow(series, Calendar(DAY))
    alone = np.arange(series.training_rows - DAY + 3, DAY)  # steps whose time of day no other training row has
    np.testing.assert_allclose(
        usual.series[alone], np.tile(series.flow[: series.training_rows].mean(axis=0), (len(alone), 1)), rtol=1e-5
    )


@given(st.data())
def test_no_target_enters_what_its_sample_is_given(data: st.DataObject) -> None:
    series = prepared()
    start = data.draw(st.sampled_from(series.label_starts["train"].tolist()))
    step = start + data.draw(st.integers(0, HORIZON - 1))

    def given_to_the_sample(flow: np.ndarray) -> torch.Tensor:
        changed = Prepared(flow, series.offsets, series.label_starts, series.minimum, series.maximum, "source")
        usual = usual_flow(changed, Calendar(DAY)).series
        windows = Windows(changed, HORIZON, Calendar(DAY), torch.device("cpu"), usual=usual)
        batch = windows.batch(torch.tensor([start]))
        assert batch.usual is not None
        return batch.usual

    other = series.flow.copy()
    other[step] += 100
    assert torch.equal(given_to_the_sample(series.flow), given_to_the_sample(other))


def test_on_real_flow_it_is_no_closer_to_training_targets_than_days_differ() -> None:
    config_path = REAL_DATA / "YINCHUAN" / "YINCHUAN.npz"
    if not config_path.exists():
        pytest.skip("the real data is not here")
    flow = np.load(config_path)["data"]
    series = prepare(flow, WindowShape(0, 3, 9, 12, 12), "source")
    start = datetime(2021, 8, 4, 8, 15)
    calendar = Calendar(DAY, start.weekday() * DAY + (start.hour * 60 + start.minute) // 5)
    usual = usual_flow(series, calendar)
    steps = np.arange(series.training_rows)
    honest = np.abs(series.flow[steps] - usual.series[steps]).mean()
    own_day_in = np.abs(series.flow[steps] - usual.week[calendar.step_of_week(steps)]).mean()
    later = np.arange(series.training_rows, len(series.flow))
    unseen = np.abs(series.flow[later] - usual.series[later]).mean()
    # With its own day in, the mean is deceptively close to what it is to predict.
    assert own_day_in < 0.95 * honest
    assert 0.8 * unseen < honest < 1.2 * unseen  # later days differ more
