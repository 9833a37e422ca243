"""Checkpoints that can be trusted: a flipped byte is noticed, a full disk costs nothing, all randomness is in them."""

import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.checkpoints import CHECKPOINT_FORMAT, load_checkpoint, load_tensors, save_checkpoint, save_tensors
from lib.errors import InputError
from lib.runs import resume_run, start_run
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load

CONTENT = {
    "weights": {"large": torch.linspace(-1, 1, 120).view(40, 3), "small": torch.arange(50), "empty": torch.zeros(0)},
    "graphs": {"topology": torch.eye(5, dtype=torch.bool), "autoregression": None, "hops": (3, 5)},
    "progress": {"history": [{"val_loss": 0.25, "best": True}, {"val_loss": float("inf"), "best": False}]},
}


def same(one: Any, other: Any) -> bool:
    """Return whether two contents are equal, to the bit and the type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def outcome(path: Path) -> str:
    """Say what comes of a spoilt file: `refused` in one line that names it, or `as it was`, or `changed`."""
    try:
        content = load_tensors(path)
    except InputError as error:
        return "refused" if str(error).startswith(f"{path}: ") and str(error).isprintable() else str(error)
    return "as it was" if same(content, CONTENT) else "changed"


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_tensors(path, CONTENT)
    good = path.read_bytes()
    drawn = random.Random(0)
    outcomes = []
    for _ in range(250):
        position, bit = drawn.randrange(len(good)), drawn.randrange(8)
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
        outcomes.append(outcome(path))
    assert set(outcomes) == {"refused", "as it was"}  # the second where the archive's own padding was hit
    assert outcomes.count("refused") > 150


def test_every_byte_of_a_tensor_counts(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_tensors(path, CONTENT)
    good = path.read_bytes()
    values = CONTENT["weights"]["large"].numpy().tobytes()
    start = good.index(values)
    for position in range(start, start + len(values), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 255]) + good[position + 1 :])
        with pytest.raises(InputError, match=r"last\.pt: cannot be read .*\(a wrong checksum of \S+/data/0\)"):
            load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_files_of_torch_save_are_read_in_both_of_its_formats(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "epoch50"  # as the released code calls its checkpoints
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    assert outcome(path) == "as it was"


def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(epochs=2, fine_tune_epochs=0), ["Training.max_batches=1"])
    whole, halted = (start_run(config, tmp_path / "out", name) for name in ("whole", "halted"))
    whole.trainer.fit()

    report = halted.trainer.report
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(history: list[dict[str, Any]]) -> None:
        report(history)
        if len(history) == 2:  # the checkpoint of this epoch is not written
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    halted.trainer.report = fill_the_disk
    try:
        with pytest.raises(InputError, match=r"last\.pt: cannot be written: File too large"):
            halted.trainer.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(load_checkpoint(halted.folder.last)["progress"]["history"]) == 1
    assert not list(halted.folder.path.glob("*.partial"))

    resume_run(halted.folder, VARIANTS, None).trainer.fit()
    for pair in ((whole.folder.last, halted.folder.last), (whole.folder.best, halted.folder.best)):
        one, other = (load_checkpoint(path)["weights"] for path in pair)
        assert same(dict(one), dict(other))


def test_training_draws_from_the_generators_of_pytorch_alone(
    make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(make_dataset(), ["Training.dropout=0.3"])
    trainer = start_run(config, tmp_path / "out", "run").trainer

    def forbidden(name: str) -> Callable[..., Any]:
        return lambda *_, **__: pytest.fail(f"training called {name}")

    for module in (random, np.random):
        for name in dir(module):
            if not name.startswith("_") and callable(getattr(module, name)):
                monkeypatch.setattr(module, name, forbidden(f"{module.__name__}.{name}"))
    before = torch.get_rng_state()
    trainer.fit()
    trainer.test()
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_saved_checkpoint_comes_back(tmp_path: Path) -> None:
    carried = {"settings": "", "scaling": {}, "sensor_ids": None, "made_from": {"series": "ff"}, "map": None}
    for profile_week in (torch.arange(6.0).view(3, 2), None):  # None: of a network that asks for no profile
        content = {**CONTENT, **carried, "profile_week": profile_week}
        save_checkpoint(tmp_path / "best.pt", content)
        assert same(load_checkpoint(tmp_path / "best.pt"), {"format": CHECKPOINT_FORMAT, **content})
