"""DTG-LKNet with additions beyond the paper, each a switch: what real data asked for (results/accuracy.md).

series (B, N, L) -> patches -> large kernels -> encoder -> memory (B, N, M, C), as in the paper
memory, last hour, what is usual, who and when -> one token a sensor (B, N, D) -> perceptrons -> forecast (B, N, P)
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.dtg_lknet import DTGLKNetEncoder
from model.perceptron import ResidualPerceptron
from model.sensor_time import SensorTimeWaves


def neighbour_weights(allowed: Tensor) -> Tensor:
    """Return the weights (N, N) of the mean over the other sensors that a mask (N, N) allows; 0 if none is."""
    others = allowed.float().fill_diagonal_(0)
    return others / others.sum(dim=1, keepdim=True).clamp_min(1)


class HorizonDecoder(nn.Module):
    """Forecast the whole horizon at once, from one token a sensor, as a deviation from what is usual.

    With no forecast of its own among its inputs it cannot drift, and training through teacher forcing and through the
    rollout are the same.

    Args:
        similarity_mask, topology_mask: (N, N), true where sensors are similar, and near each other.
        horizon: P, the number of steps to forecast.
        steps_per_day: time steps of a day.
        width: D, of a token.
        memory_channels: width of a sensor's whole memory, M * C; 0 for a decoder without an encoder.
        dropout: rate within a perceptron.
        deviation, identity, graph_means: the additions, see `EnhancedDTGLKNet`.
        perceptrons: how many.
    """

    neighbour_weights: Tensor

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        *,
        horizon: int,
        steps_per_day: int,
        width: int,
        memory_channels: int,
        dropout: float,
        deviation: bool,
        identity: bool,
        graph_means: bool,
        perceptrons: int = 3,
    ) -> None:
        super().__init__()
        self.hour = steps_per_day // 24
        self.deviation = deviation
        values = self.hour * (2 if deviation else 1) + (horizon if deviation else 0)
        self.value_embedding = nn.Linear(values, width)
        self.memory_embedding = nn.Linear(memory_channels, width) if memory_channels else None
        self.identity = SensorTimeWaves(len(similarity_mask), steps_per_day, width) if identity else None
        self.mean_embedding = nn.Linear(3 * self.hour, width) if graph_means else None
        # Not kept in checkpoints: they follow from the masks, which are.
        self.register_buffer("neighbour_weights", None, persistent=False)
        self.arrange(similarity_mask, topology_mask)
        self.perceptrons = nn.Sequential(*(ResidualPerceptron(width, dropout) for _ in range(perceptrons)))
        self.prediction = nn.Linear(width, horizon)
        # So that training starts from what is usual.
        nn.init.zeros_(self.prediction.weight)
        nn.init.zeros_(self.prediction.bias)

    def arrange(self, similarity_mask: Tensor, topology_mask: Tensor) -> None:
        """Take in the masks (N, N): a sensor's mean is over all sensors, over similar ones, and over near ones."""
        masks = (torch.ones_like(similarity_mask), similarity_mask, topology_mask)
        self.neighbour_weights = torch.stack([neighbour_weights(mask) for mask in masks])  # (3, N, N)

    def forward(self, series: Tensor, memory: Tensor | None, step_of_week: Tensor, usual: Tensor | None) -> Tensor:
        """Forecast (B, N, P) from the series (B, N, L), its memory (B, N, M, C), the time (B,) and the usual values.

        `usual` (B, N, h + P) are those of the last hour and of the horizon.
        """
        hour = series[:, :, -self.hour :]  # (B, N, h)
        if self.deviation:
            assert usual is not None
            usual_hour, base = usual.split([self.hour, usual.shape[-1] - self.hour], dim=-1)  # (B, N, h), (B, N, P)
            change = hour - usual_hour
            values = torch.cat([hour, change, base], dim=-1)
        else:
            base = hour[:, :, -1:]  # (B, N, 1)
            change = hour - base
            values = hour
        token = self.value_embedding(values)  # (B, N, D)
        if self.memory_embedding is not None:
            assert memory is not None
            token = token + self.memory_embedding(memory.flatten(2))
        if self.identity is not None:
            token = token + self.identity(step_of_week)
        if self.mean_embedding is not None:
            means = self.neighbour_weights @ change.unsqueeze(1)  # (B, 3, N, h)
            token = token + self.mean_embedding(means.transpose(1, 2).flatten(2))
        forecast: Tensor = base + self.prediction(self.perceptrons(token))  # (B, N, P)
        return forecast


