"""Imputed values: the source of the data filled them in. They repeat an earlier week or day exactly.

The Performance Measurement System of California (PeMS) fills the gaps of its detectors, among other ways with an
average by time of the week. Such values equal those of the week before for hours on end. Two functions find them:

- `imputed_values` uses the whole series. It says which values count as not measured, for scores and figures.
- `causal_flags` uses only the rows before a forecast. It says which sensors are being imputed now. Their next values
  are then known: they are those of last week.

A file that marks its imputed values needs neither: its marks are taken in their place (`marked_flags`). They do not say
how a value was filled in, so no next value follows from them.
"""

import numpy as np
from numpy.typing import NDArray

from lib.data.series import last_observed, next_observed
from lib.data.windowing import Calendar

RUN_MINUTES, RUN_VALUES = 120, 8  # repeats in runs of less time, or of fewer values, may be chance
FLAG_MINUTES, FLAG_VALUES = 180, 12  # before the forecast, which the flag is taken from
LEAST_SHARE = 0.01  # of a sensor's values; a few repeats in the whole series may be chance
FLAG_SHARE = 0.95  # of these steps that repeat last week's


def shortest_run(calendar: Calendar) -> int:
    """Return how many steps a run of imputed values has at least: two hours, and eight values."""
    return max(RUN_VALUES, RUN_MINUTES * calendar.steps_per_day // (24 * 60))


def repeats(flow: NDArray[np.float32], period: int) -> NDArray[np.bool_]:
    """Return where a flow (T, N) equals its value one period earlier; missing values equal none."""
    repeated = np.zeros(flow.shape, dtype=np.bool_)
    repeated[period:] = flow[period:] == flow[:-period]
    return repeated


def imputed_values(flow: NDArray[np.float32], calendar: Calendar) -> NDArray[np.bool_]:
    """Return where values are imputed: in runs of two hours or more that repeat the week, or the day, before.

    A run has eight values or more: with steps of an hour, two would often repeat by chance. Runs of one value alone
    do not count: empty roads repeat too, and so does a detector that is stuck.

    Args:
        flow: (T, N), NaN where missing.
        calendar: of the series.
    """
    shortest = shortest_run(calendar)
    imputed = np.zeros(flow.shape, dtype=np.bool_)
    changes = _changes(flow)
    for period in (calendar.steps_per_week, calendar.steps_per_day):
        if len(flow) <= period:
            continue
        repeated = repeats(flow, period)
        before, after = last_observed(repeated), next_observed(repeated)  # the steps around a run
        varies = _at(changes, after - 1) > _at(changes, before + 1)
        imputed |= repeated & (after - before - 1 >= shortest) & varies
    return imputed


def causal_flags(flow: NDArray[np.float32], calendar: Calendar) -> NDArray[np.bool_]:
    """Return for every step t0, and the one after the last, which sensors are imputed by what came before: (T + 1, N).

    A sensor is flagged if 95 % of its last three hours, and of its last twelve values, repeat last week's, and vary.
    """
    length = max(FLAG_VALUES, FLAG_MINUTES * calendar.steps_per_day // (24 * 60))
    flags = np.zeros((len(flow) + 1, flow.shape[1]), dtype=np.bool_)
    if len(flow) < length:
        return flags
    sums = np.zeros((len(flow) + 1, flow.shape[1]), dtype=np.int32)
    np.cumsum(repeats(flow, calendar.steps_per_week), axis=0, out=sums[1:])
    changes = _changes(flow)
    enough = sums[length:] - sums[:-length] >= FLAG_SHARE * length
    flags[length:] = enough & (changes[length - 1 :] > changes[: len(changes) - length + 1])
    return flags


def marked_flags(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for every step t0, and the one after the last, whose value before t0 is marked: (T + 1, N).

    Args:
        marks: (T, N), where the source of the data says that it filled in a value. It says so with the value.
    """
    return np.concatenate([np.zeros_like(marks[:1]), marks])


def _changes(flow: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return how often a flow (T, N) has changed from one step to the next, up to each step; a gap is no change."""
    changes = np.zeros(flow.shape, dtype=np.int32)
    np.cumsum(np.abs(np.diff(flow, axis=0)) > 0, axis=0, out=changes[1:])
    return changes


def _at(values: NDArray[np.int32], steps: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the values (T, N) of each sensor at steps (T, N), those outside of the series at its ends."""
    found: NDArray[np.int32] = np.take_along_axis(values, steps.clip(0, len(values) - 1).astype(np.int64), axis=0)
    return found
