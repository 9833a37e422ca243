"""DTG-LKNet with additions beyond the paper, each a switch: what real data asked for (results/accuracy.md).

series (B, N, L) -> patches -> large kernels -> encoder -> memory (B, N, M, C), as in the paper
last hour less what is usual -> linear autoregression on the topology graph -> what is to be corrected (B, N, P)
memory, last hour, the hour to forecast on past days, what is usual, who and when -> one token a sensor (B, N, D)
token -> perceptrons -> forecast (B, N, P)
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.dtg_lknet import DTGLKNetEncoder
from model.graph_autoregression import GraphAutoregression
from model.perceptron import ResidualPerceptron
from model.sensor_time import SensorTimeWaves

GRAPHS = 3  # all sensors, the similar ones, the near ones


def neighbour_weights(allowed: Tensor) -> Tensor:
    """Return the weights (N, N) of the mean over the other sensors that a mask (N, N) allows; 0 if none is."""
    others = allowed.float().fill_diagonal_(0)
    return others / others.sum(dim=1, keepdim=True).clamp_min(1)


class SensorPerceptron(nn.Module):
    """From a few values of each sensor, and who and when it is, to P numbers, by residual perceptrons.

    Args:
        sensors: N.
        steps_per_day: time steps of a day.
        values: how many of a sensor are read.
        width: D, of a sensor's token.
        horizon: P.
        layers: perceptrons.
        dropout: rate within a perceptron.
        identity: embeddings of sensor, time of day and day of the week.
        harmonics: of the day, by which the time of day is known.
    """

    def __init__(
        self,
        sensors: int,
        steps_per_day: int,
        *,
        values: int,
        width: int,
        horizon: int,
        layers: int,
        dropout: float,
        identity: bool,
        harmonics: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(values, width)
        self.identity = SensorTimeWaves(sensors, steps_per_day, width, harmonics) if identity else None
        self.perceptrons = nn.Sequential(*(ResidualPerceptron(width, dropout) for _ in range(layers)))
        self.prediction = nn.Linear(width, horizon)
        # So that training starts from what the numbers are added to.
        nn.init.zeros_(self.prediction.weight)
        nn.init.zeros_(self.prediction.bias)

    def forward(self, values: Tensor, step_of_week: Tensor) -> Tensor:
        """Map values (B, N, any) at a step of the week (B,) to numbers (B, N, P)."""
        token = self.embedding(values)  # (B, N, D)
        if self.identity is not None:
            token = token + self.identity(step_of_week)
        numbers: Tensor = self.prediction(self.perceptrons(token))  # (B, N, P)
        return numbers


class HorizonDecoder(nn.Module):
    """Forecast the whole horizon at once, in two ways: as a deviation from what is usual, and as a level.

    The perceptrons are fed no forecast of their own: they cannot drift, and training through teacher forcing and
    through the rollout are the same. The two ways err differently, and the forecast is their mean. In training each is
    returned for itself, to have a loss of its own, so that it learns to forecast alone and not to mend the other.

    Args:
        similarity_mask, topology_mask: (N, N), true where sensors are similar, and near each other.
        horizon: P, the number of steps to forecast.
        steps_per_day: time steps of a day.
        width: D, of a sensor's token.
        memory_channels: width of a sensor's whole memory, M * C; 0 for a decoder without an encoder.
        dropout: rate within a perceptron.
        deviation, autoregression_lags, level, identity, harmonics, graph_means, past_days: the additions, see
            `EnhancedDTGLKNet`.
        layers: perceptrons of each way.
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
        autoregression_lags: int,
        level: bool,
        identity: bool,
        harmonics: int,
        graph_means: bool,
        past_days: int,
        layers: int = 3,
    ) -> None:
        super().__init__()
        sensors, self.hour = len(similarity_mask), steps_per_day // 24
        self.deviation, self.graph_means = deviation, graph_means
        self.past_days, self.same_steps = past_days, min(self.hour, horizon)
        self.autoregression = (
            GraphAutoregression(sensors, autoregression_lags, horizon) if deviation and autoregression_lags else None
        )
        own = (2 * self.hour + horizon if deviation else self.hour) + past_days * self.same_steps
        expected = 0 if self.autoregression is None else horizon
        means = GRAPHS * self.hour if graph_means else 0
        sizes: dict[str, Any] = {
            "width": width,
            "horizon": horizon,
            "layers": layers,
            "dropout": dropout,
            "identity": identity,
            "harmonics": harmonics,
        }
        self.change = SensorPerceptron(sensors, steps_per_day, values=own + expected + means + memory_channels, **sizes)
        self.level = SensorPerceptron(sensors, steps_per_day, values=self.hour, **sizes) if level else None
        # Not kept in checkpoints: they follow from the masks, which are.
        self.register_buffer("neighbour_weights", None, persistent=False)
        self.arrange(similarity_mask, topology_mask)

    def arrange(self, similarity_mask: Tensor, topology_mask: Tensor) -> None:
        """Take in the masks (N, N): a sensor's means are over all sensors, over similar ones, and over near ones."""
        if not self.graph_means:
            return
        masks = (torch.ones_like(similarity_mask), similarity_mask, topology_mask)
        self.neighbour_weights = torch.stack([neighbour_weights(mask) for mask in masks])  # (3, N, N)

    def forward(self, series: Tensor, memory: Tensor | None, step_of_week: Tensor, usual: Tensor | None) -> Tensor:
        """Forecast (B, N, P) from the series (B, N, L), its memory (B, N, M, C), the time (B,) and the usual values.

        `usual` (B, N, h + P) are those of the last hour and of the horizon. In training the forecasts of both ways are
        returned, (2, B, N, P).
        """
        deviation = self.by_deviation(series, memory, step_of_week, usual)  # (B, N, P)
        if self.level is None:
            return deviation
        ways = torch.stack([self.by_level(series, step_of_week), deviation])  # (2, B, N, P)
        return ways if self.training else ways.mean(dim=0)

    def by_level(self, series: Tensor, step_of_week: Tensor) -> Tensor:
        """Forecast (B, N, P) from each sensor's last hour."""
        assert self.level is not None
        level: Tensor = self.level(series[:, :, -self.hour :], step_of_week)
        return level

    def by_deviation(self, series: Tensor, memory: Tensor | None, step_of_week: Tensor, usual: Tensor | None) -> Tensor:
        """Forecast (B, N, P) as a base and what it misses: what is usual, and how that deviates; or the last value."""
        hour = series[:, :, -self.hour :]  # (B, N, h)
        values = [hour]
        if self.deviation:
            assert usual is not None
            usual_hour, base = usual.split([self.hour, usual.shape[-1] - self.hour], dim=-1)  # (B, N, h), (B, N, P)
            change = hour - usual_hour
            values += [change, base]
        else:
            base = hour[:, :, -1:]  # (B, N, 1)
            change = hour - base
        if self.past_days:
            hours = series[:, :, : self.past_days * self.hour].unflatten(2, (self.past_days, self.hour))
            past = hours[..., : self.same_steps] - base[:, :, None, : self.same_steps]  # (B, N, days, h or P)
            values.append(past.flatten(2))
        if self.autoregression is not None:
            expected = self.autoregression(change)  # (B, N, P)
            values.append(expected)
            base = base + expected
        if self.graph_means:
            means = self.neighbour_weights @ change.unsqueeze(1)  # (B, 3, N, h)
            values.append(means.transpose(1, 2).flatten(2))
        if memory is not None:
            values.append(memory.flatten(2))
        forecast: Tensor = base + self.change(torch.cat(values, dim=-1), step_of_week)  # (B, N, P)
        return forecast


