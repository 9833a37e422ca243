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
# What a past day counts in the mean for another day: one of the same day of the week counts 1,
SAME_KIND = 0.15  # another working day for a working day, and Saturday and Sunday for each other,
OTHER_KIND = 0.02  # a day of the weekend for a working day, or the other way round
WORKING_DAYS = 5  # the first days of a week
DAYS_OF_WEEK = 7


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
    """Return the mean flow at each step's time of day on past days, those most that are most like its own day.

        usual = sum over past days of weight x flow / sum over past days of weight

    of the training flow smoothed over 25 minutes, with the weights above: few weeks hold few Mondays, so that the other
    days have a say, and least those of another rhythm. Values that are missing do not count; where there are none, the
    mean of the sensor's past stands in, and on the first day the middle of the range of flow. No value enters that lies
    less than a day, less half the smoothing, before the step.
    """
    truth = prepared.truth
    training = truth[: prepared.training_rows]
    steps_per_day, sensors = calendar.steps_per_day, truth.shape[1]
    middle = prepared.scaling.to_raw(np.zeros(sensors))
    weights = _day_weights()
    total, count = (np.zeros((DAYS_OF_WEEK, steps_per_day, sensors)) for _ in range(2))

    def average(steps: NDArray[np.int64]) -> NDArray[np.float32]:
        past, values = total.sum(axis=(0, 1)), count.sum(axis=(0, 1))
        sensor_mean = np.where(values > 0, past / np.maximum(values, 1), middle)
        means = np.empty((len(steps), sensors), dtype=np.float32)
        for day in np.unique(steps // steps_per_day):
            rows = steps // steps_per_day == day
            step = steps[rows] % steps_per_day
            flow = np.tensordot(weights[day], total[:, step], axes=1)  # (steps of that day, N)
            weight = np.tensordot(weights[day], count[:, step], axes=1)
            means[rows] = np.where(weight > 0, flow / np.maximum(weight, OTHER_KIND), sensor_mean)
        return means

    steps = calendar.step_of_week(np.arange(len(truth)))
    value, there = _smoothed(training, steps_per_day)
    series = np.empty(truth.shape, dtype=np.float32)
    for first in range(0, len(training), steps_per_day):
        rows = slice(first, min(first + steps_per_day, len(training)))
        series[rows] = average(steps[rows])
        day, step = np.divmod(steps[rows], steps_per_day)
        total[day, step] += value[rows]  # no step comes twice within a day
        count[day, step] += there[rows]
    week = average(np.arange(calendar.steps_per_week))
    series[len(training) :] = week[steps[len(training) :]]
    return UsualFlow(week, series)


def _day_weights() -> NDArray[np.float64]:
    """Return what a past day counts for another one, (day of the week, past day of the week); Monday is the first."""
    working = np.arange(DAYS_OF_WEEK) < WORKING_DAYS
    weights = np.where(working[:, None] == working, SAME_KIND, OTHER_KIND)
    np.fill_diagonal(weights, 1)
    return weights


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
