"""Where the sensors stand: latitude and longitude, for maps alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.data.text_rows import cells_of, is_number, raise_faults, read_rows, shown
from lib.errors import InputError, nearest

HEADER = ["sensor", "latitude", "longitude"]
KILOMETRES_PER_DEGREE = 6371 * np.pi / 180  # of a great circle
LIMITS = {"latitude": 90.0, "longitude": 180.0}  # degrees north of the equator, and east of Greenwich


def read_positions(path: Path, sensors: Sequence[str]) -> tuple[NDArray[np.float64], int]:
    """Read the positions of sensors: a csv `sensor,latitude,longitude` in degrees (WGS 84), one sensor a row.

    Args:
        path: the file; it may have other sensors too, and lack some. Two empty cells stand for an unknown position.
        sensors: (N,) names in order.

    Returns:
        Latitude and longitude (N, 2), NaN where unknown, and how many rows are of other sensors.

    Raises:
        InputError: the file is missing or empty, its header is another one, it has none of the sensors, latitude and
            longitude are swapped, or rows are wrong (the first few are listed).
    """
    rows = read_rows(path)
    header_line, header = rows[0] if rows else (1, "")
    if cells_of(header) != HEADER:
        found = shown(header) if rows else "an empty file"
        raise InputError(f"{path} row {header_line}: found {found}, expected the header {','.join(HEADER)}")
    line_of: dict[str, int] = {}
    degrees: dict[str, tuple[float, float]] = {}
    faults, swapped = [], 0
    for line, row in rows[1:]:
        cells = cells_of(row)
        name = cells[0]
        if name in line_of:
            faults.append(
                f"{path} row {line}: found sensor {shown(name)} again (first in row {line_of[name]}), expected it once"
            )
            continue
        line_of[name] = line
        if len(cells) == len(HEADER) and cells[1:] == ["", ""]:
            continue
        if fault := _fault(cells):
            faults.append(f"{path} row {line}: {fault}")
            swapped += not _fault([name, *cells[:0:-1]])
        else:
            degrees[name] = float(cells[1]), float(cells[2])
    if swapped and swapped == len(line_of):
        raise InputError(f"{faults[0]}: in every row latitude and longitude are swapped")
    raise_faults(path, faults)
    known = [name for name in sensors if name in degrees]
    if not known:
        hint = nearest(sensors[0], line_of)
        raise InputError(
            f"{path}: found the position of none of the {len(sensors)} sensors in {len(line_of)} rows, expected those "
            f"of {sensors[0]!r} .. {sensors[-1]!r}{hint}"
        )
    positions = np.array([degrees.get(name, (np.nan, np.nan)) for name in sensors])
    return positions, len(line_of.keys() - set(sensors))


def plane(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places (N, 2) in kilometres east and north of the middle, from latitude and longitude (N, 2).

    An equirectangular projection, its longitudes scaled by the cosine of the middle latitude: within a city, or a
    district of California, distances are right to a few per cent. Unknown positions stay NaN.
    """
    latitude, longitude = degrees.T
    if np.nanmax(longitude) - np.nanmin(longitude) > LIMITS["longitude"]:  # on both sides of the date line
        longitude = longitude % 360
    middle = [(np.nanmin(values) + np.nanmax(values)) / 2 for values in (latitude, longitude)]
    east = (longitude - middle[1]) * np.cos(np.radians(middle[0]))
    places: NDArray[np.float64] = KILOMETRES_PER_DEGREE * np.stack([east, latitude - middle[0]], axis=1)
    return places


def _fault(cells: Sequence[str]) -> str | None:
    """Return what is wrong with a row."""
    if len(cells) != len(HEADER):
        return f"found {len(cells)} columns, expected {len(HEADER)}"
    for (name, limit), cell in zip(LIMITS.items(), cells[1:], strict=True):
        if not is_number(cell) or abs(float(cell)) > limit:
            return f"column '{name}': found {shown(cell)}, expected degrees from -{limit:g} to {limit:g}"
    return None
