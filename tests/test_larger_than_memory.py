"""A series larger than memory: large arrays stay on disk, all numbers are the same, memory holds a part at a time."""

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import Config
from lib.data.prepared import Prepared, load_prepared, prepare, save_prepared
from lib.data.series import read_series
from lib.data.windowing import WindowShape
from lib.data.windows import Batch
from lib.errors import InputError
from lib.files import load_npz, save_npz, scratch
from lib.runs import profile_for, windows_for
from tests.conftest import DatasetMaker, load, tiny_series

SHAPE = WindowShape(weeks=0, days=1, hours=2, horizon=3, points_per_hour=2)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.files.LARGE", 0)
    monkeypatch.setattr("lib.data.series.BLOCK_VALUES", 800)  # about two sensors of the series here


def imputed_series() -> np.ndarray:
    data = tiny_series(days=16)
    data[np.random.default_rng(0).random(data.shape) < 0.1] = np.nan
    week = 7 * 48
    data[week + 50 : week + 90, 1] = data[50:90, 1]
    return data


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, lambda path, **arrays: save_npz(path, arrays)])
def test_arrays_left_on_disk_are_those_of_the_file(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "series.npz"
    draw = np.random.default_rng(0)
    arrays = {"flow": draw.random((300, 7)), "x": np.asfortranarray(draw.random((5, 4)) > 0.5), "n": np.array(3)}
    save(path, **arrays)
    read = load_npz(path, tuple(arrays), large_on_disk=True)
    assert same(read, arrays)
    before = path.read_bytes()
    drawn = random.Random(0)
    for _ in range(150):
        position = drawn.randrange(len(before))
        path.write_bytes(
            before[:position] + bytes([before[position] ^ 1 << drawn.randrange(8)]) + before[position + 1 :]
        )
        try:
            found = load_npz(path, tuple(arrays), large_on_disk=True)
        except InputError:
            continue
        assert same(found, arrays)


@pytest.mark.usefixtures("everything_is_large")
def test_a_file_of_ours_is_mapped_where_it_lies(tmp_path: Path) -> None:
    save_npz(tmp_path / "ours.npz", {"a": np.arange(3), "much_longer_name": np.arange(1000.0)})
    mapped = load_npz(tmp_path / "ours.npz", ("much_longer_name",), large_on_disk=True)["much_longer_name"]
    assert isinstance(mapped.base, np.memmap)
    assert mapped.ctypes.data % 64 == 0
    np.savez(tmp_path / "objects.npz", data=np.array([{}]))
    with pytest.raises(InputError, match="found a pickled object"):
        load_npz(tmp_path / "objects.npz", ("data",), large_on_disk=True)


@pytest.mark.parametrize("rule", ["interpolate", "interpolate, 0"])
def test_preparation_in_blocks_decides_the_same(rule: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    data = imputed_series()
    whole = prepare(data, SHAPE, {}, rule)
    request.getfixturevalue("everything_is_large")
    path, series = tmp_path / "prepared.npz", tmp_path / "series.npz"
    np.savez_compressed(series, data=data)
    in_blocks = prepare(read_series(series, 5, gaps=True), SHAPE, {}, rule)
    save_prepared(path, in_blocks)
    for other in (in_blocks, load_prepared(path)):
        assert whole.imputed is not None
        assert all(same(getattr(whole, item.name), getattr(other, item.name)) for item in fields(Prepared))
    data[100, 4] = data[90, 3] = -2
    data[:, 2] = np.nan
    with pytest.raises(InputError, match="found 2 negative values, the first -2 at step 90, sensor 3"):
        prepare(data, SHAPE, {}, rule)
    with pytest.raises(InputError, match="sensor 2: found no value in the training inputs"):
        prepare(data.clip(0), SHAPE, {}, rule)


def batch_of(config: Config, prepared: Prepared) -> Batch:
    windows = windows_for(config, prepared, torch.device("cpu"), profile_for(config, prepared))
    return windows.batch(torch.tensor(prepared.label_starts["train"][::7]))


@pytest.mark.parametrize("imputed", ["keep", "missing"])
def test_batches_read_from_disk_are_those_of_memory(
    imputed: str, make_dataset: DatasetMaker, request: pytest.FixtureRequest
) -> None:
    path = make_dataset(imputed_series())
    changes = ["Model.variant=residual_mlp", "Data.missing=interpolate", f"Data.imputed={imputed}"]
    kept, on_disk = (load(path, [*changes, f"Runtime.data={where}"]) for where in ("device", "disk"))
    prepared = prepare(imputed_series(), SHAPE, {"Data.imputed": imputed}, "interpolate")
    expected = batch_of(kept, prepared)
    request.getfixturevalue("everything_is_large")
    save_prepared(kept.prepared_path, prepared)
    found = batch_of(on_disk, load_prepared(kept.prepared_path))
    for one, other in zip(
        (*expected.inputs, *vars(expected).values()), (*found.inputs, *vars(found).values()), strict=True
    ):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    assert (expected.measured is not None) == (imputed == "keep")


@pytest.mark.usefixtures("everything_is_large")
def test_memory_holds_a_part_of_the_series_at_a_time(
    make_dataset: DatasetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.data.series.BLOCK_VALUES", 2**15)
    data = np.tile(tiny_series(days=16, sensors=128).astype(np.float32), (26, 1, 1))  # (19968, 128): 10 MB
    data[np.random.default_rng(0).random(data.shape) < 0.001] = np.nan
    size = data.nbytes
    path = make_dataset(data)
    config = load(path, ["Model.variant=stid", "Data.missing=interpolate", "Runtime.data=disk"])
    del data
    tracemalloc.start()
    try:
        series = read_series(config.data.graph_signal_matrix_filename, 128, gaps=True)
        prepared = prepare(series, SHAPE, {}, "interpolate")
        _, peak_of_preparing = tracemalloc.get_traced_memory()
        save_prepared(config.prepared_path, prepared)  # by NumPy, 16 MiB at once
        tracemalloc.reset_peak()
        prepared = load_prepared(config.prepared_path)
        windows = windows_for(config, prepared, torch.device("cpu"), None)
        windows.batch(torch.tensor(prepared.label_starts["train"][:16]))
        _, peak_of_reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(peak_of_preparing, peak_of_reading) < size / 2


def test_a_temporary_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"found no room for a temporary file of 0\.1 GiB \(No space left on device\)"):
        scratch((2**27,), np.uint8)
