"""Correcting a run's forecasts by its own recent errors.

A network is fitted once, and traffic drifts away from what it was fitted on: for hours after an incident, for days in a
holiday. Intercept correction (Clements and Hendry, Journal of Applied Econometrics 11, 1996) adds a weighted mean of
the errors (truth less forecast) of earlier forecasts, of the same sensor and horizon:

    correction = sum of weight x error / (sum of weights + PRIOR_HOURS, as steps)

An error weighs 2^(-age / HALF_LIFE_HOURS) for the last RECENT_HOURS, and DAILY_WEIGHT x DAILY_DECAY^(d - 1) within
AROUND_HOURS of the time of the day of the target, d days before it, for the last DAYS. The prior stands for as many
errors of 0. All of this was chosen on the validation split of PEMS08 (results/accuracy.md).
"""

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_HOURS, RECENT_HOURS = 3, 12
DAYS, AROUND_HOURS = 7, 0.75
DAILY_WEIGHT, DAILY_DECAY = 0.5, 0.7
PRIOR_HOURS = 3


def steps_back(steps_per_day: int) -> int:
    """Return how many steps before a label start the earliest forecast is whose errors count."""
    return DAYS * steps_per_day + round(AROUND_HOURS * steps_per_day / 24)


def earlier_starts(label_starts: NDArray[np.int64], horizon: int, steps_per_day: int) -> NDArray[np.int64]:
    """Return the label starts, in order, of the earlier forecasts whose errors correct those from `label_starts`."""
    hour = steps_per_day / 24
    around = round(AROUND_HOURS * hour)
    recent = np.arange(1, round(RECENT_HOURS * hour) + horizon)
    daily = (np.arange(1, DAYS + 1)[:, None] * steps_per_day + np.arange(-around, around + 1)).ravel()
    before = np.union1d(recent, daily[daily > 0])
    starts = np.unique(label_starts[:, None] - before)
    return starts[starts >= 0]


def corrected(
    forecast: NDArray[np.float32],
    target: NDArray[np.float32],
    label_starts: NDArray[np.int64],
    steps_per_day: int,
    imputed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Return forecasts (B, N, P), each corrected by the errors known at its label start: those of the targets before.

    Args:
        forecast: (B, N, P).
        target: (B, N, P), NaN where it is missing, or not known yet.
        label_starts: (B,), increasing.
        steps_per_day: of the series.
        imputed: (B, N), which sensors are imputed at the time of the forecast: these are not corrected, and what was
            forecast for them tells nothing of the others. None: none is.
    """
    errors = target - forecast
    if imputed is None:
        return forecast + _corrections(errors, label_starts, steps_per_day)
    errors[imputed] = np.nan
    return forecast + np.where(imputed[:, :, None], 0, _corrections(errors, label_starts, steps_per_day))


def _corrections(
    errors: NDArray[np.float32], label_starts: NDArray[np.int64], steps_per_day: int
) -> NDArray[np.float32]:
    """Return the corrections (B, N, P) by errors (B, N, P), NaN where these do not count."""
    hour, day = steps_per_day / 24, steps_per_day
    recent, around = round(RECENT_HOURS * hour), round(AROUND_HOURS * hour)
    fading = 0.5 ** (1 / (HALF_LIFE_HOURS * hour))
    rows = label_starts - label_starts[0]
    corrections = np.empty_like(errors)
    for ahead in range(errors.shape[2]):
        # By the step of the target: sums of errors, and how many there are. The first row stands for all times before.
        known = ~np.isnan(errors[:, :, ahead])
        values = np.zeros((rows[-1] + ahead + 2, 2, errors.shape[1]))
        values[rows + ahead + 1, 0] = np.where(known, errors[:, :, ahead], 0)
        values[rows + ahead + 1, 1] = known
        weighted = _fading_sums(values, fading, recent)[rows]  # up to the target before the label start
        totals = values.cumsum(axis=0)
        for days in range(1, DAYS + 1):
            middle = rows + ahead + 1 - days * day
            first, last = middle - around - 1, np.minimum(middle + around, rows)
            between = totals[np.maximum(last, 0)] - totals[np.maximum(np.minimum(first, last), 0)]
            weighted += DAILY_WEIGHT * DAILY_DECAY ** (days - 1) * between
        corrections[:, :, ahead] = weighted[:, 0] / (weighted[:, 1] + PRIOR_HOURS * hour)
    return corrections


def _fading_sums(values: NDArray[np.float64], fading: float, length: int) -> NDArray[np.float64]:
    """Return at each row the sum of the last `length` rows, each weighing `fading` times as much as the next."""
    sums, current = np.empty_like(values), np.zeros_like(values[0])
    for row, value in enumerate(values):
        current = fading * current + value
        if row >= length:
            current -= fading**length * values[row - length]
        sums[row] = current
    return sums
