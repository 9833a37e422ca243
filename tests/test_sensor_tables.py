"""Sensor tables: they prepare to the same as an npz archive, and what is wrong with one is said by row and column."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.data.prepared import Prepared
from lib.data.preparing import links_for, make_prepared, prepared_for, unlinked_sensors
from lib.data.sensor_tables import grid_steps, is_table, read_table, regular_series, sensor_columns
from lib.errors import InputError
from tests.conftest import Call, DatasetMaker, load, tiny_series

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
        frame.to_csv(path, index=False)
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
    assert from_archive.source_fingerprint != from_table.source_fingerprint


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


def test_parquet_with_its_times_in_the_index_or_as_text(tmp_path: Path) -> None:
    frame = frame_of(tiny_series(days=1), list("abcde"))
    expected = read_table(write_table(frame, tmp_path / "plain.parquet"))
    indexed = read_table(write_table(frame.set_index("time"), tmp_path / "indexed.parquet"))
    text = read_table(write_table(frame.assign(time=frame["time"].astype(str)), tmp_path / "text.parquet"))
    for table in (indexed, text):
        np.testing.assert_array_equal(table.values, expected.values)
        np.testing.assert_array_equal(table.times, expected.times)
        assert table.sensors == expected.sensors == tuple("abcde")
    assert expected.rows[0] == 1


def test_only_tables_are_taken_for_tables() -> None:
    assert [is_table(Path(name)) for name in ("a.csv", "a.Parquet", "a.npz", "a", "csv")] == [True, True] + [False] * 3


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
    with pytest.raises(InputError, match=r"t\.parquet: found a damaged table \("):
        read_table(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: no such file, expected a table"):
        read_table(tmp_path / "none.parquet")


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
