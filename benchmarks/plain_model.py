"""The plain reference network: DTG-LKNet as its paper describes it and as such code is usually published.

Nothing is fused, cached, shared or cut: attention is a product, a mask, a softmax and a product; the large kernels are
depthwise convolutions at their nominal sizes; queries, keys and values have a projection each; a forecast decodes the
growing sequence anew at every step. It is the specification of what `model` computes, and what its speed is measured
against. Axes are (B, N, M, C) = batch, sensor, token, channel between modules, and what an operation asks for within.

Each module is made from its counterpart in `model`, whose weights it copies into the layout of its own.
"""

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.interface import Inputs
from model.attention import SpatialAttention, TemporalAttention, TimeGatedConvolution, TokenConvolution
from model.deformable_patches import DeformablePatches
from model.dtg_lknet import DecoderLayer, DTGLKNet
from model.encoder import EncoderLayer, LargeKernelFrontEnd, NodeTokenEmbedding
from model.large_kernels import DepthwiseConvolution, LargeKernelBlock


def _set_weights(module: nn.Linear | nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    module.weight = nn.Parameter(weight.detach().clone().contiguous())
    module.bias = nn.Parameter(bias.detach().clone())


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear map with copies of a weight (out, in) and a bias (out,)."""
    module = nn.Linear(weight.shape[1], weight.shape[0])
    _set_weights(module, weight, bias)
    return module


def pointwise(source: nn.Linear) -> nn.Conv1d:
    """Return a linear map over channels as a 1 x 1 convolution over (B, C, tokens)."""
    module = nn.Conv1d(source.in_features, source.out_features, 1)
    _set_weights(module, source.weight.unsqueeze(2), source.bias)
    return module


def depthwise(source: DepthwiseConvolution | None) -> nn.Conv1d:
    """Return a depthwise convolution over (B, C, tokens) at its nominal size, zero padded."""
    if source is None:
        raise ValueError("found a large-kernel block with one branch, expected both")
    channels, kernel_size = source.weight.shape
    module = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
    _set_weights(module, source.weight.unsqueeze(1), source.bias)
    return module


def token_convolutions(source: TokenConvolution, parts: int) -> Iterator[nn.Conv2d]:
    """Yield the convolutions, as many as `parts`, over (B, C, sensors, tokens) that `source` has side by side."""
    kernel_size = source.kernel_size
    weight = source.linear.weight.unflatten(1, (kernel_size, -1)).transpose(1, 2).unsqueeze(2)  # (out, C, 1, taps)
    for own_weight, own_bias in zip(weight.chunk(parts), source.linear.bias.chunk(parts), strict=True):
        padding = 0 if source.left == kernel_size - 1 else kernel_size // 2  # causal ones are padded by their caller
        module = nn.Conv2d(own_weight.shape[1], own_weight.shape[0], (1, kernel_size), padding=(0, padding))
        _set_weights(module, own_weight, own_bias)
        yield module


def convolve(convolution: nn.Conv2d, x: Tensor, causal: bool) -> Tensor:
    """Convolve over the tokens of `x` (B, N, M, C)."""
    x = x.permute(0, 3, 1, 2)  # (B, C, N, M)
    if causal:
        x = F.pad(x, (convolution.kernel_size[1] - 1, 0))
    return convolution(x).permute(0, 2, 3, 1)


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """Return softmax(Q K^T / sqrt(d)) V of (..., queries, d), where `allowed` (queries, keys) is true."""
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.matmul(torch.softmax(scores, dim=-1), value)


class PlainPatches(nn.Module):
    """Deformable patches: bounds predicted by two convolutions, values between two steps interpolated linearly."""

    def __init__(self, fast: DeformablePatches) -> None:
        super().__init__()
        self.patch_len = fast.patch_len
        first, activation, last = fast.predictor
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        hidden = nn.Conv1d(1, first.out_features, fast.patch_len, stride=fast.patch_len)
        _set_weights(hidden, first.weight.unsqueeze(1), first.bias)
        self.predictor = nn.Sequential(hidden, deepcopy(activation), pointwise(last))

    def forward(self, series: Tensor) -> Tensor:
        """Read the patches of `series` (B, N, L): (B, N, M, patch_len)."""
        B, N, L = series.shape
        shift, change = self.predictor(series.reshape(B * N, 1, L)).unbind(1)  # each (B N, M)
        half = (self.patch_len - 1) / 2
        centre = torch.arange(L // self.patch_len, device=series.device) * self.patch_len + half + shift
        lower = (centre - torch.relu(half + change)).clamp(0, L - 1)
        upper = (centre + torch.relu(half + change)).clamp(0, L - 1)
        fraction = torch.linspace(0, 1, self.patch_len, device=series.device, dtype=series.dtype)
        position = lower[:, :, None] + (upper - lower)[:, :, None] * fraction  # (B N, M, patch_len)
        before = position.detach().floor().long()
        after = (before + 1).clamp(max=L - 1)
        flat = series.reshape(B * N, L)
        left = flat.gather(1, before.flatten(1)).view_as(position)
        right = flat.gather(1, after.flatten(1)).view_as(position)
        weight = position - before
        return ((1 - weight) * left + weight * right).view(B, N, -1, self.patch_len)


class PlainLargeKernelBlock(nn.Module):
    """x = BN(x + a1 GELU(large(x) + small(x))), then x = BN(x + a2 FFN(x)), over (B, C, tokens)."""

    def __init__(self, fast: LargeKernelBlock) -> None:
        super().__init__()
        self.large, self.small = depthwise(fast.large), depthwise(fast.small)
        self.convolution_scale = nn.Parameter(fast.convolution_scale.detach().clone())
        self.convolution_norm = deepcopy(fast.convolution_norm)
        self.feed_forward = nn.Sequential(pointwise(fast.expand), nn.GELU(), pointwise(fast.contract))
        self.feed_forward_scale = nn.Parameter(fast.feed_forward_scale.detach().clone())
        self.feed_forward_norm = deepcopy(fast.feed_forward_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, tokens) to (B, C, tokens)."""
        x = self.convolution_norm(x + self.convolution_scale * F.gelu(self.large(x) + self.small(x)))
        return self.feed_forward_norm(x + self.feed_forward_scale * self.feed_forward(x))


class PlainFrontEnd(nn.Module):
    """Patches, their embedding, large-kernel blocks."""

    def __init__(self, fast: LargeKernelFrontEnd) -> None:
        super().__init__()
        if not isinstance(fast.patches, DeformablePatches):
            raise ValueError("found regular patches, expected deformable ones")
        self.patches = PlainPatches(fast.patches)
        self.patch_embedding = deepcopy(fast.patch_embedding)
        self.blocks = nn.Sequential(*map(PlainLargeKernelBlock, fast.blocks))  # type: ignore[arg-type]

    def forward(self, series: Tensor) -> Tensor:
        """Map the series (B, N, L) to tokens (B, N, M, C)."""
        tokens = self.patch_embedding(self.patches(series))  # (B, N, M, C)
        B, N, M, C = tokens.shape
        x = self.blocks(tokens.permute(0, 1, 3, 2).reshape(B * N, C, M))
        return x.reshape(B, N, C, M).permute(0, 1, 3, 2)


class PlainEmbedding(nn.Module):
    """Add the sinusoid of the token's position and a linear map of the sensor's Laplacian encoding."""

    positions: Tensor

    def __init__(self, fast: NodeTokenEmbedding) -> None:
        super().__init__()
        self.register_buffer("positions", fast.positions)
        if fast.node is None:
            raise ValueError("found no Laplacian encoding, expected one")
        self.node = deepcopy(fast.node)

    def forward(self, tokens: Tensor, laplacian_encoding: Tensor) -> Tensor:
        """Embed tokens (B, N, T, C) with the encoding (N, C)."""
        tokens = tokens + self.positions[: tokens.shape[2]]
        return tokens + self.node(laplacian_encoding).unsqueeze(1)


class PlainTemporalAttention(nn.Module):
    """Attention over the tokens of each sensor; queries and keys by (1, kernel_size) convolutions."""

    def __init__(self, fast: TemporalAttention) -> None:
        super().__init__()
        self.heads, self.causal = fast.heads, fast.causal
        self.query, self.key = token_convolutions(fast.query_key, parts=2)
        self.value, self.output = deepcopy(fast.value), deepcopy(fast.output)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C)."""
        query, key = convolve(self.query, x, self.causal), convolve(self.key, x, self.causal)
        query, key, value = (  # (B, N, heads, M, d)
            y.unflatten(-1, (self.heads, -1)).transpose(2, 3) for y in (query, key, self.value(x))
        )
        tokens = x.shape[2]
        allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril() if self.causal else None
        return self.output(attention(query, key, value, allowed).transpose(2, 3).flatten(3))


class PlainSpatialAttention(nn.Module):
    """Attention over the sensors at each token under a mask, with ReLU on the output."""

    def __init__(self, fast: SpatialAttention) -> None:
        super().__init__()
        self.heads = fast.heads
        weights, biases = (part.chunk(3) for part in (fast.query_key_value.weight, fast.query_key_value.bias))
        self.query, self.key, self.value = map(linear, weights, biases)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C) under the mask `allowed` (N, N)."""
        x = x.permute(0, 2, 1, 3)  # (B, M, N, C)
        query, key, value = (  # (B, M, heads, N, d)
            projection(x).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for projection in (self.query, self.key, self.value)
        )
        y = attention(query, key, value, allowed).transpose(2, 3).flatten(3)  # (B, M, N, C)
        return torch.relu(y).permute(0, 2, 1, 3)


