"""The historical profile: a causal, expanding-window historical average of each sensor by time of the week.

A profile that uses the day itself or any later day leaks the training targets. So does the mean of all other days:
together with the mean of all days it gives the day left out. So the average at each step is over the days before it,
like the ordered target statistics of CatBoost (arXiv 1706.09516).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.data.series import CHUNK_ROWS
from lib.data.windowing import Calendar
from lib.files import scratch

SMOOTHING_MINUTES = 25  # the flow of a few days is noisy, its daily rhythm is smooth
# The weight of a past day in the mean for another day: the same day of the week has 1,
SAME_KIND = 0.15  # another working day for a working day, and Saturday and Sunday for each other,
OTHER_KIND = 0.02  # a day of the weekend for a working day, or the other way round
WORKING_DAYS = 5  # the first days of a week
DAYS_OF_WEEK = 7
DECAY = 0.04  # where the profile goes on after the training rows; chosen on the validation rows of PEMS08


@dataclass(frozen=True, eq=False)
class HistoricalProfile:
    """The profile, in vehicles a step.

    Attributes:
        week: (steps of a week, N), by all days that were counted: for all that comes after them.
        series: (T, N), for the steps of the series, each by the days before; or only for the last ones.
    """

    week: NDArray[np.float32]
    series: NDArray[np.float32]


def historical_profile(
    flow: NDArray[np.float32], rows: int, calendar: Calendar, first_day: float, decay: float = 0.0, since: int = 0
) -> HistoricalProfile:
    """Return the mean flow at each step's time of day on past days, where days of the same kind weigh most.

        profile = sum over past days of weight x flow / sum over past days of weight

    of the flow smoothed over 25 minutes, with the weights above. A few weeks have few Mondays, so other days have a
    small weight too. Missing values do not count. Where there are no values, the mean of the sensor's past is taken,
    and where it has none, `first_day`. Every value used is at least a day, less half of the smoothing, before the step.
    So the first row of the series matters only in that earlier days are not there.

    Args:
        flow: (T, N), NaN where missing.
        rows: how many rows, from the first on, are averaged. Steps after them have the profile of all these rows.
        calendar: of the series.
        first_day: the profile where there is no past, as on the first day.
        decay: the share of its weight that a day loses with every further day.
        since: the row from which on the profile is asked for; `series` begins there.
    """
    counted = flow[:rows]
    steps_per_day, sensors = calendar.steps_per_day, flow.shape[1]
    weights = _day_weights()
    total, count = (np.zeros((DAYS_OF_WEEK, steps_per_day, sensors)) for _ in range(2))

    def mean_so_far() -> NDArray[np.float64]:
        past, values = total.sum(axis=(0, 1)), count.sum(axis=(0, 1))
        return np.where(values > 0, past / np.where(values > 0, values, 1), first_day)  # (N,)

    def average(steps: NDArray[np.int64], sensor_mean: NDArray[np.float64]) -> NDArray[np.float32]:
        means = np.empty((len(steps), sensors), dtype=np.float32)
        for day in np.unique(steps // steps_per_day):
            of_day = steps // steps_per_day == day
            step = steps[of_day] % steps_per_day
            sums = np.tensordot(weights[day], total[:, step], axes=1)  # (steps of that day, N)
            weight = np.tensordot(weights[day], count[:, step], axes=1)
            means[of_day] = np.where(weight > 0, sums / np.where(weight > 0, weight, 1), sensor_mean)
        return means

    steps = calendar.step_of_week(np.arange(len(flow)))
    reach = SMOOTHING_MINUTES * steps_per_day // (24 * 60) // 2
    series = scratch(flow.shape, np.float32)
    a_day_before = mean_so_far()  # without the last day, some of whose steps are less than a day before
    for first in range(0, len(counted), steps_per_day):
        block = slice(first, min(first + steps_per_day, len(counted)))
        if block.stop > since:
            series[block] = average(steps[block], a_day_before)
        a_day_before = mean_so_far()
        if decay:
            total *= 1 - decay
            count *= 1 - decay
        day, step = np.divmod(steps[block], steps_per_day)
        before = min(first, reach)
        value, there = _smoothed(counted[first - before : block.stop + reach], reach)
        total[day, step] += value[before:][: len(day)]  # no step comes twice within a day
        count[day, step] += there[before:][: len(day)]
    week = average(np.arange(calendar.steps_per_week), mean_so_far())
    for row in range(max(len(counted), since), len(flow), CHUNK_ROWS):
        series[row : row + CHUNK_ROWS] = week[steps[row : row + CHUNK_ROWS]]
    return HistoricalProfile(week, series[since:])


def _day_weights() -> NDArray[np.float64]:
    """Return the weight of a past day for another one, (day of the week, past day of the week); Monday is the first."""
    working = np.arange(DAYS_OF_WEEK) < WORKING_DAYS
    weights = np.where(working[:, None] == working, SAME_KIND, OTHER_KIND)
    np.fill_diagonal(weights, 1)
    return weights


def _smoothed(flow: NDArray[np.float32], reach: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return means (T, N) of what is observed up to `reach` steps away, 0 where nothing is, and where something is."""
    observed = ~np.isnan(flow)
    total, count = np.zeros_like(flow), np.zeros_like(flow)
    for shift in range(-reach, reach + 1):
        to, taken = slice(max(0, -shift), len(flow) - max(0, shift)), slice(max(0, shift), len(flow) - max(0, -shift))
        total[to] += np.where(observed[taken], flow[taken], 0)
        count[to] += observed[taken]
    return (total / np.maximum(count, 1)).astype(np.float32, copy=False), count > 0
