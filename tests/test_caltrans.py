"""From raw Caltrans files to a data set: DEMO's series comes back, faults are counted or told, and it goes on."""

import csv
import gzip
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import caltrans
from lib.data.caltrans import dataset, raw_files
from lib.data.caltrans.dataset import Request, in_longer_steps
from lib.data.caltrans.raw_files import RawPart, read_raw_file
from lib.data.caltrans.stations import EARTH_RADIUS, Station, read_metadata, road_links
from lib.data.series import read_start
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT
from tests.caltrans_files import RawStation, demo_stations, raw_rows, write_days, write_metadata, write_raw
from tests.conftest import Call, exit_code, load

POSITIONS = (3, 4, 5, 6, 14, 15, 21, 22)  # of DEMO's stations, around the junction
STATIONS = [demo_stations()[position] for position in POSITIONS]
IDS = [station.id for station in STATIONS]
START = datetime(2018, 3, 5)
STEPS = 30  # at the beginning of each day, in most tests
Convert = Callable[..., int]


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    """Give three days of DEMO, (T, 8, 3)."""
    with np.load(REPOSITORY_ROOT / "data" / "DEMO" / "DEMO.npz", allow_pickle=False) as archive:
        return archive["data"][: 3 * 288, POSITIONS]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Convert:
    """Give a function that calls the script as the command line would, with a folder for the data set."""
    (tmp_path / "data").mkdir()

    def convert(
        arguments: str = "", name: str = "LA", stations: str = "raw/*station_5min*", meta: str = "meta.txt"
    ) -> int:
        command = (
            f"--stations '{stations}' --metadata {meta} --name {name} --output data --configurations . {arguments}"
        )
        monkeypatch.chdir(tmp_path)
        return exit_code(monkeypatch, caltrans.main, "caltrans.py", *shlex.split(command))

    return convert


def read(root: Path, name: str = "LA") -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the series (T, N, 3), the marks (T, N) and the ids (N,) of a data set."""
    with np.load(root / "data" / name / f"{name}.npz", allow_pickle=False) as archive:
        data, marks = archive["data"], archive["imputed"]
    return data, marks, [int(line) for line in (root / "data" / name / f"{name}.txt").read_text().split()]


def in_order(ids: list[int], of: np.ndarray) -> np.ndarray:
    """Return columns in the order of ids."""
    return of[:, [IDS.index(number) for number in ids]]


def write(root: Path, series: np.ndarray, observed: np.ndarray | None = None, start: datetime = START) -> list[Path]:
    write_metadata(root / "meta.txt", STATIONS)
    return write_days(root / "raw", STATIONS, series, observed, start)


def change(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the rows of a raw file."""
    rows = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    write_raw(path, edit(rows))


# ----------------------------------------------------------------------------------------------------- the series


