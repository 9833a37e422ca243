"""Every wrong input ends with exit code 2, exactly its lines on stderr, and no file or folder touched or half-written.

The catalogue is tests/bad_input_cases.py.
"""

import multiprocessing
import resource
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.data.preparing import distance_for, prepared_for
from lib.errors import InputError
from lib.files import written_whole
from lib.run_folder import RunFolder, new_run_folder
from lib.runs import finish_run, start_run
from tests.bad_input_cases import (
    CASES,
    CONFIG,
    KEY,
    KINDS,
    MATRIX,
    RECORD,
    SETTINGS,
    Case,
    Spoil,
    both,
    cut,
    gone,
    matrix,
    record,
)
from tests.conftest import Call, load, write_dataset


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the data set that every case starts from, with all files made from it and a finished run."""
    root = tmp_path_factory.mktemp("good")
    config = load(write_dataset(root, fine_tune_epochs=0, extra="max_batches = 1\n"))
    finish_run(start_run(config, root / "out", "one"))
    return root


@pytest.fixture
def root(good: Path, tmp_path: Path) -> Path:
    """Give the case its own copy; the checkpoints keep the old names of the files, as when a data set has moved."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for name in (CONFIG, SETTINGS):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(str(good), str(tmp_path)))
    return tmp_path


def contents(root: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file below a folder, and None for every folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


@contextmanager
def file_size_limit(quota: int | None) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if quota is None else quota, hard))
    try:
        yield  # Python ignores the signal, so that a write fails with an error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_catalogue_is_large_and_spread_over_the_kinds() -> None:
    assert {case.kind for case in CASES} == set(KINDS)
    assert len(CASES) == len({(case.kind, case.name) for case in CASES}) >= 180


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.name}")
def test_wrong_input_ends_with_its_message_and_writes_nothing(
    case: Case, root: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    if not case.possible:
        pytest.skip("this system cannot have the fault")
    case.spoil(root)
    before = contents(root)
    with file_size_limit(case.quota):
        exit_code = call(*shlex.split(case.command.replace("<tmp>", str(root))))
    shown = capsys.readouterr().err.replace(str(root), "<tmp>").replace(KEY, "<key>").splitlines()
    lines = [line.removeprefix("error: ") for line in shown]
    assert [f"error: {line}" for line in lines] == shown
    if isinstance(case.expected, str):
        assert lines == case.expected.splitlines()
    else:
        assert case.expected.fullmatch("\n".join(lines)), lines
    assert exit_code == 2
    after = contents(root)
    changed = {name for name, _ in before.items() ^ after.items()}
    assert {name for name in changed if not name.startswith(case.leaves)} == set()
    assert not [name for name in after if ".partial" in name]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (gone(MATRIX), "TINY_dtw_<key>.npy is missing"),
        (gone(RECORD), "TINY_dtw_<key>.json is missing"),
        (both(matrix(1, 3, 7), matrix(3, 1, 7)), "TINY_dtw_<key>.npy is stale: found other distances than"),
        (record(matrix_fingerprint=""), "<key>.npy is stale: found other distances than those of TINY_dtw_<key>.json"),
        (record(fingerprint="of other mean days"), "TINY_dtw_<key>.npy is stale"),
        (both(record(days=9), cut(MATRIX)), "TINY_dtw_<key>.npy is stale"),
    ],
)
def test_distances_without_their_own_record_are_made_anew(
    spoil: Spoil, said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(root)
    spoil(root)
    config = load(root / CONFIG)
    distance_for(config, prepared_for(config))
    assert contents(root) == before
    assert said in capsys.readouterr().out.replace(KEY, "<key>")


def at_once(work: Callable[[Callable[[], object], int], None], times: int = 6) -> None:
    """Do a piece of work in several processes, each given its number and where to wait for the others."""
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import PyTorch for seconds
    barrier = context.Barrier(times)
    processes = [context.Process(target=work, args=(lambda: barrier.wait(60), number)) for number in range(times)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a thread of the parent may hold a lock
        for process in processes:
            process.start()
    for process in processes:
        process.join()


def test_of_runs_that_take_one_name_at_once_one_wins(tmp_path: Path) -> None:
    folder, results = tmp_path / "out" / "one", tmp_path / "results"
    results.mkdir()

    def take(wait: Callable[[], object], number: int) -> None:
        try:
            with new_run_folder(RunFolder(folder)) as partial:
                partial.settings.write_text(str(number))
                wait()  # all have seen that the name is free
            (results / str(number)).write_text("")
        except InputError as error:
            (results / str(number)).write_text(str(error))

    at_once(take)
    said = {path.name: path.read_text() for path in results.iterdir()}
    (winner,) = (number for number, error in said.items() if not error)
    losers = {error for error in said.values() if error}
    assert len(said) == 6
    assert losers == {f"--name: found a run in {folder}, expected a new name, or --resume"}
    assert contents(tmp_path / "out") == {"one": None, "one/settings.ini": winner.encode()}


def test_of_files_written_at_once_one_stands_whole(tmp_path: Path) -> None:
    def write(wait: Callable[[], object], number: int) -> None:
        with written_whole(tmp_path / "file") as partial:
            partial.write_text(str(number) * 100_000)
            wait()

    at_once(write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    text = (tmp_path / "file").read_text()
    assert text == text[0] * 100_000
