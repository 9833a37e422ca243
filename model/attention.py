"""Attention over tokens and over sensors, and the gate through which the decoder reads the memory.

Axes are (B, N, M, C) throughout. What the decoder repeats at every step of a rollout has a `step` beside `forward`: fed
one token after the other, it returns the tokens that `forward` returns, from a cache of what it has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention_blocks import AttentionBlocks
from model.dropout import drop
from model.fused import (
    LEAST_VOICE,
    TokenCache,
    add_relu,
    attend_newest,
    attend_sensors,
    attend_tokens,
    dropout_seed,
    fuses_attention,
    open_gate,
    token_columns,
)
from model.scaled_dot_product import scaled_dot_product


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split the channels of (B, outer, inner, C) into heads: (B * outer, heads, inner, C / heads)."""
    return x.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)


class TokenConvolution(nn.Module):
    """A convolution over tokens, with all channels mixed: (B, N, M, C) to (B, N, M, out_channels).

    `causal` pads on the left only, so that token m sees tokens m - kernel_size + 1 .. m; else the kernel is centred.
    The taps lie side by side in one matrix, (out_channels, kernel_size * C): one product instead of a convolution.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.left = kernel_size - 1 if causal else kernel_size // 2
        self.linear = nn.Linear(kernel_size * channels, out_channels)

    def columns(self, x: Tensor) -> Tensor:
        """Lay the tokens under the taps side by side, zeros where there are none: (B, N, M, kernel_size * C)."""
        if fuses_attention(x):
            return token_columns(x, self.kernel_size, self.left)
        padded = F.pad(x, (0, 0, self.left, self.kernel_size - 1 - self.left))
        columns = padded.unfold(2, self.kernel_size, 1).transpose(-1, -2).flatten(-2)
        return columns.contiguous()  # as a view it would be added to the bias in a pass of its own

    def newest_columns(self, x: Tensor, past: list[Tensor]) -> Tensor:
        """Return the columns of the newest token (B, N, 1, C); `past` keeps those before it and takes this one in."""
        if not past:
            past.extend([torch.zeros_like(x)] * (self.kernel_size - 1))
        past.append(x)
        columns = torch.cat(past, dim=-1)
        past.pop(0)
        return columns

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over the tokens of `x` (B, N, M, C)."""
        return self.linear(self.columns(x))

    def step(self, x: Tensor, past: list[Tensor]) -> Tensor:
        """Convolve at the newest token (B, N, 1, C), with those before it in `past`."""
        return self.linear(self.newest_columns(x, past))


@dataclass
class TemporalCache:
    """What causal temporal attention remembers: past tokens for its convolution, and all keys and values.

    Attributes:
        tokens: how many there will be.
        past: the last ones, for the convolution.
        keys, values: of all tokens so far, where each is an operator's own tensor.
        packed: both in one place, where the fused operators write and read them.
        order: what ties the newest of their steps to the one before.
        product: the weights that queries, keys and values come from at once, made once for all steps.
    """

    tokens: int
    past: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    packed: TokenCache | None = None
    order: Tensor | None = None
    product: tuple[Tensor, Tensor] | None = None


