"""What only a GPU shows, all of it: `make gpu` runs these tests, and nothing else runs them.

TEST_DEVICE=cpu runs them without one, with a `Tape` in place of CUDA graphs, to see that they themselves work.
"""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.captured import Captured, uses_graphs
from lib.checkpoints import load_checkpoint, restored
from lib.data.dtw import dtw_matrix
from lib.data.nearest import nearest_sensors
from lib.errors import InputError
from lib.files import load_json
from lib.interface import Inputs
from lib.losses import mean_loss
from lib.runs import TrainingRun, resume_run, start_run
from model.variants import VARIANTS
from tests.captured_on_cpu import Tape
from tests.conftest import Call, DatasetMaker, load, tiny_series
from tests.test_captured import EVERYTHING, at_part

pytestmark = pytest.mark.cuda
BLOCKS = ["Graph.neighbours=2", "Graph.hops=2"]  # attention in blocks
EXACT = "Runtime.precision=float32"


@pytest.fixture
def device() -> str:
    name = os.environ.get("TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return name


@pytest.fixture(autouse=True)
def graphs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        used = torch.device("cuda")
        monkeypatch.setattr("lib.runs.recorder_for", lambda runtime, *_: Tape() if uses_graphs(runtime, used) else None)


def trained(path: Path, root: Path, name: str, device: str, *settings: str) -> TrainingRun:
    run = start_run(load(path, [f"Runtime.device={device}", *settings]), root, name)
    run.trainer.fit()
    return run


def assert_alike(first: TrainingRun, second: TrainingRun, tolerance: float = 2e-3) -> None:
    """Check that two runs had the same losses, but for sums in another order."""
    one, other = (run.folder.read_log() for run in (first, second))
    assert len(one) == len(other) > 0
    for name in ("train_loss", "val_loss"):
        assert [entry[name] for entry in one] == pytest.approx([entry[name] for entry in other], rel=tolerance)
    assert [entry["learning_rate"] for entry in one] == [entry["learning_rate"] for entry in other]


def in_double(inputs: Inputs, device: str) -> Inputs:
    def moved(part: Tensor | None) -> Any:
        return part if part is None else (part.double() if part.is_floating_point() else part).to(device)

    return Inputs(*map(moved, inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_forecasts_losses_and_gradients_are_those_of_a_cpu(
    variant: str, device: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    """Both stages, in double precision."""
    config = load(make_dataset(tiny_series(sensors=60)), [f"Model.variant={variant}", "Runtime.device=cpu", *BLOCKS])
    run = start_run(config, tmp_path, "run")
    batch = next(run.trainer.windows.batches(run.trainer.label_starts["train"], 8))
    checkpoint = load_checkpoint(run.folder.last)
    here, there = (restored(run.folder.last, checkpoint, config).double().to(place) for place in ("cpu", device))
    for inputs in (batch.with_teacher, batch.inputs):
        results = []
        for model, place in ((here, "cpu"), (there, device)):
            own, target = in_double(inputs, place), batch.target.double().to(place)
            with torch.no_grad():
                forecast = model.eval()(own)
            model.zero_grad()
            loss = mean_loss("mae", model.train()(own), target, None)
            loss.backward()
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            results.append([forecast, loss.detach(), *gradients])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_change_nothing(variant: str, device: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """Both stages and their validation; dropout draws the same numbers, so the losses are the same."""
    path, settings = make_dataset(tiny_series(sensors=60)), [f"Model.variant={variant}", EXACT, *BLOCKS, *EVERYTHING]
    replayed = trained(path, tmp_path, "replayed", device, *settings)
    called = trained(path, tmp_path, "called", device, *settings, "Runtime.cuda_graphs=off")
    for run, graphs in ((replayed, True), (called, False)):
        trainer = run.trainer
        parts: list[Captured] = [*trainer.captured.values(), trainer.evaluator.captured]
        assert [part.replay is not None for part in parts] == [graphs] * 2
    if device == "cuda":
        assert_alike(replayed, called)
        assert load_json(replayed.folder.environment)["cuda_graphs"] == "on"
        assert load_json(called.folder.environment)["cuda_graphs"] == "off"


def test_an_interrupted_run_goes_on_the_same(device: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """Within an epoch, after replays: dropout and the optimiser go on where they were."""
    path, settings = make_dataset(epochs=2), [EXACT, *EVERYTHING]
    whole = trained(path, tmp_path, "whole", device, *settings)
    config = load(path, [f"Runtime.device={device}", *settings])
    stopped = start_run(config, tmp_path, "stopped")
    with pytest.raises(KeyboardInterrupt), at_part(8, lambda: signal.raise_signal(signal.SIGINT)):
        stopped.trainer.fit()
    resumed = resume_run(stopped.folder, VARIANTS, None)
    assert resumed.trainer.progress.batch == 9
    resumed.trainer.fit()
    assert_alike(whole, resumed)
    on_cpu = resume_run(stopped.folder, VARIANTS, "cpu")  # finished, and its last checkpoint opens anywhere
    assert on_cpu.trainer.progress.epoch == 1


@pytest.mark.parametrize(
    "setting",
    ["data=host", "data=disk", "gradient_checkpointing=on", "micro_batch=5", "precision=tf32", "precision=bf16"],
)
def test_every_way_to_compute_trains_alike(
    setting: str, device: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    if device == "cpu" and setting == "precision=tf32":
        pytest.skip("needs CUDA")
    path, settings = make_dataset(), ["Model.variant=residual", "Training.clip_grad_norm=1"]
    plain = trained(path, tmp_path, "plain", device, EXACT, *settings)
    other = trained(path, tmp_path, "other", device, EXACT, *settings, f"Runtime.{setting}")
    # The optimiser of a CPU rounds otherwise than that of a `Tape`.
    assert_alike(plain, other, 0.03 if "precision" in setting else 2e-3)


def test_the_precision_of_a_gpu_is_tf32(device: str, make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset(), [f"Runtime.device={device}", "Model.variant=stid"])
    folder = start_run(config, tmp_path, "run").folder
    expected = ("tf32", "high") if device == "cuda" else ("float32", "highest")
    assert (load_json(folder.environment)["precision"], torch.get_float32_matmul_precision()) == expected


def test_a_loss_that_is_not_finite_stops_the_run(
    device: str, make_dataset: DatasetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.training.CHECK_EVERY", 5)
    config = load(make_dataset(), [f"Runtime.device={device}", "Model.variant=stid"])
    trainer = start_run(config, tmp_path, "run").trainer
    scaled = trainer.windows.scaled
    assert isinstance(scaled, Tensor)
    with (
        pytest.raises(InputError, match=r"epoch 1, batch \d+: found a loss or gradient that is not finite"),
        at_part(6, lambda: scaled.fill_(torch.inf)),
    ):
        trainer.fit()


def test_all_scripts_work_there(device: str, make_dataset: DatasetMaker, tmp_path: Path, call: Call) -> None:
    """Distances, training with figures, receptive fields and forecasts; a CPU forecasts the same by these weights."""
    path, out = make_dataset(), tmp_path / "out"
    assert call("create_dtw.py", "--config", path, "--device", device) == 0
    options = ("--set", "Runtime.precision=float32", "--output", out, "--name", "run")
    assert call("run.py", "--config", path, "--device", device, *options) == 0
    run = out / "TINY" / "run"
    assert (run / "metrics.json").exists()
    assert call("erf_conv.py", "--run", run, "--samples", 3, "--device", device) == 0
    forecasts = []
    for place in ("cpu", device):
        csv = tmp_path / f"{place}-forecast.csv"
        arguments = ("--input", tmp_path / "TINY" / "TINY.npz", "--output", csv, "--device", place)
        assert call("predict.py", "--run", run, *arguments) == 0
        forecasts.append(np.genfromtxt(csv, delimiter=",", skip_header=1, usecols=3))
    np.testing.assert_allclose(*forecasts, rtol=1e-3)


def test_dtw_is_that_of_a_cpu(device: str) -> None:
    days = np.random.default_rng(0).random((40, 48)).cumsum(axis=1)
    there = torch.device(device)
    np.testing.assert_allclose(dtw_matrix(days, device=there), dtw_matrix(days), rtol=1e-5)
    found, expected = (nearest_sensors(days, 5, device=place).nearest for place in (there, torch.device("cpu")))
    np.testing.assert_array_equal(found.sensors, expected.sensors)
