"""A linear autoregression on the topology graph, iterated over the horizon."""

import torch
from torch import Tensor, nn

from lib.interface import Neighbours
from model.sparse_product import SparseProduct


class GraphAutoregression(nn.Module):
    """Forecast x[t] = sum over l of A[l] x[t-1-l], step by step, as in a network autoregression.

    The coefficients are fitted before training (`lib.data.autoregression`) and are not trained.

    Args:
        neighbours: the sensors that each follows, E in all.
        coefficients: A, (lags, E).
        horizon: P.
    """

    def __init__(self, neighbours: Neighbours, coefficients: Tensor, horizon: int) -> None:
        super().__init__()
        self.horizon, self.sensors, self.lags = horizon, len(neighbours), len(coefficients)
        self.product = SparseProduct(neighbours, coefficients)

    def forward(self, values: Tensor) -> Tensor:
        """Forecast (B, N, P) from the last steps (B, N, at least lags), the latest one last."""
        state = values[:, :, -self.lags :].flip(2).permute(2, 1, 0).flatten(0, 1)  # (lags N, B), the latest step first
        steps = []
        for _ in range(self.horizon):
            steps.append(self.product(state))  # (N, B)
            state = torch.cat([steps[-1], state[: -self.sensors]])
        return torch.stack(steps).permute(2, 1, 0)  # (B, N, P)
