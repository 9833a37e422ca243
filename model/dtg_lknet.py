"""DTG-LKNet: deformable patches and large kernels over time, two graphs over space (PeerJ CS 12:e3793, 2026).

    series (B, N, L) -> patches -> large kernels -> encoder -> memory (B, N, M, C)
    start value -> decoder, one step after the other, under the memory -> forecast (B, N, P)

Axes are (B, N, M, C) = batch, sensor, token, channel, unless a line says otherwise; L = M * patch_len input steps, P is
the horizon. All values are scaled; the model knows neither units nor devices nor files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import CrossAttention, SpatialAttention, TemporalAttention, TemporalCache, TimeGatedConvolution
from model.attention_blocks import AttentionBlocks
from model.deformable_patches import DeformablePatches, RegularPatches
from model.large_kernels import LargeKernelBlock

LARGE_KERNELS = (15, 17, 21, 27, 35, 55)


def sinusoidal_encoding(tokens: int, channels: int) -> Tensor:
    """Return the position encoding of the transformer (arXiv 1706.03762, section 3.5): (tokens, channels)."""
    position = torch.arange(tokens).unsqueeze(1)
    even = torch.arange(0, channels, 2)
    angle = position * torch.exp(even / channels * -torch.log(torch.tensor(10000.0)))
    encoding = torch.zeros(tokens, channels)
    encoding[:, 0::2] = torch.sin(angle)
    encoding[:, 1::2] = torch.cos(angle)[:, : channels // 2]
    return encoding


class LargeKernelFrontEnd(nn.Module):
    """From the series (B, N, L) to tokens (B, N, M, C): patches, their embedding, large-kernel blocks."""

    def __init__(
        self, patches: DeformablePatches | RegularPatches, channels: int, blocks: Sequence[LargeKernelBlock]
    ) -> None:
        super().__init__()
        self.patches = patches
        self.patch_embedding = nn.Linear(patches.patch_len, channels)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, series: Tensor, context: Tensor | None = None) -> Tensor:
        """Map the series (B, N, L) to tokens (B, N, M, C); a context (B, N, 1 or M, C) is added to embedded patches."""
        tokens = self.patch_embedding(self.patches(series))  # (B, N, M, C)
        return self.blocks(tokens if context is None else tokens + context)


class NodeTokenEmbedding(nn.Module):
    """Add to tokens where they stand in time, by a sinusoid, and in the network, by the Laplacian encoding.

    With `encoding_channels` None, the second is left out: the ablation of the Laplacian encoding.
    """

    positions: Tensor

    def __init__(self, positions: Tensor, encoding_channels: int | None, dropout: float) -> None:
        super().__init__()
        self.register_buffer("positions", positions)  # (M, C)
        self.node = None if encoding_channels is None else nn.Linear(encoding_channels, positions.shape[1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, laplacian_encoding: Tensor, first: int = 0) -> Tensor:
        """Embed tokens (B, N, T, C), the first of which stands at position `first`, with the encoding (N, C)."""
        tokens = tokens + self.positions[first : first + tokens.shape[2]]
        if self.node is not None:
            tokens = tokens + self.node(laplacian_encoding)[:, None]
        return self.dropout(tokens)


class EncoderLayer(nn.Module):
    """Temporal attention over tokens, then spatial attention over sensors, each in a pre-norm residual."""

    def __init__(self, temporal: TemporalAttention, spatial: SpatialAttention, channels: int, dropout: float) -> None:
        super().__init__()
        self.temporal, self.temporal_norm = temporal, nn.LayerNorm(channels)
        self.spatial, self.spatial_norm = spatial, nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: AttentionBlocks | None) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C), where the graph's sensors may look."""
        x = x + self.dropout(self.temporal(self.temporal_norm(x)))
        return x + self.dropout(self.spatial(self.spatial_norm(x), graph))