class EnhancedDTGLKNet(DTGLKNetEncoder):
    """The encoder of DTG-LKNet under a decoder that forecasts the whole horizon at once.

    Args:
        horizon: P, the number of steps to forecast.
        steps_per_day: time steps of a day.
        deviation: the forecast is a deviation from what is usual at each step, and the decoder sees by how much the
            last hour deviated; off: it is a change of the last value.
        identity: embeddings of sensor, time of day and day of the week, before the large kernels and in the decoder.
        graph_means: the decoder also sees the mean last hour of all other sensors, of similar ones and of near ones.
        time_gate: is of the paper's decoder, not used.
        others: the arguments of the encoder.
    """

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        horizon: int,
        steps_per_day: int,
        input_steps: int,
        patch_len: int,
        channels: int = 64,
        dropout: float = 0.0,
        deviation: bool = True,
        identity: bool = True,
        graph_means: bool = True,
        time_gate: bool = True,
        **others: Any,
    ) -> None:
        del time_gate
        super().__init__(
            similarity_mask,
            topology_mask,
            laplacian_encoding,
            input_steps=input_steps,
            patch_len=patch_len,
            channels=channels,
            dropout=dropout,
            **others,
        )
        self.reset_parameters()
        self.encoder_identity = SensorTimeWaves(len(similarity_mask), steps_per_day, channels) if identity else None
        self.decoder = HorizonDecoder(
            similarity_mask,
            topology_mask,
            horizon=horizon,
            steps_per_day=steps_per_day,
            width=4 * channels,
            memory_channels=input_steps // patch_len * channels,
            dropout=dropout,
            deviation=deviation,
            identity=identity,
            graph_means=graph_means,
        )

    def arrange_graphs(self) -> None:
        """Arrange what follows from the masks anew, after they were replaced."""
        super().arrange_graphs()
        self.decoder.arrange(self.similarity_mask, self.topology_mask)

    def embed_series(self, series: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Return the encoder's input tokens (B, N, M, C), which know their sensor and the time of the forecast."""
        context = None
        if self.encoder_identity is not None:
            assert step_of_week is not None
            context = self.encoder_identity(step_of_week).unsqueeze(2)  # (B, N, 1, C)
        return self.encoder_embedding(self.front_end(series, context), self.laplacian_encoding)

    def forward(self, series: Tensor, values: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast as `rollout` does, from the first of the values (B, N, P) alone."""
        return self.rollout(series, values[:, :, 0], step_of_week, usual)

    def rollout(self, series: Tensor, start: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast (B, N, P) all steps at once from the series (B, N, L), whose last value the start value is."""
        del start
        return self.decoder(series, self.encode(series, step_of_week), step_of_week, usual)


class DeviationPerceptron(nn.Module):
    """The decoder of `EnhancedDTGLKNet` alone, without large kernels and encoder: small and fast.

    Args:
        similarity_mask, topology_mask: (N, N), as in the other variants.
        laplacian_encoding: is kept for those who look at checkpoints, not used.
        horizon, steps_per_day, channels, dropout, deviation, identity, graph_means: as in `EnhancedDTGLKNet`.
    """

    similarity_mask: Tensor
    topology_mask: Tensor

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        horizon: int,
        steps_per_day: int,
        channels: int = 32,
        dropout: float = 0.15,
        deviation: bool = True,
        identity: bool = True,
        graph_means: bool = True,
        **_: Any,
    ) -> None:
        super().__init__()
        self.register_buffer("similarity_mask", similarity_mask)
        self.register_buffer("topology_mask", topology_mask)
        self.register_buffer("laplacian_encoding", laplacian_encoding)
        self.decoder = HorizonDecoder(
            similarity_mask,
            topology_mask,
            horizon=horizon,
            steps_per_day=steps_per_day,
            width=4 * channels,
            memory_channels=0,
            dropout=dropout,
            deviation=deviation,
            identity=identity,
            graph_means=graph_means,
        )
        self.register_load_state_dict_post_hook(
            lambda module, _keys: module.decoder.arrange(module.similarity_mask, module.topology_mask)
        )

    def forward(self, series: Tensor, values: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast (B, N, P) from the series (B, N, L), the time of the first step to forecast (B,), and the usual."""
        del values
        return self.decoder(series, None, step_of_week, usual)

    def rollout(self, series: Tensor, start: Tensor, step_of_week: Tensor, usual: Tensor | None = None) -> Tensor:
        """Forecast as `forward` does: there is nothing to roll out."""
        return self.forward(series, start, step_of_week, usual)
