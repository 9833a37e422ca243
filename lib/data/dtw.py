"""Dynamic time warping (DTW) distances between the mean days of all pairs of sensors, and their file."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.errors import InputError, nearest
from lib.files import fingerprint_arrays, load_json, load_npy, load_npz, save_json, save_npz, written_whole

Method = Literal["exact", "fastdtw"]
Rows = Literal["train", "all"]
CPU = torch.device("cpu")
DTW_VERSION = 1  # of the rules by which distances are computed

PAIRS_PER_THREAD = 1024  # at L = 288 on 2 cores, 128 and 8192 took about 1.5 and 2 times as long
# Pairs that are too far are looked for so many times in the steps of a series, and taken out when no more than this
# share of pairs is left, for then the others are copied.
CHECKS_PER_SERIES, WORTH_LEAVING = 8, 0.8
# A GPU starts five kernels for each of the 2L - 1 anti-diagonals, however few the pairs, so it takes many at once: as
# many as make an array (L, P) of so many cells, 58,254 at L = 288. Six such arrays are held, 384 MiB.
CELLS_ON_DEVICE = 2**24


@dataclass(frozen=True)
class DTWRecord:
    """What a DTW matrix was computed from.

    Attributes:
        method: `exact`, or `fastdtw` for the approximation.
        radius: radius of fastdtw, 0 for the exact method.
        rows: the rows of the series that the mean days are taken over, the training rows or all of them.
        days: number of whole days averaged.
        fingerprint: SHA-256 of the mean days (`lib.files.fingerprint_arrays`).
        version: of the rules, DTW_VERSION.
        neighbours: k, of how many nearest sensors the distances are kept; 0: the distances of all pairs are.
        matrix_fingerprint: SHA-256 of the distances that were written with the record; empty in a record that is not
            from a file, or from one of an earlier version. Records are equal without it: it follows from the rest.
    """

    method: Method
    radius: int
    rows: Rows
    days: int
    fingerprint: str
    version: int
    neighbours: int = 0
    matrix_fingerprint: str = field(default="", compare=False, repr=False)

    @property
    def key(self) -> str:
        """Hexadecimal digits for file names, different for each record."""
        compared = {item.name: getattr(self, item.name) for item in fields(self) if item.compare}
        if not self.neighbours:
            del compared["neighbours"]  # as in the names of files that know no such thing
        return hashlib.sha256(json.dumps(compared).encode()).hexdigest()[:12]

    def is_of(self, distances: "NDArray[np.float64] | Nearest") -> bool:
        """Return whether the record was written with these distances, and not with those of another call."""
        return self.matrix_fingerprint == fingerprint_arrays(*_arrays(distances))


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest other sensors of each by DTW, nearest first; among equals the lower position comes first.

    Attributes:
        sensors: their positions (N, k).
        distance: to them (N, k), in the unit of the flow.
    """

    sensors: NDArray[np.int64]
    distance: NDArray[np.float64]

    @staticmethod
    def of(distance: NDArray[np.float64], neighbours: int) -> "Nearest":
        """Return those of all distances (N, N); with fewer than k other sensors, all of them."""
        to_others = distance.copy()
        np.fill_diagonal(to_others, np.inf)
        count = min(neighbours, len(distance) - 1)
        sensors = np.argsort(to_others, axis=1, kind="stable")[:, :count].astype(np.int64)
        return Nearest(sensors, np.take_along_axis(to_others, sensors, axis=1))


def _arrays(distances: NDArray[np.float64] | Nearest) -> tuple[NDArray[Any], ...]:
    return (distances.sensors, distances.distance) if isinstance(distances, Nearest) else (distances,)


