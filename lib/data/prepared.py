"""The prepared series: splits and scaling decided once, gaps filled, and kept in one small file.

Windows are never materialised: training cuts them out by index (`lib.data.windows`). Values may be missing. As targets
they do not count. As inputs they are filled from what is observed before t0 alone: linearly between the values before
and after the gap, or with the last value where the gap is not over before t0.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lib.data.imputed import LEAST_SHARE, causal_flags, imputed_values, marked_flags
from lib.data.series import (
    CHUNK_ROWS,
    FLOW,
    Scaling,
    fill_gaps,
    last_observed,
    missing_values,
    refuse_negative,
    sensor_blocks,
)
from lib.data.windowing import PADDED_FROM_DAY, SPLITS, Calendar, WindowShape, padded
from lib.errors import InputError
from lib.files import load_npz, save_npz, scratch, write_member, written_whole

SENSORS_NAMED = 5  # in a message
MASKS = ("missing", "imputed")
MARKS = "marks"  # in `Prepared.made_from`, of a series that marks its imputed values


@dataclass(frozen=True)
class Prepared:
    """A series made ready for training, and everything that was decided from it.

    Attributes:
        flow: (T, N) float32, raw; missing values are filled (`fill_gaps`).
        offsets: (L,) offsets of the input steps from a label start.
        label_starts: those of each split, in time order.
        minimum, maximum: (F,) of each feature over all observed values in rows that a training input touches.
        made_from: all that decided the rest, by name: the series, the windows, and the rules.
        missing: (T, N), where the flow is missing; None where nothing is.
        imputed: (T, N), where the flow was filled in and not measured, by the marks of the series, or where there are
            none by its values (`lib.data.imputed`); None where nothing was.
    """

    flow: NDArray[np.float32]
    offsets: NDArray[np.int64]
    label_starts: dict[str, NDArray[np.int64]]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    made_from: Mapping[str, str]
    missing: NDArray[np.bool_] | None = None
    imputed: NDArray[np.bool_] | None = None

    def of_sensors(self, sensors: slice) -> "Prepared":
        """Return the same of some sensors."""
        masks = {name: mask[:, sensors] for name in MASKS if (mask := getattr(self, name)) is not None}
        return replace(self, flow=self.flow[:, sensors], **masks)

    def in_blocks(self) -> Iterator[tuple[slice, "Prepared"]]:
        """Yield the same of all sensors, some at a time: what is computed of each is then never all in memory."""
        for sensors in sensor_blocks(*self.flow.shape):
            yield sensors, self.of_sensors(sensors)

    @property
    def marked(self) -> bool:
        """Whether the series says itself which values are imputed."""
        return MARKS in self.made_from

    def imputed_flags(self, calendar: Calendar) -> NDArray[np.bool_] | None:
        """Return which sensors are imputed at each step t0 and the one after the last, by what came before: (T + 1, N).

        By the marks of the series, or by repeats of the week before; None where none ever is.
        """
        if self.marked:
            return None if self.imputed is None else marked_flags(self.imputed)
        rows, sensors = self.flow.shape
        flags = scratch((rows + 1, sensors), np.bool_)
        for block, part in self.in_blocks():
            flags[:, block] = causal_flags(part.observed, calendar)
        return flags if flags.any() else None

    @property
    def observed(self) -> NDArray[np.float32]:
        """The flow (T, N) with NaN where it is missing."""
        return self.flow if self.missing is None else np.where(self.missing, np.float32(np.nan), self.flow)

    @property
    def unscored(self) -> NDArray[np.bool_] | None:
        """Where targets do not count (T, N): missing, and imputed by [Data] imputed = missing; None: all count.

        Without marks, whether a value is imputed depends on those after it. So it may not change what a forecast reads.
        """
        if self.imputed is None or self.made_from.get("Data.imputed") != "missing":
            return self.missing
        return self.imputed if self.missing is None else self.imputed | self.missing

    @property
    def truth(self) -> NDArray[np.float32]:
        """The flow (T, N) with NaN where targets do not count: what forecasts are trained and scored on."""
        unscored = self.unscored
        return self.flow if unscored is None else np.where(unscored, np.float32(np.nan), self.flow)

    @property
    def unmeasured(self) -> NDArray[np.bool_] | None:
        """Where the flow (T, N) is missing or imputed; None where that is nowhere, or as `unscored`."""
        if self.imputed is None or self.unscored is not self.missing:
            return None
        return self.imputed if self.missing is None else self.imputed | self.missing

    @property
    def measured(self) -> NDArray[np.float32] | None:
        """The flow (T, N) with NaN where it is missing or imputed; None where `truth` is that already."""
        unmeasured = self.unmeasured
        return None if unmeasured is None else np.where(unmeasured, np.float32(np.nan), self.flow)

    @property
    def forward_filled(self) -> NDArray[np.float32]:
        """The flow (T, N) with the last observed value in place of each missing one, so that nothing later enters.

        Before a sensor's first value it is the mean of its training rows, as there is nothing else to go by.
        """
        if self.missing is None:
            return self.flow
        last = last_observed(self.missing)
        mean = np.nanmean(self.observed[: self.training_rows], axis=0, dtype=np.float64).astype(np.float32)
        return np.where(last >= 0, np.take_along_axis(self.flow, last.clip(0).astype(np.int64), axis=0), mean)

    def missing_targets(self, label_starts: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
        """Return how many of the N * P targets of each sample do not count, (samples,)."""
        unscored = self.unscored
        if unscored is None:
            return np.zeros(len(label_starts), dtype=np.int64)
        before = np.concatenate([[0], np.cumsum(unscored.sum(axis=1))])  # that do not count before each step
        counts: NDArray[np.int64] = before[label_starts + horizon] - before[label_starts]
        return counts

    @property
    def scaling(self) -> Scaling:
        """The scaling of the flow."""
        return Scaling(float(self.minimum[FLOW]), float(self.maximum[FLOW]))

    def with_scaling(self, scaling: Scaling) -> "Prepared":
        """Return the series with another scaling of its flow: that of the weights that are to read it."""
        limits = [limit.copy() for limit in (self.minimum, self.maximum)]
        for limit, value in zip(limits, (scaling.minimum, scaling.maximum), strict=True):
            limit[FLOW] = value
        return replace(self, minimum=limits[0], maximum=limits[1])

    @property
    def training_rows(self) -> int:
        """The rows before the last training label start: all that may shape graphs, means and baselines."""
        return int(self.label_starts["train"][-1])


def padded_label_starts(prepared: Prepared, steps_per_day: int) -> NDArray[np.int64]:
    """Return the label starts whose weeks and days lie before the series, from its third day on.

    On the first day there is no historical profile, and on the second it is of one day, perhaps a Sunday for a Monday.
    """
    return np.arange(PADDED_FROM_DAY * steps_per_day, prepared.label_starts["train"][0], dtype=np.int64)


def prepare(
    series: NDArray[Any],
    shape: WindowShape,
    made_from: Mapping[str, str],
    missing_rule: str = "error",
    sensors: Sequence[str] | None = None,
    marks: NDArray[np.bool_] | None = None,
    step_name: Callable[[int], str] = str,
) -> Prepared:
    """Decide splits and scaling of a series (T, N, F), and keep its flow with gaps filled.

    Args:
        series: finite, or NaN where values are missing.
        shape: of the windows.
        made_from: what the result says of its origin.
        missing_rule: [Data] missing, by which values count as missing.
        sensors: (N,) names for messages; None stands for their positions.
        marks: (T, N), which values the series says are imputed; None: it does not say.
        step_name: of a step, for messages.

    Raises:
        InputError: there are too few rows for the windows, a flow is negative, the training flow is constant, a sensor
            has no value in the training inputs, or a split has no target.
    """
    rows, num_nodes, features = series.shape
    label_starts = shape.split(rows)
    offsets, calendar = shape.offsets, Calendar(24 * shape.points_per_hour)
    touched = np.zeros(rows, dtype=bool)
    for offset in offsets:
        touched[padded(label_starts["train"] + offset, calendar.steps_per_day)] = True
    flow, missing, imputed = (scratch((rows, num_nodes), kind) for kind in (np.float32, np.bool_, np.bool_))
    silent: list[int] = []
    negative = False
    for block in sensor_blocks(rows, num_nodes):
        read = np.asarray(series[:, block, FLOW])
        single = read.astype(np.float32)
        absent = missing_values(single, missing_rule)
        observed = np.where(absent, np.float32(np.nan), single)
        negative = negative or bool((observed < 0).any())
        silent += (block.start + np.flatnonzero(absent[touched].all(axis=0))).tolist()
        missing[:, block] = absent
        imputed[:, block] = imputed_values(observed, calendar) if marks is None else marks[:, block] & ~absent
        if absent.any():
            single = fill_gaps(np.where(absent, np.nan, read.astype(np.float64)), rows).astype(np.float32)
        flow[:, block] = single
    by_chance = marks is None and not (imputed.mean(axis=0) > LEAST_SHARE).any()
    if negative:
        observed = np.where(missing, np.float32(np.nan), flow)
        refuse_negative(observed, missing_rule, lambda sensor: str(sensors[sensor] if sensors else sensor), step_name)
    if silent:
        names = ", ".join(str(sensors[sensor] if sensors else sensor) for sensor in silent[:SENSORS_NAMED])
        more = f" and {len(silent) - SENSORS_NAMED} more" if len(silent) > SENSORS_NAMED else ""
        steps = f"steps {step_name(0)} .. {step_name(int(np.flatnonzero(touched)[-1]))}"
        raise InputError(f"sensor {names}{more}: found no value in the training inputs ({steps}), expected some")

    minimum, maximum = np.full(features, np.inf), np.full(features, -np.inf)
    for row in range(0, rows, CHUNK_ROWS):
        here = touched[row : row + CHUNK_ROWS]
        chunk, gaps = series[row : row + CHUNK_ROWS][here], missing[row : row + CHUNK_ROWS][here]
        if gaps.any():
            chunk = chunk.astype(np.float64)
            chunk[gaps, FLOW] = np.nan
        if len(chunk):  # of the least and NaN, fmin is the least
            minimum = np.fmin(minimum, np.fmin.reduce(chunk, axis=(0, 1)))
            maximum = np.fmax(maximum, np.fmax.reduce(chunk, axis=(0, 1)))
    if minimum[FLOW] == maximum[FLOW]:
        raise InputError(f"found a flow of {minimum[FLOW]:g} at all training steps, expected values that vary")

    prepared = Prepared(
        flow,
        offsets,
        label_starts,
        minimum,
        maximum,
        made_from,
        missing if missing.any() else None,
        imputed if imputed.any() and not by_chance else None,
    )
    for split, starts in label_starts.items():
        if prepared.missing_targets(starts, shape.horizon).sum() == len(starts) * num_nodes * shape.horizon:
            steps = f"{step_name(int(starts[0]))} .. {step_name(int(starts[-1]) + shape.horizon - 1)}"
            raise InputError(f"found no value in the targets of the {split} split (steps {steps}), expected some")
    return prepared


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write the prepared file: the attributes of `Prepared`, the label starts of each split as `label_starts_*`.

    `missing` and `imputed` are left out where there are none.
    """
    arrays = {f"label_starts_{split}": starts for split, starts in prepared.label_starts.items()}
    masks = {name: mask for name in MASKS if (mask := getattr(prepared, name)) is not None}
    save_npz(
        path,
        {
            "flow": prepared.flow,
            "offsets": prepared.offsets,
            **arrays,
            **masks,
            "minimum": prepared.minimum,
            "maximum": prepared.maximum,
            "made_from": np.array(json.dumps(prepared.made_from)),
        },
    )


