"""Sensor series and their windows: read and checked, prepared once, cut out by index, never materialised.

A series is (T, N), time step and sensor. A sample is named by its label start t0, the index of its first target step:
its inputs lie at t0 + offsets, its targets at t0 .. t0 + P - 1.

Early samples are those whose earlier weeks and days lie before the series. There its first day stands in: the series
counts as having repeated it. They are for training alone, which has more samples with them.

Values may be missing. As targets they do not count. As inputs they are filled from what is known before t0 alone:
linearly between the values before and after the gap, or with the last value where the gap is not over before t0.
"""

import zipfile
from collections.abc import Iterator, Sequence
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
SENSORS_NAMED = 5  # in a message
EARLY_FROM_DAY = 2  # the first day being 0


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
        flow: (T, N) float32, raw; missing values are filled linearly between those before and after, or with the
            nearest one at either end.
        offsets: (L,) offsets of the input steps from a label start.
        label_starts: those of each split, in time order.
        minimum, maximum: (F,) of each feature over all known values in rows that a training input touches.
        source_fingerprint: of the file that the series was read from.
        missing: (T, N), where the flow is missing; None where nothing is.
        missing_rule: [Data] missing, by which values count as missing.
    """

    flow: NDArray[np.float32]
    offsets: NDArray[np.int64]
    label_starts: dict[str, NDArray[np.int64]]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    source_fingerprint: str
    missing: NDArray[np.bool_] | None = None
    missing_rule: str = "error"

    @property
    def truth(self) -> NDArray[np.float32]:
        """The flow (T, N) with NaN where it is missing: what forecasts are scored on."""
        return self.flow if self.missing is None else np.where(self.missing, np.float32(np.nan), self.flow)

    @property
    def held(self) -> NDArray[np.float32]:
        """The flow (T, N) with the last known value in place of each missing one, so that nothing later enters.

        Before a sensor's first value it is the mean of its training rows, as there is nothing else to go by.
        """
        if self.missing is None:
            return self.flow
        last = last_known(self.missing)
        mean = np.nanmean(self.truth[: self.training_rows], axis=0, dtype=np.float64).astype(np.float32)
        return np.where(last >= 0, np.take_along_axis(self.flow, last.clip(0).astype(np.int64), axis=0), mean)

    def missing_targets(self, label_starts: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
        """Return how many of the N * P targets of each sample are missing, (samples,)."""
        if self.missing is None:
            return np.zeros(len(label_starts), dtype=np.int64)
        before = np.concatenate([[0], np.cumsum(self.missing.sum(axis=1))])  # missing before each step
        counts: NDArray[np.int64] = before[label_starts + horizon] - before[label_starts]
        return counts

    @property
    def scaling(self) -> Scaling:
        """The scaling of the flow."""
        return Scaling(float(self.minimum[FLOW]), float(self.maximum[FLOW]))

    @property
    def training_rows(self) -> int:
        """The rows before the last training label start: all that may shape graphs, means and baselines."""
        return int(self.label_starts["train"][-1])


def early_label_starts(prepared: Prepared, steps_per_day: int) -> NDArray[np.int64]:
    """Return the label starts of the early samples, from the third day of the series to the first whole sample.

    On the first day nothing is known to be usual, and on the second one day alone, which may be a Sunday for a Monday.
    """
    return np.arange(EARLY_FROM_DAY * steps_per_day, prepared.label_starts["train"][0], dtype=np.int64)


def missing_values(flow: NDArray[Any], missing_rule: str) -> NDArray[np.bool_]:
    """Return where values of a flow are missing: where they are NaN, by the rule `zero_is_missing` also where 0."""
    missing: NDArray[np.bool_] = np.isnan(flow)
    return missing | (flow == 0) if missing_rule == "zero_is_missing" else missing


def last_known(missing: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the last step up to each step (T, N) where the sensor's value is not missing; -1 where there is none."""
    steps = np.arange(len(missing), dtype=np.int32)[:, None]
    last: NDArray[np.int32] = np.maximum.accumulate(np.where(missing, np.int32(-1), steps), axis=0)
    return last


