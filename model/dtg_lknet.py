"""DTG-LKNet: deformable patches and large kernels over time, two graphs over space (PeerJ CS 12:e3793, 2026).

    series (B, N, L) -> patches -> large kernels -> encoder -> memory (B, N, M, C)
    start value -> decoder, one step after the other, under the memory -> forecast (B, N, P)

Axes are (B, N, M, C) = batch, sensor, token, channel, unless a line says otherwise; P is the horizon. All values are
scaled; the model knows neither units nor devices nor files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from lib.ini import Switch
from lib.interface import Graphs, Inputs, Sizes
from model.attention import CrossAttention, SpatialAttention, TemporalAttention, TemporalCache, TimeGatedConvolution
from model.attention_blocks import AttentionBlocks
from model.dropout import Dropout
from model.encoder import DTGLKNetEncoder, EncoderSettings, NodeTokenEmbedding
from model.fused import add_norm


@dataclass
class DecoderLayerCache:
    """What one decoder layer remembers of a rollout, with what each step takes of the memory."""

    readings: Sequence[Tensor]
    temporal: TemporalCache
    gate_past: list[Tensor] = field(default_factory=list)


class DecoderLayer(nn.Module):
    """Causal temporal attention, the gate to the memory, spatial attention, each in a pre-norm residual."""

    def __init__(
        self,
        temporal: TemporalAttention,
        gate: TimeGatedConvolution | CrossAttention,
        spatial: SpatialAttention,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.temporal, self.temporal_norm = temporal, nn.LayerNorm(channels)
        self.gate, self.gate_norm = gate, nn.LayerNorm(channels)
        self.spatial, self.spatial_norm = spatial, nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, reading: Tensor, graph: AttentionBlocks | None) -> Tensor:
        """Map decoder tokens (B, N, T, C) to (B, N, T, C), with what the gate read of the memory, on a graph."""
        x, normed = add_norm(x, self.dropout(self.temporal(self.temporal_norm(x))), self.gate_norm)
        x, normed = add_norm(x, self.dropout(self.gate(normed, reading)), self.spatial_norm)
        return x + self.dropout(self.spatial(normed, graph))

    def step(
        self, x: Tensor, y: Tensor | None, step: int, cache: DecoderLayerCache, graph: AttentionBlocks | None
    ) -> tuple[Tensor, Tensor]:
        """Map the newest decoder token, at position `step`, to its output, each as the two summands that it is.

        All are (B, N, 1, C), and `y` None is 0. Who takes the output norms it, and adds on the way.
        """
        x, normed = add_norm(x, y, self.temporal_norm)
        x, normed = add_norm(x, self.dropout(self.temporal.step(normed, step, cache.temporal)), self.gate_norm)
        y = self.gate.step(normed, cache.readings[step], cache.gate_past)
        x, normed = add_norm(x, self.dropout(y), self.spatial_norm)
        return x, self.dropout(self.spatial(normed, graph))


@dataclass(frozen=True, kw_only=True)
class PaperSettings(EncoderSettings):
    """The parts of the paper's network."""

    time_gate: Annotated[Switch, "off: plain cross-attention to the memory"] = True


class DTGLKNet(DTGLKNetEncoder):
    """The whole network, as the paper describes it.

    Args:
        graphs: of the sensors; the topology graph says where the decoder's spatial attention may look.
        sizes: of input, layers and horizon.
        settings: which parts there are.
    """

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: PaperSettings) -> None:
        super().__init__(graphs, sizes, settings)
        channels, heads, dropout = sizes.channels, sizes.heads, sizes.dropout
        self.horizon = sizes.horizon
        self.topology_graph = AttentionBlocks(graphs.topology)
        self.value_embedding = nn.Linear(1, channels)
        positions = self.position_encoding(sizes.horizon, channels)
        self.decoder_embedding = NodeTokenEmbedding(positions, self.encoding_channels, dropout)
        self.decoder = nn.ModuleList(
            DecoderLayer(
                TemporalAttention(channels, heads, sizes.kernel_size, dropout, causal=True),
                TimeGatedConvolution(channels, sizes.kernel_size, sizes.horizon)
                if settings.time_gate
                else CrossAttention(channels, heads, sizes.horizon, dropout),
                self.spatial_attention(channels, heads, dropout),
                channels,
                dropout,
            )
            for _ in range(sizes.layers)
        )
        self.decoder_norm = nn.LayerNorm(channels)
        self.prediction = nn.Linear(channels, 1)
        self.reset_parameters()

    @property
    def recomputable(self) -> list[nn.Module]:
        """The modules that gradient checkpointing may compute again, those of the decoder too."""
        return [*super().recomputable, *self.decoder]

    def embed_values(self, values: Tensor, first: int = 0) -> Tensor:
        """Return the decoder's input tokens (B, N, T, C) for values (B, N, T), the first of which is step `first`."""
        return self.decoder_embedding(self.value_embedding(values.unsqueeze(-1)), self.laplacian_encoding, first)

    def read(self, memory: Tensor) -> list[Tensor]:
        """Return what the gate of each decoder layer reads of the memory (B, N, M, C): once for all steps."""
        return [layer.gate.read(memory) for layer in self.decoder]  # type: ignore[operator,union-attr]

    def decode(self, values: Tensor, readings: list[Tensor]) -> Tensor:
        """Return the forecasts (B, N, T) that follow each of the values (B, N, T), T <= P, by what was `read`."""
        x = self.embed_values(values)  # (B, N, T, C)
        for layer, reading in zip(self.decoder, readings, strict=True):
            x = layer(x, reading, self.topology_graph)
        return self.prediction(self.decoder_norm(x)).squeeze(-1)

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P): each step from the true value before it (`inputs.teacher`), or else from its own."""
        if inputs.teacher is None:
            return self.rollout(inputs)
        return self.decode(inputs.teacher, self.read(self.encode(inputs)))

    def rollout(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P) from the start value (B, N), each step fed the forecast before it.

        The decoder is causal, so every step needs only its own token and the caches of its layers: the whole rollout
        costs one decoder pass and equals decoding the growing sequence anew at each step. Gradients flow through it.
        """
        caches = [
            DecoderLayerCache(layer.gate.by_step(reading), TemporalCache(self.horizon))  # type: ignore[operator,union-attr]
            for layer, reading in zip(self.decoder, self.read(self.encode(inputs)), strict=True)
        ]
        value = inputs.start.unsqueeze(-1)  # (B, N, 1)
        forecasts = []
        for step in range(self.horizon):
            x, y = self.embed_values(value, first=step), None  # (B, N, 1, C)
            for layer, cache in zip(self.decoder, caches, strict=True):
                x, y = layer.step(x, y, step, cache, self.topology_graph)  # type: ignore[operator]
            _, normed = add_norm(x, y, self.decoder_norm)
            value = self.prediction(normed).squeeze(-1)
            forecasts.append(value)
        return torch.cat(forecasts, dim=-1)
