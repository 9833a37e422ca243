"""The historical profile: a causal, expanding-window historical average of each sensor by time of the week.

A profile that uses the day itself or any later day leaks the training targets. So does the mean of all other days: it
tells the missing day to whoever knows the mean of all. So each step's average is over the days before it, as CatBoost
orders its statistics of targets (arXiv 1706.09516).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.data.prepared import Prepared
from lib.data.windowing import Calendar

SMOOTHING_MINUTES = 25  # the flow of a few days is noisy, its daily rhythm is smooth
# The weight of a past day in the mean for another day: the same day of the week has 1,
SAME_KIND = 0.15  # another working day for a working day, and Saturday and Sunday for each other,
OTHER_KIND = 0.02  # a day of the weekend for a working day, or the other way round
WORKING_DAYS = 5  # the first days of a week
DAYS_OF_WEEK = 7


@dataclass(frozen=True, eq=False)
class HistoricalProfile:
    """The profile, in vehicles a step.

    Attributes:
        week: (steps of a week, N), by all training days: for all that comes after them.
        series: (T, N), for the steps of the series, those of the training rows by the days before.
    """

    week: NDArray[np.float32]
    series: NDArray[np.float32]


def historical_profile(prepared: Prepared, calendar: Calendar) -> HistoricalProfile:
    """Return the mean flow at each step's time of day on past days, where days of the same kind weigh most.

        profile = sum over past days of weight x flow / sum over past days of weight

    of the training flow smoothed over 25 minutes, with the weights above. A few weeks have few Mondays, so other days
    have a small weight too. Missing values do not count. Where there are no values, the mean of the sensor's past is
    taken, and on the first day the middle of the range of flow. Every value used is at least a day, less half of the
    smoothing, before the step.
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
    return HistoricalProfile(week, series)


def _day_weights() -> NDArray[np.float64]:
    """Return the weight of a past day for another one, (day of the week, past day of the week); Monday is the first."""
    working = np.arange(DAYS_OF_WEEK) < WORKING_DAYS
    weights = np.where(working[:, None] == working, SAME_KIND, OTHER_KIND)
    np.fill_diagonal(weights, 1)
    return weights


def _smoothed(flow: NDArray[np.float32], steps_per_day: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return centred means (T, N) of the observed values, 0 where there are none, and where there are some."""
    reach = SMOOTHING_MINUTES * steps_per_day // (24 * 60) // 2
    observed = ~np.isnan(flow)
    total, count = np.zeros_like(flow), np.zeros_like(flow)
    for shift in range(-reach, reach + 1):
        to, taken = slice(max(0, -shift), len(flow) - max(0, shift)), slice(max(0, shift), len(flow) - max(0, -shift))
        total[to] += np.where(observed[taken], flow[taken], 0)
        count[to] += observed[taken]
    return (total / np.maximum(count, 1)).astype(np.float32, copy=False), count > 0
