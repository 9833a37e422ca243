"""Text files of rows and cells, read by hand where every fault is to be told with the number of its row."""

import csv
import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

from lib.errors import InputError
from lib.files import reason

FAULTS_SHOWN = 5
LONGEST_SHOWN = 60  # characters of a faulty text


def read_rows(path: Path, formats: str = "UTF-8") -> list[tuple[int, str]]:
    """Return the rows that are not blank, stripped, each with its line number as an editor shows it.

    Args:
        path: a text, perhaps compressed (.gz).
        formats: what is expected in place of a file that is no text by its ending.

    Raises:
        InputError: the file is missing, cannot be read, or holds no text.
    """
    try:
        # Bytes, because PEMS03's lines end in two carriage returns and a newline, which text mode takes for two lines.
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except UnicodeDecodeError as error:
        expected = "UTF-8" if path.suffix.lower() in (".csv", ".txt", ".tsv", ".gz") else formats
        raise InputError(f"{path}: found bytes that are not text ({error.reason}), expected {expected}") from None
    return [(line, row.strip()) for line, row in enumerate(text.split("\n"), start=1) if row.strip()]


def cells_of(row: str) -> list[str]:
    """Return the cells of a row, perhaps in quotes; commas separate them, or tabs where there are only those."""
    separator = "\t" if "\t" in row and "," not in row else ","
    try:
        return [cell.strip() for cell in next(csv.reader([row], delimiter=separator, skipinitialspace=True))]
    except csv.Error:  # of letters that it knows no place for; the cells will be told as wrong
        return row.split(separator)


def is_number(text: str) -> bool:
    """Return whether a text writes a finite number; float() alone would also take '1_0'."""
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def shown(text: str) -> str:
    """Return text of a file as a message shows it: on one line, with nothing that a terminal acts on, cut short."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")


def raise_faults(path: Path, faults: Sequence[str]) -> None:
    """Raise an InputError with the first few of the faults, a line each, where there is any."""
    if len(faults) > FAULTS_SHOWN:
        faults = [*faults[:FAULTS_SHOWN], f"{path}: and {len(faults) - FAULTS_SHOWN} more wrong rows"]
    if faults:
        raise InputError("\n".join(faults))
