"""The stations of Caltrans: the metadata files, which stations are asked for, and the links between them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from lib.errors import InputError, nearest
from lib.files import printable, reason

INTEGERS = {"ID": "id", "Fwy": "freeway", "District": "district"}
TEXTS = {"Dir": "direction", "Type": "type", "County": "county"}
NUMBERS = {"Abs_PM": "postmile", "Latitude": "latitude", "Longitude": "longitude"}  # NaN where the cell is empty
DIRECTIONS = ("N", "S", "E", "W")
FORWARD = ("N", "E")  # postmiles increase to the north and to the east, whichever way the traffic goes
FILTERS = ("district", "freeway", "direction", "type", "county")  # attributes of a station to choose by
EARTH_RADIUS = 3958.7613  # miles, the mean one
MOVED_MILES = 0.1  # from one metadata file to the next; less is a better measurement of the same place
FAULTS_SHOWN = 5


@dataclass(frozen=True)
class Station:
    """A detector station, by its row in a metadata file.

    Attributes:
        id: its number.
        freeway, direction: the road, such as 101 and N.
        type: of the lanes: ML main line, HV carpool, OR and FR on- and off-ramp, FF connector, CD, CH.
        district, county: where it is; the county is a number too, or nothing.
        postmile: miles from the beginning of the freeway in the state; NaN: not known.
        latitude, longitude: in degrees; NaN: not known.
        place: file and row, for messages.
    """

    id: int
    freeway: int
    direction: str
    type: str
    district: int
    county: str
    postmile: float
    latitude: float
    longitude: float
    place: str = field(compare=False, default="")

    @property
    def road(self) -> tuple[int, str]:
        """Freeway and direction."""
        return self.freeway, self.direction

    @property
    def order(self) -> tuple[float, int]:
        """Where it comes on its road, in the direction of travel; last where the postmile is not known."""
        if math.isnan(self.postmile):
            return math.inf, self.id
        return (self.postmile if self.direction in FORWARD else -self.postmile), self.id


@dataclass(frozen=True)
class Metadata:
    """What the metadata files say.

    Attributes:
        stations: by id, road by road in the direction of travel.
        repeated: rows that repeat another one.
        moved: the ids of stations that a later file puts elsewhere; the last file's place is taken.
        names: of the files, for messages.
    """

    stations: Mapping[int, Station]
    repeated: int
    moved: tuple[int, ...]
    names: str


def read_metadata(paths: Sequence[Path]) -> Metadata:
    """Read one metadata file, or several in order of time.

    They are tables separated by tabs, with a header that has at least ID, Fwy, Dir, District, County, Abs_PM, Latitude,
    Longitude and Type.

    Raises:
        InputError: a file cannot be read, rows are wrong, or one file puts a station in two places.
    """
    stations: dict[int, Station] = {}
    repeated, moved, faults = 0, set[int](), list[str]()
    for path in paths:
        of_file: dict[int, Station] = {}
        for number, cells in _rows(path):
            place = f"{path} row {number}"
            try:
                station = _station(cells, place)
            except ValueError as error:
                faults.append(f"{place}: {error}")
                continue
            other = of_file.setdefault(station.id, station)
            if other is not station:
                repeated += 1
                if repr(replace(other, place=place)) != repr(station):  # as texts, NaN is NaN
                    faults.append(f"{place}: found station {station.id} in another place than in {other.place}")
        moved |= {key for key in of_file.keys() & stations.keys() if _has_moved(stations[key], of_file[key])}
        stations |= of_file
    if len(faults) > FAULTS_SHOWN:
        faults = [*faults[:FAULTS_SHOWN], f"{paths[0]}: and {len(faults) - FAULTS_SHOWN} more wrong rows"]
    if faults:
        raise InputError("\n".join(faults))
    ordered = sorted(stations.values(), key=lambda station: (station.road, station.order))
    names = ", ".join(map(str, paths))
    return Metadata({station.id: station for station in ordered}, repeated, tuple(sorted(moved)), names)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a metadata file below its header, each with its number, by the header's names."""
    wanted = [*INTEGERS, *TEXTS, *NUMBERS]
    try:
        # Names of places may be in any encoding; they are not read.
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as handle:
            rows = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected station metadata of Caltrans") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    absent = [name for name in wanted if name not in header]
    if absent:
        found = f"found no column {', '.join(absent)}"
        raise InputError(f"{path} row 1: {found}, expected station metadata of Caltrans, separated by tabs")
    at = {name: header.index(name) for name in wanted}
    read = []
    for number, row in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in row):
            cells = {name: row[column].strip() if column < len(row) else "" for name, column in at.items()}
            read.append((number, cells))
    if not read:
        raise InputError(f"{path}: found no station below the header, expected some")
    return read


def _station(cells: Mapping[str, str], place: str) -> Station:
    values: dict[str, int | str | float] = {TEXTS[name]: cells[name].upper() for name in TEXTS}
    kinds = ((INTEGERS, int, "an integer"), (NUMBERS, _number, "a number or nothing"))
    for names, convert, expected in kinds:
        for name, attribute in names.items():
            text = cells[name]
            try:
                values[attribute] = convert(text)
            except ValueError:
                raise ValueError(f"column {name}: found '{printable(text)[:60]}', expected {expected}") from None
    if values["direction"] not in DIRECTIONS:
        found = printable(str(values["direction"]))[:60]
        raise ValueError(f"column Dir: found '{found}', expected one of {', '.join(DIRECTIONS)}")
    return Station(**values, place=place)  # type: ignore[arg-type]


def _number(text: str) -> float:
    """Return a finite number, or NaN for nothing."""
    if text and not math.isfinite(float(text)):
        raise ValueError
    return float(text or "nan")


