"""Raw files of Caltrans: what all stations of a district measured in each 5 minutes, mostly of a day.

A row has, separated by commas and without a header: time, station, district, freeway, direction, lane type, length,
samples, % observed, total flow, mean occupancy, mean speed, and then the same of each lane. Times are local.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, cast
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lib.data.caltrans.stations import Station
from lib.errors import InputError
from lib.files import load_npz, printable, reason, save_npz, written_whole

TIME_FORMAT = "%m/%d/%Y %H:%M:%S"
STEP = timedelta(minutes=5)
EPOCH = datetime(1970, 1, 1)
ZONE = "America/Los_Angeles"
FEATURES = ("flow", "occupancy", "speed")
COLUMNS = ("time", "station", "district", "freeway", "direction", "type", "length", "samples", "observed", *FEATURES)
INTEGERS = ("station", "district", "freeway")
WORDS = ("time", "direction", "type")
NUMBERS = ("observed", *FEATURES)
LARGEST = {"observed": 100.0, "flow": 1e5, "occupancy": 1.0, "speed": 200.0}  # the least is 0
ROWS_AT_ONCE = 2**19  # about 100 MiB
MOST_STEPS_PER_TIME = 10  # of a file; more is a slip in a date
ABSENT, EMPTY, FILLED, MEASURED = range(4)  # states of a value: no row, no flow in it, filled in by PeMS, measured

# What is counted beside the states, each with its first place, and what the user is told of it.
NOTES = {
    "unknown": "rows of stations that the metadata do not list, left out",
    "moved": "rows whose freeway, direction or lane type is not that of the metadata, left out",
    "repeated": "rows that repeat a row, left out",
    "differing": "rows that repeat station and time of a row with other values, left out: the first counts",
    "autumn": "rows of the hour that comes twice when clocks go back, left out: the first counts",
    "spring": "rows of the hour that clocks pass over, taken as they are",
    "impossible": "cells out of range, such as a negative flow, taken as empty",
}
Tally = dict[str, tuple[int, str]]  # of each note: how often, and where first


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is taken of raw files.

    Attributes:
        stations: (N,) the wanted ones.
        listed: the numbers of all stations of the metadata.
        districts: of the metadata.
        metadata: its files, for messages.
        least_observed: in %; what is observed less was filled in by PeMS.
        keep_imputed: keep what was filled in; else it is missing.
    """

    stations: tuple[Station, ...]
    listed: tuple[int, ...]
    districts: tuple[int, ...]
    metadata: str
    least_observed: float
    keep_imputed: bool

    def __str__(self) -> str:
        """Return all that decides what is read from a file."""
        return json.dumps([[repr(item) for item in self.stations], self.listed, self.least_observed, self.keep_imputed])


