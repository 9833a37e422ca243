"""A data set from raw files of Caltrans: read file by file, then written day by day, so that a year needs no memory.

What was read of each file is kept in a working folder, `<NAME>.partial` beside the data set, until all is written. So a
conversion that was stopped goes on after the last whole file.
"""

import csv
import glob
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lib.config import DataConfig, dataset_ini
from lib.data.caltrans.raw_files import (
    ABSENT,
    FEATURES,
    FILLED,
    MEASURED,
    NOTES,
    STEP,
    RawPart,
    Rules,
    Tally,
    add_tally,
    clock_changes,
    read_raw_file,
    same_values,
    time_of,
)
from lib.data.caltrans.stations import Metadata, RoadLinks, Station, road_links
from lib.data.series import MARKS_ARRAY, START_ARRAY
from lib.errors import InputError
from lib.files import check_writable, printable, write_member, written_whole

DAY = timedelta(days=1) // STEP  # steps
MOST_DAYS_PER_DAY = 10  # between the first and the last, for each that has a row; more is a slip in a date
LEAST_PARTS = 2 / 3  # of the 5 minutes in a longer step that must be known
NAMES_SHOWN = 10
FAULTS_SHOWN = 5
FLOW, OCCUPANCY, SPEED = range(3)
IMPUTED = {True: "kept and marked as imputed", False: "taken as missing"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        name: of the data set.
        files: the raw files.
        metadata: of all stations.
        stations: those that are wanted, road by road in the direction of travel.
        least_observed: in %; what is observed less was filled in by PeMS.
        keep_imputed: keep what was filled in; else it is missing.
        least_known: in %; stations with fewer known values are left out.
        minutes: of a step, a multiple of 5 that divides an hour.
        within: stations of two freeways are linked up to so many miles apart.
    """

    name: str
    files: tuple[Path, ...]
    metadata: Metadata
    stations: tuple[Station, ...]
    least_observed: float = 75.0
    keep_imputed: bool = False
    least_known: float = 50.0
    minutes: int = 5
    within: float = 0.5

    @property
    def rules(self) -> Rules:
        """What is taken of raw files."""
        stations = self.metadata.stations
        return Rules(
            stations=self.stations,
            listed=tuple(stations),
            districts=tuple(sorted({station.district for station in stations.values()})),
            metadata=self.metadata.names,
            least_observed=self.least_observed,
            keep_imputed=self.keep_imputed,
        )


def find_raw_files(patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that names, patterns such as `raw/*.txt.gz` or folders stand for, in order of their names.

    Raises:
        InputError: there is none.
    """
    found: dict[Path, None] = {}
    faults = []
    for pattern in patterns:
        in_folder = os.path.isdir(pattern)
        searched = os.path.join(glob.escape(pattern), "*station_5min*") if in_folder else pattern
        paths = [Path(name) for name in sorted(glob.glob(searched)) if os.path.isfile(name)]
        if not paths:
            what = f"no file *station_5min* in {pattern}" if in_folder else f"no file {printable(pattern)}"
            faults.append(
                f"--stations: found {what}, expected raw files such as d07_text_station_5min_2016_07_01.txt.gz"
            )
        found |= dict.fromkeys(paths)
    if faults:
        raise InputError("\n".join(faults))
    return tuple(sorted(found, key=lambda path: (path.name, path)))


def make_dataset(request: Request, folder: Path, configuration: Path) -> list[str]:
    """Write a data set and its configuration, and return lines on what was taken and dropped.

    Args:
        request: what is asked for.
        folder: of the data set, which is not there yet.
        configuration: the INI file to write.

    Raises:
        InputError: a raw file is faulty, the data set is there already, or nothing is left; nothing is written then.
        KeyboardInterrupt: what has been read is kept, and the message says how to go on.
    """
    for path in (folder, configuration):
        if os.path.exists(path):
            raise InputError(f"--name: found {path}, which is there already, expected a new name")
    check_writable(folder, "--output")
    check_writable(configuration, "--configurations")
    work = folder.with_name(f"{folder.name}.partial")
    was_there = work.exists()  # of a conversion that was stopped
    try:
        series = Series(request, _read_parts(request, work))
        links = road_links(series.stations, request.within)
        ready = work / "whole"
        shutil.rmtree(ready, ignore_errors=True)
        series.write(ready / f"{request.name}.npz")
        _write_tables(ready / request.name, series.stations, links)
        with written_whole(configuration) as partial:
            partial.write_text(_configuration_text(request, series, folder), encoding="utf-8")
            ready.rename(folder)  # an OSError becomes an InputError, and there is no configuration either
    except InputError:
        if not was_there:
            shutil.rmtree(work, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was read is in {work}, and the same command goes on") from None
    shutil.rmtree(work)
    return [*series.report(), _links_report(series.stations, links, request.within)]


def _read_parts(request: Request, work: Path) -> list[RawPart]:
    """Read all raw files, but those that were read before by the same rules; faults of several are told at once."""
    rules = request.rules
    sizes = {path: os.path.getsize(path) for path in request.files}
    parts, faults = [], list[str]()
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=None) as bar:
        for path, size in sizes.items():
            bar.set_description(path.name)
            identity = f"{path.resolve()} {size} {path.stat().st_mtime_ns} {rules}"
            stored = work / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npz"
            before = bar.n
            if not stored.exists():
                try:
                    read_raw_file(path, rules, bar.update).save(stored)
                except InputError as error:
                    faults.append(str(error))
                    if path == request.files[0] or len(faults) == FAULTS_SHOWN:  # others will have the same
                        break
            if not faults:
                parts.append(RawPart.open(stored))
            bar.update(size - (bar.n - before))
    if faults:
        raise InputError("\n".join(faults))
    return parts


class Series:
    """The series of some stations, from the parts of raw files, which may overlap, be apart, and end anywhere.

    Args:
        request: what is asked for.
        parts: of the raw files, in order of their names.

    Raises:
        InputError: no station has enough values, or a date is wrong.

    Attributes:
        stations: (N,) those that have enough values.
        start, end: the first step, and the one after the last, of 5 minutes since 1970.
    """

    def __init__(self, request: Request, parts: Sequence[RawPart]) -> None:
        self.request = request
        self.parts = parts
        self.tally: Tally = {}
        for part in parts:
            for name, (count, place) in part.tally.items():
                add_tally(self.tally, name, count, place)
        self.per_step = timedelta(minutes=request.minutes) // STEP
        self.start = min(part.first for part in parts) // self.per_step * self.per_step
        self.end = -(-max(part.end for part in parts) // self.per_step) * self.per_step
        self.absent_days: list[int] = []
        self._check_days()
        self._choose_stations()

    def _check_days(self) -> None:
        """Raise an InputError where hardly any day between the first and the last has a row."""
        days = sorted({day for part in self.parts for day in range(part.first // DAY, (part.end - 1) // DAY + 1)})
        apart = np.diff(days)
        if apart.sum() > MOST_DAYS_PER_DAY * len(days):
            before = days[int(apart.argmax())]
            after = days[int(apart.argmax()) + 1]
            part = min(self.parts, key=lambda part: abs(part.first // DAY - after))
            path = self.request.files[self.parts.index(part)]
            raise InputError(
                f"{path}: found the day {time_of(after * DAY):%Y-%m-%d} after {time_of(before * DAY):%Y-%m-%d}, "
                f"expected a file for at least one in {MOST_DAYS_PER_DAY} days"
            )

    def _choose_stations(self) -> None:
        """Look at all states once: which stations have enough values, and what is counted."""
        wanted = self.request.stations
        known_states = [MEASURED, FILLED] if self.request.keep_imputed else [MEASURED]
        first_known, last_known = np.full(len(wanted), self.end), np.full(len(wanted), -1)
        by_state = np.zeros((MEASURED + 1, len(wanted)), dtype=np.int64)
        passed_over = np.zeros(len(wanted), dtype=np.int64)
        for first, states, _ in self._days(np.arange(len(wanted)), values=False):
            steps, known = first + np.arange(len(states))[:, None], np.isin(states, known_states)
            first_known = np.minimum(first_known, np.where(known, steps, self.end).min(axis=0))
            last_known = np.maximum(last_known, np.where(known, steps, -1).max(axis=0))
            by_state += np.stack([(states == state).sum(axis=0) for state in range(MEASURED + 1)])
            passed_over += (states[clock_changes(steps[:, 0])[1]] == ABSENT).sum(axis=0)
            if not states.any():
                self.absent_days.append(first)
        rows, share = (
            by_state[ABSENT + 1 :].sum(axis=0),
            100 * by_state[known_states].sum(axis=0) / by_state.sum(axis=0),
        )
        self.kept = np.flatnonzero(share >= self.request.least_known)
        if not len(self.kept):
            raise InputError(
                f"--least-known {self.request.least_known:g}: found no station with so many % of its values, the best "
                f"is {wanted[int(share.argmax())].id} with {share.max():.1f} %, expected at least one"
            )
        self.stations = tuple(wanted[position] for position in self.kept)
        self.without_rows = [wanted[position].id for position in np.flatnonzero(rows == 0)]
        self.sparse = [wanted[i].id for i in np.flatnonzero((rows > 0) & (share < self.request.least_known))]
        self.late = int((first_known[self.kept] >= self.start + DAY).sum())
        self.gone = int((last_known[self.kept] < self.end - DAY).sum())
        self.by_state = by_state[:, self.kept].sum(axis=1)
        self.passed_over = int(passed_over[self.kept].sum())

    def _days(
        self, kept: NDArray[np.int64], values: bool = True
    ) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.float32] | None]]:
        """Yield day by day its first step, the states (steps, N) of some stations, and their values (steps, N, 3)."""
        for day in range(self.start // DAY, (self.end - 1) // DAY + 1):
            first, end = max(self.start, day * DAY), min(self.end, (day + 1) * DAY)
            states = np.full((end - first, len(kept)), ABSENT, dtype=np.uint8)
            merged = np.full((*states.shape, len(FEATURES)), np.nan, dtype=np.float32) if values else None
            for part, path in zip(self.parts, self.request.files, strict=True):
                since, until = max(first, part.first), min(end, part.end)
                if since >= until:
                    continue
                own = part.states[since - part.first : until - part.first, kept]
                here = states[since - first : until - first]
                new = (here == ABSENT) & (own != ABSENT)
                if merged is not None:
                    own_values = part.values[since - part.first : until - part.first, kept]
                    here_values = merged[since - first : until - first]
                    self._note_repeats((here != ABSENT) & (own != ABSENT), since, own_values, here_values, path)
                    here_values[new] = own_values[new]
                here[new] = own[new]
            yield first, states, merged

    def _note_repeats(
        self, both: NDArray[np.bool_], since: int, own: NDArray[np.float32], here: NDArray[np.float32], path: Path
    ) -> None:
        """Count the values that two files have."""
        if both.any():
            doubled = clock_changes(since + np.arange(len(both)))[0][:, None]
            same = same_values(own, here).all(axis=2)
            add_tally(self.tally, "autumn", int((both & doubled).sum()), path.name)
            add_tally(self.tally, "repeated", int((both & ~doubled & same).sum()), path.name)
            add_tally(self.tally, "differing", int((both & ~doubled & ~same).sum()), path.name)

    def write(self, path: Path) -> None:
        """Write the npz: `data` (T, N, 3); `imputed` (T, N), which values were filled in by PeMS; `start`, a time."""
        steps = (self.end - self.start) // self.per_step
        marks = np.zeros((steps, len(self.stations)), dtype=np.bool_)
        self.of_some_parts = 0

        def days() -> Iterator[NDArray[np.float32]]:
            total = -(-self.end // DAY) - self.start // DAY
            for first, states, values in tqdm(
                self._days(self.kept), total=total, desc=path.name, unit="day", disable=None
            ):
                assert values is not None
                marked = (states == FILLED) & self.request.keep_imputed
                summed, marked, partly = in_longer_steps(values, marked, self.per_step)
                row = (first - self.start) // self.per_step
                marks[row : row + len(marked)] = marked
                self.of_some_parts += partly
                yield summed

        with written_whole(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            write_member(archive, "data", (steps, len(self.stations), len(FEATURES)), days())
            write_member(archive, MARKS_ARRAY, marks.shape, [marks])
            write_member(archive, START_ARRAY, (), [np.array(str(time_of(self.start)))])

    def report(self) -> list[str]:
        """Return lines on what was taken and dropped."""
        request, stations = self.request, self.request.metadata.stations
        total = self.by_state.sum()
        absent, empty, filled, measured = (f"{count:,} ({100 * count / total:.2f} %)" for count in self.by_state)
        below = f"{filled} observed below {request.least_observed:g} %, {IMPUTED[request.keep_imputed]}"
        last = time_of(self.end) - timedelta(minutes=request.minutes)
        lines = [
            f"raw files: {len(request.files)}, {time_of(self.start)} .. {last}, "
            f"{(self.end - self.start) // self.per_step} steps of {request.minutes} minutes",
            f"{request.metadata.names}: {len(stations)} stations, {len(request.stations)} asked for, "
            f"{len(self.stations)} taken",
            f"values of 5 minutes: {measured} measured, {below}, {empty} empty, {absent} without a row",
        ]
        if self.passed_over:
            lines.append(
                f"of those without a row, {self.passed_over:,} are of the hour that clocks pass over in spring"
            )
        if request.metadata.repeated:
            lines.append(f"rows of the metadata that repeat another one: {request.metadata.repeated}")
        unlisted = sorted({number for part in self.parts for number in part.unknown.tolist()})
        for what, names in (
            ("stations that a later metadata file puts elsewhere, whose later place is taken", request.metadata.moved),
            ("stations that were asked for and have no row", self.without_rows),
            (f"stations left out, as less than {request.least_known:g} % of their values are known", self.sparse),
            ("stations with rows that the metadata do not list", unlisted),
            ("days without a row", [f"{time_of(day):%Y-%m-%d}" for day in self.absent_days]),
        ):
            if names:
                shown = ", ".join(map(str, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")
                lines.append(f"{what}: {len(names)} ({shown})")
        if self.late or self.gone:
            lines.append(
                f"stations taken that come after the first day: {self.late}, that go before the last: {self.gone}"
            )
        for name, what in NOTES.items():
            if name in self.tally:
                count, place = self.tally[name]
                lines.append(f"{what}: {count:,} (first: {place})")
        if self.of_some_parts:
            parts = f"{least_parts(self.per_step)} of {self.per_step} parts or more, but not of all"
            lines.append(f"values of {request.minutes} minutes from {parts}: {self.of_some_parts:,}")
        return lines


def least_parts(parts: int) -> int:
    """Return how many of the parts of a longer step must be known."""
    return int(np.ceil(LEAST_PARTS * parts - 1e-9))


def in_longer_steps(
    values: NDArray[np.float32], marked: NDArray[np.bool_], parts: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Return values in steps that are longer: the sum of the flow, the mean occupancy, the mean speed of the vehicles.

    A step is missing if fewer than two thirds of its parts have a flow. The flow of the others is their mean times the
    number of parts. A step is marked if one of its parts is.

    Args:
        values: (T, N, 3) flow, occupancy, speed, NaN where they are missing.
        marked: (T, N).
        parts: in a longer step; divides T.

    Returns:
        Values (T / parts, N, 3), marks (T / parts, N), and how many values are not of all parts.
    """
    if parts == 1:
        return values, marked, 0
    flow, occupancy, speed = np.moveaxis(values.reshape(-1, parts, *values.shape[1:]).astype(np.float64), 3, 0)
    known = np.isfinite(flow).sum(axis=1)
    enough = known >= least_parts(parts)

    def mean(of: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = np.where(np.isfinite(of) & np.isfinite(weight), weight, 0)
        total = weight.sum(axis=1)
        return np.where(
            total > 0, (np.where(weight > 0, of, 0) * weight).sum(axis=1) / np.where(total > 0, total, 1), np.nan
        )

    ones = np.ones_like(flow)
    of_vehicles = mean(speed, flow)
    means = [
        mean(flow, ones) * parts,
        mean(occupancy, ones),
        np.where(np.isnan(of_vehicles), mean(speed, ones), of_vehicles),
    ]
    summed = np.where(enough[:, :, None], np.stack(means, axis=2), np.nan).astype(np.float32)
    marks = marked.reshape(-1, parts, marked.shape[1]).any(axis=1) & enough
    return summed, marks, int((enough & (known < parts)).sum())


def _write_tables(stem: Path, stations: Sequence[Station], links: RoadLinks) -> None:
    """Write the ids, the links and the positions of stations; a position that is not known is left empty."""
    ids = [station.id for station in stations]
    with written_whole(stem.with_name(f"{stem.name}.txt")) as partial:
        partial.write_text("".join(f"{number}\n" for number in ids), encoding="utf-8")
    linked = [
        (ids[start], ids[end], f"{miles:.3f}") for (start, end), miles in zip(links.pairs, links.miles, strict=True)
    ]
    places = [(item.id, *("" if np.isnan(at) else at for at in (item.latitude, item.longitude))) for item in stations]
    for name, header, rows in (
        (f"{stem.name}.csv", ("from", "to", "cost"), linked),
        (f"{stem.name}_positions.csv", ("sensor", "latitude", "longitude"), places),
    ):
        with written_whole(stem.with_name(name)) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows([header, *rows])


def _configuration_text(request: Request, series: Series, folder: Path) -> str:
    name, hour = request.name, 60 // request.minutes
    located = any(not np.isnan(station.latitude + station.longitude) for station in series.stations)
    data = DataConfig(
        adj_filename=folder / f"{name}.csv",
        graph_signal_matrix_filename=folder / f"{name}.npz",
        id_filename=folder / f"{name}.txt",
        positions_filename=folder / f"{name}_positions.csv" if located else None,
        num_of_vertices=len(series.stations),
        points_per_hour=hour,
        num_for_predict=hour,
        dataset_name=name,
        start=time_of(series.start),
        missing="interpolate",
    )
    freeways = ", ".join(dict.fromkeys(str(station.freeway) for station in series.stations))
    about = (
        f"{name}: {len(series.stations)} stations of Caltrans, made from raw files by data/caltrans.py.\n"
        f"Freeways: {freeways}.\n"
        "Names of files start at the repository's root. All settings: configurations/README.md."
    )
    return dataset_ini(about, data)


def _links_report(stations: Sequence[Station], links: RoadLinks, within: float) -> str:
    across = len(links.pairs) - links.along
    line = f"links: {links.along} along freeways"
    if links.along:
        longest = int(links.miles[: links.along].argmax())
        start, end = (stations[position].id for position in links.pairs[longest])
        line += f" (the longest {links.miles[longest]:.1f} miles, {start} to {end})"
    line += f", {across} across freeways within {within:g} miles; {links.components} connected parts"
    return f"{line}; {links.unplaced} stations have no postmile" if links.unplaced else line
