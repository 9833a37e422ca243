"""Sensor tables: text, Parquet and HDF5 files whose first column is the time, and each other column a sensor.

pandas is loaded only where a table is read: it takes half a second, and archives do not need it.
"""

from __future__ import annotations

import csv
import gzip
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from lib.data.windowing import STEP_TOLERANCE, nearest_step, time_of_step
from lib.errors import InputError
from lib.files import reason

if TYPE_CHECKING:
    import pandas as pd

TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET, HDF = ".parquet", (".h5", ".hdf5")
SERIES_FORMATS = "a series as .npz, .csv, .tsv or .txt (each of the three also as .gz), .parquet or .h5"
LAYOUT = "a column of times, then one column a sensor"
LONGEST_SHOWN = 60  # characters of a faulty cell
MOST_STEPS_PER_ROW = 10  # of a table where steps are absent


@dataclass(frozen=True, eq=False)
class SensorTable:
    """The content of a table, in the order of its rows and columns. The times may be irregular.

    Attributes:
        path: the file.
        rows: (T,) numbers of the rows: lines of a text, the header being 1; of other files counted from 1.
        times: (T,) local times.
        values: (T, N) float64, finite, or NaN where a cell is empty.
        sensors: (N,) names of the sensors, unique.
    """

    path: Path
    rows: NDArray[np.int64]
    times: NDArray[np.datetime64]
    values: NDArray[np.float64]
    sensors: tuple[str, ...]

    def time(self, index: int) -> datetime:
        """Return the time of a row, by its index into `times`."""
        moment: datetime = self.times[index].item()
        return moment


def is_table(path: Path) -> bool:
    """Return whether a file is a sensor table by its ending; any other is an npz archive."""
    return is_text(path) or path.suffix.lower() in (PARQUET, *HDF)


def is_text(path: Path) -> bool:
    """Return whether a file is a table of text by its ending, perhaps compressed."""
    return path.name.lower().endswith(TEXT)


def sensor_columns(path: Path) -> tuple[str, ...]:
    """Return the names of a table's sensors, in the order of the columns.

    Raises:
        InputError: the file cannot be read, or its columns are not a time and sensors with unique names.
    """
    return _sensor_names(path, _text_header(path)[0] if is_text(path) else list(_read_frame(path, rows=False).columns))


def read_table(path: Path) -> SensorTable:
    """Read a sensor table.

    Times are ISO 8601 texts without a zone, in Parquet also time stamps, which may be the index of a pandas frame, as
    they are in HDF5. Empty cells, and `NaN` or `NA` in a text, are gaps; wholly empty rows are passed over.

    Raises:
        InputError: the file cannot be read, has no row, or has a cell that is neither a number nor empty.
    """
    if is_text(path):
        (header, separator), first_row = _text_header(path), 2
        sensors = _sensor_names(path, header)
        frame = _read_text(path, len(header), separator)
    else:
        frame, first_row = _read_frame(path), 1
        sensors = _sensor_names(path, list(frame.columns))
    frame = frame.dropna(how="all")
    if frame.empty:
        raise InputError(f"{path}: found no rows, expected {LAYOUT}")
    rows = frame.index.to_numpy(np.int64) + first_row
    times = _times(path, rows, frame.iloc[:, 0].tolist())
    values = np.empty((len(frame), len(sensors)))
    for position, sensor in enumerate(sensors):
        values[:, position] = _numbers(path, rows, frame.iloc[:, position + 1], sensor)
    return SensorTable(path, rows, times, values, sensors)


def regular_series(
    table: SensorTable, num_nodes: int, points_per_hour: int, start: datetime | None, gaps: bool = False
) -> NDArray[np.float64]:
    """Return the series (T, N, 1) of a table: every step is there, and every value.

    Args:
        table: the table.
        num_nodes: number of sensors N.
        points_per_hour: time steps in an hour.
        start: the time of the first step, where the settings name it.
        gaps: take empty cells, and steps between the first row and the last that have none, for NaN.

    Raises:
        InputError: another number of sensors, another start, a time out of step, or an empty cell; with `gaps`, what
            `grid_steps` raises.
    """
    check_sensor_count(table.path, table.sensors, num_nodes)
    if start is not None and abs(table.time(0) - start) > timedelta(hours=1) * STEP_TOLERANCE / points_per_hour:
        raise InputError(
            f"{table.path} row {table.rows[0]}: found the time {table.time(0)}, expected [Data] start = {start}"
        )
    if gaps:
        step_of_row = grid_steps(table, points_per_hour)
        series = np.full((int(step_of_row[-1]) + 1, num_nodes, 1), np.nan)
        series[step_of_row, :, 0] = table.values
        return series
    steps = _steps(table, points_per_hour)
    wrong = _off_grid(steps - np.arange(len(steps)))
    if wrong.any():
        row, hint = int(wrong.argmax()), ""
        with suppress(InputError):  # where steps are absent, and no time is between two
            grid_steps(table, points_per_hour)
            hint = ", or [Data] missing = interpolate"
        raise InputError(f"{_out_of_step(table, row, row, points_per_hour)}{hint}")
    empty = np.isnan(table.values)
    if empty.any():
        row, sensor = np.argwhere(empty)[0]
        raise InputError(
            f"{table.path}: found {empty.sum()} empty cells, the first in row {table.rows[row]} ({table.time(row)}), "
            f"column {table.sensors[sensor]!r}, expected a number in each, or [Data] missing = interpolate"
        )
    return table.values[:, :, None]


