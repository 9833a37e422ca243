"""The part of DTG-LKNet that reads: patches, large kernels, and attention on the similarity graph.

    series (B, N, L) -> patches -> large kernels -> encoder -> memory (B, N, M, C)

Axes are (B, N, M, C) = batch, sensor, token, channel, unless a line says otherwise; L = M * patch_len input steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from lib.ini import CountOrZero, Kind, Switch, divisors
from lib.interface import Graphs, Inputs, Sizes
from model.attention import SpatialAttention, TemporalAttention
from model.attention_blocks import AttentionBlocks
from model.deformable_patches import DeformablePatches, RegularPatches
from model.dropout import Dropout
from model.fused import add_norm
from model.large_kernels import LargeKernelBlock

LARGE_KERNELS = (15, 17, 21, 27, 35, 55)  # the paper's
OddKernels = Annotated[
    tuple[int, ...],
    Kind(
        "odd integers from 3 to 999999, separated by spaces",
        lambda text: tuple(int(item) for item in text.replace(",", " ").split()),
        lambda value: len(value) > 0 and all(3 <= size < 10**6 and size % 2 == 1 for size in value),
        lambda value: " ".join(map(str, value)),
    ),
]


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which parts the encoder has: the paper's choices, and what an ablation leaves out."""

    patch_len: Annotated[CountOrZero, "steps in a patch; 0: points_per_hour"] = 0
    large_kernels: Annotated[OddKernels, "nominal kernel sizes in tokens, one large-kernel block each"] = LARGE_KERNELS
    deformable_patches: Annotated[Switch, "off: regular patches"] = True
    large_branch: Annotated[Switch, "of the large-kernel blocks; off: the small kernels only"] = True
    small_branch: Annotated[Switch, "of the large-kernel blocks; off: the large kernels only"] = True
    laplacian_encoding: Annotated[Switch, "off: tokens do not know their sensor's place in the road network"] = True

    def steps_of_patch(self, sizes: Sizes) -> int:
        """Return the number of time steps in a patch."""
        return self.patch_len or sizes.steps_per_hour

    def faults(self, sizes: Sizes) -> dict[str, str]:
        """Return what is wrong with these settings, by key; `sizes` are those of the steps that the encoder reads."""
        found = {}
        if self.patch_len and sizes.input_steps % self.patch_len:
            found["patch_len"] = (
                f"found {self.patch_len}, expected 0 (points_per_hour) or a divisor of the {sizes.input_steps} input "
                f"steps: {divisors(sizes.input_steps)}"
            )
        if not (self.large_branch or self.small_branch):
            found["small_branch"] = "found off like large_branch, expected at least one branch"
        return found


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
        tokens = self.blocks(tokens if context is None else tokens + context)
        return tokens.contiguous()  # the blocks leave channels first, and so would all sums with it in the encoder


class NodeTokenEmbedding(nn.Module):
    """Add to tokens where they stand in time, by a sinusoid, and in the network, by the Laplacian encoding.

    With `encoding_channels` None, the second is left out: the ablation of the Laplacian encoding.
    """

    positions: Tensor

    def __init__(self, positions: Tensor, encoding_channels: int | None, dropout: float) -> None:
        super().__init__()
        self.register_buffer("positions", positions)  # (M, C), or (P, C) in the decoder
        self.node = None if encoding_channels is None else nn.Linear(encoding_channels, positions.shape[1])
        self.dropout = Dropout(dropout)

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
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, graph: AttentionBlocks | None, voice: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C), where the graph's sensors may look at those with a voice."""
        x, normed = add_norm(x, self.dropout(self.temporal(self.temporal_norm(x))), self.spatial_norm)
        return x + self.dropout(self.spatial(normed, graph, voice))


