"""The downloader, against a server on this machine that can cut off, know no ranges, fall silent and send nonsense."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import download
from lib.files import REPOSITORY_ROOT
from tests.conftest import exit_code

# The ids of these two contents are those that the book "Pro Git" and every git repository show.
SERIES, SERIES_ID = b"test content\n", "d670460b4b4aece5915caf5c68d12f560a9fe3e4"
EMPTY_ID = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
LINKS = b"from,to,cost\r\r\n11,12,1.0\r\r\n12,13,0.5\r\r\n13,13,0\r\r\n"
IDS = b"11\r\n12\r\n13\r\n"
FILES = {"/TINY/TINY.npz": SERIES, "/TINY/TINY.csv": LINKS, "/TINY/TINY.txt": IDS}
Call = Callable[..., int]


@dataclass
class Server:
    """What the server sends, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    knows_ranges: bool = True
    tells_length: bool = True
    bytes_per_answer: int | None = None  # then the connection ends, whatever length was told
    silent_after: int | None = None
    before_answer: Callable[[str], None] = lambda _: None
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and range
    closing: threading.Event = field(default_factory=threading.Event)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked_range = self.headers["Range"]
            server.asked.append((self.path, asked_range))
            server.before_answer(self.path)
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start, whole = 0, len(content)
            if asked_range is not None and server.knows_ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked_range)[1])
                if start >= whole:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{whole}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            else:
                self.send_response(200)
            if server.tells_length:
                self.send_header("Content-Length", str(whole - start))
            self.end_headers()
            if server.silent_after is not None:
                self.wfile.write(content[start : server.silent_after])
                server.closing.wait(5)
            else:
                stop = whole if server.bytes_per_answer is None else start + server.bytes_per_answer
                self.wfile.write(content[start:stop])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    official = download.Official(SERIES_ID, sensors=3, link_rows=3, has_ids=True)
    monkeypatch.setattr(download, "DATASETS", {"TINY": official, **download.DATASETS})
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state)) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.closing.set()
        listening.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "TINY"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> Call:
    """Give a function that calls the script as the command line would, with the server as the mirror."""

    def call(*arguments: str, mirror: str = "") -> int:
        where = ("--mirror", mirror or server.url, "--output", tmp_path)
        return exit_code(monkeypatch, download.main, "download.py", *arguments, *where)

    return call


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WHOLE = {"TINY.npz": SERIES, "TINY.csv": LINKS, "TINY.txt": IDS}