def grid_steps(table: SensorTable, points_per_hour: int) -> NDArray[np.int64]:
    """Return the time step of each row (T,), counted from the first row's, for a table where some steps may be absent.

    Raises:
        InputError: times are out of order or between two steps, two rows are of one step, most rows are not one step
            after the row before, or there is hardly any row for the time that the table covers.
    """
    steps = _steps(table, points_per_hour)
    whole = nearest_step(steps)
    advance = np.diff(whole, prepend=-1)
    wrong = _off_grid(steps - whole) | (advance == 0)  # seconds after the row before
    if np.median(advance) != 1:
        wrong |= advance != 1
    if wrong.any():
        row = int(wrong.argmax())
        raise _out_of_step(table, row, int(whole[row - 1]) + 1, points_per_hour)
    if whole[-1] >= MOST_STEPS_PER_ROW * len(whole):  # a slip in a date, which might fill the memory
        row = int(advance.argmax())
        raise InputError(
            f"{table.path} row {table.rows[row]}: found the time {table.time(row)} after {table.time(row - 1)}, "
            f"expected a row for at least one in {MOST_STEPS_PER_ROW} steps"
        )
    return whole


def start_time(table: SensorTable, points_per_hour: int) -> datetime:
    """Return the time of the first step of a table with regular times (`grid_steps`), by all its rows.

    What each row says of it is averaged: the stamp of one row may be rounded, or seconds off.
    """
    steps = _steps(table, points_per_hour)
    late: float = (steps - nearest_step(steps)).mean()
    return table.time(0) + timedelta(hours=late / points_per_hour)


def check_sensor_count(path: Path, sensors: Sequence[str], num_nodes: int) -> None:
    """Raise an InputError when a table has another number of sensors than the settings say."""
    if len(sensors) != num_nodes:
        raise InputError(
            f"{path}: found {len(sensors)} sensor columns beside the time, expected num_of_vertices = {num_nodes}"
        )


def _steps(table: SensorTable, points_per_hour: int) -> NDArray[np.float64]:
    """Return the time of each row (T,) in steps since the first, and check their order."""
    backward = np.flatnonzero(np.diff(table.times) <= np.timedelta64(0))
    if len(backward):
        before, row = int(backward[0]), int(backward[0]) + 1
        place = f"{table.path} row {table.rows[row]}: found the time {table.time(row)}"
        if table.time(row) == table.time(before):
            raise InputError(f"{place} again (first in row {table.rows[before]}), expected it once")
        raise InputError(f"{place} after {table.time(before)}, expected times in order")
    steps: NDArray[np.float64] = (table.times - table.times[0]) / np.timedelta64(1, "h") * points_per_hour
    return steps


def _off_grid(late: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows (T,) are out of step with the first, by how late they are, in steps: none if all fit one grid.

    It must not matter how the first row is stamped, so the grid may lie anywhere within the tolerance of all rows.
    """
    return (np.abs(late) > STEP_TOLERANCE) & (np.ptp(late) > 2 * STEP_TOLERANCE)


def _out_of_step(table: SensorTable, row: int, expected_step: int, points_per_hour: int) -> InputError:
    expected = time_of_step(table.time(0), expected_step, points_per_hour)
    return InputError(
        f"{table.path} row {table.rows[row]}: found the time {table.time(row)}, expected {expected} "
        f"(60 / points_per_hour = {60 / points_per_hour:g} minutes a step)"
    )


def _sensor_names(path: Path, columns: Sequence[object]) -> tuple[str, ...]:
    names = tuple(str(column).strip() for column in columns)
    if len(names) < 2:
        raise InputError(f"{path}: found {len(names)} column, expected {LAYOUT}, separated by commas or tabs")
    for number, name in enumerate(names[1:], start=2):
        if not name:
            raise InputError(f"{path} column {number}: found no name, expected that of a sensor")
        first = names.index(name, 1) + 1
        if first != number:
            raise InputError(
                f"{path} column {number}: found {name!r} again (first in column {first}), expected it once"
            )
    return names[1:]


def _text_header(path: Path) -> tuple[list[str], str]:
    """Return the cells of a text's first line, and what separates them: commas, or tabs where there are only those."""
    try:
        with _opened_text(path) as handle:
            lines = iter(handle)
            first = next(lines, "")
            separator = "\t" if "\t" in first and "," not in first else ","
            return next(csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=True), []), separator
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _opened_text(path: Path) -> IO[str]:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    return cast(IO[str], opened(path, "rt", newline="", encoding="utf-8-sig"))


