"""What a GPU would notice, without one: tensors on the wrong device, and where the host would wait for the device.

PyTorch's meta device knows of tensors all but their values. What it lets pass and a GPU would not, tensors of the host
among its own, `Journeys` refuses. A tensor that is made of Python's numbers goes there unseen.
"""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.data.dtw import dtw_matrix
from lib.files import REPOSITORY_ROOT
from lib.runs import profile_for, start_run, windows_for
from lib.training import Trainer, evaluate
from model.encoder import DTGLKNetEncoder
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load, tiny_series

DEVICE = torch.device("meta")
WITH_EVERYTHING = [
    "Data.missing=interpolate",
    "Graph.neighbours=2",  # attention in blocks
    "Graph.hops=2",
    "Runtime.micro_batch=2",
    "Runtime.gradient_checkpointing=on",
    "Training.clip_grad_norm=5",
]


class Journeys(TorchDispatchMode):
    """Notes which functions of this project make the host wait for the device, and which send something there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.uploads: list[str] = []

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        source = arguments[0].device if arguments and isinstance(arguments[0], torch.Tensor) else None
        if function is torch.ops.aten._local_scalar_dense.default and source == DEVICE:
            self.waits.append(caller())
            return 0.5
        if function is torch.ops.aten._to_copy.default and options.get("device", source) != source:
            if source == DEVICE:
                self.waits.append(caller())
                return torch.zeros(arguments[0].shape, dtype=options.get("dtype") or arguments[0].dtype)
            self.uploads.append(caller())
        elif len({leaf.device for leaf in tree_leaves((arguments, options)) if is_array(leaf)}) > 1:
            raise RuntimeError(f"{function}: found tensors on more than one device, expected all on one")
        return function(*arguments, **options)


def is_array(leaf: object) -> bool:
    """Return whether this is a tensor that has to be where others are, which a single number has not."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def caller() -> str:
    """Return the name of the function in lib or model that calls PyTorch."""
    folders = (REPOSITORY_ROOT / "lib", REPOSITORY_ROOT / "model")
    frames = [frame for frame in traceback.extract_stack() if any(map(Path(frame.filename).is_relative_to, folders))]
    names = [frame.name for frame in frames if not frame.name.startswith("<")]  # not a comprehension
    return names[-1] if names else ""


def trainer_there(path: Path, settings: list[str]) -> Trainer:
    """Return the trainer of a new run, with model and windows moved to the device."""
    run = start_run(load(path, settings), path.parent / "out", "run")
    trainer, config, prepared = run.trainer, run.config, run.prepared
    trainer.model.to(DEVICE)
    trainer.windows = windows_for(config, prepared, DEVICE, profile_for(config, prepared))
    trainer.optimizer = trainer._new_optimizer()
    return trainer


def test_the_device_is_like_one() -> None:
    there, here = torch.ones(2, device=DEVICE), torch.ones(2)
    numbers = torch.zeros(2, dtype=torch.int64)
    mixed = [lambda: there + here, lambda: there.add_(here), lambda: there.copy_(here), lambda: there[numbers]]
    for mix in mixed:
        with Journeys(), pytest.raises(RuntimeError, match="device"):
            mix()
    with Journeys() as journeys:
        there.sum().item()
        there.cpu()
        bool(there.any())
        here.to(DEVICE)
        here.sum().item()
    assert (len(journeys.waits), len(journeys.uploads)) == (3, 1)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        *((variant, []) for variant in VARIANTS),
        *((variant, WITH_EVERYTHING) for variant in ("paper", "residual")),
    ],
)
def test_within_an_epoch_the_host_waits_for_the_looks_at_the_loss_alone(
    variant: str, settings: list[str], make_dataset: DatasetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.training.CHECK_EVERY", 2)
    series = tiny_series(sensors=160)
    if settings:
        series[np.random.default_rng(0).random(series.shape) < 0.05] = np.nan
    path = make_dataset(series, batch_size=4)
    trainer = trainer_there(path, [f"Model.variant={variant}", "Training.max_batches=3", *settings])
    if settings:
        assert cast(DTGLKNetEncoder, trainer.model).similarity_graph.is_cut
    for stage in trainer.stages:
        trainer.progress.batch = 0
        with Journeys() as journeys:
            trainer._train_epoch(stage, 1)
        assert journeys.waits == ["_check_finite"] * 2 + ["_train_epoch"]  # at batches 2 and 3, and for the log
        assert journeys.uploads == ["parts"]  # the order of the epoch
    with Journeys() as journeys:
        evaluate(trainer.model, trainer.windows, trainer.label_starts["val"][:8], 4, "validation")
    assert journeys.waits == ["evaluate"]
    assert journeys.uploads == ["parts"]


def test_series_on_the_host_are_sent_batch_by_batch(make_dataset: DatasetMaker) -> None:
    trainer = trainer_there(make_dataset(batch_size=4), ["Runtime.data=host", "Training.max_batches=3"])
    with Journeys() as journeys:
        trainer._train_epoch(trainer.stages[0], 1)
    assert set(journeys.waits) == {"_check_finite", "_train_epoch"}
    assert journeys.uploads == ["changed"] * 3 * 5  # in Batch.to: series, start, step of the week, target and flow


def test_dtw_waits_for_its_batches_alone() -> None:
    with Journeys() as journeys:
        dtw_matrix(np.random.default_rng(0).random((6, 24)), device=DEVICE, pairs_per_batch=4)
    assert journeys.waits == ["_batches_on_device"] * 4
    assert journeys.uploads == ["_batches_on_device"] * 4  # the profiles twice, and the pairs
