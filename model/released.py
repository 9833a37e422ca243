"""The behaviour of the released code of the paper (jahaur1/DTG_LKNet), as replacements of parts of DTG-LKNet.

What is different, and nothing else: both embeddings are detached, so that the front end and the input projections never
train; spatial attention merges its heads in the wrong order; the decoder ignores the topology mask; the sinusoid; the
initial weights. Its graphs are rules of lib/data/graphs.py.
"""

import torch
from torch import Tensor, nn

from lib.interface import GraphRules, Inputs, Variant
from model.attention import SpatialAttention
from model.attention_blocks import AttentionBlocks
from model.deformable_patches import DeformablePatches
from model.dtg_lknet import DTGLKNet, PaperSettings
from model.large_kernels import LargeKernelBlock
from model.released_weights import load_released, to_released_checkpoint


def released_position_encoding(tokens: int, channels: int) -> Tensor:
    """Return a sinusoid with doubled exponents, at other frequencies for the cosine than for the sine: (tokens, C)."""
    position = torch.arange(tokens, dtype=torch.float64).unsqueeze(1)
    channel = torch.arange(channels, dtype=torch.float64)
    angle = position / 10000.0 ** (2 * channel / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


class ReleasedSpatialAttention(SpatialAttention):
    """Spatial attention whose output (B, N, M, C), as it lies in memory, is read as if it were (B, M, N, C).

    That scrambles sensors and times: under teacher forcing the decoder sees the future.
    """

    def forward(self, x: Tensor, graph: AttentionBlocks | None, voice: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C) under the mask of a graph; None allows everything."""
        B, N, M, C = x.shape
        return self.attend(x, graph, voice).reshape(B, M, N, C).transpose(1, 2)


class ReleasedDTGLKNet(DTGLKNet):
    """DTG-LKNet with the faults of the released code."""

    position_encoding = staticmethod(released_position_encoding)
    spatial_attention = ReleasedSpatialAttention

    def reset_parameters(self) -> None:
        """Start with an offset predictor of zeros in both layers, which can never move, and block scales of 1e-8."""
        super().reset_parameters()
        if isinstance(self.front_end.patches, DeformablePatches):
            for parameter in self.front_end.patches.predictor.parameters():
                nn.init.zeros_(parameter)
        for block in self.front_end.blocks:
            assert isinstance(block, LargeKernelBlock)
            nn.init.constant_(block.convolution_scale, 1e-8)
            nn.init.constant_(block.feed_forward_scale, 1e-8)

    def embed_series(self, inputs: Inputs) -> Tensor:
        """Return the encoder's input tokens (B, N, M, C), cut off from the front end's gradients."""
        tokens = self.front(inputs) if inputs.tokens is None else inputs.tokens
        return super().embed_series(inputs._replace(tokens=tokens.detach()))

    def embed_values(self, values: Tensor, first: int = 0) -> Tensor:
        """Return the decoder's input tokens (B, N, T, C), cut off from the value embedding's gradients."""
        tokens = self.value_embedding(values.unsqueeze(-1)).detach()
        return self.decoder_embedding(tokens, self.laplacian_encoding, first)

    def decode(self, values: Tensor, readings: list[Tensor]) -> Tensor:
        """Return the forecasts (B, N, T) that follow each of the values (B, N, T), with no mask on space."""
        x = self.embed_values(values)  # (B, N, T, C)
        for layer, reading in zip(self.decoder, readings, strict=True):
            x = layer(x, reading, None)
        return self.prediction(self.decoder_norm(x)).squeeze(-1)

    def rollout(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P), decoding the whole sequence anew at each step, for the decoder is not causal here."""
        readings = self.read(self.encode(inputs))
        start = inputs.start.unsqueeze(-1)  # (B, N, 1)
        values = start
        for _ in range(self.horizon):
            forecast = self.decode(values, readings)  # (B, N, T)
            values = torch.cat([start, forecast], dim=-1)
        return forecast


RELEASED = Variant(
    name="released",
    label="DTG-LKNet (released code)",
    network=ReleasedDTGLKNet,
    settings=PaperSettings,
    faults=PaperSettings.faults,
    graph_rules=GraphRules(similarity="released", laplacian="released", dtw_rows="all"),
    has_encoder=True,
    of_the_paper=True,
    load_released=load_released,
    to_released=to_released_checkpoint,
)