def mean_days(flow: NDArray[np.float32], steps_per_day: int, rows: int) -> NDArray[np.float64]:
    """Return each sensor's mean day, over the whole days within the first `rows` rows.

    A day is counted from the first row, whatever its time of day: DTW compares sensors with one another only.

    Args:
        flow: series (T, N), NaN where it is missing: a mean is that of the other days. A time of day that no day has
            is that of the sensor's mean.
        steps_per_day: rows in one day, 288 at 5 minutes.
        rows: number of rows that may be used, those of the training inputs.

    Returns:
        Mean days (N, steps_per_day), in the unit of `flow`.

    Raises:
        InputError: there is not one whole day.
    """
    usable = flow[:rows]
    days = len(usable) // steps_per_day
    if days == 0:
        raise InputError(
            f"mean day of the sensors: found {len(usable)} rows to average, "
            f"expected at least one whole day of {steps_per_day} rows"
        )
    whole_days = usable[: days * steps_per_day].reshape(days, steps_per_day, -1)
    known = ~np.isnan(whole_days)
    if known.all():  # the same by a shorter way, without a copy
        return np.ascontiguousarray(whole_days.mean(axis=0, dtype=np.float64).T)
    total = np.where(known, whole_days, 0).sum(axis=0, dtype=np.float64)  # (steps_per_day, N)
    number = known.sum(axis=0)
    of_sensor = total.sum(axis=0) / number.sum(axis=0).clip(1)
    return np.ascontiguousarray(np.where(number, total / number.clip(1), of_sensor).T)