@dataclass(frozen=True, eq=False)
class RawPart:
    """What a raw file says of the wanted stations, at every step from its first to its last.

    Attributes:
        first: the first step, in steps of 5 minutes since 1970 by the local clock.
        stored: the values, or the file that they are in.
        states: (steps, N) of the values.
        unknown: numbers of stations that the metadata do not list.
        tally: what is counted.
    """

    first: int
    stored: NDArray[np.float32] | Path
    states: NDArray[np.uint8]
    unknown: NDArray[np.int64]
    tally: Tally

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.first + len(self.states)

    @property
    def values(self) -> NDArray[np.float32]:
        """Flow, occupancy and speed (steps, N, 3), NaN where they are missing; of a file what is used is read."""
        if isinstance(self.stored, Path):
            return np.load(self.stored, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        return self.stored

    def save(self, path: Path) -> None:
        """Write it to a file; its values are in another one beside it, which is there when the file is."""
        with written_whole(path.with_suffix(".npy")) as partial, partial.open("wb") as handle:
            np.lib.format.write_array(handle, self.values, allow_pickle=False)
        about = np.array(json.dumps({"first": self.first, "tally": self.tally}))
        save_npz(path, {"about": about, "states": self.states, "unknown": self.unknown})

    @classmethod
    def open(cls, path: Path) -> "RawPart":
        """Open a part that was saved."""
        arrays = load_npz(path, ("about", "states", "unknown"))
        about = json.loads(str(arrays["about"]))
        tally = {name: (count, place) for name, (count, place) in about["tally"].items()}
        return cls(about["first"], path.with_suffix(".npy"), arrays["states"], arrays["unknown"], tally)


def add_tally(total: Tally, name: str, count: int, place: str) -> None:
    """Count more of a note; the first place stays."""
    if count:
        before, first = total.get(name, (0, place))
        total[name] = before + count, first


def same_values(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where values are equal, or missing in both."""
    equal: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return equal


def time_of(step: int) -> datetime:
    """Return the time of a step, by the local clock."""
    return EPOCH + step * STEP


def clock_changes(steps: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which steps California's clocks show twice, in November, and which they pass over, in March."""
    hours, at = np.unique(steps // (timedelta(hours=1) // STEP), return_inverse=True)
    zone = ZoneInfo(ZONE)
    later = []  # how much less daylight is saved on the second reading of an hour than on the first
    for hour in hours.tolist():
        time = (EPOCH + timedelta(hours=hour)).replace(tzinfo=zone)
        first, second = time.utcoffset(), time.replace(fold=1).utcoffset()
        assert first is not None
        assert second is not None
        later.append((first - second) / timedelta(hours=1))
    change = np.array(later)[at].reshape(steps.shape)
    return change > 0, change < 0


# ------------------------------------------------------------------------------------------------ reading a file


def read_raw_file(path: Path, rules: Rules, advance: Callable[[int], object] = lambda _: None) -> RawPart:
    """Read what a raw file says of the wanted stations.

    A value is missing where its row is absent or its cell is empty, or where less than `rules.least_observed` was
    observed and that is not kept. Of several rows of a station and time the first counts.

    Args:
        path: the file, a text, with gzip or without.
        rules: what is taken.
        advance: is told how many more bytes of the file were read.

    Raises:
        InputError: the file is cut short or is no raw file, or is of another district or another length of step.
    """
    tally: Tally = {}
    taken: list[pd.DataFrame] = []
    unknown, steps = set[int](), set[int]()
    try:
        for frame in _frames(path, advance):
            steps.update(_steps(frame, path).tolist())
            taken.append(_wanted(frame, path, rules, unknown, tally))
    except (EOFError, OSError, ValueError, zlib.error) as error:  # pandas' own errors are among them
        raise _first_fault(path, error) from None
    if not taken:
        raise InputError(f"{path}: found an empty file, expected a raw file of Caltrans")
    _check_steps(path, sorted(steps))
    rows = pd.concat(taken)
    first, count, stations = min(steps), max(steps) + 1 - min(steps), len(rules.stations)
    step, position = rows["step"].to_numpy(), rows["position"].to_numpy()
    kept = _first_of_each(rows, (step - first) * stations + position, count * stations, path, tally)
    step, position = step[kept] - first, position[kept]
    flow, observed = (rows[name].to_numpy()[kept] for name in ("flow", "observed"))

    measured = observed >= rules.least_observed  # not where the cell is empty
    states = np.zeros((count, stations), dtype=np.uint8)
    states[step, position] = np.where(np.isnan(flow), EMPTY, np.where(measured, MEASURED, FILLED))
    values = np.full((count, stations, len(FEATURES)), np.nan, dtype=np.float32)
    for feature, name in enumerate(FEATURES):
        values[step, position, feature] = rows[name].to_numpy()[kept]
    values[states == EMPTY] = np.nan
    if not rules.keep_imputed:
        values[states == FILLED] = np.nan
    return RawPart(first, values, states, np.array(sorted(unknown), dtype=np.int64), tally)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a raw file, and give its text and the file itself."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            with gzip.open(file) as text:
                yield text, file  # type: ignore[misc]
        else:
            yield file, file


def _frames(path: Path, advance: Callable[[int], object]) -> Iterator[pd.DataFrame]:
    """Yield the rows of a raw file, many at once, by the names of their columns; the index counts rows from 1."""
    kinds = {
        **dict.fromkeys(INTEGERS, "int64"),
        **dict.fromkeys(WORDS, "category"),
        **dict.fromkeys(NUMBERS, "float64"),
    }
    with _opened(path) as (text, file):
        if not text.read(1):
            return
        text.seek(0)
        done = 0
        reader = pd.read_csv(
            cast(IO[bytes], _WholeRows(text)),
            header=None,
            names=list(COLUMNS),
            usecols=list(kinds),
            dtype=kinds,
            keep_default_na=False,
            na_values=[""],
            index_col=False,
            skip_blank_lines=False,  # they count as rows
            chunksize=ROWS_AT_ONCE,
        )
        for frame in reader:
            advance(file.tell() - done)
            done = file.tell()
            frame.index += 1
            yield frame


class _WholeRows:
    """A text as pandas reads it, which has only whole rows: pandas itself would fill a row that was cut short."""

    def __init__(self, text: IO[bytes]) -> None:
        self.text = text
        self.begun = b""  # of the row that the last block ends in

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.text)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            EOFError: a row has too few cells, or the last one does not end.
        """
        block = self.text.read(size)
        *rows, self.begun = (self.begun + block).split(b"\n")
        if any(row.count(b",") < len(COLUMNS) - 1 for row in rows) or (self.begun and not block):
            raise EOFError
        return block


def _steps(frame: pd.DataFrame, path: Path) -> NDArray[np.int64]:
    """Put the step of each row into a frame, and return the steps that there are.

    Raises:
        InputError: a time is none, or lies between two steps.
    """
    codes = frame["time"].cat.codes.to_numpy()
    steps = np.zeros(len(frame["time"].cat.categories), dtype=np.int64)
    for code, text in enumerate(frame["time"].cat.categories):
        try:
            step, rest = divmod(datetime.strptime(text, TIME_FORMAT) - EPOCH, STEP)
        except ValueError:
            rest = None
        if rest != timedelta(0):
            row = frame.index[int((codes == code).argmax())]
            found = f"found the time '{printable(text)[:60]}'"
            raise InputError(f"{path} row {row}: {found}, expected one of every 5 minutes such as 07/01/2016 00:05:00")
        steps[code] = step
    if (codes < 0).any():
        row = frame.index[int((codes < 0).argmax())]
        raise InputError(f"{path} row {row}: found no time, expected one such as 07/01/2016 00:05:00")
    frame["step"] = steps[codes]
    return steps


def _wanted(frame: pd.DataFrame, path: Path, rules: Rules, unknown: set[int], tally: Tally) -> pd.DataFrame:
    """Return the rows of the wanted stations: step, position of the station, and values in range.

    Raises:
        InputError: a row is of another district than the metadata.
    """
    foreign = ~np.isin(frame["district"].to_numpy(), rules.districts)
    if foreign.any():
        row = frame.index[int(foreign.argmax())]
        districts = ", ".join(map(str, rules.districts))
        found = f"found a station of district {frame['district'][row]}"
        raise InputError(f"{path} row {row}: {found}, expected district {districts} as in {rules.metadata}")
    station = frame["station"].to_numpy()
    listed = np.isin(station, rules.listed)
    _note(tally, "unknown", ~listed, frame, path)
    unknown.update(np.unique(station[~listed]).tolist())

    numbers = np.array([item.id for item in rules.stations])
    order = np.argsort(numbers)
    found_at = np.searchsorted(numbers, station, sorter=order).clip(max=len(numbers) - 1)
    position = order[found_at]
    frame["position"] = position
    wanted = numbers[position] == station
    same = frame["freeway"].to_numpy() == np.array([item.freeway for item in rules.stations])[position]
    for column in ("direction", "type"):
        code_of = {text: code for code, text in enumerate(frame[column].cat.categories)}
        codes = np.array([code_of.get(getattr(item, column), -2) for item in rules.stations])
        same &= frame[column].cat.codes.to_numpy() == codes[position]
    _note(tally, "moved", wanted & ~same, frame, path)
    rows = frame.loc[wanted & same, ["step", "position", *NUMBERS]].copy()
    for name, largest in LARGEST.items():
        cells = rows[name].to_numpy()
        impossible = (cells < 0) | (cells > largest)
        _note(tally, "impossible", impossible, rows, path)
        rows.loc[impossible, name] = np.nan
    kinds = {"step": np.int32, "position": np.int32, **dict.fromkeys(NUMBERS, np.float32)}
    return pd.DataFrame({name: rows[name].to_numpy(kind) for name, kind in kinds.items()}, index=rows.index)


def _note(tally: Tally, name: str, there: NDArray[np.bool_], frame: pd.DataFrame, path: Path) -> None:
    """Count the rows of a frame of which something is noted."""
    if there.any():
        add_tally(tally, name, int(there.sum()), f"{path.name} row {frame.index[int(there.argmax())]}")


def _check_steps(path: Path, steps: Sequence[int]) -> None:
    """Check that times, in order, are those of 5 minutes, without a slip in a date."""
    apart = np.diff(steps)
    if len(apart) and apart.min() > 1:
        minutes = apart.min() * STEP // timedelta(minutes=1)
        raise InputError(f"{path}: found steps of {minutes} minutes, expected a file of 5 minutes (station_5min)")
    if len(apart) and apart.sum() > MOST_STEPS_PER_TIME * len(steps):
        before = steps[int(apart.argmax())]
        after = time_of(steps[int(apart.argmax()) + 1])
        raise InputError(f"{path}: found the time {after} after {time_of(before)}, expected times of one file")


def _first_of_each(
    rows: pd.DataFrame, keys: NDArray[np.int64], size: int, path: Path, tally: Tally
) -> NDArray[np.bool_]:
    """Return which rows are the first of their station and time, by keys below a size, and count the others."""
    first = np.full(size, -1, dtype=np.int32)
    first[keys[::-1]] = np.arange(len(keys), dtype=np.int32)[::-1]  # of equal keys, the last to be written stays
    kept: NDArray[np.bool_] = first[keys] == np.arange(len(keys))
    doubled, passed_over = clock_changes(rows["step"].to_numpy(dtype=np.int64))
    _note(tally, "spring", passed_over & kept, rows, path)
    _note(tally, "autumn", doubled & ~kept, rows, path)
    values = rows[list(NUMBERS)].to_numpy()
    again = np.flatnonzero(~kept & ~doubled)
    same = same_values(values[again], values[first[keys[again]]]).all(axis=1)
    for name, which in (("repeated", again[same]), ("differing", again[~same])):
        there = np.zeros(len(rows), dtype=np.bool_)
        there[which] = True
        _note(tally, name, there, rows, path)
    return kept


# -------------------------------------------------------------------------------------------------- faulty files


def _first_fault(path: Path, error: Exception) -> InputError:
    """Return what is wrong with a file that could not be read, with the row: it is read again, row by row."""
    number = 0
    try:
        with _opened(path) as (text, _):
            for number, line in enumerate(text, start=1):
                if fault := _row_fault(line.decode("utf-8", "replace")):
                    return InputError(f"{path} row {number}: {fault}")
    except FileNotFoundError:
        return InputError(f"{path}: no such file, expected a raw file of Caltrans")
    except (EOFError, OSError, zlib.error) as fault:
        if getattr(fault, "strerror", None):
            return InputError(f"{path}: cannot be read: {reason(fault)}")
        why = reason(fault)
        return InputError(f"{path}: found a damaged file or one cut short after row {number} ({why}): get it anew")
    return InputError(f"{path}: cannot be read: {reason(error)}")


def _row_fault(line: str) -> str | None:
    """Return what is wrong with a row; None where nothing is."""
    cells = [cell.strip('"') for cell in line.rstrip("\r\n").split(",")]
    if not line.endswith("\n"):
        return f"found no end of the line after {len(cells)} cells, expected a whole row: the file is cut short"
    if len(cells) < len(COLUMNS):
        return f"found {len(cells)} cells, expected {len(COLUMNS)} or more, separated by commas"
    named = dict(zip(COLUMNS, cells, strict=False))
    kinds: Mapping[str, tuple[Callable[[str], Any], str]] = {
        **dict.fromkeys(INTEGERS, (int, "an integer")),
        **dict.fromkeys(NUMBERS, (lambda text: float(text or "nan"), "a number or nothing")),
    }
    for name, (convert, expected) in kinds.items():
        try:
            convert(named[name])
        except ValueError:
            return f"found {name} '{printable(named[name])[:60]}', expected {expected}"
    return None
