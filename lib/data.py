"""Sensor series and their windows: read and checked, prepared once, cut out by index, never materialised.

A series is (T, N), time step and sensor. A sample is named by its label start t0, the index of its first target step:
its inputs lie at t0 + offsets, its targets at t0 .. t0 + P - 1.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.errors import InputError
from lib.files import load_npz, save_npz, written_whole

FLOW = 0  # the feature that is forecast; occupancy and speed follow where a file has them
SPLITS = ("train", "val", "test")
Values = TypeVar("Values", Tensor, NDArray[np.float64])
Steps = TypeVar("Steps", Tensor, NDArray[np.int64], int)
CHUNK_ROWS = 1024  # rows looked at together, so that checking a series needs no second copy of it


@dataclass(frozen=True)
class WindowShape:
    """Which past hours a forecast sees, and how far it reaches.

    The input is `weeks + days + hours` segments of one hour, oldest first: the target's first hour in each of the last
    weeks, then in each of the last days, then the last hours before it. The target is the `horizon` steps from t0 on.
    """

    weeks: int
    days: int
    hours: int
    horizon: int
    points_per_hour: int

    @property
    def segments(self) -> tuple[tuple[str, int], ...]:
        """Name and offset from t0 of each one-hour segment, oldest first."""
        day = 24 * self.points_per_hour
        return (
            *((f"week -{i}", -i * 7 * day) for i in range(self.weeks, 0, -1)),
            *((f"day -{i}", -i * day) for i in range(self.days, 0, -1)),
            *((f"hour -{i}", -i * self.points_per_hour) for i in range(self.hours, 0, -1)),
        )

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of the input steps from t0, (L,)."""
        first = np.array([offset for _, offset in self.segments], dtype=np.int64)
        return (first[:, None] + np.arange(self.points_per_hour)).ravel()

    def label_starts(self, rows: int) -> NDArray[np.int64]:
        """Return the valid label starts of a series of that many rows, in time order.

        Raises:
            InputError: there are too few rows for one sample in each split.
        """
        reach = -int(self.offsets.min())
        starts = np.arange(reach, rows - self.horizon + 1, dtype=np.int64)
        smallest = 3  # from there on no split is empty
        if len(starts) < smallest:
            needed = reach + self.horizon + smallest - 1
            raise InputError(
                f"found {rows} rows, expected at least {needed} for windows of {self.weeks} weeks, {self.days} days, "
                f"{self.hours} hours and {self.horizon} target steps"
            )
        return starts

    def split(self, rows: int) -> dict[str, NDArray[np.int64]]:
        """Return the label starts of train, val and test: the first 60 %, the next 20 %, the last 20 % in time."""
        starts = self.label_starts(rows)
        parts = np.split(starts, [int(0.6 * len(starts)), int(0.8 * len(starts))])
        return dict(zip(SPLITS, parts, strict=True))


@dataclass(frozen=True)
class Calendar:
    """Where in the week each step of a series lies; a week has seven days and starts on Monday at midnight.

    Where the time of the series' first step is not known, that step counts as the first of a week.
    """

    steps_per_day: int
    first_step: int = 0  # step of the week of the series' first step

    @property
    def steps_per_week(self) -> int:
        """The number of time steps in a week."""
        return 7 * self.steps_per_day

    def step_of_week(self, steps: Steps) -> Steps:
        """Return the step of the week, 0 .. 7 steps_per_day - 1, of steps of the series."""
        return (steps + self.first_step) % self.steps_per_week


@dataclass(frozen=True)
class Scaling:
    """The map of raw flow to about -1 .. 1, by the least and greatest flow of the training inputs."""

    minimum: float
    maximum: float

    def to_scaled(self, raw: Values) -> Values:
        """Return 2 (x - min) / (max - min) - 1."""
        return 2 * (raw - self.minimum) / (self.maximum - self.minimum) - 1

    def to_raw(self, scaled: Values) -> Values:
        """Return the inverse, in vehicles a time step."""
        return (scaled + 1) / 2 * (self.maximum - self.minimum) + self.minimum

    @property
    def raw_per_scaled(self) -> float:
        """How much raw flow one scaled unit is: d raw / d scaled."""
        return (self.maximum - self.minimum) / 2