@pytest.mark.parametrize(("content", "blob_id"), [(SERIES, SERIES_ID), (b"", EMPTY_ID)])
def test_the_blob_id_is_the_one_of_git(content: bytes, blob_id: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert download.git_blob_id(tmp_path / "file") == blob_id


@pytest.mark.parametrize("tells_length", [True, False])
def test_all_files_are_downloaded_once(
    tells_length: bool, call: Call, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.tells_length = tells_length
    assert call("TINY", mirror=f"{server.url}/") == 0
    assert content_of(folder) == WHOLE
    assert sorted(server.asked) == sorted((path, None) for path in FILES)
    output = capsys.readouterr()
    assert output.out.count("downloaded, verified") == 3
    assert output.err == ""  # no progress bar where nobody watches
    server.asked.clear()
    assert call("TINY") == 0
    assert server.asked == []
    assert capsys.readouterr().out.count("already here, verified") == 3


def test_no_final_name_exists_before_its_content_is_verified(
    call: Call, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def look() -> None:
        seen.append({path.name for path in folder.glob("*") if path.suffix != ".part"})

    def looking_first(function: Callable[..., object]) -> Callable[..., object]:
        def looked(*arguments: object) -> object:
            look()
            return function(*arguments)

        return looked

    server.before_answer = lambda _: look()
    for function in ("git_blob_id", "read_links"):
        monkeypatch.setattr(download, function, looking_first(getattr(download, function)))
    assert call("TINY") == 0
    # Asked for the series, verified it; asked for the links, then their ids, verified both.
    assert seen == [set(), set(), {"TINY.npz"}, {"TINY.npz"}, {"TINY.npz"}]


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("received", [0, 1, len(SERIES) - 1])
def test_a_cut_off_download_goes_on_where_it_ended(
    received: int, knows_ranges: bool, call: Call, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.bytes_per_answer = received
    server.knows_ranges = knows_ranges
    assert call("TINY") == 2
    error = capsys.readouterr().err
    assert f"TINY.npz: cannot be downloaded: cut off after {received} of {len(SERIES)} bytes" in error
    assert content_of(folder) == {f"{name}.part": content[:received] for name, content in WHOLE.items()}
    server.bytes_per_answer = None
    server.asked.clear()
    assert call("TINY") == 0
    assert content_of(folder) == WHOLE
    assert server.asked[0] == ("/TINY/TINY.npz", f"bytes={received}-" if received else None)


def test_any_number_of_cut_offs_gives_the_same_bytes(call: Call, server: Server, folder: Path) -> None:
    server.bytes_per_answer = 7
    calls = -(-max(map(len, WHOLE.values())) // 7)
    codes = [call("TINY") for _ in range(calls)]
    assert codes == [2] * (calls - 1) + [0]
    assert content_of(folder) == WHOLE


def test_a_silent_server_is_given_up_and_what_came_is_kept(
    call: Call, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setattr(download, "CHUNK", 4)
    server.silent_after = 8
    assert call("TINY") == 2
    assert "TINY.npz: cannot be downloaded: timed out" in capsys.readouterr().err
    assert content_of(folder) == {f"{name}.part": content[:8] for name, content in WHOLE.items()}


def test_a_part_that_is_complete_gets_its_name(call: Call, folder: Path) -> None:
    folder.mkdir()
    for name, content in WHOLE.items():
        (folder / f"{name}.part").write_bytes(content)
    assert call("TINY") == 0
    assert content_of(folder) == WHOLE


@pytest.mark.parametrize("part", [SERIES + b"more", b"TEST"])
def test_a_part_of_another_file_is_removed_and_the_next_call_begins_again(
    part: bytes, call: Call, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "TINY.npz.part").write_bytes(part)
    assert call("TINY") == 2
    assert f"expected {SERIES_ID}" in capsys.readouterr().err
    assert content_of(folder) == {name: WHOLE[name] for name in ("TINY.csv", "TINY.txt")}
    assert call("TINY") == 0
    assert content_of(folder) == WHOLE


@pytest.mark.parametrize(
    ("file", "content", "kept", "message"),
    [
        (
            "TINY.npz",
            b"",
            ["TINY.csv", "TINY.txt"],
            f"TINY.npz.part: found git blob id {EMPTY_ID}, expected {SERIES_ID}",
        ),
        ("TINY.csv", b"<html>", ["TINY.npz"], "TINY.csv.part row 1: found '<html>', expected the header from,to,cost"),
        ("TINY.csv", LINKS[:-10], ["TINY.npz"], "TINY.csv.part: found 2 links, expected 3"),
        ("TINY.txt", b"11\n12\n", ["TINY.npz"], "TINY.txt.part: found 2 sensor ids, expected 3"),
    ],
)
def test_a_wrong_file_is_removed(
    file: str,
    content: bytes,
    kept: list[str],
    message: str,
    call: Call,
    server: Server,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.files[f"/TINY/{file}"] = content
    assert call("TINY") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith(f"; what {server.url}/TINY sent is removed\n")
    assert error.count("\n") == 1
    assert content_of(folder) == {name: WHOLE[name] for name in kept}


def test_an_existing_file_that_is_another_is_not_touched(
    call: Call, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "TINY.npz").write_bytes(b"")
    (folder / "TINY.csv").write_bytes(LINKS)
    (folder / "TINY.txt").write_bytes(b"11\n12\n14\n")
    before = content_of(folder)
    assert call("TINY") == 2
    errors = capsys.readouterr().err.splitlines()
    assert f"TINY.npz: found git blob id {EMPTY_ID}, expected {SERIES_ID}; left as it is" in errors[0]
    assert "expected an id listed in TINY.txt" in errors[1]
    assert errors[-1].endswith("; left as it is; move it away to download the official one")
    assert content_of(folder) == before
    assert server.asked == []


def test_a_missing_file_is_fetched_beside_existing_ones(call: Call, server: Server, folder: Path) -> None:
    folder.mkdir()
    for name in ("TINY.npz", "TINY.txt"):
        (folder / name).write_bytes(WHOLE[name])
    assert call("TINY") == 0
    assert server.asked == [("/TINY/TINY.csv", None)]
    assert content_of(folder) == WHOLE


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        (closed_port, r"<urlopen error \[Errno \d+\] Connection refused>"),
        (lambda: "mirror/data/", "unknown url type: 'mirror/data/TINY/TINY.npz'"),
        (lambda: "http://a mirror", "URL can't contain control characters. .*"),
    ],
)
def test_without_a_network_every_file_is_explained(
    mirror: Callable[[], str],
    reason: str,
    call: Call,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder.mkdir()
    (folder / "TINY.npz.part").write_bytes(SERIES[:4])
    url = mirror()
    assert call("TINY", mirror=url) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    series = folder / "TINY.npz"
    url = url.rstrip("/")
    by_hand = f"save {url}/TINY/TINY.npz as {series}; `git hash-object {series}` must print {SERIES_ID}"
    assert re.fullmatch(
        f"error: {re.escape(str(series))}: cannot be downloaded: {reason}; run this again to go on, "
        f"or by hand: {re.escape(by_hand)}",
        lines[0],
    )
    assert f"save {url}/TINY/TINY.csv as {folder / 'TINY.csv'}" in lines[1]
    assert content_of(folder) == {"TINY.npz.part": SERIES[:4]}


def test_a_file_that_the_server_lacks_does_not_stop_the_others(
    call: Call, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.files["/TINY/TINY.npz"]
    assert call("TINY") == 2
    assert "TINY.npz: cannot be downloaded: HTTP Error 404: Not Found; " in capsys.readouterr().err
    assert content_of(folder) == {name: WHOLE[name] for name in ("TINY.csv", "TINY.txt")}


@pytest.mark.parametrize(("name", "meant"), [("PEMS4", "PEMS04"), ("pems08", "PEMS08")])
def test_an_unknown_name_is_answered_with_the_nearest(
    name: str, meant: str, call: Call, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("TINY", name) == 2
    assert capsys.readouterr().err == (
        f"error: NAME: found '{name}', expected one of TINY, PEMS03, PEMS04, PEMS07, PEMS08 (did you mean '{meant}'?)\n"
    )
    assert server.asked == []


def test_the_ids_are_those_of_the_data_readme() -> None:
    readme = (REPOSITORY_ROOT / "data" / "README.md").read_text()
    for name, official in download.DATASETS.items():
        assert f"| `{name}.npz` | `{official.blob_id}` |" in readme


def test_the_script_starts_from_any_folder() -> None:
    command = [sys.executable, str(REPOSITORY_ROOT / "data" / "download.py"), "METR-LA"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ended.returncode == 2
    assert ended.stderr == "error: NAME: found 'METR-LA', expected one of PEMS03, PEMS04, PEMS07, PEMS08\n"