class TemporalAttention(nn.Module):
    """Multi-head attention over the tokens of each sensor; queries and keys see their neighbours by a convolution."""

    def __init__(self, channels: int, heads: int, kernel_size: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query_key = TokenConvolution(channels, 2 * channels, kernel_size, causal)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C)."""
        B, N, M, C = x.shape
        dropout = self.dropout if self.training else 0.0
        if fuses_attention(x):
            packed = F.linear(self.query_key.columns(x), *self.packed_product())  # (B, N, M, 3C)
            return self.output(attend_tokens(packed, self.heads, self.causal, dropout, dropout_seed(x, dropout)))
        query, key, value = (
            split_heads(y, self.heads) for y in (*self.query_key(x).chunk(2, dim=-1), self.value(x))
        )  # (B N, heads, M, d)
        # Numbers to add: in training one pass over the scores, where a mask of booleans takes two.
        mask = torch.full((M, M), -torch.inf, device=x.device).triu(1) if self.causal else None
        x = scaled_dot_product(query, key, value, mask, dropout)  # (B N, heads, M, d)
        return self.output(x.transpose(1, 2).reshape(B, N, M, C))

    def packed_product(self) -> tuple[Tensor, Tensor]:
        """Return the weight (3C, kernel_size * C) and bias (3C,) of queries, keys and values side by side.

        They map columns of tokens; a value is of its own token, so its weights at the other taps are 0.
        """
        C, left = self.value.in_features, self.query_key.left
        right = self.query_key.kernel_size - 1 - left
        value = F.pad(self.value.weight, (left * C, right * C))
        both = self.query_key.linear
        return torch.cat([both.weight, value]), torch.cat([both.bias, self.value.bias])

    def step(self, x: Tensor, step: int, cache: TemporalCache) -> Tensor:
        """Return the newest token's output (B, N, 1, C) from that token, `x` at position `step`, and the cache."""
        if fuses_attention(x):
            cache.product = cache.product or self.packed_product()
            packed = F.linear(self.query_key.newest_columns(x, cache.past), *cache.product)  # (B, N, 1, 3C)
            cache.packed = cache.packed or TokenCache(packed, cache.tokens, self.heads)
            dropout = self.dropout if self.training else 0.0
            y, cache.order = attend_newest(packed, cache.order, cache.packed, step, self.heads, dropout)
            return self.output(y)
        query, key = self.query_key.step(x, cache.past).chunk(2, dim=-1)
        cache.keys.append(key)
        cache.values.append(self.value(x))
        # One query a head makes products of single rows: element by element they were measured 2 to 3 times faster.
        keys, values = (torch.cat(past, dim=2).unflatten(-1, (self.heads, -1)) for past in (cache.keys, cache.values))
        query = query.unflatten(-1, (self.heads, -1)) * keys.shape[-1] ** -0.5  # (B, N, 1, heads, d)
        weights = (query * keys).sum(-1).softmax(dim=2)  # (B, N, T, heads)
        weights = drop(weights, self.dropout) if self.training else weights
        return self.output((weights.unsqueeze(-1) * values).sum(dim=2, keepdim=True).flatten(-2))


class SpatialAttention(nn.Module):
    """Multi-head attention over the sensors at each token, where a graph allows it, with ReLU on the output."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(channels, 3 * channels)

    def attend(self, x: Tensor, graph: AttentionBlocks | None, voice: Tensor | None = None) -> Tensor:
        """Return the attended values of `x` (B, N, M, C) after ReLU, heads side by side: (B, N, M, C).

        A voice (B, N) of 0 and 1 says which sensors are attended to. Their weights sum to 1 among themselves:

            sum over j of voice_j weight_ij value_j  /  sum over j of voice_j weight_ij

        Both sums are one attention: the voice is one more channel of the values.
        """
        B, N, M, C = x.shape
        packed = self.query_key_value(x)
        if graph is not None and graph.lists is not None and fuses_attention(x):
            return attend_sensors(packed, graph.lists, voice, self.heads, self.dropout if self.training else 0.0)
        parts = packed.view(B, N, M, 3, self.heads, C // self.heads)
        # Tokens attend apart as heads do: to attention they are heads.
        query, key, value = parts.permute(3, 0, 2, 4, 1, 5).flatten(2, 3).unbind()  # (B, M heads, N, d)
        dropout = self.dropout if self.training else 0.0
        if voice is not None:
            heard = voice[:, None, :, None].expand(-1, M * self.heads, -1, -1)  # (B, M heads, N, 1)
            value = torch.cat([value * heard, heard], dim=-1)  # (B, M heads, N, d + 1)
        y = scaled_dot_product(query, key, value, None, dropout) if graph is None else graph(query, key, value, dropout)
        if voice is not None:
            y = y[..., :-1] / y[..., -1:].clamp_min(LEAST_VOICE)  # (B, M heads, N, d)
        return torch.relu(y.transpose(1, 2).reshape(B, N, M, C))

    def forward(self, x: Tensor, graph: AttentionBlocks | None, voice: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, M, C) to tokens (B, N, M, C) under the mask of a graph; None allows everything.

        Of the sensors that the graph allows, only those with a voice (B, N) are attended to; None: all.
        """
        return self.attend(x, graph, voice)


