"""Sensor tables: they prepare to the same as an npz archive, and what is wrong with one is said by row and column."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.config import Config
from lib.data.prepared import Prepared
from lib.data.preparing import links_for, make_prepared, prepared_for, unlinked_sensors
from lib.data.sensor_tables import (
    SensorTable,
    grid_steps,
    is_table,
    read_table,
    regular_series,
    sensor_columns,
    start_time,
)
from lib.data.windowing import Calendar, nearest_time, time_of_step
from lib.errors import InputError
from tests.conftest import REFERENCE, Call, DatasetMaker, load, tiny_series

START = datetime(2018, 3, 5)

CSV = """time,a,b
2018-03-05 00:00,1,2.5
2018-03-05 00:30,3,4
2018-03-05 01:00,5,6
2018-03-05 01:30,7,8
"""


def frame_of(series: np.ndarray, names: list[str], minutes: int = 30) -> pd.DataFrame:
    times = [START + timedelta(minutes=minutes * step) for step in range(len(series))]
    return pd.DataFrame({"time": times, **dict(zip(names, series[:, :, 0].T, strict=True))})


def write_table(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.name.startswith("tabs") or ".tsv" in path.name else ",")
    return path


@pytest.fixture
def table_config(make_dataset: DatasetMaker, tmp_path: Path) -> Callable[..., Config]:
    """Give a function that writes a table beside the tiny npz archive, with a configuration of it."""
    path = make_dataset()

    def make(names: list[str], ending: str = ".csv", series: np.ndarray | None = None, *overrides: str) -> Config:
        table = write_table(
            frame_of(tiny_series() if series is None else series, names), tmp_path / "TINY" / f"t{ending}"
        )
        return load(path, [f"Data.graph_signal_matrix_filename={table}", *overrides])

    return make


def write_links(config: Config, *rows: str) -> None:
    config.data.adj_filename.write_text("\n".join(["from,to,cost", *rows]) + "\n")


def assert_same(first: Prepared, second: Prepared) -> None:
    for name in ("flow", "offsets", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for split, starts in first.label_starts.items():
        np.testing.assert_array_equal(starts, second.label_starts[split])


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".parquet"])
def test_a_table_prepares_to_the_same_as_an_archive(
    ending: str, table_config: Callable[..., Config], tmp_path: Path
) -> None:
    series = tiny_series().round(3)
    config = table_config(list("abcde"), ending, series, f"Data.start={START}")
    np.savez(tmp_path / "TINY" / "TINY.npz", data=series)
    archive = replace(
        config, data=replace(config.data, graph_signal_matrix_filename=tmp_path / "TINY" / "TINY.npz", start=None)
    )
    from_archive, from_table = make_prepared(archive), make_prepared(config)
    assert_same(from_archive, from_table)
    assert from_archive.made_from["series"] != from_table.made_from["series"]


def test_a_prepared_table_is_taken_until_the_table_changes(
    table_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = table_config(list("abcde"))
    prepared_for(config)
    assert "is missing" in capsys.readouterr().out
    prepared_for(config)
    assert capsys.readouterr().out == ""
    changed = table_config(list("abcde"), ".csv", tiny_series(seed=1))
    assert prepared_for(changed).flow[0, 0] == np.float32(tiny_series(seed=1)[0, 0, 0])
    assert "is stale" in capsys.readouterr().out


def test_cells_and_rows_that_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufefftime, a ,b\n2018-03-05T00:00, 1,\n\n2018-03-05 00:30:00,NaN,4\n,,\n\n")
    table = read_table(path)
    assert table.sensors == sensor_columns(path) == ("a", "b")
    assert table.rows.tolist() == [2, 4]
    assert [table.time(0), table.time(1)] == [START, START + timedelta(minutes=30)]
    np.testing.assert_array_equal(table.values, [[1, np.nan], [np.nan, 4]])


def test_parquet_with_its_times_in_the_index_or_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(tiny_series(days=1), list("abcde"))
    expected = read_table(write_table(frame, tmp_path / "plain.parquet"))
    indexed = read_table(write_table(frame.set_index("time"), tmp_path / "indexed.parquet"))
    text = read_table(write_table(frame.assign(time=frame["time"].astype(str)), tmp_path / "text.parquet"))
    for table in (indexed, text):
        np.testing.assert_array_equal(table.values, expected.values)
        np.testing.assert_array_equal(table.times, expected.times)
        assert table.sensors == expected.sensors == tuple("abcde")
    assert expected.rows[0] == 1
    monkeypatch.delattr(pd, "read_parquet")  # for the names no row is read
    for name in ("plain", "indexed", "text"):
        assert sensor_columns(tmp_path / f"{name}.parquet") == tuple("abcde")


def test_only_tables_are_taken_for_tables() -> None:
    tables = ("a.csv", "a.Parquet", "a.TSV", "a.txt", "a.csv.gz", "a.tsv.gz", "a.txt.gz", "a.h5", "a.hdf5")
    assert all(is_table(Path(name)) for name in tables)
    assert not any(
        is_table(Path(name)) for name in ("a.npz", "a", "csv", "a.npz.gz", "a.gz", "a.npy", "a.pkl", "a.xlsx")
    )


@pytest.mark.parametrize("name", ["t.tsv", "t.txt", "tabs.txt", "t.csv.gz", "t.tsv.GZ", "tabs.txt.gz"])
def test_every_form_of_text_holds_the_same(name: str, tmp_path: Path) -> None:
    series = tiny_series(days=1, sensors=3).round(2)
    series[4, 1] = np.nan
    names = ["10", "a b", "Straße"]
    path = write_table(frame_of(series, names), tmp_path / name)
    table = read_table(path)
    assert table.sensors == sensor_columns(path) == tuple(names)
    np.testing.assert_array_equal(table.values, series[:, :, 0])
    steps = np.timedelta64(30, "m") * np.arange(len(series))
    np.testing.assert_array_equal(table.times, np.datetime64(START, "us") + steps)
    if path.suffix.lower() == ".gz":
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"found a damaged table \("):
            read_table(path)
        path.write_bytes(b"time,a\n")
        with pytest.raises(InputError, match=r"found a damaged table \(Not a gzipped file"):
            read_table(path)


def test_frames_that_pandas_wrote_as_hdf5() -> None:
    """As METR-LA.h5 and PEMS-BAY.h5 are: written by pandas 3.1 with PyTables, and read without it."""
    pytest.importorskip("h5py")
    hours = np.datetime64(START, "us") + np.timedelta64(30, "m") * np.arange(6)
    values = np.insert(np.arange(12.0).reshape(6, 2) / 7, 1, 10 * np.arange(6), axis=1)  # a block of floats and one of
    values[2, 2] = np.nan  # integers
    whole = np.arange(12.0).reshape(6, 2)
    for name, sensors, expected in (
        ("metr_la", ("773869", "12", "é"), values),
        ("pems_bay", ("400017", "400001"), whole),
    ):
        path = REFERENCE / f"{name}_layout.h5"
        table = read_table(path)
        assert table.sensors == sensor_columns(path) == sensors
        np.testing.assert_array_equal(table.values, expected)
        np.testing.assert_array_equal(table.times, hours)


def test_what_is_wrong_with_an_hdf5_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "t.h5"

    def spoilt(change: Callable[[Any], object], message: str) -> None:
        path.write_bytes((REFERENCE / "pems_bay_layout.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError) as error:
            read_table(path)
        assert str(error.value).startswith(str(path))
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def kind(file: Any, name: str, value: bytes) -> None:
        file["speed"][name].attrs["kind"] = np.bytes_(value)

    spoilt(lambda file: file.copy("speed", "flow"), "found flow (frame), speed (frame), expected one pandas frame")
    spoilt(lambda file: file.pop("speed"), "found nothing, expected one pandas frame")
    spoilt(lambda file: file.move("speed/axis0", "x") or file.pop("speed"), "found x, expected one pandas frame")
    spoilt(lambda file: kind(file, "axis1", b"integer"), "t.h5 speed: found an index that is no time, expected one")
    spoilt(lambda file: kind(file, "axis0", b"object"), "found /speed/axis0 of kind object, expected one pandas frame")
    spoilt(
        lambda file: file["speed/block0_values"].attrs.update(value_type=np.bytes_(b"datetime64[ns]")),
        "found no numbers in column '400017', expected one pandas frame",
    )
    spoilt(lambda file: file["speed"].attrs.update(pandas_type=np.bytes_(b"frame_table")), "found speed (frame_table),")
    spoilt(lambda file: file["speed"].pop("block0_values"), "found a damaged table (")
    spoilt(lambda file: file["speed/axis1"].attrs.update(tz=np.bytes_(b"Asia/Shanghai")), "expected a local time")

    path.write_bytes((REFERENCE / "pems_bay_layout.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        kind(file, "axis1", b"datetime64")  # as older pandas has it
    assert read_table(path).time(5) == START + timedelta(hours=2.5)
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"t\.h5: found a damaged table \("):
        read_table(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"t\.h5: found no package that reads HDF5, expected one: pip install h5py"):
        read_table(path)


def test_a_series_that_cannot_be_read_is_the_fault_and_not_the_links(
    table_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = table_config(["40", "10", "30", "20", "50"])
    write_links(config, "10,40,1")
    for name, content, message in (
        ("t.xlsx", b"PK", r"t\.xlsx: found a file that ends in \.xlsx, expected a series as \.npz, \.csv, "),
        (
            "t.pkl",
            b"\x80\x04N.",
            r"t\.pkl: found a pickle, .* expected a series as \.npz, .*: python -c \"import pandas",
        ),
        ("t.npz", b"time,10\n", r"t\.npz: found a damaged archive"),
        ("t.h5", b"time,10\n", r"t\.h5: found (a damaged table|no package)"),
        ("t.npy", b"", r"t\.npy: found a damaged archive"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        broken = replace(config, data=replace(config.data, graph_signal_matrix_filename=path))
        with pytest.raises(InputError, match=message) as error:
            links_for(broken)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("found", "put", "message"),
    [
        ("5,6", "5,x", "row 4, column 'b': found 'x', expected a finite number"),
        ("5,6", "5,inf", "row 4, column 'b': found 'inf', expected a finite number"),
        ("5,6", "5,1e39", "row 4, column 'b': found '1e+39', expected a finite number"),
        ("5,6", '5,"1,5"', "row 4, column 'b': found '1,5', expected a finite number"),
        ("5,6", "5,6,7", "t.csv: found a damaged table ("),
        ("1,2.5", "1,2.5,3", "t.csv: found a damaged table ("),
        (
            "2018-03-05 01:00",
            "yesterday",
            "row 4, column 1: found 'yesterday', expected a local time without zone, such",
        ),
        ("2018-03-05 01:00", "", "row 4, column 1: found no time, expected a local time"),
        (
            "2018-03-05 01:00",
            "2018-03-05T01:00+08:00",
            "row 4, column 1: found '2018-03-05T01:00+08:00', expected a local",
        ),
        (
            "2018-03-05 01:00",
            "2018-03-05 00:30",
            "row 4: found the time 2018-03-05 00:30:00 again (first in row 3), exp",
        ),
        ("2018-03-05 01:00", "2018-03-04 00:30", "row 4: found the time 2018-03-04 00:30:00 after 2018-03-05 00:30:00"),
        (
            "2018-03-05 01:00",
            "2018-03-05 01:05",
            "row 4: found the time 2018-03-05 01:05:00, expected 2018-03-05 01:00:00 (60 / points_per_hour = 30",
        ),
        (
            "2018-03-05 01:00,5,6\n",
            "",
            "row 4: found the time 2018-03-05 01:30:00, expected 2018-03-05 01:00:00 (60 / points_per_hour = 30 "
            "minutes a step), or [Data] missing = interpolate",
        ),
        (
            "5,6",
            ",",
            "found 2 empty cells, the first in row 4 (2018-03-05 01:00:00), column 'a', expected a number in each, or "
            "[Data] missing = interpolate",
        ),
        (
            "2018-03-05 00:00",
            "2018-03-05 00:10",
            "row 2: found the time 2018-03-05 00:10:00, expected [Data] start = 20",
        ),
        ("2018-03-05 01:00,5,6\n", "2018-03-05 01:00,5\n", "row 4: found 2 cells, expected 3, as the header has"),
        ("time,a,b", "time,a,a", "column 3: found 'a' again (first in column 2), expected it once"),
        ("time,a,b", "time,a,", "column 3: found no name, expected that of a sensor"),
        (
            "time,a,b",
            "time;a;b",
            "found 1 column, expected a column of times, then one column a sensor, separated by co",
        ),
        (CSV, "", "found 0 column"),
        (CSV, "time,a,b\n", "found no rows, expected a column of times"),
        ("a,b", "a\xe9,b", "t.csv: found a damaged table ('utf-8' codec"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(found: str, put: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert CSV.count(found) == 1
    path.write_bytes(CSV.replace(found, put).encode("latin-1"))
    with pytest.raises(InputError) as error:
        regular_series(read_table(path), 2, 2, START)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_columns_that_are_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        CSV.replace(",1,", ",True,").replace(",3,", ",False,").replace(",5,", ",True,").replace(",7,", ",,")
    )
    with pytest.raises(InputError, match="row 2, column 'a': found 'True', expected a finite number"):
        read_table(path)
    times = frame_of(tiny_series(days=1), list("abcde"))
    with pytest.raises(InputError, match="row 1, column 'b': found '2018-03-05 00:00:00', expected a finite number"):
        read_table(write_table(times.assign(b=times["time"]), tmp_path / "t.parquet"))
    with pytest.raises(InputError, match=r"row 1, column 1: found '0', expected a local time"):
        read_table(write_table(times.drop(columns="time").reset_index(), tmp_path / "n.parquet"))


def test_files_that_are_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"t\.csv: no such file, expected a table"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder\.csv: cannot be read: Is a directory"):
        read_table(tmp_path / "folder.csv")
    with monkeypatch.context() as patch:
        for engine in ("pyarrow", "fastparquet"):
            patch.setitem(sys.modules, engine, None)
        with pytest.raises(InputError, match=r"t\.parquet: found no package .*: pip install pyarrow"):
            read_table(tmp_path / "t.parquet")
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"time,a\n")
    for read in (read_table, sensor_columns):
        with pytest.raises(InputError, match=r"t\.parquet: found a damaged table \("):
            read(tmp_path / "t.parquet")
        with pytest.raises(InputError, match=r"none\.parquet: no such file, expected a table"):
            read(tmp_path / "none.parquet")


def test_another_number_of_sensors(table_config: Callable[..., Config]) -> None:
    config = table_config(list("abcdef"), ".csv", tiny_series(sensors=6))
    for step in (links_for, make_prepared):
        with pytest.raises(InputError, match=r"found 6 sensor columns beside the time, expected num_of_vertices = 5"):
            step(config)


@pytest.mark.parametrize("points_per_hour", [1, 7, 12, 60])
def test_any_time_step(points_per_hour: int, tmp_path: Path) -> None:
    """Steps that are no whole number of seconds are written rounded; absent steps leave the others where they are."""
    step = timedelta(hours=1) / points_per_hour
    times = [(START + i * step).replace(microsecond=0) for i in range(500)]
    path = tmp_path / "t.csv"

    def write(kept: list[int]) -> None:
        path.write_text("time,a\n" + "".join(f"{times[i]},{i}\n" for i in kept))

    write(list(range(500)))
    np.testing.assert_array_equal(regular_series(read_table(path), 1, points_per_hour, None)[:, 0, 0], np.arange(500))
    present = [i for i in range(500) if i % 7 not in (3, 4)]
    write(present)
    np.testing.assert_array_equal(grid_steps(read_table(path), points_per_hour), present)


@given(
    points_per_hour=st.sampled_from([1, 2, 4, 7, 11, 12, 13, 60]),
    phase=st.floats(-0.47, 0.49),  # how late the stamps are, as a share of a step: 0.5 for the middle of it
    first=st.integers(0, 7 * 24 * 60),
    written=st.sampled_from(["rounded", "cut off"]),
    begins=st.lists(st.integers(0, 40), min_size=1, max_size=3),
)
@example(points_per_hour=1, phase=-20 / 3600, first=0, written="rounded", begins=[0, 5])
@example(points_per_hour=7, phase=0, first=0, written="cut off", begins=[1, 2, 3, 4, 5, 6])
@example(points_per_hour=12, phase=0.5, first=0, written="rounded", begins=[0])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_time_is_the_same_step_whatever_interval_offset_and_first_row(
    points_per_hour: int, phase: float, first: int, written: str, begins: list[int]
) -> None:
    """By whole numbers: step k of the week begins k * 3600 / points_per_hour seconds after Monday."""
    late, up = round(phase * 3600 / points_per_hour), points_per_hour // 2 if written == "rounded" else 0
    steps = first + np.arange(3 * 24 * points_per_hour)
    seconds = (steps * 3600 + up) // points_per_hour + late
    monday = np.datetime64("2024-03-04", "us")
    times = monday + seconds.astype("timedelta64[s]")
    whole = SensorTable(Path("t.csv"), steps, times, np.ones((len(steps), 1)), ("a",))
    for begin in begins:
        rows = slice(begin, None)
        table = replace(whole, rows=whole.rows[rows], times=whole.times[rows], values=whole.values[rows])
        start = start_time(table, points_per_hour)
        calendar = Calendar.starting(start, points_per_hour)
        found = grid_steps(table, points_per_hour)
        np.testing.assert_array_equal(calendar.step_of_week(found), steps[rows] % (7 * 24 * points_per_hour))
        labels = [time_of_step(start, int(step), points_per_hour) for step in found[-60:]]
        np.testing.assert_array_equal(np.array(labels, dtype="datetime64[us]"), table.times[-60:])
        regular_series(table, 1, points_per_hour, table.time(0))  # a start as the first row is stamped
        assert Calendar.starting(table.time(0), points_per_hour) == calendar
        exact = datetime(2024, 3, 4) + timedelta(hours=1) * int(steps[begin]) / points_per_hour
        assert abs(nearest_time(table.time(0), points_per_hour) - exact) <= timedelta(seconds=0.5)


def test_the_first_row_may_be_the_one_that_is_off() -> None:
    """Rows 2 s early to 2 s late lie on one grid of 5 minutes, also where the file begins with the earliest."""
    off = np.array([-2, 2, 0, 2, -2, 1, -1, 0])
    seconds = 300 * np.arange(8) + off
    times = np.datetime64("2024-03-04", "us") + seconds.astype("timedelta64[s]")
    table = SensorTable(Path("t.csv"), np.arange(8) + 2, times, np.ones((8, 1)), ("a",))
    np.testing.assert_array_equal(grid_steps(table, 12), np.arange(8))
    assert regular_series(table, 1, 12, datetime(2024, 3, 4)).shape == (8, 1, 1)
    assert start_time(table, 12) == datetime(2024, 3, 4) + timedelta(seconds=off.mean())
    late = replace(table, times=table.times + (np.arange(8) == 5) * np.timedelta64(4, "s"))
    with pytest.raises(InputError, match="row 3: found the time 2024-03-04 00:05:02, expected 2024-03-04 00:04:58"):
        grid_steps(late, 12)
    with pytest.raises(InputError, match=r"row 2: found the time .*, expected \[Data\] start = 2024-03-04 00:00:05"):
        regular_series(table, 1, 12, datetime(2024, 3, 4, 0, 0, 5))


def test_two_rows_of_one_step_are_refused() -> None:
    seconds = np.array([0, 300, 600, 602, 900])
    times = np.datetime64("2024-03-04", "us") + seconds.astype("timedelta64[s]")
    table = SensorTable(Path("t.csv"), np.arange(5) + 2, times, np.ones((5, 1)), ("a",))
    with pytest.raises(InputError, match="row 5: found the time 2024-03-04 00:10:02, expected 2024-03-04 00:15:00"):
        grid_steps(table, 12)


@pytest.mark.parametrize(("points_per_hour", "row"), [(1, 3), (4, 3), (3, 3)])
def test_a_table_of_another_time_step_is_not_taken_for_one_with_gaps(
    points_per_hour: int, row: int, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    with pytest.raises(InputError, match=rf"row {row}: found the time .*, expected .* minutes a step\)"):
        grid_steps(read_table(path), points_per_hour)


def test_links_speak_integer_column_names_unless_only_positions_fit(table_config: Callable[..., Config]) -> None:
    config = table_config(["40", "10", "30", "20", "50"])
    write_links(config, "10,40,1", "30,20,1")
    links = links_for(config)
    assert links.pairs.tolist() == [[0, 1], [2, 3]]
    assert links.sensor_ids == (40, 10, 30, 20, 50)
    assert unlinked_sensors(config, links) == ["50"]

    write_links(config, "0,1,1")
    assert links_for(config).sensor_ids is None
    assert unlinked_sensors(config, links_for(config)) == ["30", "20", "50"]

    write_links(config, "10,40,1", "300,20,1")
    with pytest.raises(
        InputError, match=r"row 3: column 'from': found sensor 300, expected an id listed in t.csv \(did"
    ):
        links_for(config)


def test_names_and_links_may_be_padded_with_zeros(table_config: Callable[..., Config], tmp_path: Path) -> None:
    names, ids = ["003", "001", "002", "004", "010"], tmp_path / "ids.txt"
    ids.write_text("\n".join(names))
    for overrides in ((), (f"Data.id_filename={ids}",)):
        config = table_config(names, ".csv", None, *overrides)
        write_links(config, "001,003,1", "002,010,1")
        assert links_for(config).pairs.tolist() == [[0, 1], [2, 4]]
    ids.write_text("001\n003\n002\n004\n010\n")
    with pytest.raises(InputError, match=r"t\.csv: found column '003', expected '1' by .*ids\.txt"):
        links_for(config)
    config = table_config(["1", "01", "2", "3", "4"])  # these are no ids: two are the same number
    write_links(config, "0,1,1")
    assert links_for(config).sensor_ids is None


def test_links_speak_positions_where_names_are_not_integers(table_config: Callable[..., Config]) -> None:
    config = table_config(["1", "2", "3", "4", "north"])
    write_links(config, "0,1,1", "1,4,1")
    links = links_for(config)
    assert links.pairs.tolist() == [[0, 1], [1, 4]]
    assert links.sensor_ids is None
    assert unlinked_sensors(config, links) == ["3", "4"]


def test_an_id_file_beside_a_table(table_config: Callable[..., Config], tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("7\n8\n9\n10\n11\n")
    config = table_config(list("abcde"), ".csv", None, f"Data.id_filename={ids}")
    write_links(config, "7,11,1")
    assert links_for(config).pairs.tolist() == [[0, 4]]

    config = table_config(["7", "8", "10", "9", "11"], ".csv", None, f"Data.id_filename={ids}")
    with pytest.raises(InputError, match=r"t\.csv: found column '10', expected '9' by .*ids\.txt"):
        links_for(config)


def test_prepare_data_tells_of_sensors_without_links(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = tiny_series(sensors=14)
    path = make_dataset(series)
    table = write_table(frame_of(series, [str(100 + i) for i in range(14)]), tmp_path / "TINY" / "t.csv")
    (tmp_path / "TINY" / "TINY.csv").write_text("from,to,cost\n100,113,1\n")
    setting = f"Data.graph_signal_matrix_filename={table}"
    assert call("PrepareData.py", "--config", path, "--set", setting) == 0
    output = capsys.readouterr().out
    assert f"{table}: 384 steps, 14 sensors, 1 features" in output
    assert "the links speak the names of the table's sensors" in output
    assert "12 of 14 sensors have no links: 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, ...\n" in output
