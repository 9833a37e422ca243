"""Steps and forecasts that are captured and replayed train to the bit what steps that are called train.

There is no GPU here: `Tape` captures operators on the CPU as a CUDA graph does kernels. tests/test_cuda.py does so with
CUDA graphs, where there is a GPU.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.captured import WARM_UPS, Captured, CudaGraphs, Recorder, uses_graphs
from lib.checkpoints import load_checkpoint
from lib.config import Config, RuntimeConfig
from lib.data.windows import Windows
from lib.errors import InputError
from lib.run_folder import RunFolder
from lib.runs import TrainingRun, resume_run, start_run
from model.variants import VARIANTS
from tests.captured_on_cpu import Tape
from tests.conftest import DatasetMaker, load, tiny_series
from tests.test_training import assert_same_weights

NEVER = 10**9
EVERYTHING = [
    "Training.dropout=0.2",
    "Training.schedule=cosine",
    "Training.clip_grad_norm=0.5",
    "Training.weight_decay=0.1",
]


@contextmanager
def computed_by(recorder: Recorder | None, warm_ups: int = WARM_UPS) -> Iterator[None]:
    """Let trainers take a recorder, and capture after so many calls."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.runs.recorder_for", lambda *_: recorder)
        patched.setattr("lib.captured.WARM_UPS", warm_ups)
        yield


@contextmanager
def at_part(number: int, event: Any) -> Iterator[None]:
    """Let something happen before the batch of that number, in training and validation, counted from 0."""
    parts, count = Windows.parts, iter(range(NEVER))

    def eventful(*arguments: Any) -> Iterator[Tensor]:
        for part in parts(*arguments):
            if next(count) == number:
                event()
            yield part

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Windows, "parts", eventful)
        yield


def trained(config: Config, root: Path, name: str, recorder: Recorder | None, warm_ups: int = WARM_UPS) -> TrainingRun:
    with computed_by(recorder, warm_ups):
        run = start_run(config, root, name)
        run.trainer.fit()
    return run


def assert_trained_the_same(first: RunFolder, second: RunFolder) -> None:
    assert_same_weights(first, second)
    timeless = [[{**entry, "seconds": 0} for entry in folder.read_log()] for folder in (first, second)]
    assert timeless[0] == timeless[1]


def called(config: Config, root: Path) -> RunFolder:
    """Train with the optimiser of a recorder, and nothing captured."""
    return trained(config, root, "called", Tape(), NEVER).folder


def test_calls_come_first_then_replays_and_other_sizes_are_called() -> None:
    done, python = torch.zeros(()), []

    def function(label_starts: Tensor) -> tuple[Tensor, ...]:
        python.append(len(label_starts))
        done.add_(1)
        return (label_starts * 2,)

    captured, tape = Captured(3, Tape()), Tape()
    captured.recorder = tape
    for number, size in enumerate((3, 2, 3, 3, 3, 1, 3, 3), start=1):
        starts = torch.arange(size) + number
        (doubled,) = captured(function, starts)
        assert torch.equal(doubled, starts * 2)
        assert done == number  # every call does the work once, the capture none of it
    assert python == [3, 2, 3, 3, 3, 1]  # replays call nothing
    assert (tape.captures, tape.replays) == (1, 3)

    plainly = Captured(3, None)
    for _ in range(9):
        plainly(function, torch.arange(3))
    assert len(python) == 6 + 9