def test_the_series_of_demo_comes_back(
    series: np.ndarray, convert: Convert, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, series)
    assert convert() == 0
    data, marks, ids = read(tmp_path)
    assert sorted(ids) == sorted(IDS)
    assert data.dtype == np.float32
    np.testing.assert_array_equal(data, in_order(ids, series))
    assert not marks.any()
    output = capsys.readouterr().out
    assert "raw files: 3, 2018-03-05 00:00:00 .. 2018-03-07 23:55:00, 864 steps of 5 minutes\n" in output
    assert "6,912 (100.00 %) measured" in output
    config = load(tmp_path / "LA.conf", recipe="residual_mlp")
    assert (config.data.start, config.data.missing, config.data.num_of_vertices) == (START, "interpolate", 8)
    assert sorted(path.name for path in (tmp_path / "data" / "LA").iterdir()) == [
        *("LA.csv", "LA.npz", "LA.txt", "LA_positions.csv")
    ]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LA"]
    with (tmp_path / "data" / "LA" / "LA_positions.csv").open() as file:
        rows = {int(row["sensor"]): (float(row["latitude"]), float(row["longitude"])) for row in csv.DictReader(file)}
    for station in STATIONS:
        assert rows[station.id] == pytest.approx((station.latitude, station.longitude), abs=1e-6)
    options = ("--set", "Training.num_of_weeks=0", "--set", "Training.num_of_days=1")
    assert call("PrepareData.py", "--config", tmp_path / "LA.conf", *options) == 0
    assert "links (dropped 0 self-links, 0 duplicate rows)" in capsys.readouterr().out
    assert call("PrepareData.py", "--config", tmp_path / "LA.conf", *options, "--set", "Data.start=2018-03-06") == 2
    expected = "LA.npz: found the start 2018-03-05 00:00:00, expected [Data] start = 2018-03-06 00:00:00\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_filled_in_is_missing_or_marked(
    keep: bool, series: np.ndarray, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observed = np.random.default_rng(1).choice([0, 50, 74, 75, 100], (STEPS, len(IDS)), p=[0.1, 0.1, 0.1, 0.2, 0.5])
    write(tmp_path, series[:STEPS], observed.astype(float))
    assert convert("--keep-imputed" if keep else "") == 0
    data, marks, ids = read(tmp_path)
    below = in_order(ids, observed < 75)
    expected = in_order(ids, series[:STEPS])
    np.testing.assert_array_equal(marks, below if keep else np.zeros_like(below))
    np.testing.assert_array_equal(data, expected if keep else np.where(below[:, :, None], np.nan, expected))
    what = "kept and marked as imputed" if keep else "taken as missing"
    share = f"{below.sum()} ({100 * below.mean():.2f} %)"
    assert f"{share} observed below 75 %, {what}" in capsys.readouterr().out
    assert convert("--observed 50", "OTHER") == 0
    np.testing.assert_array_equal(np.isnan(read(tmp_path, "OTHER")[0]).all(axis=2), in_order(ids, observed < 50))


