"""Means over other sensors: all of them, those that behave alike, and those near on the road."""

import torch
from torch import Tensor, nn

from lib.interface import Graphs, Neighbours
from model.sparse_product import DENSE_ROWS, SparseProduct

KINDS = 3  # of means


class MeanOfNeighbours(nn.Module):
    """The mean over the other sensors that a graph allows; 0 if none is."""

    def __init__(self, allowed: Neighbours) -> None:
        super().__init__()
        others = (allowed.sensors != allowed.rows).float()  # (E,)
        count = others.new_zeros(len(allowed)).index_add_(0, allowed.rows, others).clamp_min(1)
        self.product = SparseProduct(allowed, (others / count[allowed.rows]).unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map values (N, F) to means (N, F)."""
        return self.product(x)


class MeanOfAll(nn.Module):
    """The mean over all other sensors, which needs no matrix: the sum less one's own."""

    def forward(self, x: Tensor) -> Tensor:
        """Map values (N, F) to means (N, F)."""
        return (x.sum(dim=0, keepdim=True) - x) / max(1, len(x) - 1)


class NeighbourMeans(nn.Module):
    """The three means, side by side."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__()
        sensors = len(graphs.topology)
        # A matrix where it is small: results of small networks were published with the rounding of its product.
        everything = (
            MeanOfAll() if sensors > DENSE_ROWS else MeanOfNeighbours(Neighbours.of(torch.ones(sensors, sensors)))
        )
        self.means = nn.ModuleList([everything, *map(MeanOfNeighbours, (graphs.similarity, graphs.topology))])

    def forward(self, x: Tensor) -> Tensor:
        """Map values (B, N, F) to means (B, N, 3, F)."""
        table = x.transpose(0, 1).flatten(1)  # (N, B F), for one product of all samples
        means = torch.stack([mean(table) for mean in self.means], dim=1)  # (N, 3, B F)
        return means.unflatten(2, (len(x), x.shape[2])).permute(2, 0, 1, 3)