class TimeGatedConvolution(nn.Module):
    """The decoder's view of the memory: Linear(relu(causal(x) + sigmoid(gate(memory)) + content(memory))).

    All three are convolutions over tokens, those of the memory centred. Their outputs are cut to the decoder's length;
    when the memory has another number of tokens than the horizon has steps, they are first interpolated linearly, the
    first token at the first step and the last at the last.
    """

    def __init__(self, channels: int, kernel_size: int, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.causal = TokenConvolution(channels, channels, kernel_size, causal=True)
        self.gate_content = TokenConvolution(channels, 2 * channels, kernel_size, causal=False)
        self.output = nn.Linear(channels, channels)

    def read(self, memory: Tensor) -> Tensor:
        """Return what the memory (B, N, M, C) adds at each step of the horizon, (B, N, P, C): once for all steps."""
        terms = self.gate_content(memory)  # (B, N, M, 2C)
        if memory.shape[2] != self.horizon:
            flat = terms.flatten(0, 1).transpose(1, 2)  # (B N, 2C, M)
            flat = F.interpolate(flat, size=self.horizon, mode="linear", align_corners=True)
            terms = flat.transpose(1, 2).unflatten(0, memory.shape[:2])  # (B, N, P, 2C)
        return open_gate(terms)

    def forward(self, x: Tensor, reading: Tensor) -> Tensor:
        """Map decoder tokens (B, N, T, C), T <= P, with the memory's `reading` (B, N, P, C), to (B, N, T, C)."""
        return self.output(add_relu(self.causal(x), reading[:, :, : x.shape[2]]))

    def by_step(self, reading: Tensor) -> Sequence[Tensor]:
        """Return what each step of the horizon takes of the memory's `reading`, P of (B, N, 1, C).

        They are cut at once, for the gradients of cuts one by one would each be as large as all.
        """
        return reading.split(1, dim=2)

    def step(self, x: Tensor, reading: Tensor, past: list[Tensor]) -> Tensor:
        """Return the output (B, N, 1, C) of the newest token, with its step's part of the memory's reading."""
        return self.output(add_relu(self.causal.step(x, past), reading))


class CrossAttention(nn.Module):
    """Plain multi-head attention of the decoder's tokens to the memory's: the ablation of the time gate."""

    def __init__(self, channels: int, heads: int, horizon: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.horizon, self.dropout = heads, horizon, dropout
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)

    def read(self, memory: Tensor) -> Tensor:
        """Return keys and values of the memory (B, N, M, C), side by side: (B, N, M, 2C)."""
        return self.key_value(memory)

    def forward(self, x: Tensor, reading: Tensor) -> Tensor:
        """Map decoder tokens (B, N, T, C), with the memory's `reading` (B, N, M, 2C), to (B, N, T, C)."""
        B, N, T, C = x.shape
        query, key, value = (split_heads(y, self.heads) for y in (self.query(x), *reading.chunk(2, dim=-1)))
        dropout = self.dropout if self.training else 0.0
        y = scaled_dot_product(query, key, value, None, dropout)  # (B N, heads, T, d)
        return self.output(y.transpose(1, 2).reshape(B, N, T, C))

    def by_step(self, reading: Tensor) -> Sequence[Tensor]:
        """Return what each step of the horizon takes of the memory's `reading`: all of it."""
        return [reading] * self.horizon

    def step(self, x: Tensor, reading: Tensor, _past: list[Tensor]) -> Tensor:
        """Return the output (B, N, 1, C) of the newest token; to it the past does not matter."""
        return self(x, reading)
