"""What is usual at each step: a sensor's flow on the other days, from which a model can forecast the deviation.

A mean over the training days is no honest input in training, for it holds the very values that are to be forecast: it
is closer to them than it will ever be to those of later days. Here each step's average leaves out its own day.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lib.data import Calendar, Prepared

SMOOTHING_MINUTES = 25  # the flow of a few days is noisy, and a day's rhythm is not
OTHER_DAYS = 2.0  # how many days of the same weekday the mean of all days counts as


@dataclass(frozen=True, eq=False)
class UsualFlow:
    """What is usual, in vehicles a step.

    Attributes:
        week: (steps of a week, N), for steps that no training day holds.
        series: (T, N), for the steps of the series, those of the training rows without their own day.
    """

    week: NDArray[np.float32]
    series: NDArray[np.float32]


def usual_flow(prepared: Prepared, calendar: Calendar) -> UsualFlow:
    """Return the mean flow at each step's time of day over the training days with its weekday, shrunk towards all days.

        usual = (sum over the weekday's other days + 2 mean over all other days) / (number of those days + 2)

    of the flow smoothed over 25 minutes. Values that are missing do not count; where no other day has a value, it is
    the sensor's mean.

    The average of a step t holds no value that is nearer to t than a day less half the smoothing.
    """
    truth = prepared.truth
    training = truth[: prepared.training_rows]
    steps_per_day, steps = calendar.steps_per_day, calendar.step_of_week(np.arange(len(truth)))
    value, there = _smoothed(training, steps_per_day)
    week_sum, week_days, day_sum, day_days = (
        sums_by_step(array, steps[: len(training)], period)
        for period in (calendar.steps_per_week, steps_per_day)
        for array in (value, there)
    )
    sensor_mean = np.nanmean(training, axis=0, dtype=np.float64)

    def average(steps: NDArray[np.int64], own: NDArray[np.float64], has: NDArray[np.float64]) -> NDArray[np.float32]:
        days = day_days[steps % steps_per_day] - has
        all_days = np.where(days > 0, (day_sum[steps % steps_per_day] - own) / np.maximum(days, 1), sensor_mean)
        summed = week_sum[steps] - own + OTHER_DAYS * all_days
        return (summed / (week_days[steps] - has + OTHER_DAYS)).astype(np.float32)

    nothing = np.zeros((1, truth.shape[1]))
    week = average(np.arange(calendar.steps_per_week), nothing, nothing)
    series = week[steps]
    for first in range(0, len(training), steps_per_day):  # a day at a time, for float64 takes room
        rows = slice(first, min(first + steps_per_day, len(training)))
        series[rows] = average(steps[rows], value[rows].astype(np.float64), there[rows].astype(np.float64))
    return UsualFlow(week, series)


def sums_by_step(values: NDArray[np.float32 | np.bool_], steps: NDArray[np.int64], period: int) -> NDArray[np.float64]:
    """Return the sums (period, N) of values (T, N) over the steps (T,) that are alike within a period."""
    rows = np.arange(len(values))
    adding = csr_array((np.ones(len(rows)), (steps % period, rows)), shape=(period, len(rows)))
    sums: NDArray[np.float64] = adding @ values
    return sums


def _smoothed(flow: NDArray[np.float32], steps_per_day: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return centred means (T, N) of the known values of a flow, 0 where there are none, and where there are some."""
    reach = SMOOTHING_MINUTES * steps_per_day // (24 * 60) // 2
    known = ~np.isnan(flow)
    total, count = np.zeros_like(flow), np.zeros_like(flow)
    for shift in range(-reach, reach + 1):
        to, taken = slice(max(0, -shift), len(flow) - max(0, shift)), slice(max(0, shift), len(flow) - max(0, -shift))
        total[to] += np.where(known[taken], flow[taken], 0)
        count[to] += known[taken]
    return (total / np.maximum(count, 1)).astype(np.float32, copy=False), count > 0
