"""A backtest: what a run would have forecast from each step of the last days of a file, against what came."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.imputed import LEAST_SHARE, imputed_values
from lib.data.profile import DECAY, historical_profile
from lib.data.windowing import nearest_time
from lib.errors import InputError
from lib.files import written_whole
from lib.inference import Forecaster, History, forecasts_from, refused_starts
from lib.intervals import HOURS, Intervals, adapted_half_width, bounds, score_intervals
from lib.metrics import mean_or_nan
from lib.numbers import number_text

WORST_HOURS = 2  # of a day, on the average, are marked


@dataclass(frozen=True, eq=False)
class Backtest:
    """Forecasts from the last days of a file.

    Attributes:
        history: the file.
        label_starts: (B,), the first steps forecast, indices into the history.
        forecast: (B, N, P), in vehicles a step.
        truth: (B, N, P), NaN where it is missing.
        measured: (B, N, P), NaN where it was imputed too: what scores are of.
        profile: (T, N), the historical profile of the file, each step by the days before it.
        half_widths: (B, N, P) by level, by which intervals reach to both sides.
        adapted: the same of intervals that were adapted step by step; empty where nobody asked.
        every: steps between two label starts.
        refused: label starts left out for a gap among their inputs.
    """

    history: History
    label_starts: NDArray[np.int64]
    forecast: NDArray[np.float32]
    truth: NDArray[np.float32]
    measured: NDArray[np.float32]
    profile: NDArray[np.float32]
    half_widths: Mapping[float, NDArray[np.float32]]
    adapted: Mapping[float, NDArray[np.float32]]
    every: int
    refused: int

    @property
    def start(self) -> datetime | None:
        """The time of the file's first step, by a clock that is not seconds off; None where no time is known."""
        start = self.history.start
        return None if start is None else nearest_time(start, self.history.points_per_hour)

    @property
    def targets(self) -> NDArray[np.int64]:
        """The steps that are forecast (B, P), indices into the history."""
        return self.label_starts[:, None] + np.arange(self.forecast.shape[2])

    @property
    def hours(self) -> NDArray[np.int64]:
        """The hour of each target (B, P), from midnight before the file's first step on.

        Where no time is known, hours are counted from the first step.
        """
        start, rate = self.start, self.history.points_per_hour
        early = 0.0 if start is None else start.hour + start.minute / 60 + start.second / 3600
        whole: NDArray[np.int64] = np.floor(early + (self.targets + 1e-6) / rate).astype(np.int64)
        return whole

    def day_name(self, day: int) -> str:
        """Return the date of a day, counted from that of the file's first step, or its number."""
        start = self.start
        return str(day) if start is None else f"{start.date() + timedelta(days=day)}"

    def interval_scores(self) -> dict[str, Any]:
        """Return the scores of the intervals by level and method, laid out as in intervals.json."""
        methods = {"scaled": self.half_widths, "adapted": self.adapted}
        return {
            f"{level:g}": {
                name: score_intervals(self.forecast, widths[level], self.measured, level, self.hours % HOURS)
                for name, widths in methods.items()
                if widths
            }
            for level in self.half_widths
        }


def measured_flow(history: History) -> NDArray[np.float32]:
    """Return the flow (T, N) of a file, NaN where missing, or imputed by all of the file: no forecast may know this."""
    flow, imputed = history.flow.astype(np.float32), history.marks
    if imputed is None:
        imputed = imputed_values(flow, history.calendar)
        imputed &= (imputed.mean(axis=0) > LEAST_SHARE).any()
    return np.where(imputed, np.float32(np.nan), flow)


