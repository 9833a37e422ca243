"""Reading and writing files: whole or not at all, and never a pickle. Inputs are identified by fingerprints."""

import errno
import hashlib
import json
import math
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lib.errors import InputError, nearest

PICKLES = (".pkl", ".pickle")
LARGE = 2**26  # bytes of an array from which it is left on disk
PIECE = 2**20  # bytes read at once
ALIGNMENT_FIELD = 0xD935  # the extra field of zip archives that others align by too
ALIGNMENT = 64  # bytes, of the values in an archive, as in an npy file
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = REPOSITORY_ROOT / "experiments"  # where run folders go


def printable(text: str) -> str:
    """Return text from a file for a message, with control characters and line breaks escaped as in Python, `\\n`."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def reason(error: Exception) -> str:
    """Return in a few words why a file cannot be read: what the system says, or the first line of a library's error."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return printable(lines[0][:100]) if lines else type(error).__name__


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
    except FileExistsError:
        raise InputError(f"{path}: cannot be written: {path.parent} is not a folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it has its final name, or was never made
            partial.unlink()


def check_writable(path: Path, place: str, *inputs: Path | None) -> None:
    """Check, before any work, that a file of that name can be written in the end and replaces none that is read.

    Args:
        path: of the file; folders above it need not be there yet.
        place: where the user gave the name, for the message, such as `--output`.
        inputs: files that are read.

    Raises:
        InputError: it is a folder, or one of the inputs, or there can be no such file.
    """
    check_unused(path, place, *inputs)
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            path.stat()  # finds a file among the folders, and a name that is too long
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        found = f"found {path}, which cannot be written ({reason(error)})"
        raise InputError(f"{place}: {found}, expected a file that can") from None


def check_unused(path: Path, place: str, *inputs: Path | None) -> None:
    """Check that a file to write is none of those that are read, under whatever name.

    Raises:
        InputError: it is one of them; `place`, where its name is from, begins the message.
    """
    for taken in inputs:
        if taken is not None and (
            os.path.realpath(path) == os.path.realpath(taken)
            or (os.path.exists(path) and os.path.exists(taken) and path.samefile(taken))
        ):
            raise InputError(f"{place}: found {path}, which is in use, expected a file of its own")


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


def refuse_pickle(path: Path, expected: str, way_out: str) -> None:
    """Refuse a file that is a pickle by its ending.

    Args:
        path: of the file.
        expected: the formats there are.
        way_out: Python that writes its content in one of them.

    Raises:
        InputError: it is one.
    """
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path}: found a pickle, which runs any program that its writer put in, expected {expected}. If you trust "
            f'the writer, or in a container without your files: python -c "{way_out}"'
        )


def load_npy(path: Path, expected: str) -> NDArray[Any]:
    """Read the array of an npy file, refusing a pickled one.

    Args:
        path: of the file.
        expected: what the array is, for the message where there is no file.

    Raises:
        InputError: the file is missing or damaged, or holds a pickled array.
    """
    try:
        with path.open("rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected {expected}") from None
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except Exception as error:  # NumPy raises many kinds on a damaged file
        raise InputError(f"{path}: found a damaged file ({reason(error)}), expected a matrix in npy format") from None


