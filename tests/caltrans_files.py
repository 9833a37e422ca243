"""Raw files as the PeMS clearinghouse gives them, from a series such as DEMO's, for the tests and to try things out.

    python -m tests.caltrans_files raw --days 90

writes 90 daily files and the metadata of DEMO's 32 stations to the folder `raw`, with what real files have: values that
PeMS filled in, a station that comes later, one that is silent, an absent day, and clocks that change.
"""

import argparse
import gzip
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from lib.data.caltrans.raw_files import EPOCH, STEP, clock_changes
from lib.files import REPOSITORY_ROOT

METADATA_HEADER = (
    "ID\tFwy\tDir\tDistrict\tCounty\tCity\tState_PM\tAbs_PM\tLatitude\tLongitude\tLength\tType\tLanes\tName\t"
    "User_ID_1\tUser_ID_2\tUser_ID_3\tUser_ID_4"
)
MILES_PER_DEGREE = 69.09  # of latitude
DISTRICT = 7


@dataclass(frozen=True)
class RawStation:
    """A station as it stands in the metadata and in every row."""

    id: int
    freeway: int
    direction: str
    postmile: float
    latitude: float
    longitude: float
    type: str = "ML"
    district: int = DISTRICT

    @property
    def metadata(self) -> str:
        """Its row of the metadata."""
        cells = (self.id, self.freeway, self.direction, self.district, 37, "", self.postmile, self.postmile)
        cells += (
            f"{self.latitude:.6f}",
            f"{self.longitude:.6f}",
            "",
            self.type,
            4,
            f"STATION {self.id}",
            1,
            "",
            "",
            "",
        )
        return "\t".join(map(str, cells))


def demo_stations() -> list[RawStation]:
    """Return DEMO's stations, in its order: freeway 101 to the north and back, and 170 that joins it from the west."""
    links = np.genfromtxt(REPOSITORY_ROOT / "data" / "DEMO" / "DEMO.csv", delimiter=",", skip_header=1)
    miles = {(int(start), int(end)): cost for start, end, cost in links}

    def postmiles(positions: range, first: float, sign: int) -> dict[int, float]:
        at = {positions[0]: first}
        for start, end in pairwise(positions):
            at[end] = round(at[start] + sign * miles[start, end], 3)
        return at

    inbound, outbound = postmiles(range(12), 10.0, 1), postmiles(range(16, 28), 21.5, -1)
    branch_in, branch_out = postmiles(range(12, 16), 2.0, 1), postmiles(range(28, 32), 4.6, -1)
    junction = 34 + inbound[5] / MILES_PER_DEGREE
    stations = []
    for position in range(32):
        number = 717000 + 3 * position
        if position in branch_in or position in branch_out:
            postmile, direction = (branch_in | branch_out)[position], "E" if position in branch_in else "W"
            east = (postmile - 5.6) / MILES_PER_DEGREE / np.cos(np.radians(junction))
            stations.append(RawStation(number, 170, direction, postmile, junction, -118.3 + east))
        else:
            postmile, direction = (inbound | outbound)[position], "N" if position in inbound else "S"
            stations.append(RawStation(number, 101, direction, postmile, 34 + postmile / MILES_PER_DEGREE, -118.3))
    return stations


def write_metadata(path: Path, stations: list[RawStation]) -> Path:
    """Write the metadata of stations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([METADATA_HEADER, *(station.metadata for station in stations)]) + "\n")
    return path


def raw_rows(time: datetime, stations: list[RawStation], values: np.ndarray, observed: np.ndarray) -> list[str]:
    """Return the rows of a time: values (N, 3) flow, occupancy and speed, empty where they are NaN, observed (N,) in %.

    A NaN in `observed` leaves the row out.
    """
    rows = []
    for station, (flow, occupancy, speed), percent in zip(stations, values, observed, strict=True):
        if np.isnan(percent):
            continue
        cells = [f"{time:%m/%d/%Y %H:%M:%S}", str(station.id), str(station.district), str(station.freeway)]
        cells += [station.direction, station.type, ".5", "40", f"{percent:.0f}"]
        cells += [
            "" if np.isnan(value) else f"{value:.{decimals}f}"
            for value, decimals in ((flow, 0), (occupancy, 4), (speed, 1))
        ]
        lane = ["10", "" if np.isnan(flow) else f"{flow / 4:.0f}", cells[10], cells[11], "1"]
        rows.append(",".join([*cells, *lane * 4, *[""] * 20]) + "\n")
    return rows


def write_raw(path: Path, rows: list[str]) -> Path:
    """Write rows to a raw file, with gzip by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(rows).encode()
    path.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)
    return path


