"""Forecasting the residual, flow less historical profile: a small MLP, with or without the encoder of DTG-LKNet.

    last hour less its historical profile -> linear autoregression on the topology graph -> first forecast (B, N, P)
    last hour, past days, profile, autoregression, neighbour means, memory -> one token a sensor -> correction (B, N, P)

The memory (B, N, M, C) is that of the paper's encoder; `residual_mlp` has none. What each part is worth stands in
results/accuracy.md.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from lib.ini import Fraction, SmallCount, Switch
from lib.interface import Graphs, Inputs, Needs, Sizes, Variant
from model.embeddings import HarmonicEmbedding
from model.encoder import DTGLKNetEncoder, EncoderSettings
from model.graph_autoregression import GraphAutoregression
from model.mlp import ResidualMLPBlock
from model.neighbour_means import KINDS, NeighbourMeans

RESIDUAL_SIZE = 0.1  # of the scaled flow; inside of a head, residuals and outputs are divided by it: numbers near 1
LAYERS = 3  # residual MLP blocks of a head
LEAST_WEIGHT = 0.05  # of the measured sensors in a mean, so that a mean of hardly any does not explode
LONGEST_HOURS = 23  # a profile of the day before covers this much of the next day


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The parts of the decoder."""

    residual: Annotated[Switch, "forecast the residual, flow less historical profile; off: the change of the flow"] = (
        True
    )
    autoregression: Annotated[Switch, "correct a linear autoregression of the residual on the topology graph"] = True
    direct_head: Annotated[Switch, "a part of the forecast is of the flow itself, from the last hour alone"] = True
    direct_share: Annotated[Fraction, "the weight of that part; the weights of both parts have a sum of 1"] = 0.5
    identity: Annotated[Switch, "embeddings of sensor, time of day and day of the week"] = True
    harmonics: Annotated[SmallCount, "harmonics of the day that the embedding of its time has"] = 48
    graph_means: Annotated[Switch, "sensors see the mean of all, of similar and of near sensors"] = True
    past_days: Annotated[Switch, "sensors see the hour to forecast on the input's earlier days and weeks"] = True
    carry_profile: Annotated[Switch, "the profile goes on after the training rows, recent days weighing more"] = False
    copy_imputed: Annotated[Switch, "an imputed sensor that repeats last week is forecast by its values"] = True
    mute_imputed: Annotated[Switch, "imputed sensors have no voice in means and autoregression"] = True

    def faults(self, sizes: Sizes) -> dict[str, str]:
        """Return what is wrong with these settings, by key."""
        if not self.residual:
            return {}
        if not sizes.hours:
            return {"residual": "found on, expected num_of_hours of at least 1, or off"}
        longest = LONGEST_HOURS * sizes.steps_per_hour
        if sizes.horizon > longest:
            return {"residual": f"found on, expected num_for_predict of at most {longest} ({LONGEST_HOURS} h), or off"}
        return {}

    def needs(self) -> Needs:
        """Return what the decoder asks for; autoregression and profile are of the residual."""
        return Needs(
            calendar=True,
            profile=self.residual,
            carried_profile=self.residual and self.carry_profile,
            imputed=self.copy_imputed or self.mute_imputed,
            muted_imputed=self.mute_imputed,
            autoregression=self.residual and self.autoregression,
        )


@dataclass(frozen=True, kw_only=True)
class ResidualMLPSettings(DecoderSettings):
    """The parts of the residual MLP."""

    members: Annotated[SmallCount, "networks whose mean is the forecast, a deep ensemble"] = 1


@dataclass(frozen=True, kw_only=True)
class ResidualSettings(DecoderSettings, EncoderSettings):
    """The parts of the decoder and of the encoder."""

    def faults(self, sizes: Sizes) -> dict[str, str]:
        """Return what is wrong with these settings, by key."""
        if not sizes.hours:
            return {"variant": "found residual, expected num_of_hours of at least 1: its encoder reads them"}
        return {**EncoderSettings.faults(self, last_hours(sizes)), **DecoderSettings.faults(self, sizes)}


def last_hours(sizes: Sizes) -> Sizes:
    """Return the sizes of an input of the last hours alone."""
    return replace(sizes, weeks=0, days=0)