def backtest(
    forecaster: Forecaster,
    history: History,
    days: int,
    every: int,
    max_gap: int,
    levels: Sequence[float] = (),
    intervals: Intervals | None = None,
    adapt: bool = False,
) -> Backtest:
    """Forecast from each step of the last days of a file as if it were then.

    Nothing of a forecast depends on the file from its label start on. With `adapt` the intervals depend on the first
    day of the backtest: they are adapted from there on, by the targets known at each label start.

    Args:
        forecaster: the run.
        history: the whole file.
        days: how many.
        every: steps between two forecasts.
        max_gap: the longest gap to fill, in steps.
        levels: of the intervals.
        intervals: of the run; needed for levels.
        adapt: whether they are adapted as well.

    Raises:
        InputError: the file has fewer days, or these are shorter than a forecast, or no forecast can be made, or no
            target was measured.
    """
    config, calendar = forecaster.config, history.calendar
    horizon, length = config.data.num_for_predict, len(history.flow)
    most = (length - forecaster.steps_needed) // calendar.steps_per_day
    if days > most:
        raise InputError(
            f"--days: found {days}, expected at most {max(0, most)}: {history.path} has {length} steps up to "
            f"{history.label(length - 1)}, of which the first forecast needs {forecaster.steps_needed}"
        )
    if days * calendar.steps_per_day < horizon:
        least = -(-horizon // calendar.steps_per_day)
        raise InputError(f"--days: found {days}, expected at least {least}: a forecast is of {horizon} steps")
    starts = np.arange(length - days * calendar.steps_per_day, length - horizon + 1, every, dtype=np.int64)
    refused = refused_starts(history, forecaster.offsets, starts, max_gap)
    starts = starts[~refused]
    if not len(starts):
        raise InputError(f"{history.path}: found a gap of more than {max_gap} steps (--max-gap) before every forecast")
    forecasts = forecasts_from(forecaster, history, starts, max_gap)
    forecast, imputed = forecasts.flow, forecasts.imputed
    flow, targets = history.flow.astype(np.float32), starts[:, None] + np.arange(horizon)
    truth, measured = (
        np.ascontiguousarray(values[targets].transpose(0, 2, 1)) for values in (flow, measured_flow(history))
    )
    if np.isnan(measured).all():
        span = f"{history.label(int(targets[0, 0]))} to {history.label(int(targets[-1, -1]))}"
        raise InputError(f"{history.path}: found no measured value from {span}, expected some to score forecasts by")
    profile = historical_profile(flow, length, calendar, forecaster.scaling.middle, DECAY).series
    half_widths, adapted = {}, {}
    for level in levels:
        assert intervals is not None
        weeks = calendar.step_of_week(starts)
        half_widths[level] = intervals.half_width(weeks, level, imputed)
        if adapt:
            adapted[level] = adapted_half_width(intervals, level, forecast, truth, starts, weeks, imputed)
    left_out = int(np.count_nonzero(refused))
    return Backtest(history, starts, forecast, truth, measured, profile, half_widths, adapted, every, left_out)


# ---------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True, eq=False)
class HourlyScores:
    """Errors of a backtest by hour and sensor.

    Attributes:
        first: the first hour, counted as in `Backtest.hours`.
        targets: (hours, N), how many values are scored.
        mae: (hours, N), over all horizons; NaN where there is no target.
        profile_mae: (hours, N), of the historical profile.
        coverage: (hours, N) by level, of the intervals; the adapted ones where there are.
        worst: (hours,), which hours have the greatest MAE over all sensors.
    """

    first: int
    targets: NDArray[np.int64]
    mae: NDArray[np.float64]
    profile_mae: NDArray[np.float64]
    coverage: Mapping[float, NDArray[np.float64]]
    worst: NDArray[np.bool_]

    def of_all(self, values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        """Return the mean of values (hours, N) over sensors (axis 1) or hours (axis 0), each by its targets."""
        return mean_or_nan(np.where(self.targets > 0, values * self.targets, 0).sum(axis), self.targets.sum(axis))


def hourly_scores(test: Backtest) -> HourlyScores:
    """Return the errors of a backtest by hour and sensor.

    The worst hours are those of greatest MAE over all sensors, as many as make two a day.
    """
    hours = test.hours
    first, number = int(hours.min()), int(np.ptp(hours)) + 1
    known = ~np.isnan(test.measured)
    of_profile = test.profile[test.targets].transpose(0, 2, 1)

    def by_hour(values: NDArray[Any]) -> NDArray[np.float64]:
        total = np.zeros((number, values.shape[1]))
        for ahead in range(values.shape[2]):
            np.add.at(total, hours[:, ahead] - first, np.where(known[:, :, ahead], values[:, :, ahead], 0))
        return total

    count = by_hour(known).astype(np.int64)
    coverage = {}
    for level, width in (test.adapted or test.half_widths).items():
        lower, upper = bounds(test.forecast, width)
        coverage[level] = mean_or_nan(by_hour((test.measured >= lower) & (test.measured <= upper)), count)
    mae = mean_or_nan(by_hour(np.abs(test.forecast - test.measured)), count)
    profile_mae = mean_or_nan(by_hour(np.abs(of_profile - test.measured)), count)
    scores = HourlyScores(first, count, mae, profile_mae, coverage, np.zeros(number, dtype=np.bool_))
    of_hours = scores.of_all(mae, 1)
    most = max(1, round(WORST_HOURS * number / HOURS))
    ranked = np.argsort(-of_hours, kind="stable")[:most]  # NaN comes last
    scores.worst[ranked] = ~np.isnan(of_hours[ranked])
    return scores


def save_backtest(path: Path, test: Backtest, scores: HourlyScores) -> None:
    """Write the scores of a backtest as CSV, a row for each day, hour and sensor with a target.

    The columns are `day`, `hour`, `sensor`, `targets`, `mae` and `profile_mae` in vehicles a step, `coverage_0.8` and
    so on as shares, and `worst`, 1 in the worst hours.
    """
    names = [f"coverage_{level:g}" for level in scores.coverage]
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(("day", "hour", "sensor", "targets", "mae", "profile_mae", *names, "worst"))
        for row, sensor in np.argwhere(scores.targets > 0):
            day, hour = divmod(scores.first + int(row), HOURS)
            shares = (f"{coverage[row, sensor]:.4f}" for coverage in scores.coverage.values())
            errors = (number_text(mae[row, sensor]) for mae in (scores.mae, scores.profile_mae))
            place = (test.day_name(day), hour, test.history.sensors[sensor], scores.targets[row, sensor])
            writer.writerow((*place, *errors, *shares, int(scores.worst[row])))