def dtw_matrix(
    profiles: NDArray[np.float64],
    method: Method = "exact",
    radius: int = 1,
    show_progress: bool = True,
    pairs_per_batch: int | None = None,
    device: torch.device = CPU,
) -> NDArray[np.float64]:
    """Return the DTW distances between all pairs of profiles.

    The distance is the least sum of |a_i - b_j| over the unconstrained monotone paths from (0, 0) to (L-1, L-1) with
    the steps (1, 0), (0, 1) and (1, 1) (Sakoe and Chiba, 1978).

    `exact` computes it in float32, on all cores or on a GPU: the relative error is near 1e-6, and grows only between
    profiles whose difference is itself near the float32 resolution of their range. `fastdtw` is approximate: it
    searches near a path found at half the resolution (Salvador and Chan, 2007), so its distance is an upper bound of
    the exact one. It is here for comparison with work that used it, and is far slower, as the package works pair by
    pair in Python.

    Args:
        profiles: one series a sensor (N, L).
        method: `exact` or `fastdtw`.
        radius: radius of `fastdtw`, at least 1, unused by `exact`.
        show_progress: draw a bar over the pairs, when stderr is a terminal.
        pairs_per_batch: pairs that `exact` handles at once, in each thread or on the device; it sets speed and memory,
            not the result. None takes what suits the device.
        device: where `exact` computes, by NumPy in threads on a CPU, else by PyTorch; the result is the same to float32
            rounding. `fastdtw` is always on the CPU.

    Returns:
        Distances (N, N) in the unit of the profiles, symmetric, with a zero diagonal.

    Raises:
        InputError: the method is unknown, the radius is below 1, or a profile is not finite.
    """
    if method not in get_args(Method):
        raise InputError(
            f"DTW method: found '{method}', expected {' or '.join(get_args(Method))}{nearest(method, get_args(Method))}"
        )
    if method == "fastdtw" and radius < 1:  # the package fails at 0 on an odd number of points
        raise InputError(f"DTW radius: found {radius}, expected 1 or more")
    check_profiles(profiles)
    num_nodes = len(profiles)
    matrix = np.zeros((num_nodes, num_nodes))
    if method == "fastdtw":
        batches = _fastdtw_batches(profiles, radius)
    elif device.type == "cpu":
        batches = _batches_in_threads(profiles, pairs_per_batch or PAIRS_PER_THREAD)
    else:
        batches = _batches_on_device(profiles, pairs_per_batch or max(1, CELLS_ON_DEVICE // profiles.shape[1]), device)
    num_pairs = num_nodes * (num_nodes - 1) // 2
    with tqdm(total=num_pairs, unit="pair", desc="DTW", disable=None if show_progress else True) as bar:
        for first, second, distances in batches:
            matrix[first, second] = matrix[second, first] = distances
            bar.update(distances.size)
    return matrix


def check_profiles(profiles: NDArray[np.float64]) -> None:
    """Raise an InputError when a profile is not finite."""
    unusable = np.flatnonzero(~np.isfinite(profiles).all(axis=1))
    if len(unusable):
        raise InputError(
            f"mean day of sensor {unusable[0]}: found values that are not finite, expected numbers only "
            f"({len(unusable)} of {len(profiles)} sensors have such values)"
        )


# Sensors i and j of a batch of pairs, and their distances, each (P,).
Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def _fastdtw_batches(profiles: NDArray[np.float64], radius: int) -> Iterator[Batch]:
    try:
        from fastdtw import fastdtw  # only this method needs the package
    except ImportError:
        raise InputError("DTW method: found no package for fastdtw, expected it: pip install fastdtw") from None

    for i, j in combinations(range(len(profiles)), 2):
        distance, _ = fastdtw(profiles[i], profiles[j], radius=radius)
        yield np.array([i]), np.array([j]), np.array([distance])


def _batches_in_threads(profiles: NDArray[np.float64], pairs_per_batch: int) -> Iterator[Batch]:
    columns, reversed_columns = columns_of(profiles)
    first, second = np.triu_indices(len(profiles), k=1)

    def solve(start: int) -> Batch:
        i, j = (index[start : start + pairs_per_batch] for index in (first, second))
        distances = wavefront(np, np.take(columns, i, axis=1), np.take(reversed_columns, j, axis=1))
        return i, j, distances.astype(np.float64)

    # NumPy releases the interpreter's lock within a ufunc, so threads suffice and nothing is copied to processes.
    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        running = [executor.submit(solve, start) for start in range(0, len(first), pairs_per_batch)]
        for batch in as_completed(running):
            yield batch.result()
    finally:
        executor.shutdown(cancel_futures=True)  # Ctrl-C waits for the batches at work, not for all that are queued


def _batches_on_device(profiles: NDArray[np.float64], pairs_per_batch: int, device: torch.device) -> Iterator[Batch]:
    columns, reversed_columns = (torch.from_numpy(array).to(device) for array in columns_of(profiles))
    first, second = np.triu_indices(len(profiles), k=1)
    first_there, second_there = (torch.from_numpy(index).to(device) for index in (first, second))
    for start in range(0, len(first), pairs_per_batch):
        batch = slice(start, start + pairs_per_batch)
        distances = wavefront(  # to the CPU at once: what it is a row of is freed before the next batch
            torch, columns.index_select(1, first_there[batch]), reversed_columns.index_select(1, second_there[batch])
        ).cpu()
        yield first[batch], second[batch], distances.numpy().astype(np.float64)


def columns_of(profiles: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the profiles (N, L) as columns (L, N) near zero, and these with the last position first."""
    # A common shift leaves DTW as it is, and the smaller values lose less in float32. Half the range, unlike the mean,
    # does not depend on the order of the sensors in the last bit.
    middle = (profiles.min() + profiles.max()) / 2
    columns = np.ascontiguousarray((profiles - middle).T.astype(np.float32))
    return columns, columns[::-1].copy()


Array = TypeVar("Array", NDArray[np.float32], Tensor)


def wavefront(library: Any, first: Array, second_reversed: Array, limit: Array | None = None) -> Array:
    """Return the DTW distances (P,) of P pairs, which advance along the anti-diagonals of their cost tables together.

    With D(i, j) = |a_i - b_j| + min(D(i-1, j), D(i, j-1), D(i-1, j-1)), the cells of the anti-diagonal i + j = d need
    only those of d - 1 and d - 2. Stored by i, and with b reversed, all operands are contiguous slices. A buffer's row
    i + 1 holds cell i; row 0 and the rows not yet reached stay infinite, which closes the table's border.

    Args:
        library: numpy or torch, whichever the series are arrays of; what is used here has the same names in both.
        first: series a (L, P), one pair a column.
        second_reversed: series b (L, P), last position first.
        limit: (P,), a pair is given up, and its distance infinite, once it is clear to be farther; None: none is. Every
            path crosses one of two neighbouring anti-diagonals, so that the least of their cells is a lower bound.
    """
    length, pairs = first.shape
    kind = {"dtype": first.dtype, "device": first.device}
    two_back, one_back, current = (library.full((length + 1, pairs), np.inf, **kind) for _ in range(3))
    costs = library.empty((length, pairs), **kind)
    library.abs(first[0] - second_reversed[length - 1], out=one_back[1])
    distances: Array | None = None
    for diagonal in range(1, 2 * length - 1):
        if limit is not None and diagonal % max(1, length // CHECKS_PER_SERIES) == 0:
            near = library.minimum(library.amin(one_back, 0), library.amin(two_back, 0)) <= limit
            if near.sum() < WORTH_LEAVING * len(limit):
                if distances is None:
                    distances = library.full((pairs,), np.inf, **kind)
                    going_on = library.arange(pairs, device=first.device)
                going_on, limit = going_on[near], limit[near]
                first, second_reversed, two_back, one_back, current = (
                    table[:, near] for table in (first, second_reversed, two_back, one_back, current)
                )
                costs = library.empty((length, len(limit)), **kind)
                if not len(limit):
                    return distances
        start, stop = max(0, diagonal - length + 1), min(diagonal, length - 1) + 1
        offset = length - 1 - diagonal  # b_(d-i) is row offset + i of the reversed series
        cost, cell = costs[: stop - start], current[start + 1 : stop + 1]
        library.subtract(first[start:stop], second_reversed[offset + start : offset + stop], out=cost)
        library.abs(cost, out=cost)
        library.minimum(one_back[start:stop], one_back[start + 1 : stop + 1], out=cell)
        library.minimum(cell, two_back[start:stop], out=cell)
        library.add(cell, cost, out=cell)
        two_back, one_back, current = one_back, current, two_back
    found: Array = one_back[length]
    if limit is not None:
        found[found > limit] = np.inf
    if distances is None:
        return found
    distances[going_on] = found
    return distances


def save_dtw(path: Path, record_path: Path, distances: NDArray[np.float64] | Nearest, record: DTWRecord) -> None:
    """Write DTW distances, (N, N) as npy or those of the nearest sensors as npz, and their record as JSON.

    An interrupted call, or two at once, may leave distances beside another's record; the fingerprint reveals it.

    Raises:
        InputError: a file cannot be written.
    """
    if isinstance(distances, Nearest):
        save_npz(path, vars(distances))
    else:
        with written_whole(path) as partial, partial.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(distances))
            handle.write(distances.tobytes("A"))  # np.save would not notice that the disk is full
    save_json(record_path, asdict(replace(record, matrix_fingerprint=fingerprint_arrays(*_arrays(distances)))))


def load_dtw(path: Path, record_path: Path, num_nodes: int) -> tuple[NDArray[np.float64] | Nearest, DTWRecord]:
    """Read DTW distances and their record.

    Raises:
        InputError: a file is missing or damaged, the distances are not between `num_nodes` sensors, or the two were not
            written together.
    """
    record = load_dtw_record(record_path)
    distances = load_nearest(path, num_nodes) if record.neighbours else load_dtw_matrix(path, num_nodes)
    if not record.is_of(distances):
        raise InputError(f"{path}: found other distances than those of {record_path.name}, expected its own")
    return distances, record


def load_nearest(path: Path, num_nodes: int) -> Nearest:
    """Read the nearest sensors of each.

    Raises:
        InputError: the file is missing or damaged, or not one of `num_nodes` sensors.
    """
    content = load_npz(path, ("sensors", "distance"))
    sensors, distance = content["sensors"], content["distance"]
    if sensors.ndim != 2 or sensors.shape != distance.shape or len(sensors) != num_nodes:
        raise InputError(
            f"{path}: found sensors of shape {sensors.shape} and distances of {distance.shape}, "
            f"expected a row for each of {num_nodes} sensors"
        )
    if sensors.dtype.kind not in "iu" or distance.dtype.kind != "f":
        raise InputError(f"{path}: found {sensors.dtype} and {distance.dtype}, expected positions and distances")
    wrong = (sensors < 0) | (sensors >= num_nodes) | ~(distance >= 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{path} row {row}, column {column}: found sensor {sensors[row, column]} at {distance[row, column]:g}, "
            f"expected a position below {num_nodes} and a distance of 0 or more"
        )
    return Nearest(sensors.astype(np.int64, copy=False), distance.astype(np.float64, copy=False))


def load_dtw_matrix(matrix_path: Path, num_nodes: int) -> NDArray[np.float64]:
    """Read a DTW matrix (N, N).

    Raises:
        InputError: the file is missing or damaged, or not one of distances between `num_nodes` sensors.
    """
    matrix = _load_matrix(matrix_path)
    if matrix.shape != (num_nodes, num_nodes):
        raise InputError(
            f"{matrix_path}: found a matrix of shape {matrix.shape}, expected {(num_nodes, num_nodes)} "
            f"for {num_nodes} sensors"
        )
    faults = (
        ("not finite", ~np.isfinite(matrix), "finite distances"),
        ("negative", matrix < 0, "distances of 0 or more"),
        ("not zero on the diagonal", np.diag(np.diag(matrix)) != 0, "a distance of 0 from a sensor to itself"),
        ("not symmetric", matrix != matrix.T, "the same distance both ways"),
    )
    for found, wrong, expected in faults:
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"{matrix_path}: found entries that are {found}, the first is {matrix[row, column]:g} "
                f"at row {row}, column {column}; expected {expected}"
            )
    return matrix


def _load_matrix(path: Path) -> NDArray[np.float64]:
    matrix = load_npy(path, "the DTW matrix that create_dtw.py writes")
    if matrix.dtype.kind != "f":
        raise InputError(f"{path}: found values of type {matrix.dtype}, expected floating point distances")
    return matrix.astype(np.float64, copy=False)


def load_dtw_record(path: Path) -> DTWRecord:
    """Read the record of a DTW matrix.

    Raises:
        InputError: the file is missing or damaged, or not such a record.
    """
    content = load_json(path)
    names = [item.name for item in fields(DTWRecord)]
    required = {item.name for item in fields(DTWRecord) if item.default is MISSING}
    if not isinstance(content, dict) or not required <= set(content) <= set(names):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: found {found or 'nothing'}, expected the keys {', '.join(names)}")
    record = DTWRecord(**content)
    for key, choices in (("method", get_args(Method)), ("rows", get_args(Rows))):
        if content[key] not in choices:
            hint = nearest(str(content[key]), choices)
            raise InputError(f"{path}: key '{key}': found {content[key]!r}, expected {' or '.join(choices)}{hint}")
    for key, least in (
        ("radius", 0 if record.method == "exact" else 1),
        ("days", 1),
        ("version", 1),
        ("neighbours", 0),
    ):
        if type(found := getattr(record, key)) is not int or found < least:
            raise InputError(f"{path}: key '{key}': found {found!r}, expected a whole number from {least}")
    for key in ("fingerprint", "matrix_fingerprint"):
        if not isinstance(found := getattr(record, key), str):
            raise InputError(f"{path}: key '{key}': found {found!r}, expected hexadecimal digits")
    return record
