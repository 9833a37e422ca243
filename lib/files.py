"""Reading and writing files so that nothing is lost: whole or not at all, never a pickle, inputs with fingerprints."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import InputError, nearest

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it gets the final name only when the block succeeds.

    The temporary file is flushed to disk before the rename, and removed when the block fails.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def fingerprint_arrays(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of the shapes, types and values of arrays, as hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load_npz(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an npz file, refusing pickled ones.

    Raises:
        InputError: the file is missing or damaged, or lacks a key, or holds a pickled array.
    """
    try:
        with path.open("rb") as handle:
            archive = np.load(handle, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: found a single array, expected an npz archive with {', '.join(keys)}")
            for key in keys:
                if key not in archive.files:
                    found = ", ".join(archive.files) or "nothing"
                    raise InputError(f"{path}: found arrays {found}, expected '{key}'{nearest(key, archive.files)}")
            return {key: archive[key] for key in keys}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected an npz archive with {', '.join(keys)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise InputError(f"{path}: found a pickled object, expected plain numeric arrays in npz format") from None
        raise InputError(f"{path}: found a damaged archive ({error}), expected npz format") from None
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise InputError(f"{path}: found a damaged archive ({error}), expected npz format") from None


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]], compressed: bool = False) -> None:
    """Write arrays to an npz file, whole or not at all."""
    save = np.savez_compressed if compressed else np.savez
    with written_whole(path) as partial, partial.open("wb") as handle:
        save(handle, allow_pickle=False, **arrays)


def save_json(path: Path, content: object) -> None:
    """Write indented JSON, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: found a damaged file ({error}), expected JSON") from None
