"""Random and randomly spoilt files: a reader takes them or says in its lines what is wrong, and never unpickles."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import SECTION_NAMES, SECTIONS, UNUSED_KEYS, parse_config
from lib.data.dtw import load_dtw, load_dtw_record
from lib.data.graphs import read_links
from lib.data.prepared import load_prepared
from lib.data.series import read_series
from lib.errors import InputError
from lib.files import fingerprint_arrays, load_json, load_npz
from lib.ini import read_text
from model.variants import VARIANTS
from tests.conftest import load

fuzzed = settings(max_examples=100, deadline=None, derandomize=True, database=None)

SENSORS = 3
INI = b"""\
# A network of three sensors
[Data]
adj_filename = X.csv
graph_signal_matrix_filename = X.npz
num_of_vertices = 3
points_per_hour = 2
num_for_predict = 3
dataset_name = X

[Training]
batch_size = 16
num_of_weeks = 0
num_of_days = 1
num_of_hours = 2
epochs = 1
fine_tune_epochs = 1
learning_rate = 0.003
dropout = 0.0
kernel_size = 3
num_layers = 1
d_model = 8
nb_head = 2

[Model]
large_kernels = 15 17
"""
RECIPE = b"""\
[Model]
variant = residual
large_kernels = 15
harmonics = 8

[Training]
dropout = 0.3
padded_history = on

[Data]
start = 2018-03-05
"""
LINKS = b"from,to,cost\n0,1,1.0\n1,2,2.5\n2,0,1e3\n"
IDS = b"400\n517\n629\n"


# ------------------------------------------------------------------------------------------------ what is read


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr(name, content)
    return buffer.getvalue()


class Trap:
    """An object whose unpickling cannot pass unseen."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("unpickled",)


FLOW = np.arange(12.0).reshape(4, SENSORS, 1)
TRAPS = np.full((4, SENSORS, 1), Trap())
PLAIN, COMPRESSED = npz(data=FLOW), npz(compressed=True, data=FLOW)
WITH_OTHER_OBJECTS = npz(data=FLOW, other=TRAPS)
ARCHIVES = (
    PLAIN,
    COMPRESSED,
    WITH_OTHER_OBJECTS,
    npz(data=TRAPS),
    archive("data.npy", pickle.dumps(Trap())),
    archive("data", LINKS),
    pickle.dumps({"data": Trap()}),
    npy(FLOW),
)
PREPARED = npz(
    flow=np.ones((9, SENSORS), dtype=np.float32),
    offsets=np.arange(-4, 0),
    label_starts_train=np.arange(4, 6),
    label_starts_val=np.array([6]),
    label_starts_test=np.array([7]),
    minimum=np.zeros(1),
    maximum=np.ones(1),
    made_from=np.array('{"series": "ff"}'),
    missing=np.eye(9, SENSORS, dtype=bool),
    imputed=np.eye(9, SENSORS, dtype=bool),
)
MATRICES = (npy(np.zeros((SENSORS, SENSORS))), npy(TRAPS), pickle.dumps(Trap()))
RECORD = json.dumps(
    {
        **{"method": "exact", "radius": 0, "rows": "train", "days": 4, "fingerprint": "ff", "version": 1},
        "matrix_fingerprint": fingerprint_arrays(np.zeros((SENSORS, SENSORS))),
    }
).encode()


