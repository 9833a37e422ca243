"""The series: reading and checking it, missing values, filling gaps, and scaling."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lib.data.sensor_tables import SERIES_FORMATS
from lib.errors import InputError
from lib.files import load_npz, refuse_pickle
from lib.ini import LocalTime, kind_of

FLOW = 0  # the feature that is forecast; occupancy and speed follow where a file has them
MARKS_ARRAY, START_ARRAY = "imputed", "start"  # of an npz file, beside the series; most have neither
MISSING_WORDS = ("interpolate", "zero_is_missing", "negative_is_missing")
MARKERS_SHOWN = 3  # different negative values, in a message
CHUNK_ROWS = 1024  # rows looked at together, so that checking a series needs no second copy of it
BLOCK_VALUES = 2**22  # looked at together, of all rows of some sensors
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
    def middle(self) -> float:
        """The middle of the range of flow, in vehicles a time step."""
        return float(self.to_raw(np.zeros(1))[0])

    @property
    def raw_per_scaled(self) -> float:
        """How much raw flow one scaled unit is: d raw / d scaled."""
        return float(self.span / 2)


def read_series(path: Path, num_nodes: int, gaps: bool = False) -> NDArray[Any]:
    """Read the array `data` or `x` (T, N, F) of an npz file and check it; with `gaps`, values may be NaN.

    Raises:
        InputError: no such array, another number of dimensions or sensors, values that are not finite numbers.
    """
    refuse_pickle(path, SERIES_FORMATS, f"import pandas; pandas.read_pickle('{path.name}').to_csv('{path.stem}.csv')")
    if path.suffix.lower() not in ("", ".npz", ".npy") and path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: found a file that ends in {path.suffix}, expected {SERIES_FORMATS}")
    ((name, data),) = load_npz(path, (("data", "x"),), large_on_disk=True).items()
    if data.ndim != 3:
        raise InputError(
            f"{path} {name}: found shape {data.shape}, expected three axes (time steps, sensors, features)"
        )
    if data.dtype.kind not in "fiu":  # floats and integers; to NumPy, time differences are integers too
        raise InputError(f"{path} {name}: found values of type {data.dtype}, expected numbers")
    if 0 in data.shape:
        raise InputError(f"{path} {name}: found shape {data.shape}, expected at least one step, sensor and feature")
    if data.shape[1] != num_nodes:
        raise InputError(f"{path} {name}: found {data.shape[1]} sensors, expected num_of_vertices = {num_nodes}")
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
            f"{path} {name}: found {bad_values} {'' if gaps else 'NaN or '}infinite values, the first at {first_bad}, "
            f"expected finite numbers{hint}"
        )
    return data


def has_array(path: Path, name: str) -> bool:
    """Return whether a series is an npz archive with an array of that name, such as the marks of imputed values."""
    if not zipfile.is_zipfile(path):  # a table, or no file
        return False
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return f"{name}.npy" in archive.namelist()
    return False


def read_marks(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Read the array `imputed` (T, N) of an npz file, which says what was filled in; None where there is none.

    Raises:
        InputError: it is not one boolean for each step and sensor.
    """
    if not has_array(path, MARKS_ARRAY):
        return None
    marks = load_npz(path, (MARKS_ARRAY,), large_on_disk=True)[MARKS_ARRAY]
    if marks.dtype != np.bool_ or marks.shape != shape:
        found = f"found type {marks.dtype} and shape {marks.shape}"
        raise InputError(f"{path} {MARKS_ARRAY}: {found}, expected booleans {shape} (time steps, sensors)")
    return marks


def read_start(path: Path) -> datetime | None:
    """Read the array `start` of an npz file, the local time of its first step as a text; None where there is none.

    Raises:
        InputError: it is no local time, by the rule of [Data] start.
    """
    if not has_array(path, START_ARRAY):
        return None
    text = str(load_npz(path, (START_ARRAY,))[START_ARRAY])
    kind = kind_of(LocalTime)
    try:
        start: datetime = kind.parse(text)
    except ValueError:
        raise InputError(f"{path} {START_ARRAY}: found {text[:60]!r}, expected {kind.expected}") from None
    return start


def sensor_blocks(rows: int, sensors: int) -> Iterator[slice]:
    """Yield all sensors in blocks, for what needs all rows of a sensor, so that memory need not hold all sensors."""
    at_once = max(1, BLOCK_VALUES // rows)
    for first in range(0, sensors, at_once):
        yield slice(first, min(first + at_once, sensors))


def missing_rule(text: str) -> str:
    """Return [Data] missing as a text that is the same for rules of the same meaning, such as `interpolate, -1, 0`.

    It is `error`, or `interpolate` with what else counts as missing: numbers, and `negative_is_missing`.

    Raises:
        ValueError: the text is neither `error` nor a list of `MISSING_WORDS` and finite numbers.
    """
    items = {item.strip() for item in text.split(",")}
    if items == {"error"}:
        return "error"
    words = items & set(MISSING_WORDS)
    markers = {float(item) for item in items - words} | ({0.0} if "zero_is_missing" in words else set())
    if not np.isfinite(list(markers)).all():
        raise ValueError("found a marker that is not finite, expected a number")
    negative = ["negative_is_missing"] if "negative_is_missing" in words else []
    return ", ".join(["interpolate", *negative, *(str(marker + 0.0).removesuffix(".0") for marker in sorted(markers))])


def missing_markers(rule: str) -> list[float]:
    """Return the numbers that mark gaps by a rule for missing values."""
    return [float(item) for item in missing_rule(rule).split(", ") if item not in ("error", *MISSING_WORDS)]


def missing_values(flow: NDArray[Any], rule: str) -> NDArray[np.bool_]:
    """Return where values of a flow are missing: where they are NaN, or as `missing_rule` says."""
    missing: NDArray[np.bool_] = np.isnan(flow)
    for marker in missing_markers(rule):
        missing |= flow.astype(np.float32, copy=False) == np.float32(marker)  # as training sees them
    return missing | (flow < 0) if "negative_is_missing" in rule else missing


def refuse_negative(
    flow: NDArray[Any], rule: str, name: Callable[[int], str], label: Callable[[int], str], way_out: str = ""
) -> None:
    """Raise an InputError where a flow (T, N) is negative: no road has such a flow.

    Args:
        flow: missing values are NaN.
        rule: by which they are missing.
        name: of a sensor, by its position.
        label: of a step, by its row.
        way_out: what to do about it; by default the rule that makes gaps of these values too.
    """
    negative = flow < 0
    if not negative.any():
        return
    step, sensor = (int(index) for index in np.argwhere(negative)[0])
    values = [str(value) for value in np.unique(flow[negative])]
    added = values if len(values) <= MARKERS_SHOWN else ["negative_is_missing"]
    wider = missing_rule(", ".join([rule.replace("error", "interpolate"), *added]))
    raise InputError(
        f"found {negative.sum():,} negative values, the first {flow[step, sensor]:g} at step {label(step)}, sensor "
        f"{name(sensor)}, expected flows of at least 0; where they mark gaps, "
        f"{way_out or f'set [Data] missing = {wider}'}"
    )


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
    for sensor, gaps in groupby(find_gaps(flow), key=lambda gap: gap.sensor):
        observed = ~np.isnan(flow[:, sensor])
        short = [steps[gap.first : gap.end] for gap in gaps if gap.end - gap.first <= min(longest, len(flow) - 1)]
        if short:
            wanted = np.concatenate(short)
            filled[wanted, sensor] = np.interp(wanted, steps[observed], flow[observed, sensor])
    return filled