def load_prepared(path: Path) -> Prepared:
    """Read a prepared file.

    Raises:
        InputError: the file is missing, damaged, or not a prepared file.
    """
    starts = tuple(f"label_starts_{split}" for split in SPLITS)
    layout = {"flow": "f2", "offsets": "i1", **dict.fromkeys(starts, "i1"), "minimum": "f1", "maximum": "f1"}
    arrays = load_npz(path, (*layout, "made_from"), optional=MASKS, large_on_disk=True)
    for name, kind_and_axes in layout.items():
        array = arrays[name]
        if f"{array.dtype.kind}{array.ndim}" != kind_and_axes or not array.size:
            raise InputError(
                f"{path} {name}: found type {array.dtype} and shape {array.shape}, expected a file of PrepareData.py"
            )
    reached = np.concatenate([arrays[name] for name in starts])
    if reached.min() < 0 or reached.max() >= len(arrays["flow"]):
        raise InputError(f"{path}: found label starts outside of the series, expected a file of PrepareData.py")
    try:
        made_from = {str(key): str(value) for key, value in json.loads(str(arrays["made_from"])).items()}
    except (AttributeError, ValueError):
        raise InputError(f"{path} made_from: found a damaged text, expected a file of PrepareData.py") from None
    masks = {name: arrays[name] for name in MASKS if name in arrays}
    for name, mask in masks.items():
        if mask.dtype != np.bool_ or mask.shape != arrays["flow"].shape:
            found = f"found type {mask.dtype} and shape {mask.shape}"
            raise InputError(f"{path} {name}: {found}, expected a file of PrepareData.py")
    return Prepared(
        arrays["flow"],
        arrays["offsets"],
        {split: arrays[name] for split, name in zip(SPLITS, starts, strict=True)},
        arrays["minimum"],
        arrays["maximum"],
        made_from,
        masks.get("missing"),
        masks.get("imputed"),
    )