class DTGLKNetEncoder(nn.Module):
    """Patches, large kernels and the encoder, under whatever decoder a subclass has.

    A subclass calls `reset_parameters` in its constructor, once all parts are there whose weights that is to draw.

    Args:
        graphs: of the sensors; the similarity graph says where spatial attention may look.
        sizes: of input and layers.
        settings: which parts there are.
    """

    # What the paper's network does; a subclass may do otherwise.
    first_step = 0  # it reads the whole input
    mute_imputed = False  # all sensors are attended to

    # The two parts that the released code has otherwise (model/released.py).
    position_encoding = staticmethod(sinusoidal_encoding)
    spatial_attention = SpatialAttention

    laplacian_encoding: Tensor

    def __init__(self, graphs: Graphs, sizes: Sizes, settings: EncoderSettings) -> None:
        super().__init__()
        channels, dropout, patch_len = sizes.channels, sizes.dropout, settings.steps_of_patch(sizes)
        self.tokens = sizes.input_steps // patch_len
        self.register_buffer("laplacian_encoding", graphs.laplacian_encoding, persistent=False)
        self.similarity_graph = AttentionBlocks(graphs.similarity)

        self.front_end = LargeKernelFrontEnd(
            DeformablePatches(sizes.input_steps, patch_len)
            if settings.deformable_patches
            else RegularPatches(patch_len),
            channels,
            [
                LargeKernelBlock(channels, size, settings.large_branch, settings.small_branch)
                for size in settings.large_kernels
            ],
        )
        self.encoding_channels = graphs.laplacian_encoding.shape[1] if settings.laplacian_encoding else None
        positions = self.position_encoding(self.tokens, channels)
        self.encoder_embedding = NodeTokenEmbedding(positions, self.encoding_channels, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(
                TemporalAttention(channels, sizes.heads, sizes.kernel_size, dropout, causal=False),
                self.spatial_attention(channels, sizes.heads, dropout),
                channels,
                dropout,
            )
            for _ in range(sizes.layers)
        )
        self.encoder_norm = nn.LayerNorm(channels)

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

    @property
    def receptive_field_layers(self) -> tuple[str, ...]:
        """The layers whose receptive field is drawn by default: the large kernels, and the encoder before its norm."""
        return "front_end", f"encoder.{len(self.encoder) - 1}"

    def kernels(self) -> list[Tensor]:
        """Return the taps (C, K) of each large-kernel block, its branches summed."""
        return [block.merged_taps() for block in self.front_end.blocks]  # type: ignore[operator]

    @property
    def deformable(self) -> bool:
        """Whether patches choose where they read."""
        return isinstance(self.front_end.patches, DeformablePatches)

    def patch_positions(self, inputs: Inputs) -> Tensor:
        """Return where each deformable patch reads the series (B, N, L), in steps: (B, N, M, patch_len)."""
        return self.first_step + self.front_end.patches.positions(self.encoder_series(inputs))  # type: ignore[operator]

    def merge(self) -> None:
        """Merge both branches of every large-kernel block, for inference. Outputs stay the same."""
        for module in self.modules():
            if isinstance(module, LargeKernelBlock):
                module.merge()

    def encoder_series(self, inputs: Inputs) -> Tensor:
        """Return what the patches are cut from, (B, N, M * patch_len)."""
        return inputs.series

    def front(self, inputs: Inputs) -> Tensor:
        """Return the front end's tokens (B, N, M, C). In training they mix the samples of a batch, by BatchNorm."""
        return self.front_end(self.encoder_series(inputs))  # the paper's know no time

    def embed_series(self, inputs: Inputs) -> Tensor:
        """Return the encoder's input tokens (B, N, M, C)."""
        tokens = self.front(inputs) if inputs.tokens is None else inputs.tokens
        return self.encoder_embedding(tokens, self.laplacian_encoding)

    def encode(self, inputs: Inputs) -> Tensor:
        """Return the memory (B, N, M, C) of the series (B, N, L)."""
        x = self.embed_series(inputs)  # (B, N, M, C)
        voice = (~inputs.imputed).to(x) if self.mute_imputed and inputs.imputed is not None else None  # (B, N)
        for layer in self.encoder:
            x = layer(x, self.similarity_graph, voice)
        return self.encoder_norm(x)