def load_npz(
    path: Path,
    keys: tuple[str | tuple[str, ...], ...],
    optional: tuple[str, ...] = (),
    large_on_disk: bool = False,
) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an npz file, refusing pickled ones.

    Args:
        path: of the file.
        keys: names of the arrays; of several names in one place, the first that is there.
        optional: names of arrays that may be missing.
        large_on_disk: whether large arrays are mapped into memory, where the system reads what is used of them, shares
            it with other processes, and forgets it where memory is short. Compressed ones are unpacked to a temporary
            file first. The mapped ones cannot be written to.

    Raises:
        InputError: the file is missing or damaged, or lacks a key, or holds a pickled array.
    """
    choices = [(key,) if isinstance(key, str) else key for key in keys]
    wanted = ", ".join(" or ".join(choice) for choice in choices)
    try:
        with path.open("rb") as handle:
            if handle.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise InputError(f"{path}: found a single array, expected an npz archive with {wanted}")
            # np.load takes a text for a pickle, and gives the bytes of a member that is no array.
            with zipfile.ZipFile(handle) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                there = []
                for choice in choices:
                    if not set(choice) & set(names):
                        found, expected = ", ".join(names) or "nothing", " or ".join(f"'{key}'" for key in choice)
                        raise InputError(
                            f"{path}: found arrays {found}, expected {expected}{nearest(choice[0], names)}"
                        )
                    there.append(next(key for key in choice if key in names))
                there += [key for key in optional if key in names]
                return {key: _read_member(archive, key, path if large_on_disk else None) for key in there}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected an npz archive with {wanted}") from None
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds on a damaged file
        if "allow_pickle" in str(error):
            raise InputError(f"{path}: found a pickled object, expected plain numeric arrays in npz format") from None
        raise InputError(f"{path}: found a damaged archive ({reason(error)}), expected npz format") from None


def _read_member(archive: zipfile.ZipFile, key: str, mapped: Path | None) -> NDArray[Any]:
    """Read an array of an archive; large ones are left on disk where `mapped`, the path of the archive, is given."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        if mapped is None or info.file_size < LARGE:
            return np.lib.format.read_array(member, allow_pickle=False)
        version = np.lib.format.read_magic(member)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read_header[version](member)
        if dtype.hasobject:
            raise ValueError("an object, which needs allow_pickle")
        header = member.tell()
        if header + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{key} has {info.file_size - header} bytes for the shape {shape}")
        stored = info.compress_type == zipfile.ZIP_STORED
        values = None if stored else scratch((info.file_size - header,), np.uint8)
        while piece := member.read(PIECE):  # to the end: then its checksum has been compared
            if values is not None:
                end = member.tell() - header
                values[end - len(piece) : end] = np.frombuffer(piece, dtype=np.uint8)
    order = "F" if fortran_order else "C"
    if values is not None:
        return values.view(dtype).reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]
    with mapped.open("rb") as handle:
        handle.seek(info.header_offset + 26)  # in the local header: the lengths of name and extra field, which follow
        start = info.header_offset + 30 + sum(struct.unpack("<HH", handle.read(4)))
        return np.asarray(np.memmap(handle, dtype, "r", start + header, shape, order))  # type: ignore[call-overload]


def scratch(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to fill: in memory, or where it is large in a temporary file that goes with it.

    Raises:
        InputError: the temporary folder has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as handle:
            if hasattr(os, "posix_fallocate"):  # or else a full disk would show only when the values are written
                os.posix_fallocate(handle.fileno(), 0, size)
            return np.asarray(np.memmap(handle, dtype, "r+" if handle.seek(0, os.SEEK_END) else "w+", shape=shape))
    except OSError as error:
        folder = tempfile.gettempdir()
        raise InputError(
            f"{folder}: found no room for a temporary file of {size / 2**30:.1f} GiB ({reason(error)}), expected a "
            "folder with room in the environment variable TMPDIR"
        ) from None


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]], compressed: bool = False) -> None:
    """Write arrays to an npz file, whole or not at all, so that those not compressed can be mapped into memory."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with written_whole(path) as partial, zipfile.ZipFile(partial, "w", method) as archive:
        for name, array in arrays.items():
            with _new_member(archive, name) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def write_member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
    """Write an array to an npz archive part by part along its first axis, so that it need not be in memory.

    Args:
        archive: open for writing.
        name: of the array.
        shape: of the whole array.
        parts: at least one; all are of the type of the first.
    """
    parts = iter(parts)
    first = next(parts)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    with _new_member(archive, name) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in chain([first], parts):
            member.write(np.ascontiguousarray(part).data)


def _new_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Begin an array in an archive, where its values will be aligned by an extra field of zeros."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = archive.compression
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(info.filename) + 20 + 4  # the header, name, zipfile's own field, and this one
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<HH", ALIGNMENT_FIELD, padding) + bytes(padding)
    return archive.open(info, "w", force_zip64=True)


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
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: found a damaged file ({error}), expected JSON") from None
