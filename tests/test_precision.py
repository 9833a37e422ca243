"""Other ways to compute the same: each against the plain one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.config import RuntimeConfig
from lib.data.preparing import prepared_for
from lib.data.windowing import Calendar
from lib.data.windows import Batch, Windows
from lib.errors import InputError
from lib.interface import Inputs, Sizes
from lib.losses import mean_loss
from lib.precision import accelerate, resolved
from lib.runs import start_run
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, dense_graphs, load, make_network, tiny_series

CPU = torch.device("cpu")
SIZES = Sizes(steps_per_hour=4, weeks=0, days=0, hours=6, horizon=4, channels=8, layers=2, heads=2)


def make_model(**runtime: object) -> nn.Module:
    """Return a model in training mode, always with the same weights, that computes as [Runtime] says."""
    torch.manual_seed(0)
    near = torch.eye(5, dtype=torch.bool) | torch.eye(5, dtype=torch.bool).roll(1, 0)
    model = make_network("paper", dense_graphs(near, near, torch.randn(5, 3)), SIZES, large_kernels=(5, 7)).train()
    accelerate(model, RuntimeConfig(**runtime), CPU)
    return model


def make_inputs(through_rollout: bool) -> Inputs:
    torch.manual_seed(1)
    series, values = torch.randn(3, 5, 24), torch.randn(3, 5, 4)
    return Inputs(
        series, values[:, :, 0], torch.zeros(3, dtype=torch.long), teacher=None if through_rollout else values
    )


def trained_once(model: nn.Module, through_rollout: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a forecast, with all gradients and all buffers after its backward pass."""
    forecast = model(make_inputs(through_rollout))
    forecast.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return forecast.detach(), {**gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("through_rollout", [False, True])
def test_gradient_checkpointing_changes_nothing(through_rollout: bool) -> None:
    forecast, state = trained_once(make_model(), through_rollout)
    again, recomputed = trained_once(make_model(gradient_checkpointing=True), through_rollout)
    assert torch.equal(forecast, again)
    assert state.keys() == recomputed.keys()
    for name, tensor in state.items():  # BatchNorm's running statistics are among them, counted once
        assert tensor is None or torch.equal(tensor, recomputed[name]), name


def test_gradient_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for on in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            make_model(gradient_checkpointing=on)(make_inputs(through_rollout=False))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@torch.no_grad()
def test_bf16_is_float32_but_for_rounding() -> None:
    plain, half = make_model().eval(), make_model(precision="bf16").eval()
    for through_rollout in (False, True):
        inputs = make_inputs(through_rollout)
        expected, found = plain(inputs), half(inputs)
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    assert plain.state_dict().keys() == half.state_dict().keys()
    assert all(tensor.dtype == plain.state_dict()[name].dtype for name, tensor in half.state_dict().items())


@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("mps", "float32"), ("cuda", "tf32")])
def test_auto_is_chosen_by_the_device_and_what_was_asked_for_stays(device: str, precision: str) -> None:
    chosen = resolved(RuntimeConfig(), torch.device(device))
    assert (chosen.precision, chosen.compile) == (precision, "off")
    asked = RuntimeConfig(precision="bf16", compile="on")
    assert resolved(asked, torch.device(device)) == asked


def test_what_cannot_be_computed_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\[Runtime\] precision: found tf32 on cpu"):
        make_model(precision="tf32")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(InputError, match=r"\[Runtime\] compile: found on, expected off"):
        make_model(compile="on")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@torch.no_grad()
def test_compiled_forecasts_are_the_same() -> None:
    plain, compiled = make_model().eval(), make_model(compile="on").eval()
    for through_rollout in (False, True):
        inputs = make_inputs(through_rollout)
        torch.testing.assert_close(compiled(inputs), plain(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(
    variant: str, stage: int, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    """With targets that are missing unevenly; BatchNorm counts the whole batch, once."""
    data = tiny_series()
    data[np.random.default_rng(0).random(data.shape) < 0.2] = np.nan
    path = make_dataset(data)
    steps = []
    for at_once in (0, 3):
        changes = [f"Model.variant={variant}", "Data.missing=interpolate", "Training.batch_size=8"]
        config = load(path, [*changes, f"Runtime.micro_batch={at_once}"])
        trainer = start_run(config, tmp_path / "out", f"run{at_once}").trainer
        batch = next(trainer.windows.batches(trainer.label_starts["train"], 8))
        assert trainer.micro_batch == (at_once or 8)
        trainer.model.train()
        loss = trainer._step(trainer.stages[stage], batch)
        statistics = [buffer.clone() for name, buffer in trainer.model.named_buffers() if "running" in name]
        gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        steps.append((loss, [*gradients, *statistics]))
    (loss, gradients), (loss_in_parts, gradients_in_parts) = steps
    torch.testing.assert_close(loss_in_parts, loss)
    for whole, in_parts in zip(gradients, gradients_in_parts, strict=True):
        torch.testing.assert_close(in_parts, whole, atol=1e-6, rtol=1e-4)


def test_the_parts_of_a_batch_make_the_batch(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset())
    prepared = prepared_for(config)
    windows, on_host = (Windows(prepared, 3, Calendar(48), CPU, kept) for kept in ("device", "host"))
    whole = windows.batch(torch.from_numpy(prepared.label_starts["train"][:7]))
    parts = whole.split(3)
    assert [len(part) for part in parts] == [3, 3, 1]
    for field in ("series", "start", "step_of_week"):
        assert torch.equal(torch.cat([getattr(part.inputs, field) for part in parts]), getattr(whole.inputs, field))
    for field in ("target", "flow"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))
    moved: Batch = on_host.batch(torch.from_numpy(prepared.label_starts["train"][:7]))
    assert torch.equal(moved.inputs.series, whole.inputs.series)

    def loss_of(batch: Batch) -> Tensor:
        return mean_loss("mae", torch.zeros_like(batch.target), batch.target, batch.observed)

    total = sum(loss_of(part) * part.weight for part in parts) / whole.weight
    torch.testing.assert_close(total, loss_of(whole))