@dataclass(frozen=True)
class Prepared:
    """A series made ready for training, and everything that was decided from it.

    Attributes:
        flow: (T, N) float32, raw.
        offsets: (L,) offsets of the input steps from a label start.
        label_starts: those of each split, in time order.
        minimum, maximum: (F,) of each feature over all rows that a training input touches.
        source_fingerprint: of the file that the series was read from.
    """

    flow: NDArray[np.float32]
    offsets: NDArray[np.int64]
    label_starts: dict[str, NDArray[np.int64]]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    source_fingerprint: str

    @property
    def scaling(self) -> Scaling:
        """The scaling of the flow."""
        return Scaling(float(self.minimum[FLOW]), float(self.maximum[FLOW]))

    @property
    def training_rows(self) -> int:
        """The rows before the last training label start: all that may shape graphs, means and baselines."""
        return int(self.label_starts["train"][-1])


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
    bad_values, first_bad = 0, ""
    for row in range(0, len(data), CHUNK_ROWS):
        with np.errstate(over="ignore"):  # what training cannot hold counts as infinite
            bad = ~np.isfinite(data[row : row + CHUNK_ROWS].astype(np.float32, copy=False))
        if gaps:
            bad &= ~np.isnan(data[row : row + CHUNK_ROWS])
        if bad.any():
            step, sensor, feature = np.argwhere(bad)[0]
            first_bad = first_bad or f"step {row + step}, sensor {sensor}, feature {feature}"
            bad_values += int(bad.sum())
    if bad_values:
        raise InputError(
            f"{path} data: found {bad_values} {'' if gaps else 'NaN or '}infinite values, the first at {first_bad}, "
            "expected finite numbers"
        )
    return data