class EnhancedDTGLKNet(DTGLKNetEncoder):
    """The encoder of DTG-LKNet under a decoder that forecasts the whole horizon at once.

    Args:
        horizon: P, the number of steps to forecast.
        steps_per_day: time steps of a day.
        deviation: the decoder forecasts the deviation from what is usual at each step, and sees by how much the last
            hour deviated; off: the change of the last value.
        autoregression_lags: from how many of the last steps of the sensors near each other a linear autoregression
            forecasts the deviation, which the network only corrects; 0: none. Nor is there one without the deviation.
        level: the other half of the forecast is of the level itself, from the last hour alone. In training both are
            returned, (2, B, N, P).
        identity: embeddings of sensor, time of day and day of the week, before the large kernels and in the decoder.
        harmonics: of the day, by which the time of day is known.
        graph_means: the decoder also sees the mean last hour of all other sensors, of similar ones and of near ones.
        past_days: how many of the hours that the input begins with, those of the forecast's first hour on earlier weeks
            and days, the decoder sees, each less its base.
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
        autoregression_lags: int = 0,
        level: bool = True,
        identity: bool = True,
        harmonics: int = 8,
        graph_means: bool = True,
        past_days: int = 0,
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
        self.encoder_identity = (
            SensorTimeWaves(len(similarity_mask), steps_per_day, channels, harmonics) if identity else None
        )
        self.decoder = HorizonDecoder(
            similarity_mask,
            topology_mask,
            horizon=horizon,
            steps_per_day=steps_per_day,
            width=4 * channels,
            memory_channels=input_steps // patch_len * channels,
            dropout=dropout,
            deviation=deviation,
            autoregression_lags=autoregression_lags,
            level=level,
            identity=identity,
            harmonics=harmonics,
            graph_means=graph_means,
            past_days=past_days,
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
        horizon, steps_per_day, channels, dropout: as in `EnhancedDTGLKNet`.
        deviation, autoregression_lags, level, identity, harmonics, graph_means, past_days: as in `EnhancedDTGLKNet`.
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
        autoregression_lags: int = 0,
        level: bool = True,
        identity: bool = True,
        harmonics: int = 8,
        graph_means: bool = True,
        past_days: int = 0,
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
            autoregression_lags=autoregression_lags,
            level=level,
            identity=identity,
            harmonics=harmonics,
            graph_means=graph_means,
            past_days=past_days,
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