@st.composite
def spoilt(draw: st.DrawFn, *originals: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    """Draw one of the files with a few places overwritten, cut out, doubled or filled in, or its end cut off.

    Args:
        draw: of Hypothesis.
        originals: whole files.
        words: what may be filled in beside random bytes.
    """
    content = draw(st.sampled_from(originals))
    filling = st.binary(min_size=1, max_size=4) | (st.sampled_from(words) if words else st.nothing())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        replacement = draw(filling | st.sampled_from((b"", content[start:stop] * 2)))
        content = content[:start] + replacement + content[stop:]
    return content[: draw(st.just(len(content)) | st.integers(0, len(content)))]


def text(words: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return texts of words of the format and anything else."""
    pieces = st.sampled_from(words) | st.text(max_size=5).map(lambda piece: piece.encode(errors="surrogatepass"))
    return st.lists(pieces, max_size=40).map(b"".join)


GROUPS = [*SECTIONS.values(), *(variant.settings for variant in VARIANTS.values())]
KEYS = ["variant", *dict.fromkeys(item.name for group in GROUPS for item in fields(group))]
INI_WORDS = (
    *(f"[{section}]\n".encode() for section in (*SECTION_NAMES, "DEFAULT", "model")),
    *(f"{key} = ".encode() for key in (*KEYS, *UNUSED_KEYS["Training"])),
    *(name.encode() for name in VARIANTS),
    *(b"\n", b" = ", b":", b"#", b" ; ", b"[", b"]", b"%(x)s", b"1", b"0", b"-1", b"1e999", b"nan", b"on", b"auto"),
    *("\u2028\x85\x0c\x1b[2J\ufeff".encode(), b"\0", b"9" * 5000, b"\xff"),
)
LINK_WORDS = (b"\n", b"\r", b",", b"0", b"-1", b"nan", b"400", b"from,to,cost\n", b"9" * 5000, "\u2028\x85".encode())


# ------------------------------------------------------------------------------------------------- the checks


@pytest.fixture(scope="module", autouse=True)
def no_pickle() -> Iterator[None]:
    """Let every attempt to unpickle fail the test: no reader catches this."""

    def unpickle(*_: object, **__: object) -> None:
        pytest.fail("unpickled")

    with pytest.MonkeyPatch.context() as patched:
        for name in ("load", "loads", "Unpickler"):
            patched.setattr(pickle, name, unpickle)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the name of the file to read, the same for all examples."""
    return tmp_path_factory.mktemp("fuzz") / "file"


def taken_or_refused(path: Path, content: bytes, read: Callable[[Path], object], *others: Path | str) -> None:
    """Write the content and read it: it may be refused, in lines that begin with a place and show all as text."""
    path.write_bytes(content)
    lines = None
    try:
        read(path)
    except InputError as error:
        lines = str(error).splitlines()
    assert lines is None or (lines and all(line.startswith(tuple(map(str, (path, *others)))) for line in lines))
    assert all(line.isprintable() for line in lines or ())


@fuzzed
@given(text(INI_WORDS) | st.binary(max_size=60) | spoilt(INI, words=INI_WORDS))
def test_settings(path: Path, content: bytes) -> None:
    taken_or_refused(path, content, load)


@fuzzed
@given(st.text(max_size=20) | text(INI_WORDS).map(lambda content: content.decode(errors="replace")))
def test_overrides(path: Path, override: str) -> None:
    taken_or_refused(path, INI, lambda name: load(name, [override]), "--set")


@fuzzed
@given(text(INI_WORDS) | spoilt(RECIPE, words=INI_WORDS))
def test_recipes(path: Path, content: bytes) -> None:
    def read(name: Path) -> None:
        parse_config(INI.decode(), path.with_name("base"), VARIANTS, recipe=(read_text(name), name))

    taken_or_refused(path, content, read, path.with_name("base"))


@fuzzed
@given(text(LINK_WORDS) | st.binary(max_size=60) | spoilt(LINKS, words=LINK_WORDS))
def test_links(path: Path, content: bytes) -> None:
    taken_or_refused(path, content, lambda name: read_links(name, SENSORS))


@fuzzed
@given(text(LINK_WORDS) | spoilt(IDS, words=LINK_WORDS), spoilt(LINKS.replace(b"0,1", b"400,517"), words=LINK_WORDS))
def test_links_with_ids(path: Path, ids: bytes, links: bytes) -> None:
    links_path = path.with_name("links")
    links_path.write_bytes(links)
    taken_or_refused(path, ids, lambda name: read_links(links_path, SENSORS, name), links_path)


@fuzzed
@given(st.binary(max_size=100) | spoilt(*ARCHIVES))
def test_series(path: Path, content: bytes) -> None:
    taken_or_refused(path, content, lambda name: read_series(name, SENSORS))
    taken_or_refused(path, content, lambda name: read_series(name, SENSORS, gaps=True))


@fuzzed
@given(spoilt(PREPARED, *ARCHIVES))
def test_archives_with_several_arrays(path: Path, content: bytes) -> None:
    taken_or_refused(path, content, load_prepared)
    taken_or_refused(path, content, lambda name: load_npz(name, ("data", "other")))


@fuzzed
@given(st.binary(max_size=100) | spoilt(*MATRICES), spoilt(RECORD, words=(b"[", b"{", b"null", b"true", b"1e999")))
def test_distances(path: Path, matrix: bytes, record: bytes) -> None:
    record_path = path.with_name("record")
    taken_or_refused(record_path, record, load_dtw_record)
    taken_or_refused(record_path, record, load_json)
    taken_or_refused(path, matrix, lambda name: load_dtw(name, record_path, SENSORS), record_path)


def test_what_is_spoilt_was_good_before(path: Path) -> None:
    path.write_bytes(INI)
    load(path)
    parse_config(INI.decode(), path, VARIANTS, recipe=(RECIPE.decode(), path))
    path.write_bytes(LINKS)
    assert len(read_links(path, SENSORS).pairs) == 3
    path.write_bytes(PREPARED)
    assert np.isnan(load_prepared(path).truth).sum() == SENSORS
    for content in (PLAIN, COMPRESSED, WITH_OTHER_OBJECTS):
        path.write_bytes(content)
        assert read_series(path, SENSORS).shape == FLOW.shape
    path.write_bytes(MATRICES[0])
    path.with_name("record").write_bytes(RECORD)
    assert load_dtw(path, path.with_name("record"), SENSORS)[1].days == 4