class SensorMLP(nn.Module):
    """From a few values of each sensor, and which sensor and time it is, to P numbers, by residual MLP blocks.

    The last layer gives them in units of `RESIDUAL_SIZE`, so that a step of the optimiser moves a forecast by little.

    Args:
        sensors: N.
        values: how many values of a sensor are read.
        sizes: of which the width of a token is four times `channels`.
        settings: says whether there are embeddings, and of how many harmonics.
    """

    def __init__(self, sensors: int, values: int, sizes: Sizes, settings: DecoderSettings) -> None:
        super().__init__()
        width = 4 * sizes.channels
        self.embedding = nn.Linear(values, width)
        self.identity = (
            HarmonicEmbedding(sensors, sizes.steps_per_day, width, settings.harmonics) if settings.identity else None
        )
        self.blocks = nn.Sequential(*(ResidualMLPBlock(width, sizes.dropout) for _ in range(LAYERS)))
        self.prediction = nn.Linear(width, sizes.horizon)
        # So that training starts from what the numbers are added to.
        nn.init.zeros_(self.prediction.weight)
        nn.init.zeros_(self.prediction.bias)

    def forward(self, values: Tensor, step_of_week: Tensor) -> Tensor:
        """Map values (B, N, any) at a step of the week (B,) to numbers (B, N, P)."""
        token = self.embedding(values)  # (B, N, D)
        if self.identity is not None:
            token = token + self.identity(step_of_week)
        return RESIDUAL_SIZE * self.prediction(self.blocks(token))  # (B, N, P)


class HorizonDecoder(nn.Module):
    """Forecast the whole horizon at once by two heads: the residual head, and the direct head, of the flow itself.

    Neither is fed a forecast of its own, so they cannot drift, and teacher forcing and the rollout are the same. The
    heads err differently, and the forecast is a weighted mean of both. In training both are returned, each with its own
    loss, so neither learns to compensate for the other.

    Args:
        graphs: of the sensors.
        sizes: of input and horizon.
        settings: which parts there are.
        memory_channels: width of a sensor's whole memory, M * C; 0 for a decoder without an encoder.
    """

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: DecoderSettings, memory_channels: int = 0) -> None:
        super().__init__()
        sensors, self.hour, self.horizon = len(graphs.topology), sizes.steps_per_hour, sizes.horizon
        horizon = self.horizon
        self.residual = settings.residual
        self.copy_imputed, self.mute_imputed = settings.copy_imputed, settings.mute_imputed
        self.past_days = sizes.weeks + sizes.days if settings.past_days else 0
        self.same_steps = min(self.hour, horizon)  # steps of a past day's hour at the times of steps to forecast
        self.autoregression = None
        if settings.needs().autoregression:
            if graphs.autoregression is None:
                raise ValueError("found graphs without coefficients, expected those of an autoregression")
            self.autoregression = GraphAutoregression(graphs.topology, graphs.autoregression, horizon)
        self.means = NeighbourMeans(graphs) if settings.graph_means else None

        flows = self.hour + (horizon if settings.residual else 0)
        residuals = self.hour + self.past_days * self.same_steps
        residuals += 0 if self.autoregression is None else horizon
        residuals += KINDS * self.hour if settings.graph_means else 0
        values = flows + residuals + memory_channels
        self.residual_head = SensorMLP(sensors, values, sizes, settings)
        self.direct_head = SensorMLP(sensors, self.hour, sizes, settings) if settings.direct_head else None
        self.direct_share = settings.direct_share

    def forward(self, inputs: Inputs, memory: Tensor | None = None) -> Tensor:
        """Forecast (B, N, P), perhaps with the memory (B, N, M, C) of the series; in training (2, B, N, P), by head."""
        forecast = self.by_residual(inputs, memory)  # (B, N, P)
        if self.direct_head is not None:
            direct = self.direct_head(inputs.series[:, :, -self.hour :], inputs.step_of_week)  # (B, N, P)
            if self.training:
                forecast = torch.stack([direct, forecast])  # (2, B, N, P)
            else:
                forecast = self.direct_share * direct + (1 - self.direct_share) * forecast  # (B, N, P)
        if self.copy_imputed and inputs.last_week is not None:
            assert inputs.imputed is not None
            forecast = torch.where(inputs.imputed.unsqueeze(-1), inputs.last_week, forecast)
        return forecast

    def by_residual(self, inputs: Inputs, memory: Tensor | None) -> Tensor:
        """Forecast (B, N, P) as a base and a correction; the base is the profile, or the last value without it."""
        hour = inputs.series[:, :, -self.hour :]  # (B, N, h)
        flows = [hour]
        if self.residual:
            assert inputs.profile is not None
            profile_hour, base = inputs.profile[:, :, -self.hour - self.horizon :].tensor_split([self.hour], dim=-1)
            residual = hour - profile_hour  # (B, N, h)
            flows.append(base)  # (B, N, P)
        else:
            base = hour[:, :, -1:]  # (B, N, 1)
            residual = hour - base
        residuals = [residual]
        if self.past_days:
            hours = inputs.series[:, :, : self.past_days * self.hour].unflatten(2, (self.past_days, self.hour))
            past = hours[..., : self.same_steps] - base[:, :, None, : self.same_steps]  # (B, N, days, min(h, P))
            residuals.append(past.flatten(2))
        # What other sensors hear of each, and how much of a voice it has.
        voice = (~inputs.imputed).to(hour) if self.mute_imputed and inputs.imputed is not None else None  # (B, N)
        heard = residual if voice is None else residual * voice.unsqueeze(-1)  # (B, N, h)
        if self.autoregression is not None:
            expected = self.autoregression(heard)  # (B, N, P)
            residuals.append(expected)
            base = base + expected
        if self.means is not None:
            means = self.means(heard)  # (B, N, 3, h)
            if voice is not None:
                means = means / self.means(voice.unsqueeze(-1)).clamp_min(LEAST_WEIGHT)
            residuals.append(means.flatten(2))
        values = [*flows, torch.cat(residuals, dim=-1) / RESIDUAL_SIZE]
        if memory is not None:
            values.append(memory.flatten(2))
        return base + self.residual_head(torch.cat(values, dim=-1), inputs.step_of_week)  # (B, N, P)


