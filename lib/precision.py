"""Precision, compilation and gradient checkpointing of any network."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lib.config import RuntimeConfig
from lib.errors import InputError

Forward = Callable[..., Tensor]


def resolved(runtime: RuntimeConfig, device: torch.device) -> RuntimeConfig:
    """Return [Runtime] with what `auto` stands for on a device, of precision and compilation.

    On CUDA products are in TF32. It was measured faster than float32, and changes the errors of trained networks by no
    more than chance does. BF16 keeps the accuracy too, but it was hardly faster, and slower in forecasts. Nothing is
    compiled by itself: that takes minutes, and pays in long trainings alone. configurations/README.md has the numbers.
    """
    if runtime.precision == "auto":
        runtime = replace(runtime, precision="tf32" if device.type == "cuda" else "float32")
    return replace(runtime, compile="on" if runtime.compile == "on" else "off")


def accelerate(model: nn.Module, runtime: RuntimeConfig, device: torch.device) -> None:
    """Make a network's forward pass compute as [Runtime] says; weights and their names stay as they are.

    Forecasts come out in float32 in any precision. With `gradient_checkpointing` the modules in the model's list
    `recomputable`, if it has one, keep no inner values for the backward pass.

    Raises:
        InputError: the device or the machine does not support it.
    """
    runtime = resolved(runtime, device)
    if runtime.precision == "tf32" and device.type != "cuda":
        raise InputError(
            f"[Runtime] precision: found tf32 on {device.type}, expected float32 or bf16, or device = cuda"
        )
    torch.set_float32_matmul_precision("high" if runtime.precision == "tf32" else "highest")
    if runtime.compile == "on" and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError("[Runtime] compile: found on, expected off on a machine without a C++ compiler")
    if runtime.gradient_checkpointing:
        recompute_in_backward(getattr(model, "recomputable", ()))
    function: Forward = model.forward
    if runtime.compile == "on":
        function = torch.compile(function)
    model.forward = in_precision(function, runtime, device)


def in_precision(function: Forward, runtime: RuntimeConfig, device: torch.device) -> Forward:
    """Return a function of a network that computes in the precision of [Runtime] and returns float32."""
    return partial(_in_bfloat16, function, device.type) if runtime.precision == "bf16" else function


def _in_bfloat16(function: Forward, device_type: str, *inputs: Any) -> Tensor:
    with torch.autocast(device_type, dtype=torch.bfloat16):
        return function(*inputs).float()


def recompute_in_backward(modules: Iterable[nn.Module]) -> None:
    """Make the forward passes of modules keep their inputs and outputs only: less memory for a second forward pass.

    Outputs, gradients and BatchNorm statistics stay the same.
    """
    for module in modules:
        module.forward = partial(_checkpointed, module, module.forward)


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _statistics_kept(module)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch as in training, but not count the batch a second time."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None  # weight of this batch in the running statistics, count
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
