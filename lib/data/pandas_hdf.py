"""HDF5 files of pandas, such as METR-LA.h5 and PEMS-BAY.h5: one frame in pandas' fixed format, read without unpickling.

pandas itself would read them with PyTables, which unpickles attributes. Here only arrays and plain text are read.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lib.errors import InputError
from lib.files import reason

EXPECTED = "one pandas frame of numbers whose index is the time, written by frame.to_hdf(path, key='df')"


def read_frame(path: Path) -> pd.DataFrame:
    """Read the one frame (T, N) of an HDF5 file, under whatever key, with its times as the index.

    Raises:
        InputError: there is not one such frame, or its format, index or values are others than those of `EXPECTED`.
        ImportError: h5py is not installed.
        Exception: many kinds, where the file is damaged.
    """
    import h5py

    with h5py.File(path) as file:
        kinds: dict[str, str] = {}

        def look(name: str, item: Any) -> None:
            if (kind := _text(item.attrs.get("pandas_type", b""))) and not name.endswith("/meta"):
                kinds[name] = kind

        file.visititems(look)
        frames = [name for name, kind in kinds.items() if kind == "frame"]
        if len(frames) != 1:
            found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or ", ".join(file) or "nothing"
            raise InputError(f"{path}: found {found}, expected {EXPECTED}")
        group = file[frames[0]]
        names = _axis(path, group["axis0"])
        index = _axis(path, group["axis1"])
        if index.dtype.kind != "M":
            raise InputError(f"{path} {frames[0]}: found an index that is no time, expected {EXPECTED}")
        values = np.full((len(index), len(names)), np.nan)
        place = {name: column for column, name in enumerate(names.tolist())}
        for block in range(int(group.attrs["nblocks"])):
            content = group[f"block{block}_values"]
            columns = [place[name] for name in _axis(path, group[f"block{block}_items"]).tolist()]
            if content.dtype.kind not in "fiu" or "value_type" in content.attrs:  # times are stored as integers
                first = names[columns[0]]
                raise InputError(f"{path} {frames[0]}: found no numbers in column {str(first)!r}, expected {EXPECTED}")
            try:
                values[:, columns] = content[...]
            except OSError as error:
                found = f"values that cannot be read ({reason(error)})"
                raise InputError(f"{path} {frames[0]}: found {found}, expected no compression, or zlib") from None
        times = pd.DatetimeIndex(index)
        if (zone := _text(group["axis1"].attrs.get("tz", b"N."))) != "N.":
            times = times.tz_localize("UTC").tz_convert(zone)
        return pd.DataFrame(values, index=times, columns=pd.Index(names))


def _text(attribute: Any) -> str:
    return attribute.decode("utf-8", "replace") if isinstance(attribute, bytes) else str(attribute)


def _axis(path: Path, axis: Any) -> NDArray[Any]:
    """Return the labels of an axis: texts, integers, or times."""
    kind = _text(axis.attrs["kind"])
    if kind == "string":
        return np.array([label.decode("utf-8") for label in axis[...].tolist()], dtype=np.str_)
    if kind == "integer":
        return np.asarray(axis[...])
    if time := re.fullmatch(r"datetime64(?:\[(s|ms|us|ns)\])?", kind):  # older files have no unit
        return np.asarray(axis[...]).astype(np.int64).view(f"M8[{time[1] or 'ns'}]")
    raise InputError(f"{path}: found {axis.name} of kind {kind}, expected {EXPECTED}")