@dataclass
class DecoderLayerCache:
    """What one decoder layer remembers of a rollout, with what it read of the memory."""

    reading: Tensor
    temporal: TemporalCache = field(default_factory=TemporalCache)
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
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, reading: Tensor, graph: AttentionBlocks | None) -> Tensor:
        """Map decoder tokens (B, N, T, C) to (B, N, T, C), with what the gate read of the memory, on a graph."""
        x = x + self.dropout(self.temporal(self.temporal_norm(x)))
        x = x + self.dropout(self.gate(self.gate_norm(x), reading))
        return x + self.dropout(self.spatial(self.spatial_norm(x), graph))

    def step(self, x: Tensor, step: int, cache: DecoderLayerCache, graph: AttentionBlocks | None) -> Tensor:
        """Map the newest decoder token (B, N, 1, C), at position `step`, to its output (B, N, 1, C)."""
        x = x + self.dropout(self.temporal.step(self.temporal_norm(x), cache.temporal))
        x = x + self.dropout(self.gate.step(self.gate_norm(x), cache.reading, step, cache.gate_past))
        return x + self.dropout(self.spatial(self.spatial_norm(x), graph))


class DTGLKNetEncoder(nn.Module):
    """The part of the network that reads: patches, large kernels, and attention on the similarity graph.

    Args:
        similarity_mask: (N, N), true where the encoder's spatial attention may look: functionally similar sensors.
        topology_mask: (N, N), true where the decoder's may: sensors near each other on the road.
        laplacian_encoding: (N, any number of channels), a sensor's place in the road network.
        input_steps: L, the length of the input series.
        patch_len: steps of a patch; divides L.
        channels: C, the width of a token (d_model).
        layers: of the encoder.
        heads: attention heads; divides C.
        kernel_size: width of the convolutions in temporal attention; odd.
        large_kernels: nominal kernel sizes of the large-kernel blocks, one block each.
        dropout: rate on embeddings, attention weights and sublayer outputs.
        deformable_patches, large_branch, small_branch, use_laplacian_encoding: parts to leave out, for ablations.
            Without deformable patches they are regular.
    """

    similarity_mask: Tensor
    topology_mask: Tensor
    laplacian_encoding: Tensor

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        input_steps: int,
        patch_len: int,
        channels: int = 64,
        layers: int = 4,
        heads: int = 8,
        kernel_size: int = 3,
        large_kernels: Sequence[int] = LARGE_KERNELS,
        dropout: float = 0.0,
        deformable_patches: bool = True,
        large_branch: bool = True,
        small_branch: bool = True,
        use_laplacian_encoding: bool = True,
    ) -> None:
        super().__init__()
        # The graphs travel in checkpoints: the eigenbasis of the encoding is arbitrary, and the weights rely on it.
        self.register_buffer("similarity_mask", similarity_mask)
        self.register_buffer("topology_mask", topology_mask)
        self.register_buffer("laplacian_encoding", laplacian_encoding)
        self.similarity_graph = AttentionBlocks(similarity_mask)
        self.register_load_state_dict_post_hook(lambda module, _keys: module.arrange_graphs())

        self.front_end = LargeKernelFrontEnd(
            DeformablePatches(input_steps, patch_len) if deformable_patches else RegularPatches(patch_len),
            channels,
            [LargeKernelBlock(channels, size, large_branch, small_branch) for size in large_kernels],
        )
        self.encoding_channels = laplacian_encoding.shape[1] if use_laplacian_encoding else None
        positions = self.position_encoding(input_steps // patch_len, channels)
        self.encoder_embedding = NodeTokenEmbedding(positions, self.encoding_channels, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(
                TemporalAttention(channels, heads, kernel_size, dropout, causal=False),
                self.spatial_attention(channels, heads, dropout),
                channels,
                dropout,
            )
            for _ in range(layers)
        )
        self.encoder_norm = nn.LayerNorm(channels)

    # The two parts that the released code has otherwise (model/released.py).
    position_encoding = staticmethod(sinusoidal_encoding)
    spatial_attention = SpatialAttention

    def reset_parameters(self) -> None:
        """Draw the initial weights: Xavier for matrices, zero biases; the patches start as regular ones."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if isinstance(self.front_end.patches, DeformablePatches):
            self.front_end.patches.reset_parameters()

    @property
    def recomputable(self) -> list[nn.Module]:
        """The modules that gradient checkpointing may compute again: they hold nearly all inner values of a pass."""
        return [*self.front_end.blocks, *self.encoder]

    def arrange_graphs(self) -> None:
        """Arrange what follows from the masks anew, after they were replaced."""
        self.similarity_graph.arrange(self.similarity_mask)

    def merge(self) -> None:
        """Merge both branches of every large-kernel block, for inference. Outputs stay the same."""
        for module in self.modules():
            if isinstance(module, LargeKernelBlock):
                module.merge()

    def embed_series(self, series: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Return the encoder's input tokens (B, N, M, C) for the series (B, N, L); the paper's know no time."""
        del step_of_week
        return self.encoder_embedding(self.front_end(series), self.laplacian_encoding)

    def encode(self, series: Tensor, step_of_week: Tensor | None = None) -> Tensor:
        """Return the memory (B, N, M, C) of the series (B, N, L), the first step after it at `step_of_week` (B,)."""
        x = self.embed_series(series, step_of_week)  # (B, N, M, C)
        for layer in self.encoder:
            x = layer(x, self.similarity_graph)
        return self.encoder_norm(x)


class DTGLKNet(DTGLKNetEncoder):
    """The whole network, as the paper describes it.

    Args:
        horizon: P, the number of steps to forecast.
        channels, layers, heads, kernel_size, dropout: of the decoder as of the encoder; `kernel_size` of the gate too.
        time_gate: off: plain cross-attention to the memory, for an ablation.
        others: the arguments of the encoder.
    """

    def __init__(
        self,
        similarity_mask: Tensor,
        topology_mask: Tensor,
        laplacian_encoding: Tensor,
        *,
        horizon: int,
        channels: int = 64,
        layers: int = 4,
        heads: int = 8,
        kernel_size: int = 3,
        dropout: float = 0.0,
        time_gate: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(
            similarity_mask,
            topology_mask,
            laplacian_encoding,
            channels=channels,
            layers=layers,
            heads=heads,
            kernel_size=kernel_size,
            dropout=dropout,
            **others,
        )
        self.horizon = horizon
        self.topology_graph = AttentionBlocks(topology_mask)
        self.value_embedding = nn.Linear(1, channels)
        positions = self.position_encoding(horizon, channels)
        self.decoder_embedding = NodeTokenEmbedding(positions, self.encoding_channels, dropout)
        self.decoder = nn.ModuleList(
            DecoderLayer(
                TemporalAttention(channels, heads, kernel_size, dropout, causal=True),
                TimeGatedConvolution(channels, kernel_size, horizon)
                if time_gate
                else CrossAttention(channels, heads, dropout),
                self.spatial_attention(channels, heads, dropout),
                channels,
                dropout,
            )
            for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(channels)
        self.prediction = nn.Linear(channels, 1)
        self.reset_parameters()

    @property
    def recomputable(self) -> list[nn.Module]:
        """The modules that gradient checkpointing may compute again, those of the decoder too."""
        return [*super().recomputable, *self.decoder]

    def arrange_graphs(self) -> None:
        """Arrange both masks for attention anew, after they were replaced."""
        super().arrange_graphs()
        self.topology_graph.arrange(self.topology_mask)

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

    def forward(
        self, series: Tensor, values: Tensor, step_of_week: Tensor | None = None, usual: Tensor | None = None
    ) -> Tensor:
        """Forecast under teacher forcing.

        Args:
            series: (B, N, L), the scaled input.
            values: (B, N, P), the value before each target step: the start value, then all targets but the last.
            step_of_week: (B,), of the first target step, for variants that know time; the paper's does not.
            usual: (B, N, h + P), the usual values from h steps before the first target step on, for variants that ask
                for them.

        Returns:
            (B, N, P), the scaled forecast of each target step.
        """
        del usual
        return self.decode(values, self.read(self.encode(series, step_of_week)))

    def rollout(
        self, series: Tensor, start: Tensor, step_of_week: Tensor | None = None, usual: Tensor | None = None
    ) -> Tensor:
        """Forecast from the series (B, N, L) and a start value (B, N), each step fed the forecast before it: (B, N, P).

        The decoder is causal, so every step needs only its own token and the caches of its layers: the whole rollout
        costs one decoder pass and equals decoding the growing sequence anew at each step. Gradients flow through it.
        """
        del usual
        caches = [DecoderLayerCache(reading) for reading in self.read(self.encode(series, step_of_week))]
        value = start.unsqueeze(-1)  # (B, N, 1)
        forecasts = []
        for step in range(self.horizon):
            x = self.embed_values(value, first=step)  # (B, N, 1, C)
            for layer, cache in zip(self.decoder, caches, strict=True):
                x = layer.step(x, step, cache, self.topology_graph)  # type: ignore[operator]
            value = self.prediction(self.decoder_norm(x)).squeeze(-1)
            forecasts.append(value)
        return torch.cat(forecasts, dim=-1)
