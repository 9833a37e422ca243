"""Prediction intervals: split conformal on the validation residuals of a finished run. No network is trained again.

The interval of a forecast f, of a sensor and a horizon, at a level such as 0.8 is

    [max(0, f - q s), f + q s]      (a forecast below 0 counts as 0)

- s is how much the sensor's flow varies from one step to the next at that time of the week, by the training rows. So
  nights are narrow and rush hours wide. Dividing residuals by a spread before their quantile is taken is the locally
  weighted form of Lei, G'Sell, Rinaldo, Tibshirani and Wasserman (Distribution-Free Predictive Inference for
  Regression, JASA 113, 2018, section 5.2); its aim, a width that follows the input, is that of Romano, Patterson and
  Candes (Conformalized Quantile Regression, NeurIPS 2019).
- q is the ceil((n + 1) level)-th smallest of the n values |y - f| / s of the validation split. If these and the new
  one are exchangeable, the interval covers the new value with a probability of at least the level, and of at most the
  level + 1 / (n + 1) if there are no ties (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).

Traffic is not exchangeable: weeks differ. `Adaptation` follows it step by step (Gibbs and Candes, Adaptive Conformal
Inference Under Distribution Shift, NeurIPS 2021).

A sensor that is being imputed (`lib.data.imputed`) is forecast by a copy of last week, nearly without error. Its
residuals would narrow the intervals of what is measured. So imputed sensors are a group of their own, by what is known
at the time of the forecast (Mondrian conformal prediction, Vovk et al. 2005, section 4.5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.profile import historical_profile
from lib.data.windowing import Calendar
from lib.errors import InputError

# Those whose quantiles are kept, so that a run need not keep all residuals. A level between two of them takes the
# higher: the interval is then a little too wide, never too narrow.
LEVELS = np.array([*(percent / 100 for percent in range(1, 100)), 0.995, 0.999])
NEIGHBOUR_MINUTES = 15  # on both sides of a value, whose mean it is compared with
LEAST_SPREAD = 0.05  # of a sensor's mean spread
LEAST_RESIDUALS = 100  # of a sensor with quantiles of its own
STEP_SIZE = 0.005  # of the adaptation; that of Gibbs and Candes
SCORED_LEVELS = (0.8, 0.95)  # in the results of every run
HOURS = 24


def check_levels(levels: list[float], place: str) -> None:
    """Raise an InputError, which begins with the place, where a level is not one that there are quantiles for."""
    for level in levels:
        if not 0 < level <= LEVELS[-1]:
            raise InputError(
                f"{place}: found {level:g}, expected a share of the values, above 0 and at most {LEVELS[-1]:g}, "
                "such as 0.8"
            )


def kept_level(level: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Return the place in `LEVELS` of levels: the first that is not lower, the last where all are."""
    return np.minimum(np.searchsorted(LEVELS, np.asarray(level) - 1e-9), len(LEVELS) - 1).astype(np.int64)