class ResidualDTGLKNet(DTGLKNetEncoder):
    """The encoder of DTG-LKNet under a decoder that forecasts the residual of the whole horizon at once.

    The encoder reads the residual of the last hours, of which the days and weeks before say nothing; the decoder reads
    those itself. So tokens can be of 5 to 15 minutes, and a kernel that is larger than the tokens are many reaches over
    all hours.

    Args:
        graphs: of the sensors.
        sizes: of input, layers and horizon.
        settings: which parts there are.
    """

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: ResidualSettings) -> None:
        hours = last_hours(sizes)
        super().__init__(graphs, hours, settings)
        self.reset_parameters()  # of the encoder alone
        self.first_step, self.steps = sizes.input_steps - hours.input_steps, hours.input_steps
        self.residual, self.mute_imputed = settings.residual, settings.mute_imputed
        sensors, channels = len(graphs.topology), sizes.channels
        self.encoder_identity = (
            HarmonicEmbedding(sensors, sizes.steps_per_day, channels, settings.harmonics) if settings.identity else None
        )
        self.decoder = HorizonDecoder(graphs, sizes, settings, memory_channels=self.tokens * channels)

    def encoder_series(self, inputs: Inputs) -> Tensor:
        """Return the residual of the last hours (B, N, D h); the flow itself where no residual is forecast."""
        flow = inputs.series[:, :, self.first_step :]  # (B, N, D h)
        if not self.residual:
            return flow
        assert inputs.profile is not None
        return (flow - inputs.profile[:, :, : self.steps]) / RESIDUAL_SIZE

    def front(self, inputs: Inputs) -> Tensor:
        """Return the front end's tokens (B, N, M, C), which know their sensor and the time of the forecast."""
        context = None
        if self.encoder_identity is not None:
            context = self.encoder_identity(inputs.step_of_week).unsqueeze(2)  # (B, N, 1, C)
        return self.front_end(self.encoder_series(inputs), context)

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P); in training (2, B, N, P), by head."""
        return self.decoder(inputs, self.encode(inputs))


class ResidualMLP(nn.Module):
    """The decoder of `ResidualDTGLKNet` alone, without large kernels and encoder: small and fast.

    Several members are a deep ensemble (Lakshminarayanan et al., 2017, arXiv 1612.01474): they differ by their first
    weights, each has its own loss, and the forecast is their mean.

    Args:
        graphs: of the sensors.
        sizes: of input and horizon.
        settings: which parts there are, and how many members.
    """

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: ResidualMLPSettings) -> None:
        super().__init__()
        self.members = nn.ModuleList(HorizonDecoder(graphs, sizes, settings) for _ in range(settings.members))

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P); in training (heads of all members, B, N, P) where there are several heads."""
        forecasts = [member(inputs) for member in self.members]
        if len(forecasts) == 1:
            return forecasts[0]
        stacked = torch.stack(forecasts)  # (members, B, N, P), or (members, 2, B, N, P) by head
        return stacked.flatten(0, -4) if self.training else stacked.mean(dim=0)


RESIDUAL = Variant(
    name="residual",
    label="residual DTG-LKNet",
    network=ResidualDTGLKNet,
    settings=ResidualSettings,
    faults=ResidualSettings.faults,
    needs=DecoderSettings.needs,
    has_encoder=True,
)
RESIDUAL_MLP = Variant(
    name="residual_mlp",
    label="residual MLP",
    network=ResidualMLP,
    settings=ResidualMLPSettings,
    faults=ResidualMLPSettings.faults,
    needs=DecoderSettings.needs,
)