def test_a_tape_is_as_strict_as_a_graph() -> None:
    number = iter(range(100))

    def by_python(label_starts: Tensor) -> tuple[Tensor, ...]:
        return (label_starts + next(number),)

    captured = Captured(1, Tape())
    found = [captured(by_python, torch.zeros(1))[0].item() for _ in range(7)]
    assert found == [0, 1, 2, 3, 3, 3, 3]  # what Python computed stays
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Tape().record(lambda: torch.ones(()).item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_replayed_trains_the_same_to_the_bit(variant: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """Both stages, validation and test, with a last batch that is smaller."""
    config = load(make_dataset(), [f"Model.variant={variant}", *EVERYTHING])
    tape = Tape()
    run = trained(config, tmp_path, "replayed", tape)
    assert len(run.trainer.label_starts["train"]) % 16
    assert_trained_the_same(called(config, tmp_path), run.folder)
    assert tape.captures == 3  # the steps of each stage, and the forecast
    assert tape.replays > 20


def test_missing_targets_and_batches_in_parts_are_replayed_too(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    data = tiny_series()
    data[np.random.default_rng(0).random(data.shape) < 0.2] = np.nan
    settings = ["Data.missing=interpolate", "Training.loss=huber", "Runtime.micro_batch=5", "Model.variant=residual"]
    config = load(make_dataset(data), [*settings, *EVERYTHING])
    tape = Tape()
    run = trained(config, tmp_path, "replayed", tape)
    assert_trained_the_same(called(config, tmp_path), run.folder)
    assert tape.captures == 3


@pytest.mark.parametrize(
    "number", [6, 18, 26]
)  # among replays of the first stage, of the forecast, and of the second stage
def test_a_killed_run_goes_on_the_same(number: int, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(), ["Model.variant=stid", *EVERYTHING, "Runtime.checkpoint_minutes=1e-9"])
    whole = trained(config, tmp_path, "whole", Tape()).folder

    def kill() -> None:
        raise SystemExit

    with computed_by(Tape()):
        killed = start_run(config, tmp_path, "killed")
        with suppress(SystemExit), at_part(number, kill):
            killed.trainer.fit()
        resume_run(killed.folder, VARIANTS, None).trainer.fit()
    assert_trained_the_same(whole, killed.folder)


def test_ctrl_c_waits_for_a_replay(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(fine_tune_epochs=0), ["Model.variant=stid", *EVERYTHING])
    whole = trained(config, tmp_path, "whole", Tape()).folder
    with computed_by(Tape()):
        stopped = start_run(config, tmp_path, "stopped")
        with pytest.raises(KeyboardInterrupt), at_part(5, lambda: signal.raise_signal(signal.SIGINT)):
            stopped.trainer.fit()
        resumed = resume_run(stopped.folder, VARIANTS, None)
        assert resumed.trainer.progress.batch == 6
        resumed.trainer.fit()
    assert_trained_the_same(whole, stopped.folder)


@pytest.mark.parametrize("first", [Tape(), None], ids=["captured", "called"])
def test_a_run_goes_on_with_graphs_or_without(first: Tape | None, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """The optimiser of a GPU has its step and learning rate on the device, that of a CPU as numbers."""
    second = None if first else Tape()
    settings = ["Model.variant=stid", "Training.schedule=cosine"]
    config = load(make_dataset(epochs=2, fine_tune_epochs=0), settings)
    whole = trained(config, tmp_path, "whole", first).folder
    with computed_by(first):
        stopped = start_run(config, tmp_path, "stopped")
        with pytest.raises(KeyboardInterrupt), at_part(7, lambda: signal.raise_signal(signal.SIGINT)):
            stopped.trainer.fit()
    before = load_checkpoint(stopped.folder.last)
    with computed_by(second):
        resumed = resume_run(stopped.folder, VARIANTS, None)
        state = resumed.trainer.optimizer.state_dict()
        kept = before["optimizer"]["state"]
        assert state["state"].keys() == kept.keys()
        assert all(torch.equal(state["state"][key][name], kept[key][name]) for key in kept for name in kept[key])
        (group,) = state["param_groups"]
        assert (isinstance(group["lr"], Tensor), group["fused"]) == ((True, True) if second else (False, None))
        assert float(group["lr"]) == pytest.approx(resumed.trainer.learning_rate)
        assert resumed.trainer.learning_rate == before["optimizer"]["param_groups"][0]["lr"]
        resumed.trainer.fit()
    one, other = (folder.read_log() for folder in (whole, stopped.folder))
    assert [entry["learning_rate"] for entry in one] == [entry["learning_rate"] for entry in other]
    for name in ("train_loss", "val_loss"):
        assert [entry[name] for entry in one] == pytest.approx([entry[name] for entry in other], rel=0.02)


def test_a_loss_that_is_not_finite_is_noticed_in_a_replay(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    tape = Tape()
    with computed_by(tape):
        trainer = start_run(load(make_dataset(), ["Model.variant=stid"]), tmp_path, "run").trainer
        message = "epoch 1, batch 7: found a loss or gradient that is not finite"
        with pytest.raises(InputError, match=message), at_part(6, lambda: trainer.windows.scaled.fill_(torch.inf)):
            trainer.fit()
    assert tape.replays > 0


@pytest.mark.parametrize(
    ("device", "processes", "settings", "expected"),
    [
        ("cuda", 1, {}, True),
        ("cuda", 1, {"precision": "bf16", "micro_batch": 4, "compile": "on"}, True),
        ("cpu", 1, {}, False),
        ("mps", 1, {}, False),
        ("cuda", 2, {}, False),
        ("cuda", 1, {"cuda_graphs": "off"}, False),
        ("cuda", 1, {"data": "host"}, False),
        ("cuda", 1, {"data": "disk"}, False),
        ("cuda", 1, {"gradient_checkpointing": True}, False),
    ],
)
def test_where_graphs_are_used(device: str, processes: int, settings: dict[str, Any], expected: bool) -> None:
    assert uses_graphs(RuntimeConfig(**settings), torch.device(device), processes) == expected


def test_work_that_cannot_be_captured_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, *_: object, **__: object) -> None: ...
        def replay(self) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            raise RuntimeError("capture invalidated")

    for name in ("CUDAGraph", "graph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, Graph)

    def work() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(InputError) as raised:
        CudaGraphs(torch.device("cuda")).record(work)
    assert str(raised.value) == (
        "[Runtime] cuda_graphs: found work that cannot be captured (operation not permitted when stream is capturing), "
        "expected cuda_graphs = off: set it in settings.ini of the run, and --resume goes on"
    )