def write_days(
    folder: Path,
    stations: list[RawStation],
    series: np.ndarray,
    observed: np.ndarray | None = None,
    start: datetime = datetime(2018, 3, 5),
    clocks: bool = False,
) -> list[Path]:
    """Write a series (T, N, 3) as one file a day, observed (T, N) in %.

    With `clocks`, the hour that clocks pass over is left out, and the hour that comes twice is written twice.
    """
    doubled, passed_over = clock_changes(int((start - EPOCH) / STEP) + np.arange(len(series)))
    observed = np.full(series.shape[:2], 100.0) if observed is None else observed
    paths = []
    for first in range(0, len(series), 288):
        rows = []
        for step in range(first, min(first + 288, len(series))):
            if not (clocks and passed_over[step]):
                again = raw_rows(start + step * STEP, stations, series[step], observed[step])
                rows += again * (2 if clocks and doubled[step] else 1)
        name = f"d{DISTRICT:02d}_text_station_5min_{start + timedelta(days=first // 288):%Y_%m_%d}.txt.gz"
        paths.append(write_raw(folder / name, rows))
    return paths


def demo_series(days: int, seed: int = 1) -> np.ndarray:
    """Return days of DEMO's series (T, 32, 3); after its 28 days it comes again, with other noise in the flow."""
    with np.load(REPOSITORY_ROOT / "data" / "DEMO" / "DEMO.npz", allow_pickle=False) as archive:
        data = archive["data"]
    series = np.concatenate([data] * -(-days * 288 // len(data)))[: days * 288].copy()
    again = series[len(data) :, :, 0]
    again += np.random.default_rng(seed).normal(0, 1, again.shape) * np.sqrt(again)
    series[:, :, 0] = series[:, :, 0].round().clip(0)
    return series


def main() -> None:
    """Write files with the faults of real ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--copies", type=int, default=1, help="of the 32 stations, on other freeways")
    parser.add_argument("--start", type=datetime.fromisoformat, default=datetime(2018, 3, 5))
    arguments = parser.parse_args()
    stations, series = demo_stations(), demo_series(arguments.days)
    observed = np.full(series.shape[:2], 100.0)
    draw = np.random.default_rng(2)
    for sensor in (3, 9, 20):  # detectors that fail now and then; PeMS fills in a mean of the time of day
        for day in draw.choice(arguments.days, arguments.days // 7, replace=False):
            rows = slice(day * 288 + 84, day * 288 + 216)
            series[rows, sensor] = series.reshape(-1, 288, 32, 3)[:, 84:216, sensor].mean(axis=0).round(1)
            observed[rows, sensor] = 0
    observed[: len(observed) // 10, 14] = np.nan  # comes later
    observed[:, 27] = 0  # silent
    stations = [
        replace(
            station,
            id=station.id + 100 * copy,
            freeway=station.freeway + 1000 * copy,
            longitude=station.longitude + copy,
        )
        for copy in range(arguments.copies)
        for station in stations
    ]
    series, observed = np.tile(series, (1, arguments.copies, 1)), np.tile(observed, (1, arguments.copies))
    files = write_days(arguments.folder, stations, series, observed, arguments.start, clocks=True)
    if len(files) > 10:
        files[10].unlink()
    write_metadata(arguments.folder / f"d{DISTRICT:02d}_text_meta_{arguments.start:%Y_%m_%d}.txt", stations)
    print(f"wrote {len(files)} files to {arguments.folder}")


if __name__ == "__main__":
    main()
