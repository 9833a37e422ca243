"""DTG-LKNet with additions beyond the paper, each a switch: what real data asked for (results/accuracy.md)."""

from typing import Any

import torch
from torch import Tensor, nn

from model.dtg_lknet import DTGLKNet

DAYS_OF_WEEK = 7


class SensorTimeEmbedding(nn.Module):
    """Tell tokens which sensor they belong to, at which time of day and on which day of the week.

    STID (arXiv 2208.05233) learns a vector for each of the 288 steps of a day, of which a few weeks of training show
    each only a few times. Here the time of day is a linear map of its first harmonics: smooth, and learnt sooner.

    Args:
        sensors: N.
        steps_per_day: time steps of a day.
        channels: C.
        harmonics: of the day.
    """

    waves: Tensor

    def __init__(self, sensors: int, steps_per_day: int, channels: int, harmonics: int = 8) -> None:
        super().__init__()
        self.steps_per_day = steps_per_day
        angle = torch.arange(steps_per_day).unsqueeze(1) / steps_per_day * torch.arange(1, harmonics + 1) * 2 * torch.pi
        self.register_buffer("waves", torch.cat([angle.sin(), angle.cos()], dim=1), persistent=False)
        self.time_of_day = nn.Linear(2 * harmonics, channels)
        self.sensor = nn.Parameter(torch.empty(sensors, 1, channels))
        self.day_of_week = nn.Parameter(torch.empty(DAYS_OF_WEEK, channels))
        # Small, so that at the start the values speak louder.
        nn.init.normal_(self.sensor, std=0.1)
        nn.init.normal_(self.day_of_week, std=0.1)

    def forward(self, step_of_week: Tensor) -> Tensor:
        """Return the embeddings (B, N, T, C) of all sensors at steps of the week (B, T), or up to a day beyond it."""
        time = self.time_of_day(self.waves[step_of_week % self.steps_per_day])  # (B, T, C)
        day = self.day_of_week[step_of_week // self.steps_per_day % DAYS_OF_WEEK]
        return self.sensor + (time + day).unsqueeze(1)


class EnhancedDTGLKNet(DTGLKNet):
    """DTG-LKNet that decodes the whole horizon at once and knows sensor and time.

    Its decoder is fed the start value at every step: with no forecast of its own among its inputs, it cannot drift, and
    training through teacher forcing and through the rollout are the same.

    Args:
        steps_per_day: time steps of a day.
        identity: embeddings of sensor, time of day and day of the week, before the large kernels and in the decoder.
        readout: each step of the forecast also reads all tokens of the memory, by a linear map.
        residual: the forecast is a change of the start value.
    """

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        steps_per_day: int,
        identity: bool = True,
        readout: bool = True,
        residual: bool = True,
        **sizes: Any,
    ) -> None:
        super().__init__(similarity_mask, topology_mask, laplacian_encoding, **sizes)
        self.residual = residual
        sensors, channels, horizon = len(similarity_mask), sizes["channels"], sizes["horizon"]
        self.encoder_identity = SensorTimeEmbedding(sensors, steps_per_day, channels) if identity else None
        self.decoder_identity = SensorTimeEmbedding(sensors, steps_per_day, channels) if identity else None
        tokens = sizes["input_steps"] // sizes["patch_len"]
        self.readout = nn.Linear(tokens * channels, horizon) if readout else None
        if self.readout is not None:
            nn.init.zeros_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)

    def embed_series(self, series: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Return the encoder's input tokens (B, N, M, C), which know their sensor and the time of the forecast."""
        context = None
        if self.encoder_identity is not None:
            assert step_of_week is not None
            context = self.encoder_identity(step_of_week[:, None])  # (B, N, 1, C)
        return self.encoder_embedding(self.front_end(series, context), self.laplacian_encoding)

    def forward(self, series: Tensor, values: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Forecast from the first of the values (B, N, P) alone, as `rollout` does."""
        return self.rollout(series, values[:, :, 0], step_of_week)

    def rollout(self, series: Tensor, start: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Forecast (B, N, P) all steps at once from the series (B, N, L) and a start value (B, N)."""
        memory = self.encode(series, step_of_week)  # (B, N, M, C)
        x = self.embed_values(start.unsqueeze(-1).expand(-1, -1, self.horizon))  # (B, N, P, C)
        if self.decoder_identity is not None:
            assert step_of_week is not None
            ahead = torch.arange(self.horizon, device=step_of_week.device)
            x = x + self.decoder_identity(step_of_week[:, None] + ahead)
        for layer, reading in zip(self.decoder, self.read(memory), strict=True):
            x = layer(x, reading, self.topology_graph)
        forecast = self.prediction(self.decoder_norm(x)).squeeze(-1)
        if self.readout is not None:
            forecast = forecast + self.readout(memory.flatten(2))
        return forecast + start.unsqueeze(-1) if self.residual else forecast