def materialize(path: Path, series: NDArray[Any], prepared: Prepared, horizon: int, steps_per_day: int) -> None:
    """Write all windows of a series (T, N, F) in the released code's file format, for other code bases.

    For each split: `*_x` (B, N, F, L) scaled, `*_target` (B, N, P) raw flow, `*_timestamp` (B, 1) the label starts;
    and `mean`, `std`, which hold the maximum and the minimum (1, 1, F, 1), as the released code has it. Windows are
    streamed into the compressed archive in pieces, so memory stays at that of the series.
    """
    minimum, maximum = (values.reshape(1, 1, -1, 1) for values in (prepared.minimum, prepared.maximum))
    scaling = Scaling(minimum, maximum)
    _, num_nodes, features = series.shape
    piece = max(1, 2**22 // (num_nodes * features * len(prepared.offsets)))  # windows in about 32 MiB

    def inputs(starts: NDArray[np.int64]) -> NDArray[np.float32]:
        read = padded(starts[:, None] + prepared.offsets, steps_per_day)
        windows = series[read].transpose(0, 2, 3, 1)  # (B, N, F, L)
        return scaling.to_float32(windows)

    def targets(starts: NDArray[np.int64]) -> NDArray[np.float32]:
        windows = series[starts[:, None] + np.arange(horizon), :, FLOW]  # (B, P, N)
        return np.asarray(windows.transpose(0, 2, 1), dtype=np.float32)

    with written_whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, starts in prepared.label_starts.items():
            for name, part in (("x", inputs), ("target", targets)):
                shape = (len(starts), *part(starts[:1]).shape[1:])
                pieces = tqdm(range(0, len(starts), piece), desc=f"{split} {name}", disable=None)
                windows = (part(starts[first : first + piece]) for first in pieces)
                write_member(archive, f"{split}_{name}", shape, windows)
            with archive.open(f"{split}_timestamp.npy", "w") as member:
                np.lib.format.write_array(member, starts[:, None], allow_pickle=False)
        for name, array in (("mean", maximum), ("std", minimum)):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
