"""What is usual at each step: a sensor's flow on earlier days, from which a model can forecast the deviation.

A mean over all training days is no honest input in training, for it holds the very values that are to be forecast.
Nor is one without the step's own day: whoever knows the mean of all days can tell the missing one from the rest. So
each step's average is over the days before it, as statistics of targets are ordered in CatBoost (arXiv 1706.09516).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.data import Calendar, Prepared

SMOOTHING_MINUTES = 25  # the flow of a few days is noisy, and a day's rhythm is not
ALL_DAYS = 2.0  # how many days of the same weekday the mean of all days counts as


@dataclass(frozen=True, eq=False)
class UsualFlow:
    """What is usual, in vehicles a step.

    Attributes:
        week: (steps of a week, N), by all training days: for all that comes after them.
        series: (T, N), for the steps of the series, those of the training rows by the days before.
    """

    week: NDArray[np.float32]
    series: NDArray[np.float32]


def usual_flow(prepared: Prepared, calendar: Calendar) -> UsualFlow:
    """Return the mean flow at each step's time of day on the same weekday of the past, shrunk towards all past days.

        usual = (sum over the weekday's days + 2 mean over all days) / (number of the weekday's days + 2)

    of the training flow smoothed over 25 minutes. Values that are missing do not count; where there are none, the mean
    of the sensor's past stands in, and on the first day the middle of the range of flow. No value enters that lies less
    than a day, less half the smoothing, before the step.
    """
    truth = prepared.truth
    training = truth[: prepared.training_rows]
    steps_per_day, sensors = calendar.steps_per_day, truth.shape[1]
    middle = prepared.scaling.to_raw(np.zeros(sensors))
    week_sum, week_days = (np.zeros((calendar.steps_per_week, sensors)) for _ in range(2))
    day_sum, day_days = (np.zeros((steps_per_day, sensors)) for _ in range(2))

    def average(steps: NDArray[np.int64]) -> NDArray[np.float32]:
        past, values = day_sum.sum(axis=0), day_days.sum(axis=0)
        sensor_mean = np.where(values > 0, past / np.maximum(values, 1), middle)
        total, days = day_sum[steps % steps_per_day], day_days[steps % steps_per_day]
        all_days = np.where(days > 0, total / np.maximum(days, 1), sensor_mean)
        return ((week_sum[steps] + ALL_DAYS * all_days) / (week_days[steps] + ALL_DAYS)).astype(np.float32)

    steps = calendar.step_of_week(np.arange(len(truth)))
    value, there = _smoothed(training, steps_per_day)
    series = np.empty(truth.shape, dtype=np.float32)
    for first in range(0, len(training), steps_per_day):
        rows = slice(first, min(first + steps_per_day, len(training)))
        series[rows] = average(steps[rows])
        for total, days, period in ((week_sum, week_days, len(week_sum)), (day_sum, day_days, steps_per_day)):
            total[steps[rows] % period] += value[rows]  # no step comes twice within a day
            days[steps[rows] % period] += there[rows]
    week = average(np.arange(calendar.steps_per_week))
    series[len(training) :] = week[steps[len(training) :]]
    return UsualFlow(week, series)


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
