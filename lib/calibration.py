"""The prediction intervals of a run: made by its validation forecasts, and scored on its test split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.baselines import historical_average, targets
from lib.data.prepared import Prepared
from lib.data.windowing import Calendar
from lib.intervals import (
    HOURS,
    SCORED_LEVELS,
    Intervals,
    adapted_half_width,
    calibrate,
    conformal_quantiles,
    kept_level,
    score_intervals,
    spread_of_week,
)

# What intervals.json compares, and what tables call it.
METHODS = {
    "scaled": "this run's",
    "adapted": "the same, adapted step by step",
    "unscaled": "plain conformal",
    "historical_average": "historical average's",
}
RULES = "1"  # of how intervals are made


def calibrate_run(
    prepared: Prepared,
    forecasts: Mapping[str, NDArray[np.float32]],
    calendar: Calendar,
    imputed: NDArray[np.bool_] | None,
    checkpoint: str,
) -> tuple[Intervals, dict[str, Any]]:
    """Return the intervals of a run by its forecasts of the validation split, and their scores on the test split.

    The test split decides nothing of the intervals.

    Args:
        prepared: the series.
        forecasts: (samples, N, P) of `val` and `test`.
        calendar: of the series.
        imputed: (T + 1, N), which sensors the network takes for imputed at each step; None: none.
        checkpoint: fingerprint of the weights.

    Returns:
        The scores are, for each of `SCORED_LEVELS` as text and each of `METHODS`, those of `score_intervals` on what
        was measured, and, where some targets were imputed, under `all` those of all targets together. Plain conformal
        and historical average are calibrated on residuals of the same samples, by sensor and horizon: without a scale,
        and those of another forecast.
    """
    horizon = forecasts["val"].shape[2]
    measured = prepared.truth if prepared.measured is None else prepared.measured
    spread = spread_of_week(measured[: prepared.training_rows], calendar)
    starts = {split: prepared.label_starts[split] for split in forecasts}
    weeks = {split: calendar.step_of_week(starts[split]) for split in forecasts}
    flags = {split: None if imputed is None else imputed[starts[split]] for split in forecasts}
    target = {split: targets(prepared, starts[split], horizon) for split in forecasts}
    of_measured = {split: targets_of(measured, starts[split], horizon) for split in forecasts}
    intervals = calibrate(
        forecasts["val"],
        target["val"],
        of_measured["val"],
        weeks["val"],
        spread,
        flags["val"],
        {"rules": RULES, "checkpoint": checkpoint},
    )

    average = {split: historical_average(prepared, starts[split], horizon, calendar) for split in forecasts}
    others = {"unscaled": forecasts, "historical_average": average}
    residuals = {
        name: conformal_quantiles(np.abs(of_measured["val"] - np.maximum(forecast["val"], 0)))
        for name, forecast in others.items()
    }
    steps_of_day = (weeks["test"][:, None] + np.arange(horizon)) % calendar.steps_per_day
    hours = steps_of_day * HOURS // calendar.steps_per_day
    observed = targets_of(prepared.observed, starts["test"], horizon)  # which are imputed may be known only later
    scores: dict[str, Any] = {}
    for level in SCORED_LEVELS:
        widths = {
            "scaled": intervals.half_width(weeks["test"], level, flags["test"]),
            "adapted": adapted_half_width(
                intervals, level, forecasts["test"], observed, starts["test"], weeks["test"], flags["test"]
            ),
        }
        plain = {name: found[kept_level(level)] for name, found in residuals.items()}
        for name in METHODS:
            forecast = others.get(name, forecasts)["test"]
            width = np.broadcast_to(widths[name] if name in widths else plain[name], forecast.shape)
            content = score_intervals(forecast, width, of_measured["test"], level, hours)
            if prepared.measured is not None:
                content["all"] = score_intervals(forecast, width, target["test"], level, hours)["overall"]
            scores.setdefault(f"{level:g}", {})[name] = content
    return intervals, scores


def targets_of(series: NDArray[np.float32], label_starts: NDArray[np.int64], horizon: int) -> NDArray[np.float32]:
    """Return the values (samples, N, P) of a series (T, N) from label starts (samples,) on."""
    steps = label_starts[:, None] + np.arange(horizon)
    return np.ascontiguousarray(series[steps].transpose(0, 2, 1))
