"""A small multilayer perceptron that knows sensor and time, the opponent that a large model has to beat."""

from typing import Any

import torch
from torch import Tensor, nn

from model.perceptron import ResidualPerceptron
from model.sensor_time import SensorTimeTable


class STID(nn.Module):
    """Each sensor's last steps beside embeddings of sensor, time of day and day of the week, through perceptrons.

    After Shao et al., "Spatial-temporal identity" (CIKM 2022, arXiv 2208.05233): no sensor sees another. The two
    embeddings of time are one sum here, of the width of both.

    Args:
        similarity_mask, topology_mask, laplacian_encoding: are kept for those who look at checkpoints, not used.
        steps_per_day: time steps of a day.
        history_steps: how many of the last input steps are read.
        horizon: P, the number of steps to forecast.
        channels: C, the width of the embedding of the history; the perceptrons have 4 C.
        layers: perceptrons.
        dropout: rate within a perceptron.
    """

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        steps_per_day: int,
        history_steps: int,
        horizon: int,
        channels: int = 32,
        layers: int = 3,
        dropout: float = 0.15,
        **_: Any,
    ) -> None:
        super().__init__()
        for name, graph in (
            ("similarity_mask", similarity_mask),
            ("topology_mask", topology_mask),
            ("laplacian_encoding", laplacian_encoding),
        ):
            self.register_buffer(name, graph)
        self.history_steps = history_steps
        self.history = nn.Linear(history_steps, channels)
        self.identity = SensorTimeTable(len(similarity_mask), steps_per_day, 3 * channels)
        self.perceptrons = nn.Sequential(*(ResidualPerceptron(4 * channels, dropout) for _ in range(layers)))
        self.prediction = nn.Linear(4 * channels, horizon)

    def forward(self, series: Tensor, values: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast (B, N, P) from the series (B, N, L) and the time of the first step to forecast, (B,)."""
        del values, usual
        history = self.history(series[:, :, -self.history_steps :])  # (B, N, C)
        identity = self.identity(step_of_week)  # (B, N, 3C)
        forecast: Tensor = self.prediction(self.perceptrons(torch.cat([history, identity], dim=-1)))
        return forecast

    def rollout(self, series: Tensor, start: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast as `forward` does: there is nothing to roll out."""
        return self.forward(series, start, step_of_week, usual)
