"""Download the official PEMS files, resumable, and verify them before they get their names.

    python data/download.py PEMS04                      # writes data/PEMS04/PEMS04.npz and PEMS04.csv

A file is received as `<file>.part`, which stays when the network fails and is continued by the next call. The series
(npz) is verified by its git blob id. For the links (csv, with PEMS03 also txt) no id is known: they are verified by
reading them and counting their rows, so a file that reads well but holds other links would pass.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY_ROOT))

from lib.command_line import ScriptParser  # noqa: E402
from lib.data.graphs import read_links  # noqa: E402
from lib.errors import InputError, nearest, run_script  # noqa: E402

SOURCE = "https://raw.githubusercontent.com/guoshnBJTU/ASTGNN/9c2e19b98c4cedf1f35214d8789685b6381b3aad/data"
TIMEOUT = 30  # seconds that a server may be silent
CHUNK = 2**16  # bytes
EXAMPLES = """examples:
  python data/download.py PEMS04
  python data/download.py PEMS03 PEMS04 PEMS07 PEMS08
  python data/download.py PEMS04 --mirror http://mirror.example.org/ASTGNN/data
"""


@dataclass(frozen=True)
class Official:
    """What is known of a data set's files: the npz's git blob id, the number of sensors, the csv's rows, a txt or not.

    The rows are those below the header. The txt lists the sensor ids that the csv speaks of.
    """

    blob_id: str
    sensors: int
    link_rows: int
    has_ids: bool = False


DATASETS = {
    "PEMS03": Official("b4487154fc9611a3bf9856b0aad34efa610ea8ae", 358, 547, has_ids=True),
    "PEMS04": Official("a1a39eac4b86963b1ac22874fd1cc693eb642cd2", 307, 340),
    "PEMS07": Official("28c547f80eb8804d3e378168c80f77f82db2680a", 883, 866),
    "PEMS08": Official("f5f3e84a00417573aa8487fe1e9e8cd13c6026c8", 170, 295),
}


def git_blob_id(path: Path) -> str:
    """Return what `git hash-object` prints for a file: the SHA-1 of "blob <size in bytes>", a zero byte, its bytes."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def receive(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at `url`; when the server cannot send a rest, begin again.

    Raises:
        OSError, HTTPException, ValueError: network, server, disk or URL are at fault; `part` keeps what has come.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    size = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={size}-"} if size else {}), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if size and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # there is no more than what is here: the verification tells whether it is the file
            raise
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            size = 0
        length = response.headers["Content-Length"]
        total = None if length is None else size + int(length)
        with (
            part.open("ab" if size else "wb") as file,
            tqdm(total=total, initial=size, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                size += file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and size < total:  # http.client takes an early end for the end
        raise ConnectionError(f"cut off after {size} of {total} bytes")


def fetch(base: str, paths: list[Path], verify: Callable[[list[Path]], None], by_hand: str) -> None:
    """Bring the files `base`/<file> into place, all of them once `verify` accepts them together, else none.

    Args:
        base: URL of their folder.
        paths: their final names; those that exist are verified and stay as they are.
        verify: raises an InputError when one of the files, given where they are now, is not right.
        by_hand: what tells the user that a file fetched by hand is right.
    """
    parts = {path: path.with_name(f"{path.name}.part") for path in paths if not path.exists()}
    faults = []
    for path, part in parts.items():
        url = f"{base}/{path.name}"
        try:
            receive(url, part)
        except (OSError, HTTPException, ValueError) as error:
            way_out = f"run this again to go on, or by hand: save {url} as {path}; {by_hand}"
            faults.append(f"{path}: cannot be downloaded: {error}; {way_out}")
    if faults:
        raise InputError("\n".join(faults))
    try:
        verify([parts.get(path, path) for path in paths])
    except InputError as error:
        for part in parts.values():
            part.unlink()
        fate = f"what {base} sent is removed" if parts else "left as it is; move it away to download the official one"
        raise InputError(f"{error}; {fate}") from None
    for path in paths:
        if path in parts:
            parts[path].replace(path)
        print(f"{path}: {'downloaded' if path in parts else 'already here'}, verified")


def download(name: str, source: str, output: Path) -> None:
    """Bring the files `source`/<name>/<name>.* to `output`/<name>/.

    Raises:
        InputError: a file cannot be downloaded, or is not the official one.
    """
    official, base, folder = DATASETS[name], f"{source}/{name}", output / name
    series, links, ids = (folder / f"{name}.{suffix}" for suffix in ("npz", "csv", "txt"))

    def verify_series(paths: list[Path]) -> None:
        found = git_blob_id(paths[0])
        if found != official.blob_id:
            raise InputError(f"{paths[0]}: found git blob id {found}, expected {official.blob_id}")

    def verify_links(paths: list[Path]) -> None:
        read = read_links(paths[0], official.sensors, paths[1] if official.has_ids else None)
        rows = len(read.pairs) + read.self_links + read.duplicates
        if rows != official.link_rows:
            raise InputError(f"{paths[0]}: found {rows} links, expected {official.link_rows}")

    faults = []
    for paths, verify, by_hand in (
        ([series], verify_series, f"`git hash-object {series}` must print {official.blob_id}"),
        ([links, ids] if official.has_ids else [links], verify_links, "this script, run again, verifies it"),
    ):
        try:
            fetch(base, paths, verify, by_hand)
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))


def main() -> None:
    """Parse the arguments and download."""
    parser = ScriptParser("Download official PEMS data sets and verify them.", EXAMPLES)
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--mirror", default=SOURCE, metavar="URL", help="fetch URL/NAME/NAME.npz (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY_ROOT / "data", metavar="DIR", help="write DIR/NAME/ (default: data)"
    )
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in DATASETS:
            expected = ", ".join(DATASETS)
            raise InputError(f"NAME: found '{name}', expected one of {expected}{nearest(name.upper(), DATASETS)}")
    for name in arguments.names:
        download(name, arguments.mirror.rstrip("/"), arguments.output)


if __name__ == "__main__":
    run_script(main)