def _read_text(path: Path, columns: int, separator: str) -> pd.DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a first row longer than the header
            frame = pd.read_csv(
                path,
                sep=separator,
                compression="gzip" if path.suffix.lower() == ".gz" else None,
                header=0,
                names=list(range(columns)),  # pandas would rename columns of the same name
                index_col=False,
                dtype={0: str},
                skipinitialspace=True,
                skip_blank_lines=False,  # they count as rows
                low_memory=False,
                encoding="utf-8-sig",
            )
        _check_cells(path, columns, separator, frame.iloc[:, -1].isna().to_numpy())
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, csv.Error, pd.errors.ParserWarning) as error:
        raise _unreadable(path, error) from None
    return frame


def _check_cells(path: Path, columns: int, separator: str, without_last: NDArray[np.bool_]) -> None:
    """Refuse a row with too few cells, as of a file that was cut short: pandas would fill it.

    Args:
        path: of the text.
        columns: how many cells a row has.
        separator: of cells.
        without_last: (rows,), which rows have no value in their last cell; only these are looked at.
    """
    if not without_last.any():
        return
    with _opened_text(path) as handle:
        rows = csv.reader(handle, delimiter=separator, skipinitialspace=True)
        next(rows)
        for number, (suspect, cells) in enumerate(zip(without_last, rows, strict=False), start=2):
            if suspect and any(cells) and len(cells) < columns:
                raise InputError(
                    f"{path} row {number}: found {len(cells)} cells, expected {columns}, as the header has"
                )


def _read_frame(path: Path, rows: bool = True) -> pd.DataFrame:
    """Read a table; of Parquet no more than the columns where no rows are asked for."""
    import pandas as pd

    from lib.data.pandas_hdf import read_frame

    is_parquet = path.suffix.lower() == PARQUET
    try:
        if is_parquet and not rows:
            from pyarrow.parquet import read_schema

            frame: pd.DataFrame = read_schema(path).empty_table().to_pandas()
        else:
            frame = pd.read_parquet(path) if is_parquet else read_frame(path)
    except InputError:
        raise
    except ImportError:
        name, package = ("Parquet", "pyarrow") if is_parquet else ("HDF5", "h5py")
        raise InputError(f"{path}: found no package that reads {name}, expected one: pip install {package}") from None
    except Exception as error:  # pyarrow and h5py raise many kinds on a damaged file
        raise _unreadable(path, error) from None
    return frame.reset_index(drop=not isinstance(frame.index, pd.DatetimeIndex))


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file, expected a table: {LAYOUT}")
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{path}: cannot be read: {reason(error)}")
    return InputError(f"{path}: found a damaged table ({reason(error)}), expected {LAYOUT}")


def _shown(cell: object) -> str:
    """Return a cell as a message shows it: on one line, cut short."""
    return repr(str(cell)[:LONGEST_SHOWN])


def _times(path: Path, rows: NDArray[np.int64], cells: Sequence[object]) -> NDArray[np.datetime64]:
    times = []
    for row, cell in zip(rows, cells, strict=True):
        try:
            time = datetime.fromisoformat(cell.strip()) if isinstance(cell, str) else cell
        except ValueError:
            time = None
        if not isinstance(time, datetime) or time != time or time.tzinfo is not None:  # NaT is a datetime too
            found = "no time" if cell != cell else _shown(cell)
            raise InputError(
                f"{path} row {row}, column 1: found {found}, expected a local time without zone, "
                "such as 2018-03-05 00:05"
            )
        times.append(time)
    return np.array(times, dtype="datetime64[us]")


def _numbers(path: Path, rows: NDArray[np.int64], column: pd.Series[float], sensor: str) -> NDArray[np.float64]:
    import pandas as pd

    is_numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    texts_or_numbers = column if is_numeric else column.astype(str)  # pandas has numbers for True and for times
    numbers = pd.to_numeric(texts_or_numbers, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):  # what training cannot hold counts as infinite
        wrong = ~np.isfinite(numbers.astype(np.float32)) & column.notna().to_numpy()
    if wrong.any():
        index = int(wrong.argmax())
        raise InputError(
            f"{path} row {rows[index]}, column {sensor!r}: found {_shown(column.iloc[index])}, expected a finite number"
        )
    return numbers
