"""Names from an INI or a checkpoint are names only: writes stay in the run's folder and in that of the series."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib.errors import InputError
from lib.run_folder import check_run_name
from lib.runs import start_run
from tests.conftest import Call, DatasetMaker, load

pytestmark = pytest.mark.usefixtures("no_figures")

NOT_NAMES = ("", ".", "..", "../up", "a/../../b", "a/b", "/absolute", ".hidden", "~/home/.")
NOT_DATASET_NAMES = (*NOT_NAMES, "a\\b", "a b", "C:up", "a\tb", "ä", "*")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
changed: list[list[Path]] = []  # holds a list of paths while a test watches


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what Python opens for writing, makes, moves and removes; it cannot be unhooked."""
    if not changed:
        return
    if event == "open":
        paths = arguments[:1] if arguments[2] & WRITING else ()
    else:
        paths = arguments if event in CHANGES else ()
    names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    changed[-1] += [Path(os.path.abspath(name)) for name in names if "__pycache__" not in name and name != os.devnull]


@pytest.fixture
def written() -> Iterator[list[Path]]:
    if not changed:
        sys.addaudithook(_watch)
    changed.append([])
    yield changed[-1]
    changed.clear()


@pytest.mark.parametrize("name", NOT_DATASET_NAMES)
def test_the_name_of_a_data_set_is_no_path(name: str, make_dataset: DatasetMaker) -> None:
    path = make_dataset()
    with pytest.raises(InputError, match=r"dataset_name=.*: found '.*', expected letters, digits"):
        load(path, [f"Data.dataset_name={name}"])
    path.write_text(path.read_text().replace("dataset_name = TINY", f"dataset_name = {name}"))
    with pytest.raises(InputError, match=r"TINY\.conf \[Data\] dataset_name: found '.*', expected letters, digits"):
        load(path)


@pytest.mark.parametrize("name", NOT_NAMES)
def test_the_name_of_a_run_is_no_path(name: str) -> None:
    with pytest.raises(InputError, match=r"--name: found '.*', expected a name without '/'"):
        check_run_name(name)


def test_all_scripts_write_into_the_folders_of_run_and_series_only(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, written: list[Path]
) -> None:
    config = make_dataset(extra="max_batches = 1\n")
    torch.optim.AdamW([torch.zeros(1)])  # PyTorch makes a temporary folder of its own with the first
    written.clear()
    run, series, forecast = tmp_path / "out" / "TINY" / "one", tmp_path / "TINY", tmp_path / "next.csv"
    assert call("PrepareData.py", "--config", config) == 0
    assert call("create_dtw.py", "--config", config) == 0
    assert {path for path in written if not path.is_relative_to(series)} == set()
    assert call("run.py", "--config", config, "--output", tmp_path / "out", "--name", "one") == 0
    assert call("run.py", "--resume", run) == 0
    assert call("predict.py", "--run", run, "--input", series / "TINY.npz", "--output", forecast) == 0
    folders = (series, run, run.with_name(f".one.{os.getpid()}.partial"))
    allowed = {tmp_path, run.parent.parent, run.parent, forecast.with_name(f"next.csv.{os.getpid()}.partial"), forecast}
    assert {path for path in written if not any(map(path.is_relative_to, folders))} - allowed == set()
    names = {path.name.partition(f".{os.getpid()}")[0] for path in written}
    of_series = {"TINY_w0d1h2p3.npz", *(path.name for path in series.glob("TINY_dtw_*"))}
    assert len(of_series) == 3
    assert names > of_series | {"last.pt", "best.pt", "metrics.json", "next.csv"}


def test_a_checkpoint_from_elsewhere_directs_no_write(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(make_dataset(fine_tune_epochs=0, extra="max_batches = 1\n"))
    folder = start_run(config, tmp_path / "out", "one").folder
    victim = tmp_path / "victim"
    shutil.copytree(tmp_path / "TINY", victim)
    for path in (folder.best, folder.last):
        checkpoint = torch.load(folder.last, weights_only=True)
        checkpoint["settings"] = checkpoint["settings"].replace(f"{tmp_path}/TINY/", f"{victim}/")
        assert str(victim) in checkpoint["settings"]
        torch.save(checkpoint, path)
    (victim / config.prepared_path.name).write_bytes(b"stale")
    before = snapshot(victim)

    series = tmp_path / "TINY" / "TINY.npz"
    assert call("predict.py", "--run", folder, "--input", series, "--output", tmp_path / "next.csv") == 0
    assert call("run.py", "--resume", folder) == 0
    assert snapshot(victim) == before

    capsys.readouterr()
    for name in ("../victim/TINY", f"{victim}/TINY"):
        checkpoint["settings"] = config.to_ini().replace("dataset_name = TINY", f"dataset_name = {name}")
        torch.save(checkpoint, folder.best)
        folder.settings.write_text(checkpoint["settings"])
        assert call("predict.py", "--run", folder, "--input", series, "--output", tmp_path / "other.csv") == 2
        assert call("run.py", "--resume", folder) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(": found")[0] for line in lines] == [
            f"error: {place} [Data] dataset_name" for place in (folder.best, folder.settings)
        ]
    assert snapshot(victim) == before
    assert not (tmp_path / "other.csv").exists()


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*")}


def test_a_run_that_cannot_be_exported_is_told_before_it_is_resumed(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(make_dataset(), ["Model.variant=stid"])
    folder = start_run(config, tmp_path / "out", "one").folder
    before = snapshot(folder.path)
    capsys.readouterr()
    assert call("run.py", "--resume", folder, "--export", tmp_path / "epoch50") == 2
    assert capsys.readouterr().err.startswith("error: --export: found variant stid, expected paper or released")
    assert snapshot(folder.path) == before


def test_the_best_weights_of_a_run_are_exported_where_new_folders_are_needed(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path
) -> None:
    config = make_dataset(fine_tune_epochs=0, extra="max_batches = 1\n")
    target = tmp_path / "new" / "folder" / "epoch50"
    assert call("run.py", "--config", config, "--output", tmp_path / "out", "--export", target) == 0
    assert len(torch.load(target, weights_only=True)) > 10
