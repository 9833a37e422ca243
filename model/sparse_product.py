"""The product with a constant matrix of which few entries are not 0: what a sensor takes from its neighbours."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.interface import Neighbours

DENSE_ROWS = 1000  # up to so many a dense product takes milliseconds
DENSE_SHARE = 0.25  # of entries that are not 0, from which on a dense product is faster at any size


class SparseProduct(nn.Module):
    """y = sum over k of W_k x_k, each W_k (N, N) given by its entries; it is no part of a network's weights.

    Args:
        neighbours: where the entries are, row by row, the same for all W_k.
        values: (K, E), the entries.
    """

    matrix: Tensor | None
    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, neighbours: Neighbours, values: Tensor) -> None:
        super().__init__()
        rows, count = len(neighbours), len(values)
        if rows <= DENSE_ROWS or neighbours.density > DENSE_SHARE:
            matrix = neighbours.dense(values).transpose(0, 1).flatten(1).contiguous()  # (N, K N)
            self.register_buffer("matrix", matrix, persistent=False)
            return
        self.matrix = None
        # Row by row the entries of all W_k side by side, as the rows of one matrix (N, K N).
        order = torch.argsort(neighbours.rows.repeat(count), stable=True)
        columns = (neighbours.sensors + rows * torch.arange(count).unsqueeze(1)).flatten()
        self.register_buffer("starts", neighbours.starts[:-1] * count, persistent=False)
        self.register_buffer("columns", columns[order], persistent=False)
        self.register_buffer("values", values.flatten()[order], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (K N, F), one x_k below the other, to y (N, F)."""
        if self.matrix is not None:
            return self.matrix @ x
        return F.embedding_bag(self.columns, x, self.starts, mode="sum", per_sample_weights=self.values.to(x.dtype))