def _has_moved(before: Station, after: Station) -> bool:
    if (before.road, before.type) != (after.road, after.type):
        return True
    return abs(before.postmile - after.postmile) > MOVED_MILES or float(miles_between(before, after)) > MOVED_MILES


def choose(
    metadata: Metadata, wanted: Mapping[str, Sequence[str]], box: Sequence[float] | None = None
) -> tuple[Station, ...]:
    """Return the stations that are asked for, road by road in the direction of travel.

    Args:
        metadata: all stations.
        wanted: by the name of each filter (`FILTERS`), the values to take; none: all.
        box: the least latitude and longitude, then the greatest of both.

    Raises:
        InputError: a value is none of any station, or no station has all of them.
    """
    chosen, faults = list(metadata.stations.values()), []
    for name, values in wanted.items():
        texts = [text.upper() for text in values]
        there = sorted({str(getattr(station, name)) for station in metadata.stations.values()}, key=_by_number)
        faults += [
            f"--{name}: found '{printable(text)}', expected a {name} of {metadata.names}: {', '.join(there)}"
            f"{nearest(text, there)}"
            for text in texts
            if text not in there
        ]
        chosen = [station for station in chosen if not texts or str(getattr(station, name)) in texts]
    if faults:
        raise InputError("\n".join(faults))
    if box is not None:
        south, west, north, east = box
        chosen = [item for item in chosen if south <= item.latitude <= north and west <= item.longitude <= east]
    if not chosen:
        given = [f"--{name} {' '.join(values)}" for name, values in wanted.items() if values]
        given += [] if box is None else [f"--box {' '.join(f'{degrees:g}' for degrees in box)}"]
        raise InputError(f"{' '.join(given)}: found no such station in {metadata.names}, expected at least one")
    return tuple(chosen)


def in_order_of(path: Path, metadata: Metadata) -> tuple[Station, ...]:
    """Return the stations that an id file lists, in its order, as those of a network that was trained.

    Raises:
        InputError: the file cannot be read, or a line is no station of the metadata, or one again.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    known, faults = {str(number): station for number, station in metadata.stations.items()}, []
    for number, text in enumerate(lines, start=1):
        if text not in known:
            found = f"found '{printable(text)[:60]}'"
            faults.append(f"{path} row {number}: {found}, expected a station of {metadata.names}{nearest(text, known)}")
        elif text in lines[: number - 1]:
            faults.append(f"{path} row {number}: found station {text} again, expected it once")
    if not lines:
        faults.append(f"{path}: found an empty file, expected the number of a station in each line")
    if len(faults) > FAULTS_SHOWN:
        faults = [*faults[:FAULTS_SHOWN], f"{path}: and {len(faults) - FAULTS_SHOWN} more wrong rows"]
    if faults:
        raise InputError("\n".join(faults))
    return tuple(known[text] for text in lines)


def _by_number(text: str) -> tuple[int, str]:
    return (int(text) if text.isdigit() else 0), text


@dataclass(frozen=True, eq=False)
class RoadLinks:
    """The links between stations in order.

    Attributes:
        pairs: (E, 2) positions; those along a road come first, from the direction of travel.
        miles: (E,) the cost: the difference of the postmiles along a road, the distance as the crow flies across.
        along: how many are along a road; the others join stations of two freeways.
        unplaced: how many stations have no postmile, and so no link along their road.
        components: connected parts of the network.
    """

    pairs: NDArray[np.int64]
    miles: NDArray[np.float64]
    along: int
    unplaced: int
    components: int


def road_links(stations: Sequence[Station], within: float) -> RoadLinks:
    """Link each station to the next one of its freeway and direction, and freeways where they meet.

    Args:
        stations: (N,).
        within: stations of two freeways are linked up to so many miles apart.
    """
    positions = sorted(range(len(stations)), key=lambda position: (stations[position].road, stations[position].order))
    placed = [position for position in positions if not math.isnan(stations[position].postmile)]
    pairs: list[tuple[int, int]] = []
    for _, road in groupby(placed, key=lambda position: stations[position].road):
        pairs += pairwise(road)
    miles = [abs(stations[start].postmile - stations[end].postmile) for start, end in pairs]
    along = len(pairs)
    for start, end in _near(stations, within):
        if stations[start].freeway != stations[end].freeway:
            distance = float(miles_between(stations[start], stations[end]))
            if distance <= within:
                pairs.append((start, end))
                miles.append(distance)
    linked = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    size = len(stations)
    graph = coo_array((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(size, size))
    components = int(connected_components(graph, directed=False)[0])
    return RoadLinks(linked, np.array(miles), along, size - len(placed), components)


def miles_between(one: Station, other: Station) -> float:
    """Return the distance of two stations by the haversine formula, in miles; NaN where a position is not known."""
    north, north_other, east = np.radians([one.latitude, other.latitude, other.longitude - one.longitude])
    half = np.sin((north_other - north) / 2) ** 2 + np.cos(north) * np.cos(north_other) * np.sin(east / 2) ** 2
    return float(2 * EARTH_RADIUS * np.arcsin(np.sqrt(half)))


def _near(stations: Sequence[Station], within: float) -> list[tuple[int, int]]:
    """Return the pairs of stations that may lie so near, found on the unit sphere; those without position are out."""
    degrees = np.array([(station.latitude, station.longitude) for station in stations])
    known = np.flatnonzero(np.isfinite(degrees).all(axis=1))
    latitude, longitude = np.radians(degrees[known]).T
    points = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )
    chord = 2 * math.sin(min(within / EARTH_RADIUS, math.pi) / 2)
    if not len(known):
        return []
    found: NDArray[np.intp] = cKDTree(points).query_pairs(chord * (1 + 1e-9) + 1e-12, output_type="ndarray")
    return sorted((int(known[start]), int(known[end])) for start, end in found)