def next_known(missing: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the first step from each step (T, N) on where the sensor's value is not missing; T where there is none."""
    return len(missing) - 1 - last_known(missing[::-1])[::-1]


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


def prepare(
    series: NDArray[Any],
    shape: WindowShape,
    source_fingerprint: str,
    missing_rule: str = "error",
    sensors: Sequence[str] | None = None,
) -> Prepared:
    """Decide splits and scaling of a series (T, N, F), and keep its flow with gaps filled.

    Args:
        series: finite, or NaN where values are missing.
        shape: of the windows.
        source_fingerprint: of the file that the series was read from.
        missing_rule: [Data] missing, by which values count as missing.
        sensors: (N,) names for messages; None stands for their positions.

    Raises:
        InputError: there are too few rows for the windows, the training flow is constant, a sensor has no value in the
            training inputs, or a split has no target.
    """
    rows, num_nodes, features = series.shape
    label_starts = shape.split(rows)
    offsets = shape.offsets
    touched = np.zeros(rows, dtype=bool)
    for offset in offsets:
        touched[label_starts["train"] + offset] = True
    flow = np.ascontiguousarray(series[:, :, FLOW], dtype=np.float32)
    missing = missing_values(flow, missing_rule)
    silent = np.flatnonzero(missing[touched].all(axis=0))
    if len(silent):
        names = ", ".join(str(sensors[sensor] if sensors else sensor) for sensor in silent[:SENSORS_NAMED])
        more = f" and {len(silent) - SENSORS_NAMED} more" if len(silent) > SENSORS_NAMED else ""
        steps = f"steps 0 .. {np.flatnonzero(touched)[-1]}"
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

    if missing.any():
        flow, step = flow.copy(), np.arange(rows)
        for sensor in np.flatnonzero(missing.any(axis=0)):
            gap = missing[:, sensor]
            known = series[~gap, sensor, FLOW].astype(np.float64)
            flow[gap, sensor] = np.interp(step[gap], step[~gap], known)
    prepared = Prepared(
        flow,
        offsets,
        label_starts,
        minimum,
        maximum,
        source_fingerprint,
        missing if missing.any() else None,
        missing_rule,
    )
    for split, starts in label_starts.items():
        if prepared.missing_targets(starts, shape.horizon).sum() == len(starts) * num_nodes * shape.horizon:
            steps = f"{starts[0]} .. {starts[-1] + shape.horizon - 1}"
            raise InputError(f"found no value in the targets of the {split} split (steps {steps}), expected some")
    return prepared


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write the prepared file: the attributes of `Prepared`, the label starts of each split as `label_starts_*`.

    `missing` is left out where nothing is missing.
    """
    arrays = {f"label_starts_{split}": starts for split, starts in prepared.label_starts.items()}
    gaps = {} if prepared.missing is None else {"missing": prepared.missing}
    save_npz(
        path,
        {
            "flow": prepared.flow,
            "offsets": prepared.offsets,
            **arrays,
            **gaps,
            "minimum": prepared.minimum,
            "maximum": prepared.maximum,
            "source_fingerprint": np.array(prepared.source_fingerprint),
            "missing_rule": np.array(prepared.missing_rule),
        },
    )


def load_prepared(path: Path) -> Prepared:
    """Read a prepared file; one without `missing_rule` is older than the setting, and nothing in it is missing.

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
    with zipfile.ZipFile(path) as archive:
        there = tuple(name for name in ("missing", "missing_rule") if f"{name}.npy" in archive.namelist())
    optional = load_npz(path, there)
    missing = optional.get("missing")
    if missing is not None and (missing.dtype != np.bool_ or missing.shape != arrays["flow"].shape):
        raise InputError(
            f"{path} missing: found type {missing.dtype} and shape {missing.shape}, expected a file of PrepareData.py"
        )
    return Prepared(
        arrays["flow"],
        arrays["offsets"],
        {split: arrays[name] for split, name in zip(SPLITS, starts, strict=True)},
        arrays["minimum"],
        arrays["maximum"],
        str(arrays["source_fingerprint"]),
        missing,
        str(optional.get("missing_rule", "error")),
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
        target: (B, N, P) scaled, finite; where it is missing, the last known value before.
        flow: (B, N, P) the target in raw units, NaN where it is missing.
        step_of_week: (B,) of the first target step, counted from Monday at midnight.
        known: (B, N, P) where the target is not missing; None for a series where nothing is.
        usual: (B, N, h + P) scaled, what is usual in the last hour before the first target step and in the steps from
            it on; None where no model asks for it.
    """

    series: Tensor
    start: Tensor
    target: Tensor
    flow: Tensor
    step_of_week: Tensor
    known: Tensor | None = None
    usual: Tensor | None = None

    @property
    def weight(self) -> float | Tensor:
        """How many samples these are, each counted by the share of its targets that is known."""
        return len(self.series) if self.known is None else self.known.sum() / self.known[0].numel()

    def share_of(self, batch: "Batch") -> float | Tensor:
        """Return the share that this part has of the weight of a batch; 0 where the batch has none."""
        share = self.weight / batch.weight
        return share.nan_to_num() if isinstance(share, Tensor) else share

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def split(self, samples: int) -> list["Batch"]:
        """Return the batch in parts of so many samples; the last may be smaller."""
        columns = [[None] * -(-len(self.series) // samples) if part is None else part.split(samples) for part in self]
        return [Batch(*parts) for parts in zip(*columns, strict=True)]

    @property
    def teacher(self) -> Tensor:
        """The value before each target step, (B, N, P): what the decoder is fed under teacher forcing."""
        return torch.cat([self.start.unsqueeze(-1), self.target[:, :, :-1]], dim=-1)


class Windows:
    """The windows of a prepared series, for models on a device.

    They are gathered where the series is kept: on the device too, or on the host, from where they are moved.

    Args:
        prepared: the series.
        horizon: P.
        calendar: of the series.
        device: where the batches go.
        on_host: whether the series is kept on the host.
        usual: (T, N), what is usual at each step (`lib.usual_flow`), for models that ask for it.
    """

    def __init__(
        self,
        prepared: Prepared,
        horizon: int,
        calendar: Calendar,
        device: torch.device,
        on_host: bool = False,
        usual: NDArray[np.float32] | None = None,
    ) -> None:
        self.prepared = prepared
        self.scaling = prepared.scaling
        self.calendar = calendar
        self.device = device
        self.home = torch.device("cpu") if on_host else device
        self.flow = torch.from_numpy(prepared.truth).to(self.home)  # (T, N)
        self.scaled = self._scaled(prepared.flow)  # (T, N)
        self.held = self.scaled
        self.next_known: Tensor | None = None
        if prepared.missing is not None:
            self.held = self._scaled(prepared.held)  # (T, N)
            self.next_known = torch.from_numpy(next_known(prepared.missing)).to(self.home)  # (T, N)
        self.input_offsets = torch.from_numpy(prepared.offsets).to(self.home)
        self.target_offsets = torch.arange(horizon, device=self.home)
        self.usual = None if usual is None else self._scaled(usual)  # (T, N)
        self.usual_offsets = torch.arange(-(calendar.steps_per_day // 24), horizon, device=self.home)

    def _scaled(self, flow: NDArray[np.float32]) -> Tensor:
        # In float64 once, so that no float32 rounding of the difference to the minimum enters.
        return torch.from_numpy(self.scaling.to_scaled(flow.astype(np.float64)).astype(np.float32)).to(self.home)

    @property
    def targets_per_sample(self) -> int:
        """The number of targets of a sample, N * P, be they known or missing."""
        return self.flow.shape[1] * len(self.target_offsets)

    def known_targets(self, label_starts: NDArray[np.int64]) -> int:
        """Return how many targets of the samples with these label starts are not missing."""
        missing = self.prepared.missing_targets(label_starts, len(self.target_offsets))
        return len(label_starts) * self.targets_per_sample - int(missing.sum())

    def batch(self, label_starts: Tensor) -> Batch:
        """Cut out the samples with these label starts, (B,) where the series is kept, none on its first day."""
        inputs = label_starts[:, None] + self.input_offsets
        inputs = torch.where(inputs < 0, inputs % self.calendar.steps_per_day, inputs)  # (B, L)
        targets = label_starts[:, None] + self.target_offsets
        series = self.scaled[inputs]  # (B, L, N)
        flow = self.flow[targets].transpose(1, 2).contiguous()  # (B, N, P)
        known = None
        if self.next_known is not None:
            # A gap that is not over before t0 holds the last value, for the line through it ends at a target.
            over = self.next_known[inputs] < label_starts[:, None, None]
            series = torch.where(over, series, self.held[inputs])
            known = ~flow.isnan()
        series = series.transpose(1, 2).contiguous()  # (B, N, L)
        target = self.held[targets].transpose(1, 2).contiguous()  # (B, N, P)
        usual = None
        if self.usual is not None:
            usual = self.usual[label_starts[:, None] + self.usual_offsets].transpose(1, 2).contiguous()  # (B, N, h + P)
        step_of_week = self.calendar.step_of_week(label_starts)
        return Batch(series, series[:, :, -1], target, flow, step_of_week, known, usual).to(self.device)

    def batches(self, label_starts: NDArray[np.int64] | Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches over all these label starts, in their order; the last one may be smaller."""
        starts = torch.as_tensor(label_starts).to(self.home)
        for first in range(0, len(starts), batch_size):
            yield self.batch(starts[first : first + batch_size])