class PlainTimeGate(nn.Module):
    """Linear(relu(causal(x) + sigmoid(gate(memory)) + content(memory)))."""

    def __init__(self, fast: TimeGatedConvolution) -> None:
        super().__init__()
        self.horizon = fast.horizon
        (self.causal,) = token_convolutions(fast.causal, parts=1)
        self.gate, self.content = token_convolutions(fast.gate_content, parts=2)
        self.output = deepcopy(fast.output)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Map decoder tokens (B, N, T, C) with the memory (B, N, M, C) to (B, N, T, C)."""
        gate, content = convolve(self.gate, memory, causal=False), convolve(self.content, memory, causal=False)
        if memory.shape[2] != self.horizon:
            gate, content = (self.interpolated(y) for y in (gate, content))
        T = x.shape[2]
        y = convolve(self.causal, x, causal=True) + torch.sigmoid(gate[:, :, :T]) + content[:, :, :T]
        return self.output(torch.relu(y))

    def interpolated(self, y: Tensor) -> Tensor:
        """Interpolate (B, N, M, C) linearly to as many tokens as the horizon has steps, (B, N, P, C)."""
        flat = y.flatten(0, 1).transpose(1, 2)  # (B N, C, M)
        flat = F.interpolate(flat, size=self.horizon, mode="linear", align_corners=True)
        return flat.transpose(1, 2).unflatten(0, y.shape[:2])


class PlainEncoderLayer(nn.Module):
    """Temporal, then spatial attention, each in a pre-norm residual."""

    def __init__(self, fast: EncoderLayer) -> None:
        super().__init__()
        self.temporal, self.temporal_norm = PlainTemporalAttention(fast.temporal), deepcopy(fast.temporal_norm)
        self.spatial, self.spatial_norm = PlainSpatialAttention(fast.spatial), deepcopy(fast.spatial_norm)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C) under the mask `allowed` (N, N)."""
        x = x + self.temporal(self.temporal_norm(x))
        return x + self.spatial(self.spatial_norm(x), allowed)