def spread_of_week(flow: NDArray[np.float32], calendar: Calendar) -> NDArray[np.float32]:
    """Return the spread s (steps of a week, N) of each sensor at each time of the week, in the unit of the flow.

    It is the historical profile of |value - mean of its neighbours|, the neighbours being the values within 15 minutes.
    This is the part of a deviation that no forecast can know, and it grows with the flow as the counts of vehicles do.
    The least is a twentieth of the sensor's mean, so that no residual is divided by nothing.

    Args:
        flow: (T, N), of the training rows; NaN where it is missing or was not measured.
        calendar: of the series.
    """
    reach = max(1, NEIGHBOUR_MINUTES * calendar.steps_per_day // (24 * 60))
    known = ~np.isnan(flow)
    total, count = np.zeros(flow.shape), np.zeros(flow.shape, dtype=np.int64)
    for shift in (*range(-reach, 0), *range(1, reach + 1)):
        to, taken = slice(max(0, -shift), len(flow) - max(0, shift)), slice(max(0, shift), len(flow) - max(0, -shift))
        total[to] += np.where(known[taken], flow[taken], 0)
        count[to] += known[taken]
    deviation = np.where(count > 0, np.abs(flow - total / np.maximum(count, 1)), np.nan).astype(np.float32)
    there = deviation[~np.isnan(deviation)]
    mean = float(there.mean()) if there.size and there.any() else 1.0
    week = historical_profile(deviation, len(deviation), calendar, mean).week
    least = LEAST_SPREAD * np.maximum(week.mean(axis=0), LEAST_SPREAD * mean)
    spread: NDArray[np.float32] = np.maximum(week, least).astype(np.float32)
    return spread


def conformal_quantiles(residuals: NDArray[Any]) -> NDArray[np.float32]:
    """Return the quantiles (levels, N, P) of residuals (samples, N, P) by sensor and horizon, at all of `LEVELS`.

    Each is the ceil((n + 1) level)-th smallest of n residuals. NaN does not count. A sensor with fewer than 100, or
    with too few for a level, has the quantile of all sensors together; it is infinite where these are too few as well.
    """
    samples, sensors, horizon = residuals.shape
    own = _order_statistics(residuals)
    pooled = _order_statistics(residuals.reshape(samples * sensors, 1, horizon))
    few = np.isfinite(residuals).sum(axis=0) < LEAST_RESIDUALS
    quantiles: NDArray[np.float32] = np.maximum.accumulate(np.where(few | np.isinf(own), pooled, own), axis=0)
    return quantiles


def _order_statistics(residuals: NDArray[Any]) -> NDArray[np.float32]:
    ordered = np.sort(residuals, axis=0)  # NaN comes last
    count = np.isfinite(residuals).sum(axis=0)
    quantiles = np.full((len(LEVELS), *count.shape), np.inf, dtype=np.float32)
    for place, level in enumerate(LEVELS):
        rank = np.ceil((count + 1) * level - 1e-9).astype(np.int64)  # (N, P), from 1 on
        there = rank <= count
        if there.any():
            found = np.take_along_axis(ordered, np.where(there, rank - 1, 0)[None], axis=0)[0]
            quantiles[place] = np.where(there, found, np.inf)
    return quantiles


def scale_of(spread: NDArray[np.float32], steps_of_week: NDArray[np.int64], horizon: int) -> NDArray[np.float32]:
    """Return the spread (B, N, P) at the steps that are forecast, the first of which are at steps of the week (B,)."""
    steps = steps_of_week[:, None] + np.arange(horizon)
    return np.ascontiguousarray(spread[steps % len(spread)].transpose(0, 2, 1))


@dataclass(frozen=True, eq=False)
class Intervals:
    """What the intervals of a run are made with.

    Attributes:
        spread: (steps of a week, N), in vehicles a step.
        quantiles: (levels, N, P), of scaled residuals, of what is measured.
        made_from: what decided them, by name.
        imputed_quantiles: (levels, N, P), of sensors that are imputed at the time of the forecast; None: none was.
    """

    spread: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    made_from: Mapping[str, str]
    imputed_quantiles: NDArray[np.float32] | None = None

    @cached_property
    def highest_level(self) -> float:
        """The highest level for which there were enough residuals; 0: there is none."""
        finite = np.isfinite(self.quantiles).all(axis=(1, 2))
        return float(LEVELS[finite].max(initial=0))

    @cached_property
    def _of_imputed(self) -> NDArray[np.float32] | None:
        """`imputed_quantiles`, or `quantiles` where so few sensors were imputed that there is none of a level."""
        own = self.imputed_quantiles
        if own is None:
            return None
        return np.asarray(np.maximum.accumulate(np.where(np.isinf(own), self.quantiles, own), axis=0))

    def check_level(self, level: float) -> None:
        """Raise an InputError where there were too few residuals for a level."""
        if self.highest_level + 1e-9 < level:
            expected = f"expected at most {self.highest_level:g}"
            raise InputError(
                f"--interval: found {level:g}, {expected}: the validation split of the run has too few values"
            )

    def half_width(
        self,
        steps_of_week: NDArray[np.int64],
        level: NDArray[np.float64] | float,
        imputed: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Return q s (B, N, P), by which intervals reach to both sides of their forecasts, in vehicles a step.

        Args:
            steps_of_week: (B,), of the first step of each forecast.
            level: the share of values to cover; or one for each sensor and horizon, (N, P).
            imputed: (B, N), which sensors are imputed at the time of the forecast; None: none is.

        Raises:
            InputError: there were too few residuals for that level.
        """
        self.check_level(float(np.max(level)))
        place = np.broadcast_to(kept_level(level), self.quantiles.shape[1:])[None]
        factor = np.take_along_axis(self.quantiles, place, axis=0)  # (1, N, P)
        if imputed is not None and self._of_imputed is not None:
            of_imputed = np.take_along_axis(self._of_imputed, place, axis=0)
            factor = np.where(imputed[:, :, None], of_imputed, factor)  # (B, N, P)
        half_width: NDArray[np.float32] = factor * scale_of(self.spread, steps_of_week, factor.shape[2])
        return half_width


def bounds(forecast: NDArray[Any], half_width: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lower and the upper bound of intervals; neither is below 0, as no flow is."""
    centre = np.maximum(forecast, 0)
    return np.maximum(centre - half_width, 0), centre + half_width


def calibrate(
    forecast: NDArray[np.float32],
    target: NDArray[np.float32],
    measured: NDArray[np.float32],
    steps_of_week: NDArray[np.int64],
    spread: NDArray[np.float32],
    imputed: NDArray[np.bool_] | None,
    made_from: Mapping[str, str],
) -> Intervals:
    """Return the intervals by the forecasts of a split that was not trained on.

    Args:
        forecast: (samples, N, P).
        target: (samples, N, P), NaN where it does not count.
        measured: `target` with NaN where it was imputed too. Intervals are for what is measured.
        steps_of_week: (samples,), of the first step of each forecast.
        spread: (steps of a week, N).
        imputed: (samples, N), which sensors were imputed by what was known at the time of the forecast; None: none.
        made_from: what the result says of its origin.
    """
    scale = scale_of(spread, steps_of_week, forecast.shape[2])
    flagged = np.zeros(forecast.shape[:2], dtype=np.bool_) if imputed is None else imputed
    centre = np.maximum(forecast, 0)
    of_measured = np.where(flagged[:, :, None], np.nan, np.abs(measured - centre) / scale)
    quantiles = conformal_quantiles(of_measured)
    if not flagged.any():
        return Intervals(spread, quantiles, made_from)
    of_imputed = np.where(flagged[:, :, None], np.abs(target - centre) / scale, np.nan)
    return Intervals(spread, quantiles, made_from, conformal_quantiles(of_imputed))


# ------------------------------------------------------------------------------------------------------- adaptation


class Adaptation:
    """Adaptive conformal inference: the level asked of the quantiles follows what was covered (Gibbs and Candes 2021).

        alpha <- alpha + gamma (1 - level - missed)

    for each sensor and horizon, whenever a target becomes known; `missed` is 1 where the interval did not cover it,
    else 0, and the next interval takes the quantile of level 1 - alpha. A target that is missing changes nothing.

    Args:
        level: the share of values to cover.
        highest: the highest level that may be asked for.
        shape: (N, P).
    """

    def __init__(self, level: float, highest: float, shape: tuple[int, ...]) -> None:
        self.level, self.least = level, 1 - highest
        self.alpha = np.full(shape, 1 - level)

    @property
    def asked(self) -> NDArray[np.float64]:
        """The levels (N, P) to ask of the quantiles now."""
        return 1 - self.alpha

    def update(self, horizons: NDArray[np.int64], covered: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Take in which sensors were covered, and of which that is known, both (N, k), at k horizons from 0 on."""
        step = STEP_SIZE * (1 - self.level - ~covered)
        self.alpha[:, horizons] = (self.alpha[:, horizons] + step * known).clip(self.least, 1)


def adapted_half_width(
    intervals: Intervals,
    level: float,
    forecast: NDArray[np.float32],
    target: NDArray[np.float32],
    label_starts: NDArray[np.int64],
    steps_of_week: NDArray[np.int64],
    imputed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Return the half widths (B, N, P) of a backtest with `Adaptation`.

    The forecast from label start t0 knows of each earlier one the targets before t0, and no more. What was forecast for
    an imputed sensor tells nothing of the others, so it does not count.

    Args:
        intervals: to begin with.
        level: the share of values to cover.
        forecast, target: (B, N, P), targets NaN where they do not count.
        label_starts: (B,), increasing.
        steps_of_week: (B,), of the label starts.
        imputed: (B, N), which sensors are imputed at the time of the forecast; None: none is.
    """
    adaptation = Adaptation(level, intervals.highest_level, forecast.shape[1:])
    half_width = np.empty(forecast.shape, dtype=np.float32)
    known = ~np.isnan(target)
    if imputed is not None:
        known &= ~imputed[:, :, None]
    ahead = np.arange(forecast.shape[2])
    due = np.zeros(len(ahead), dtype=np.int64)  # of each horizon, the first forecast whose target was not taken in
    for now, start in enumerate(label_starts):
        while (ready := (due < now) & (label_starts[np.minimum(due, now)] + ahead < start)).any():
            past, horizons = due[ready], ahead[ready]
            lower, upper = bounds(forecast[past, :, horizons], half_width[past, :, horizons])  # (k, N)
            came = target[past, :, horizons]
            adaptation.update(horizons, ((came >= lower) & (came <= upper)).T, known[past, :, horizons].T)
            due[ready] += 1
        flags = None if imputed is None else imputed[now : now + 1]
        half_width[now] = intervals.half_width(steps_of_week[now : now + 1], adaptation.asked, flags)[0]
    return half_width


# ---------------------------------------------------------------------------------------------------------- scoring


def interval_scores(
    lower: NDArray[Any], upper: NDArray[Any], target: NDArray[Any], level: float
) -> tuple[NDArray[np.bool_], NDArray[Any], NDArray[Any]]:
    """Return of each interval whether it covers its target, its width, and its interval score; NaN targets cover not.

    The score is that of Winkler (JASA 67, 1972): width + 2 / (1 - level) x the distance of a target outside. Its mean
    is least for the true quantiles (Gneiting and Raftery, JASA 102, 2007, section 6.2), so it rewards narrow
    intervals and coverage at once.
    """
    width = upper - lower
    outside = np.maximum(lower - target, 0) + np.maximum(target - upper, 0)
    return (target >= lower) & (target <= upper), width, width + 2 / (1 - level) * outside


def score_intervals(
    forecast: NDArray[np.float32],
    half_width: NDArray[np.float32],
    target: NDArray[np.float32],
    level: float,
    hours: NDArray[np.int64],
) -> dict[str, Any]:
    """Return coverage, mean width and mean interval score: overall, by horizon, by hour of day, and the worst sensor.

    Args:
        forecast, half_width, target: (samples, N, P), targets NaN where they do not count.
        level: of the intervals.
        hours: (samples, P), the hour of the day of each target.
    """
    parts = (~np.isnan(target), *interval_scores(*bounds(forecast, half_width), target, level))
    over_sensors, by_sensor = [], []  # sums of targets, covered ones, widths, scores
    for part in parts:
        counted = np.where(parts[0], part, 0)
        over_sensors.append(counted.sum(axis=1, dtype=np.float64))  # (samples, P)
        by_sensor.append(counted.sum(axis=(0, 2), dtype=np.float64))  # (N,)

    def content(totals: Sequence[Any]) -> dict[str, Any]:
        count, *rest = map(float, totals)
        means = (total / count if count else None for total in rest)
        return {"targets": int(count), **dict(zip(("coverage", "width", "score"), means, strict=True))}

    by_horizon = [total.sum(axis=0) for total in over_sensors]
    by_hour = [np.bincount(hours.ravel(), total.ravel(), HOURS) for total in over_sensors]
    rated = by_sensor[0] >= LEAST_RESIDUALS
    coverage = np.where(rated, by_sensor[1] / np.maximum(by_sensor[0], 1), np.inf)
    worst = int(coverage.argmin())
    return {
        "overall": content([total.sum() for total in by_sensor]),
        "by_horizon": [content(totals) for totals in zip(*by_horizon, strict=True)],
        "by_hour": [content(totals) for totals in zip(*by_hour, strict=True)],
        "worst_sensor": {"sensor": worst, **content([part[worst] for part in by_sensor])} if rated.any() else None,
    }
