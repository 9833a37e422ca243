"""The series: read and checked, its missing values and how gaps are filled, and its scaling."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError
from lib.files import load_npz

FLOW = 0  # the feature that is forecast; occupancy and speed follow where a file has them
CHUNK_ROWS = 1024  # rows looked at together, so that checking a series needs no second copy of it
Values = TypeVar("Values", Tensor, NDArray[np.float64])


@dataclass(frozen=True)
class Scaling:
    """The map of raw values to about -1 .. 1, by their least and greatest value in the training inputs.

    Attributes:
        minimum, maximum: of the flow; or arrays, of several features.
    """

    minimum: Any
    maximum: Any

    @property
    def span(self) -> Any:
        """The greatest less the least value; 1 for a feature that never varies."""
        span = self.maximum - self.minimum
        return np.where(span > 0, span, 1.0) if isinstance(span, np.ndarray) else span

    def to_scaled(self, raw: Values) -> Values:
        """Return 2 (x - min) / (max - min) - 1."""
        scaled: Values = 2 * (raw - self.minimum) / self.span - 1
        return scaled

    def to_float32(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return scaled values in float32, computed in float64, so that no rounding of x - min enters."""
        scaled: NDArray[np.float32] = self.to_scaled(raw.astype(np.float64)).astype(np.float32)
        return scaled

    def to_raw(self, scaled: Values) -> Values:
        """Return the inverse, in vehicles a time step."""
        raw: Values = (scaled + 1) / 2 * self.span + self.minimum
        return raw

    @property
    def raw_per_scaled(self) -> float:
        """How much raw flow one scaled unit is: d raw / d scaled."""
        return float(self.span / 2)


def read_series(path: Path, num_nodes: int, gaps: bool = False) -> NDArray[Any]:
    """Read the array `data` (T, N, F) of a PEMS npz file and check it; with `gaps`, values may be NaN.

    Raises:
        InputError: no such array, another number of dimensions or sensors, values that are not finite numbers.
    """
    data = load_npz(path, ("data",))["data"]
    if data.ndim != 3:
        raise InputError(f"{path} data: found shape {data.shape}, expected three axes (time steps, sensors, features)")
    if data.dtype.kind not in "fiu":  # floats and integers; to NumPy, time differences are integers too
        raise InputError(f"{path} data: found values of type {data.dtype}, expected numbers")
    if 0 in data.shape:
        raise InputError(f"{path} data: found shape {data.shape}, expected at least one step, sensor and feature")
    if data.shape[1] != num_nodes:
        raise InputError(f"{path} data: found {data.shape[1]} sensors, expected num_of_vertices = {num_nodes}")
    bad_values, first_bad, hint = 0, "", ""
    for row in range(0, len(data), CHUNK_ROWS):
        with np.errstate(over="ignore"):  # what training cannot hold counts as infinite
            bad = ~np.isfinite(data[row : row + CHUNK_ROWS].astype(np.float32, copy=False))
        if gaps:
            bad &= ~np.isnan(data[row : row + CHUNK_ROWS])
        if bad.any():
            step, sensor, feature = np.argwhere(bad)[0]
            first_bad = first_bad or f"step {row + step}, sensor {sensor}, feature {feature}"
            bad_values += int(bad.sum())
            if not gaps and np.isnan(data[row : row + CHUNK_ROWS]).any():
                hint = ", or [Data] missing = interpolate"
    if bad_values:
        raise InputError(
            f"{path} data: found {bad_values} {'' if gaps else 'NaN or '}infinite values, the first at {first_bad}, "
            f"expected finite numbers{hint}"
        )
    return data


def missing_values(flow: NDArray[Any], missing_rule: str) -> NDArray[np.bool_]:
    """Return where values of a flow are missing: where they are NaN, by the rule `zero_is_missing` also where 0."""
    missing: NDArray[np.bool_] = np.isnan(flow)
    return missing | (flow == 0) if missing_rule == "zero_is_missing" else missing


def last_observed(missing: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the last step up to each step (T, N) where the sensor's value is not missing; -1 where there is none."""
    steps = np.arange(len(missing), dtype=np.int32)[:, None]
    last: NDArray[np.int32] = np.maximum.accumulate(np.where(missing, np.int32(-1), steps), axis=0)
    return last


def next_observed(missing: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the first step from each step (T, N) on where the sensor's value is not missing; T where there is none."""
    return len(missing) - 1 - last_observed(missing[::-1])[::-1]


class Gap(NamedTuple):
    """Steps in a row for which a sensor has no value."""

    sensor: int
    first: int
    end: int  # the step after the last


def find_gaps(flow: NDArray[np.float64]) -> list[Gap]:
    """Return the gaps of a flow (T, N), sensor by sensor in time order."""
    missing = np.isnan(flow)
    gaps = []
    for sensor in np.flatnonzero(missing.any(axis=0)):
        edges = np.flatnonzero(np.diff(missing[:, sensor], prepend=False, append=False))
        gaps += [Gap(int(sensor), int(first), int(end)) for first, end in edges.reshape(-1, 2)]
    return gaps


def fill_gaps(flow: NDArray[np.float64], longest: int) -> NDArray[np.float64]:
    """Return a flow (T, N) whose gaps of at most `longest` steps are filled; longer ones stay.

    A gap is filled linearly between the values before and after it. At either end of the flow, where there is only one
    of them, it is repeated.
    """
    filled = flow.copy()
    steps = np.arange(len(flow))
    for sensor, first, end in find_gaps(flow):
        if end - first <= min(longest, len(flow) - 1):
            observed = ~np.isnan(flow[:, sensor])
            filled[first:end, sensor] = np.interp(steps[first:end], steps[observed], flow[observed, sensor])
    return filled
