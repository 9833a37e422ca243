"""What went wrong in a batch: the largest activation of every module."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from lib.data.windows import Batch

SHOWN = 5


@torch.no_grad()
def largest_activations(model: nn.Module, batch: Batch) -> list[tuple[str, float]]:
    """Return the modules whose outputs are largest in magnitude on a batch, NaN first, with that magnitude."""
    found: dict[str, float] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.numel():
            found[name] = float(np.maximum(output.abs().max().item(), found.get(name, 0.0)))  # NaN where one is

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in model.named_modules()
        if name and not any(module.children())
    ]
    try:
        model(batch.with_teacher)
    finally:
        for handle in handles:
            handle.remove()
    return largest_first(found.items())


def largest_first(activations: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the few largest of named magnitudes, NaN first."""
    ranked = sorted(activations, key=lambda item: math.inf if math.isnan(item[1]) else item[1], reverse=True)
    return ranked[:SHOWN]