@pytest.mark.parametrize("rows_at_once", [7, 2**19])
def test_faults_of_rows_are_counted_with_their_place(
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
    series: np.ndarray,
    convert: Convert,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(raw_files, "ROWS_AT_ONCE", rows_at_once)
    day = series[:STEPS].copy()
    day[5, 2] = np.nan  # a row with empty cells
    (path,) = write(tmp_path, day)
    stranger = RawStation(700001, 5, "N", 1, 34, -118)
    other = day[3].copy()
    other[0, 0] += 7

    def spoil(rows: list[str]) -> list[str]:
        rows[8] = rows[8].replace(",101,N,", ",101,S,")  # the second time of the first station
        cells = rows[17].split(",")
        cells[9] = "-4"
        rows[17] = ",".join(cells)
        added = raw_rows(START, [stranger], day[0, :1], np.array([100.0]))
        added += raw_rows(START + timedelta(minutes=15), STATIONS, other, np.full(len(IDS), 100.0))
        return rows + added

    change(path, spoil)
    assert convert() == 0
    data, _, ids = read(tmp_path)
    expected = day.copy()
    expected[1, 0] = expected[2, 1] = np.nan  # no place of its own, and no flow
    np.testing.assert_array_equal(data, in_order(ids, expected))
    output, name = capsys.readouterr().out, path.name
    for line in (
        "2 (0.83 %) empty, 1 (0.42 %) without a row",
        "stations with rows that the metadata do not list: 1 (700001)",
        f"rows of stations that the metadata do not list, left out: 1 (first: {name} row 241)",
        f"rows whose freeway, direction or lane type is not that of the metadata, left out: 1 (first: {name} row 9)",
        f"rows that repeat a row, left out: 7 (first: {name} row 243)",
        f"with other values, left out: the first counts: 1 (first: {name} row 242)",
        f"cells out of range, such as a negative flow, taken as empty: 1 (first: {name} row 18)",
    ):
        assert line in output


def test_stations_and_days_come_and_go(
    series: np.ndarray, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = np.concatenate([series, series])
    observed = np.full(days.shape[:2], 100.0)
    observed[:388, 0] = np.nan
    observed[4 * 288 :, 1] = np.nan
    observed[: 4 * 288, 2] = observed[:, 3] = np.nan
    files = write(tmp_path, days[: 5 * 288 + 200], observed)
    files[3].unlink()
    # The fifth day is also there as a text, and its last rows in a file of their own.
    again = write_raw(tmp_path / "raw" / "d07_text_station_5min_2018_03_09_b.txt", [])
    again.write_bytes(gzip.decompress(files[4].read_bytes()))
    assert convert() == 0
    data, _, ids = read(tmp_path)
    assert sorted(ids) == sorted(set(IDS) - set(IDS[2:4]))
    expected = np.where(np.isnan(observed)[:, :, None], np.nan, days)
    expected[3 * 288 : 4 * 288] = np.nan
    np.testing.assert_array_equal(data, in_order(ids, expected)[: 5 * 288 + 200])
    output = capsys.readouterr().out
    for line in (
        f"stations that were asked for and have no row: 1 ({IDS[3]})",
        f"stations left out, as less than 50 % of their values are known: 1 ({IDS[2]})",
        "stations taken that come after the first day: 1, that go before the last: 1\n",
        "days without a row: 1 (2018-03-08)",
        f"rows that repeat a row, left out: {288 * 5:,} (first: {again.name})",
    ):
        assert line in output


def test_clocks_that_change(
    series: np.ndarray, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spring = [path.read_bytes() for path in write(tmp_path, series[:288], start=datetime(2018, 3, 11))]
    path = next((tmp_path / "raw").iterdir())
    change(path, lambda rows: [row for row in rows if not row.startswith("03/11/2018 02:")])
    assert convert() == 0
    data, _, ids = read(tmp_path)
    expected = in_order(ids, series[:288]).copy()
    expected[24:36] = np.nan
    np.testing.assert_array_equal(data, expected)
    assert "96 are of the hour that clocks pass over in spring" in capsys.readouterr().out
    path.write_bytes(spring[0])
    assert convert(name="THERE") == 0
    np.testing.assert_array_equal(read(tmp_path, "THERE")[0], in_order(ids, series[:288]))
    assert f"pass over, taken as they are: 96 (first: {path.name} row 193)" in capsys.readouterr().out

    path.unlink()
    (autumn,) = write(tmp_path, series[:288], start=datetime(2018, 11, 4))
    second = series[300:312]  # what was measured when the clocks showed from 1 to 2 for the second time

    def doubled(rows: list[str]) -> list[str]:
        added = [
            row
            for step, values in enumerate(second)
            for row in raw_rows(datetime(2018, 11, 4, 1, 5 * step), STATIONS, values, np.full(len(IDS), 100.0))
        ]
        return [*rows[: 24 * 8], *added, *rows[24 * 8 :]]

    change(autumn, doubled)
    assert convert(name="AUTUMN") == 0
    np.testing.assert_array_equal(read(tmp_path, "AUTUMN")[0], in_order(ids, series[:288]))
    output = capsys.readouterr().out
    assert f"twice when clocks go back, left out: the first counts: 96 (first: {autumn.name} row 193)" in output
    assert "repeat" not in output


def test_longer_steps_are_sums_and_means_by_hand() -> None:
    draw = np.random.default_rng(3)
    values = draw.uniform(0, 50, (48, 5, 3)).round().astype(np.float32)
    values[draw.random((48, 5)) < 0.2] = np.nan
    values[draw.random((48, 5)) < 0.1, 2] = np.nan
    values[:12, 0, 0] = 0  # nobody drives
    marked = draw.random((48, 5)) < 0.1
    for parts, least in ((3, 2), (12, 8)):
        summed, marks, partly = in_longer_steps(values, marked, parts)
        some = 0
        for step in range(48 // parts):
            for sensor in range(5):
                here = values[step * parts : (step + 1) * parts, sensor].astype(float)
                known = here[~np.isnan(here[:, 0])]
                if len(known) < least:
                    assert np.isnan(summed[step, sensor]).all()
                    assert not marks[step, sensor]
                    continue
                some += len(known) < parts
                fast = known[~np.isnan(known[:, 2])]
                weights = fast[:, 0] if fast[:, 0].sum() else None
                speed = np.average(fast[:, 2], weights=weights) if len(fast) else np.nan
                expected = (known[:, 0].sum() * parts / len(known), known[:, 1].mean(), speed)
                np.testing.assert_allclose(summed[step, sensor], expected, rtol=1e-6)
                assert marks[step, sensor] == marked[step * parts : (step + 1) * parts, sensor].any()
        assert partly == some


def test_hours_of_files_that_end_within_one(series: np.ndarray, convert: Convert, tmp_path: Path) -> None:
    write(tmp_path, series[:282], start=START + timedelta(minutes=20))
    assert convert("--minutes 60") == 0
    data, marks, ids = read(tmp_path)
    hours = in_order(ids, series)[8:272].reshape(22, 12, len(IDS), 3)
    assert data.shape == (24, len(IDS), 3)
    np.testing.assert_allclose(data[1:23, :, 0], hours[..., 0].sum(axis=1))
    np.testing.assert_allclose(data[0, :, 0], in_order(ids, series)[:8, :, 0].mean(axis=0) * 12)
    assert marks.shape == data.shape[:2]
    config = load(tmp_path / "LA.conf")
    assert (config.data.start, config.data.points_per_hour) == (START, 1)


# ------------------------------------------------------------------------------------------------ stop and go on


def test_a_conversion_that_was_stopped_goes_on(
    series: np.ndarray,
    convert: Convert,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = write(tmp_path, np.concatenate([series[first : first + 288] for first in (0, 288, 0, 288)])[: 3 * 288 + 9])
    assert convert(name="WHOLE") == 0
    read_file = dataset.read_raw_file
    asked: list[str] = []
    stop_at: Path | None = files[2]

    def reading(path: Path, *arguments: object) -> RawPart:
        if stop_at is not None and path.name == stop_at.name:
            raise KeyboardInterrupt
        asked.append(path.name)
        return read_file(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "read_raw_file", reading)
    assert convert() == 130
    work = tmp_path / "data" / "LA.partial"
    assert f"what was read is in {work}, and the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "LA.conf").exists()
    stop_at = None
    with monkeypatch.context() as patch:  # killed while it writes
        patch.setattr(dataset, "in_longer_steps", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert convert() == 130
    assert asked == [path.name for path in files]
    assert convert("--observed 80") == 0  # another question reads all anew
    assert asked == [path.name for path in files] * 2
    assert not work.exists()
    for suffix in (".npz", ".csv", ".txt", "_positions.csv"):
        made = [(tmp_path / "data" / name / f"{name}{suffix}").read_bytes() for name in ("WHOLE", "LA")]
        if suffix != ".npz":  # which has the time of writing
            assert made[0] == made[1]
    np.testing.assert_array_equal(read(tmp_path)[0], read(tmp_path, "WHOLE")[0])


# ---------------------------------------------------------------------------------------------------------- links


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Station], float]:
    """Draw stations of a few roads within some miles, some without postmile or position, and a distance."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stations = []
    for number in random.permutation(draw(st.integers(1, 14))).tolist():
        postmile = math.nan if random.random() < 0.1 else float(random.integers(0, 8)) / 2
        place = (34 + random.random() / 20, -118 - random.random() / 20)
        place = (math.nan, math.nan) if random.random() < 0.1 else place
        freeway, direction = int(random.choice([5, 101])), str(random.choice(["N", "S", "E", "W"]))
        stations.append(Station(number, freeway, direction, "ML", 7, "37", postmile, *place))
    return stations, draw(st.sampled_from([0.0, 0.3, 1.0, 3.0]))


def distance(one: Station, other: Station) -> float:
    """Return the distance by the chord of two points in space."""

    def point(station: Station) -> np.ndarray:
        north, east = math.radians(station.latitude), math.radians(station.longitude)
        return np.array([math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)])

    return float(2 * EARTH_RADIUS * np.arcsin(np.linalg.norm(point(one) - point(other)) / 2))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(networks())
def test_links_are_those_of_the_definition(drawn: tuple[list[Station], float]) -> None:
    stations, within = drawn
    links = road_links(stations, within)
    expected = set()
    for road in {station.road for station in stations}:
        there = [item for item in stations if item.road == road and not math.isnan(item.postmile)]
        sign = 1 if road[1] in "NE" else -1
        there.sort(key=lambda item: (sign * item.postmile, item.id))
        expected |= {(start.id, end.id, abs(end.postmile - start.postmile)) for start, end in pairwise(there)}
    found = [
        (stations[start].id, stations[end].id, miles)
        for (start, end), miles in zip(links.pairs, links.miles, strict=True)
    ]
    assert set(found[: links.along]) == expected
    across = {(min(start, end), max(start, end)): miles for start, end, miles in found[links.along :]}
    assert len(across) == len(found) - links.along
    for one in stations:
        for other in stations:
            if one.id < other.id and one.freeway != other.freeway:
                miles = distance(one, other)  # NaN is not near
                if abs(miles - within) > 1e-9:
                    assert ((one.id, other.id) in across) == (miles < within)
                if (one.id, other.id) in across:
                    assert across[one.id, other.id] == pytest.approx(miles, abs=1e-6)
    assert all(stations[start].freeway != stations[end].freeway for start, end in links.pairs[links.along :])
    groups = {station.id: {station.id} for station in stations}
    for start, end, _ in found:
        merged = groups[start] | groups[end]
        for number in merged:
            groups[number] = merged
    assert links.components == len({frozenset(group) for group in groups.values()})
    shuffled = road_links(stations[::-1], within)
    assert links.components == shuffled.components
    assert sorted(links.miles) == pytest.approx(sorted(shuffled.miles))


def test_the_filters_and_a_box(series: np.ndarray, convert: Convert, tmp_path: Path) -> None:
    write(tmp_path, series[:STEPS])
    south, north = STATIONS[1].latitude - 1e-6, STATIONS[2].latitude + 1e-6
    for name, (arguments, expected) in {
        "A": ("--freeway 101 --direction n --type ML", IDS[:4]),
        "B": ("--freeway 170", IDS[4:6]),
        "C": ("--freeway 101 170 --direction S E", [*IDS[6:], *IDS[4:6]]),
        "D": (f"--direction N --box {south} -119 {north} -118", IDS[1:3]),
    }.items():
        assert convert(arguments, name) == 0
        assert read(tmp_path, name)[2] == expected  # road by road in the direction of travel


def test_the_stations_of_a_trained_network_in_its_order(series: np.ndarray, convert: Convert, tmp_path: Path) -> None:
    observed = np.full((STEPS, len(IDS)), 100.0)
    observed[:, 2], observed[1:, 4] = np.nan, 0  # nothing, and hardly anything: both are kept
    write(tmp_path, series[:STEPS], observed, START + timedelta(hours=9))
    wanted = [IDS[position] for position in (4, 2, 7)]
    (tmp_path / "ids.txt").write_text("".join(f"{number}\n" for number in wanted))
    assert convert("--ids ids.txt") == 0
    data, _, ids = read(tmp_path)
    assert ids == wanted
    np.testing.assert_array_equal(data, np.where(observed[:, :, None] == 100, series[:STEPS], np.nan)[:, [4, 2, 7]])
    assert read_start(tmp_path / "data" / "LA" / "LA.npz") == START + timedelta(hours=9)


def test_several_metadata_files(
    series: np.ndarray, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, series[:STEPS])
    moved = replace(STATIONS[0], postmile=STATIONS[0].postmile + 1)
    write_metadata(tmp_path / "a.txt", [STATIONS[0], STATIONS[1], STATIONS[1]])
    write_metadata(tmp_path / "b.txt", [moved, *STATIONS[2:4]])
    assert convert("--type ML", meta="a.txt b.txt") == 0
    output = capsys.readouterr().out
    assert f"a later metadata file puts elsewhere, whose later place is taken: 1 ({IDS[0]})" in output
    assert "rows of the metadata that repeat another one: 1" in output
    with (tmp_path / "data" / "LA" / "LA.csv").open() as file:
        links = {(int(row["from"]), int(row["to"])): float(row["cost"]) for row in csv.DictReader(file)}
    first, second, third = moved.postmile, STATIONS[1].postmile, STATIONS[2].postmile
    assert second < first < third or first < second
    assert sum(links.values()) == pytest.approx(STATIONS[3].postmile - min(first, second), abs=1e-6)


# --------------------------------------------------------------------------------------------------- wrong input


def contents(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


NAME = "raw/d07_text_station_5min_2018_03_05.txt.gz"
SECOND = NAME.replace("05.txt", "06.txt")


def cut(path: str, share: float) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        whole = (root / path).read_bytes()
        (root / path).write_bytes(whole[: int(share * len(whole))])

    return spoil


def row(number: int, old: str, new: str) -> Callable[[Path], object]:
    def edit(rows: list[str]) -> list[str]:
        assert old in rows[number - 1]
        rows[number - 1] = rows[number - 1].replace(old, new, 1)
        return rows

    return lambda root: change(root / SECOND, edit)


def metadata(old: str, new: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        text = (root / "meta.txt").read_text()
        assert old in text
        (root / "meta.txt").write_text(text.replace(old, new))

    return spoil


def text_cut(root: Path) -> None:
    whole = gzip.decompress((root / SECOND).read_bytes())
    (root / SECOND).unlink()
    (root / SECOND.removesuffix(".gz")).write_bytes(whole[:-3])


HOURS = rf"{SECOND}: found steps of 60 minutes, expected a file of 5 minutes \(station_5min\)"
TIME = "expected one of every 5 minutes such as 07/01/2016 00:05:00"
FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a file cut short": (
        cut(SECOND, 0.5),
        "",
        rf"{SECOND}: found a damaged file or one cut short after row \d+ \(Compressed file ended before the "
        r"end-of-stream marker was reached\): get it anew",
    ),
    "a text cut short": (
        text_cut,
        "",
        rf"{SECOND.removesuffix('.gz')} row 240: found no end of the line after \d+ cells, expected a whole row: the "
        "file is cut short",
    ),
    "a text cut short and packed again": (
        lambda root: (root / SECOND).write_bytes(gzip.compress(gzip.decompress((root / SECOND).read_bytes())[:-3])),
        "",
        rf"{SECOND} row 240: found no end of the line after \d+ cells, expected a whole row: the file is cut short",
    ),
    "two files of which the first was cut short": (
        lambda root: change(
            root / SECOND, lambda rows: [*rows[:20], ",".join(rows[20].split(",")[:10]) + "\n", *rows[21:]]
        ),
        "",
        f"{SECOND} row 21: found 10 cells, expected 12 or more, separated by commas",
    ),
    "an empty file": (
        lambda root: write_raw(root / SECOND, []),
        "",
        f"{SECOND}: found an empty file, expected a raw .*",
    ),
    "no gzip": (
        lambda root: (root / SECOND).write_bytes(b"<html>"),
        "",
        rf"{SECOND}: found a damaged file or one cut short after row 0 \(Not a gzipped file .*\): get it anew",
    ),
    "a cell": (row(7, ",100,", ",1o0,"), "", f"{SECOND} row 7: found observed '1o0', expected a number or nothing"),
    "an id": (row(7, ",7", ",x7"), "", f"{SECOND} row 7: found station 'x7170.*', expected an integer"),
    "a short row": (
        lambda root: write_raw(root / SECOND, ["a,b\n"]),
        "",
        f"{SECOND} row 1: found 2 cells, expected .*",
    ),
    "a time": (row(9, "00:05:00", "00:07:00"), "", f"{SECOND} row 9: found the time '03/06/2018 00:07:00', {TIME}"),
    "a date": (row(9, "03/06/2018", "2018-03-06"), "", f"{SECOND} row 9: found the time '2018-03-06 00:05:00', {TIME}"),
    "a year": (
        row(240, "/2018", "/2028"),
        "",
        f"{SECOND}: found the time 2028-03-06 02:25:00 after 2018-03-06 02:25:00, expected times of one file",
    ),
    "a file of another year": (
        lambda root: change(root / SECOND, lambda rows: [row.replace("/2018", "/2028") for row in rows]),
        "",
        f"{SECOND}: found the day 2028-03-06 after 2018-03-05, expected a file for at least one in 10 days",
    ),
    "a file that is a folder": (
        lambda root: (root / "data" / "LA.partial").write_text(""),
        "",
        r".*/LA\.partial/\w+\.npy: cannot be written: .* is not a folder",
    ),
    "hours": (
        lambda root: change(root / SECOND, lambda rows: [row for row in rows if ":00:00" in row]),
        "",
        HOURS,
    ),
    "another district's metadata": (
        metadata("\t7\t37", "\t4\t37"),
        "",
        f"{NAME} row 1: found a station of district 7, expected district 4 as in meta.txt",
    ),
    "an unknown freeway": (
        lambda _: None,
        "--freeway 1O1",
        r"--freeway: found '1O1', expected a freeway of meta.txt: 101, 170 \(did you mean '101'\?\)",
    ),
    "an unknown type": (lambda _: None, "--type MLL", r"--type: found 'MLL', .*: ML \(did you mean 'ML'\?\)"),
    "no such station": (
        lambda _: None,
        "--freeway 170 --direction N",
        "--freeway 170 --direction N: found no such station in meta.txt, expected at least one",
    ),
    "other ids": (
        lambda root: (root / "ids.txt").write_text(f"{IDS[1]}\n71701\n{IDS[1]}\n"),
        "--ids ids.txt",
        rf"ids.txt row 2: found '71701', expected a station of meta.txt \(did you mean '\d+'\?\)\n"
        rf"ids.txt row 3: found station {IDS[1]} again, expected it once",
    ),
    "ids and a freeway": (
        lambda _: None,
        "--ids ids.txt --freeway 101",
        "--ids: found another choice of stations beside ids.txt, expected one",
    ),
    "a metadata row": (
        metadata("\t101\tN", "\t101\tU"),
        "",
        "\n".join(
            f"meta.txt row {number}: column Dir: found 'U', expected one of N, S, E, W" for number in range(2, 6)
        ),
    ),
    "no metadata": (lambda _: None, "--metadata other.txt", "other.txt: no such file, expected station metadata .*"),
    "raw files as metadata": (
        metadata("Abs_PM", "PM"),
        "",
        "meta.txt row 1: found no column Abs_PM, expected station metadata of Caltrans, separated by tabs",
    ),
    "two places": (
        lambda root: write_metadata(root / "meta.txt", [*STATIONS, replace(STATIONS[0], postmile=1.0)]),
        "",
        f"meta.txt row 10: found station {IDS[0]} in another place than in meta.txt row 2",
    ),
    "a folder without files": (
        lambda root: (root / "empty").mkdir(),
        "--stations empty",
        r"--stations: found no file \*station_5min\* in empty, expected raw files such as .*",
    ),
    "no file": (lambda _: None, "--stations none*.gz", r"--stations: found no file none\*.gz, expected raw files .*"),
    "a data set of that name": (
        lambda root: (root / "data" / "LA").mkdir(),
        "",
        ".*/data/LA, which is there already, expected a new name",
    ),
    "a configuration of that name": (
        lambda root: (root / "LA.conf").write_text(""),
        "",
        r".*/LA\.conf, which is there already, expected a new name",
    ),
    "a path for a name": (lambda _: None, "--name ../up", r"--name: found '\.\./up', expected letters, digits, .*"),
    "nothing known": (
        lambda _: None,
        "--observed 100 --least-known 100",
        r"--least-known 100: found no station with so many % of its values, the best is \d+ with 18.9 %, expected .*",
    ),
    "minutes": (lambda _: None, "--minutes 10", r"--minutes: invalid choice: 10 \(choose from 5, 15, 60\)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_input_gets_its_line_and_leaves_nothing_behind(
    name: str, series: np.ndarray, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path,
        series[: 288 + STEPS],
        np.where(np.arange(288 + STEPS) % 288 < STEPS, 100, np.nan)[:, None] * np.ones(8),
    )
    spoil, arguments, expected = FAULTS[name]
    spoil(tmp_path)
    before = contents(tmp_path)
    assert convert(arguments) == 2
    assert contents(tmp_path) == before
    lines = [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]
    text = "\n".join(lines)
    assert re.fullmatch(expected, text), text


def test_no_cut_of_a_file_goes_unnoticed(series: np.ndarray, tmp_path: Path) -> None:
    (path,) = write(tmp_path, series[:2])
    metadata = read_metadata([tmp_path / "meta.txt"])
    request = Request(name="LA", files=(path,), metadata=metadata, stations=tuple(metadata.stations.values()))
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut short after row \d+"):
            read_raw_file(path, request.rules)