def prepare(series: NDArray[Any], shape: WindowShape, source_fingerprint: str) -> Prepared:
    """Decide splits and scaling of a series (T, N, F), and keep its flow.

    Raises:
        InputError: there are too few rows for the windows, or the training flow is constant.
    """
    rows, _, features = series.shape
    label_starts = shape.split(rows)
    offsets = shape.offsets
    touched = np.zeros(rows, dtype=bool)
    for offset in offsets:
        touched[label_starts["train"] + offset] = True
    minimum, maximum = np.full(features, np.inf), np.full(features, -np.inf)
    for row in range(0, rows, CHUNK_ROWS):
        chunk = series[row : row + CHUNK_ROWS][touched[row : row + CHUNK_ROWS]]
        if len(chunk):
            minimum = np.minimum(minimum, chunk.min(axis=(0, 1)))
            maximum = np.maximum(maximum, chunk.max(axis=(0, 1)))
    if minimum[FLOW] == maximum[FLOW]:
        raise InputError(f"found a flow of {minimum[FLOW]:g} at all training steps, expected values that vary")
    flow = np.ascontiguousarray(series[:, :, FLOW], dtype=np.float32)
    return Prepared(flow, offsets, label_starts, minimum, maximum, source_fingerprint)


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write the prepared file: `flow`, `offsets`, `label_starts_*`, `minimum`, `maximum`, `source_fingerprint`."""
    arrays = {f"label_starts_{split}": starts for split, starts in prepared.label_starts.items()}
    save_npz(
        path,
        {
            "flow": prepared.flow,
            "offsets": prepared.offsets,
            **arrays,
            "minimum": prepared.minimum,
            "maximum": prepared.maximum,
            "source_fingerprint": np.array(prepared.source_fingerprint),
        },
    )


def load_prepared(path: Path) -> Prepared:
    """Read a prepared file.

    Raises:
        InputError: the file is missing, damaged, or not a prepared file.
    """
    starts = tuple(f"label_starts_{split}" for split in SPLITS)
    layout = {"flow": "f2", "offsets": "i1", **dict.fromkeys(starts, "i1"), "minimum": "f1", "maximum": "f1"}
    arrays = load_npz(path, (*layout, "source_fingerprint"))
    for name, kind_and_axes in layout.items():
        array = arrays[name]
        if f"{array.dtype.kind}{array.ndim}" != kind_and_axes or not array.size:
            raise InputError(
                f"{path} {name}: found type {array.dtype} and shape {array.shape}, expected a file of PrepareData.py"
            )
    reached = np.concatenate([arrays[name] for name in starts])
    if reached.min() + arrays["offsets"].min() < 0 or reached.max() >= len(arrays["flow"]):
        raise InputError(f"{path}: found label starts outside of the series, expected a file of PrepareData.py")
    return Prepared(
        arrays["flow"],
        arrays["offsets"],
        {split: arrays[name] for split, name in zip(SPLITS, starts, strict=True)},
        arrays["minimum"],
        arrays["maximum"],
        str(arrays["source_fingerprint"]),
    )


def materialize(path: Path, series: NDArray[Any], prepared: Prepared, horizon: int) -> None:
    """Write all windows of a series (T, N, F) in the released code's file format, for other code bases.

    For each split: `*_x` (B, N, F, L) scaled, `*_target` (B, N, P) raw flow, `*_timestamp` (B, 1) the label starts;
    and `mean`, `std`, which hold the maximum and the minimum (1, 1, F, 1), as the released code has it. Windows are
    streamed into the compressed archive in pieces, so memory stays at that of the series.
    """
    shape = (1, 1, -1, 1)
    maximum, minimum = prepared.maximum.reshape(shape), prepared.minimum.reshape(shape)
    span = np.where(maximum > minimum, maximum - minimum, 1.0)
    _, num_nodes, features = series.shape
    piece = max(1, 2**22 // (num_nodes * features * len(prepared.offsets)))  # windows in about 32 MiB

    def inputs(starts: NDArray[np.int64]) -> NDArray[np.float32]:
        windows = series[starts[:, None] + prepared.offsets].transpose(0, 2, 3, 1)  # (B, N, F, L)
        return np.asarray(2 * (windows - minimum) / span - 1, dtype=np.float32)

    def targets(starts: NDArray[np.int64]) -> NDArray[np.float32]:
        windows = series[starts[:, None] + np.arange(horizon), :, FLOW]  # (B, P, N)
        return np.asarray(windows.transpose(0, 2, 1), dtype=np.float32)

    with written_whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, starts in prepared.label_starts.items():
            for name, part in (("x", inputs), ("target", targets)):
                head = part(starts[:1])
                with archive.open(f"{split}_{name}.npy", "w", force_zip64=True) as member:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(head.dtype),
                        "fortran_order": False,
                        "shape": (len(starts), *head.shape[1:]),
                    }
                    np.lib.format.write_array_header_2_0(member, header)
                    for first in tqdm(range(0, len(starts), piece), desc=f"{split} {name}", disable=None):
                        member.write(np.ascontiguousarray(part(starts[first : first + piece])).data)
            with archive.open(f"{split}_timestamp.npy", "w") as member:
                np.lib.format.write_array(member, starts[:, None], allow_pickle=False)
        for name, array in (("mean", maximum), ("std", minimum)):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


class Batch(NamedTuple):
    """Samples, ready for the model.

    Attributes:
        series: (B, N, L) scaled inputs.
        start: (B, N) scaled, the value that the decoder starts from: the last input.
        target: (B, N, P) scaled.
        flow: (B, N, P) the target in raw units.
        step_of_week: (B,) of the first target step, counted from Monday at midnight.
    """

    series: Tensor
    start: Tensor
    target: Tensor
    flow: Tensor
    step_of_week: Tensor

    @property
    def teacher(self) -> Tensor:
        """The value before each target step, (B, N, P): what the decoder is fed under teacher forcing."""
        return torch.cat([self.start.unsqueeze(-1), self.target[:, :, :-1]], dim=-1)


class Windows:
    """The windows of a prepared series, gathered on the device where the series stays."""

    def __init__(self, prepared: Prepared, horizon: int, calendar: Calendar, device: torch.device) -> None:
        self.scaling = prepared.scaling
        self.calendar = calendar
        self.device = device
        # Scaled in float64 once, so that no float32 rounding of the difference to the minimum enters.
        scaled = self.scaling.to_scaled(prepared.flow.astype(np.float64)).astype(np.float32)
        self.scaled = torch.from_numpy(scaled).to(device)  # (T, N)
        self.flow = torch.from_numpy(prepared.flow).to(device)  # (T, N)
        self.input_offsets = torch.from_numpy(prepared.offsets).to(device)
        self.target_offsets = torch.arange(horizon, device=device)

    def batch(self, label_starts: Tensor) -> Batch:
        """Cut out the samples with these label starts, (B,) on the windows' device."""
        inputs = label_starts[:, None] + self.input_offsets
        targets = label_starts[:, None] + self.target_offsets
        series = self.scaled[inputs].transpose(1, 2).contiguous()  # (B, N, L)
        target = self.scaled[targets].transpose(1, 2).contiguous()  # (B, N, P)
        flow = self.flow[targets].transpose(1, 2).contiguous()  # (B, N, P)
        return Batch(series, series[:, :, -1], target, flow, self.calendar.step_of_week(label_starts))

    def batches(self, label_starts: NDArray[np.int64] | Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches over all these label starts, in their order; the last one may be smaller."""
        starts = torch.as_tensor(label_starts).to(self.device)
        for first in range(0, len(starts), batch_size):
            yield self.batch(starts[first : first + batch_size])
