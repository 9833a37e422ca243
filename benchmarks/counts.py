"""Calls of operators and bytes of a step, counted on PyTorch's device `meta`: exact, repeatable, and without a GPU."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from benchmarks.limits import Work, work
from benchmarks.workloads import Kind, loss_of, step
from lib.data.windows import Batch

META = torch.device("meta")  # tensors have shapes and no values
# What an H100 took at PEMS04's shape with this project's network of 2026-11-26 (commit 48e82c2, torch 2.11): kernels in
# PyTorch's profiler, and the traffic of the group `limits` at batch 4.
KERNELS_ON_H100: dict[Kind, int] = {"training step": 1542, "forecast": 2288}
TRAFFIC_ON_H100: dict[Kind, int] = {
    "training step": 15_689_605_608,
    "fine-tuning step": 17_842_316_932,
    "forecast": 6_452_861_336,
}


def work_by_part(kind: Kind, network: nn.Module, batch: Batch) -> dict[str, Work]:
    """Count one step by its parts: forward, backward and optimizer, or forward alone.

    Args:
        kind: of the step.
        network, batch: on the CPU, where the optimizer is counted as it runs on a GPU: fused, and the norm of all
            gradients from lists of tensors. The rest is counted on `meta`.
    """
    network, network_on_cpu, batch = deepcopy(network).to(META), network, batch.to(META)
    if kind == "forecast":
        return {"forward": work(step(kind, network, batch))}
    network.train()
    losses: list[Tensor] = []
    return {
        "forward": work(lambda: losses.append(loss_of(kind, network, batch))),
        "backward": work(lambda: losses[0].backward()),
        "optimizer": work_of_optimizer(network_on_cpu),
    }


def work_of_optimizer(network: nn.Module) -> Work:
    """Count one step of the optimizer, after a first one that makes its state."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0, fused=True)
    optimizer.step()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, torch.inf, foreach=True)
        optimizer.step()

    return work(update)