class PlainDecoderLayer(nn.Module):
    """Causal temporal attention, the gate to the memory, spatial attention, each in a pre-norm residual."""

    def __init__(self, fast: DecoderLayer) -> None:
        super().__init__()
        if not isinstance(fast.gate, TimeGatedConvolution):
            raise ValueError("found plain cross-attention to the memory, expected the time gate")
        self.temporal, self.temporal_norm = PlainTemporalAttention(fast.temporal), deepcopy(fast.temporal_norm)
        self.gate, self.gate_norm = PlainTimeGate(fast.gate), deepcopy(fast.gate_norm)
        self.spatial, self.spatial_norm = PlainSpatialAttention(fast.spatial), deepcopy(fast.spatial_norm)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """Map decoder tokens (B, N, T, C) to (B, N, T, C) with the memory (B, N, M, C), under a mask (N, N)."""
        x = x + self.temporal(self.temporal_norm(x))
        x = x + self.gate(self.gate_norm(x), memory)
        return x + self.spatial(self.spatial_norm(x), allowed)


class PlainDTGLKNet(nn.Module):
    """The network of `fast`, the paper's with all of its parts and without dropout, with copies of its weights.

    Raises:
        ValueError: a part is left out, or there is dropout.
    """

    similarity_mask: Tensor
    topology_mask: Tensor
    laplacian_encoding: Tensor

    def __init__(self, fast: DTGLKNet) -> None:
        super().__init__()
        if type(fast) is not DTGLKNet or fast.encoder_embedding.dropout.rate:
            raise ValueError("expected the paper's network without dropout")
        self.horizon = fast.horizon
        self.register_buffer("similarity_mask", fast.similarity_graph.neighbours.dense())
        self.register_buffer("topology_mask", fast.topology_graph.neighbours.dense())
        self.register_buffer("laplacian_encoding", fast.laplacian_encoding)
        self.front_end = PlainFrontEnd(fast.front_end)
        self.encoder_embedding = PlainEmbedding(fast.encoder_embedding)
        self.encoder = nn.ModuleList(map(PlainEncoderLayer, fast.encoder))  # type: ignore[arg-type]
        self.encoder_norm = deepcopy(fast.encoder_norm)
        self.value_embedding = deepcopy(fast.value_embedding)
        self.decoder_embedding = PlainEmbedding(fast.decoder_embedding)
        self.decoder = nn.ModuleList(map(PlainDecoderLayer, fast.decoder))  # type: ignore[arg-type]
        self.decoder_norm = deepcopy(fast.decoder_norm)
        self.prediction = deepcopy(fast.prediction)
        self.train(fast.training)

    def encode(self, series: Tensor) -> Tensor:
        """Return the memory (B, N, M, C) of the series (B, N, L)."""
        x = self.encoder_embedding(self.front_end(series), self.laplacian_encoding)
        for layer in self.encoder:
            x = layer(x, self.similarity_mask)
        return self.encoder_norm(x)

    def decode(self, values: Tensor, memory: Tensor) -> Tensor:
        """Return the forecasts (B, N, T) that follow each of the values (B, N, T), under the memory (B, N, M, C)."""
        x = self.decoder_embedding(self.value_embedding(values.unsqueeze(-1)), self.laplacian_encoding)
        for layer in self.decoder:
            x = layer(x, memory, self.topology_mask)
        return self.prediction(self.decoder_norm(x)).squeeze(-1)

    def forward(self, inputs: Inputs) -> Tensor:
        """Forecast (B, N, P): each step from the true value before it (`inputs.teacher`), or else from its own."""
        if inputs.teacher is None:
            return self.rollout(inputs.series, inputs.start)
        return self.decode(inputs.teacher, self.encode(inputs.series))

    def rollout(self, series: Tensor, start: Tensor) -> Tensor:
        """Forecast (B, N, P) from the series (B, N, L) and a start value (B, N).

        The sequence so far is decoded from its beginning at every step, and all of its forecasts are made anew.
        """
        memory = self.encode(series)
        values = start.unsqueeze(-1)  # (B, N, 1)
        for _ in range(self.horizon):
            forecast = self.decode(values, memory)  # (B, N, T)
            values = torch.cat([start.unsqueeze(-1), forecast], dim=-1)
        return forecast


def gradients_as_plain(fast: DTGLKNet) -> dict[str, Tensor]:
    """Return the gradients of `fast` under the names and in the layout of `PlainDTGLKNet(fast)`."""
    copy = deepcopy(fast)
    for parameter, own in zip(copy.parameters(), fast.parameters(), strict=True):
        parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
    return {name: gradient.detach() for name, gradient in PlainDTGLKNet(copy).named_parameters()}
