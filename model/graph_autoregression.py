"""A linear autoregression on the topology graph, iterated over the horizon."""

import torch
from torch import Tensor, nn


class GraphAutoregression(nn.Module):
    """Forecast x[t] = sum over l of x[t-1-l] A[l], step by step, as in a network autoregression.

    The coefficients are fitted before training (`lib.data.autoregression`) and are not trained.

    Args:
        coefficients: A, (lags, N, N).
        horizon: P.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Tensor, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Forecast (B, N, P) from the last steps (B, N, at least lags), the latest one last."""
        lags, sensors, _ = self.coefficients.shape
        matrix = self.coefficients.flatten(0, 1)  # (lags N, N)
        state = values[:, :, -lags:].flip(2).transpose(1, 2).flatten(1)  # (B, lags N), the latest step first
        steps = []
        for _ in range(self.horizon):
            steps.append(state @ matrix)  # (B, N)
            state = torch.cat([steps[-1], state[:, :-sensors]], dim=1)
        return torch.stack(steps, dim=2)  # (B, N, P)
