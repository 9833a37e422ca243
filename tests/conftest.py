"""Small data sets on disk, in PEMS format, and the scripts as a user calls them, for every test that needs one."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lib.config import Config, load_config
from lib.data.autoregression import graph_autoregression
from lib.data.prepared import Prepared
from lib.data.profile import HistoricalProfile
from lib.errors import run_script
from lib.files import REPOSITORY_ROOT
from lib.interface import Graphs, Neighbours, Sizes
from model.variants import VARIANTS

REFERENCE = Path(__file__).parent / "reference"
REAL_DATA = REPOSITORY_ROOT.parent / "shared" / "data"

if not torch.cuda.is_available():  # Triton interprets kernels if it is told so before anything imports it
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that need one, which `make gpu` selects: `auto` is the CPU in all others."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where tests for a GPU are selected, leave out files without any: they may need what is not installed there."""
    if config.option.markexpr != "cuda" or collection_path.suffix != ".py":
        return None
    return "mark.cuda" not in collection_path.read_text(encoding="utf-8") or None


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests are small: threads cost more than they give, and one thread gives the same bits everywhere."""
    torch.set_num_threads(1)


DatasetMaker = Callable[..., Path]
Call = Callable[..., int]


def write_dataset(
    root: Path,
    data: np.ndarray | None = None,
    name: str = "TINY",
    weeks: int = 0,
    days: int = 1,
    hours: int = 2,
    horizon: int = 3,
    points_per_hour: int = 2,
    batch_size: int = 16,
    epochs: int = 1,
    fine_tune_epochs: int = 1,
    extra: str = "",
) -> Path:
    """Write a series, its links and a configuration, and return the configuration's path."""
    data = tiny_series() if data is None else data
    folder = root / name
    folder.mkdir()
    np.savez(folder / f"{name}.npz", data=data)
    links = "".join(f"{i},{i + 1},1.0\n" for i in range(data.shape[1] - 1))
    (folder / f"{name}.csv").write_text("from,to,cost\n" + links)
    config = root / f"{name}.conf"
    config.write_text(
        f"""[Data]
adj_filename = {folder / name}.csv
graph_signal_matrix_filename = {folder / name}.npz
num_of_vertices = {data.shape[1]}
points_per_hour = {points_per_hour}
num_for_predict = {horizon}
dataset_name = {name}
start = 2018-03-05

[Training]
batch_size = {batch_size}
num_of_weeks = {weeks}
num_of_days = {days}
num_of_hours = {hours}
epochs = {epochs}
fine_tune_epochs = {fine_tune_epochs}
learning_rate = 0.003
dropout = 0.0
kernel_size = 3
num_layers = 1
d_model = 8
nb_head = 2
{extra}"""
    )
    return config


@pytest.fixture
def make_dataset(tmp_path: Path) -> DatasetMaker:
    """Give a function that writes a data set into the test's own folder: `write_dataset` without its first argument."""
    return partial(write_dataset, tmp_path)


def exit_code(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], script: str, *arguments: object) -> int:
    """Run the main function of a script as the command line would, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    try:
        run_script(main)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Give a function that calls a script as the command line would, from another folder, and returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(script: str, *arguments: object) -> int:
        return exit_code(monkeypatch, import_module(Path(script).stem).main, script, *arguments)

    return call


def tiny_series(days: int = 8, sensors: int = 5, steps_per_day: int = 48, seed: int = 0) -> np.ndarray:
    """Return a daily rhythm with noise, (days * steps_per_day, sensors, 1), at 30-minute steps."""
    draw = np.random.default_rng(seed)
    step = np.arange(days * steps_per_day)[:, None]
    phase = draw.uniform(0, 2 * np.pi, sensors)
    rhythm = 100 + 60 * np.sin(2 * np.pi * step / steps_per_day + phase)
    return (rhythm + draw.normal(0, 8, rhythm.shape)).clip(0)[:, :, None]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures and the page of finished runs: they take longer than a tiny training."""
    monkeypatch.setattr("lib.report.page.make_report", lambda *_: [])


def load(path: Path, overrides: Sequence[str] = (), recipe: str | None = None) -> Config:
    """Read the settings of a run, with the variants that are shipped."""
    return load_config(path, VARIANTS, overrides, recipe)


def dense_graphs(similarity: Any, topology: Any, encoding: torch.Tensor, autoregression: Any = None) -> Graphs:
    """Return graphs by their masks (N, N), perhaps with coefficients A[lag, j, i] of what j adds to i."""
    near = Neighbours.of(topology)
    coefficients = None if autoregression is None else autoregression[:, near.sensors, near.rows]
    return Graphs(Neighbours.of(similarity), near, encoding, coefficients)


def dense_fit(prepared: Prepared, profile: HistoricalProfile, near: np.ndarray, *others: Any) -> np.ndarray:
    """Return the fitted coefficients of an autoregression as A[lag, j, i], what j adds to i, under a mask (N, N)."""
    neighbours = Neighbours.of(near)
    coefficients = graph_autoregression(prepared, profile, neighbours, *others)
    return neighbours.dense(torch.from_numpy(coefficients)).transpose(1, 2).numpy()


def make_network(name: str, graphs: Graphs, sizes: Sizes, **settings: Any) -> nn.Module:
    """Build a variant of the network by its record, with some of its own settings."""
    variant = VARIANTS[name]
    return variant.network(graphs, sizes, variant.settings(**settings))
