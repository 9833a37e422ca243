"""Chains of operators that are one kernel on a GPU, forward and backward, and the choice between both forms.

`fuses` says where they are used: on CUDA where Triton can compile, and on the device `meta`, where what a GPU would run
is counted. Everywhere else the modules compute the same by PyTorch's own operators, which are the specification.

Each operator here is one of PyTorch's (`OPERATORS`), so that compilers, CUDA graphs and counts take it for what it is:
one kernel, on tensors of fixed shape, with no look at their values from Python. `model.triton_kernels` has the kernels.
"""

import math
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.library import Library, infer_schema, register_autograd

from model import cpu_kernels

SWITCH = "DTG_LKNET_KERNELS"  # the environment variable that turns all of this off
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # of the GPUs that Triton has all of these for
TILE = 1024  # entries of a tensor that a program holds at once, where shapes leave the choice
PROGRAMS = 512  # of kernels that also sum over all rows: each leaves one part
LEAST_VOICE = 1e-6  # where no sensor that may be attended to has a voice, the attended values are 0


def fuses(x: Tensor) -> bool:
    """Return whether modules that are given `x` use the operators of this file.

    Not while PyTorch's compiler reads them: it gets PyTorch's own operators, which it fuses in its own way.
    """
    return not torch.compiler.is_compiling() and x.dtype in PRECISIONS and x.numel() > 0 and runs_kernels(x.device)


def fuses_attention(x: Tensor) -> bool:
    """Return whether modules that are given `x` use the operators for attention and for columns of tokens.

    These are there for a CPU too.
    """
    if fuses(x):
        return True
    return not torch.compiler.is_compiling() and os.environ.get(SWITCH) != "off" and x.numel() > 0 and _on_cpu(x)


def _on_cpu(x: Tensor) -> bool:
    """Return whether the kernels that are compiled for this machine's CPU take `x`."""
    return x.is_cpu and cpu_kernels.library(x.dtype) is not None


def runs_kernels(device: torch.device) -> bool:
    """Return whether a device runs the kernels of this file, or stands for one that does."""
    if os.environ.get(SWITCH) == "off":
        return False
    if device.type != "cuda":
        return device.type == "meta"
    return triton_compiles() and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


@lru_cache
def triton_compiles() -> bool:
    """Return whether Triton is there, with the C compiler and Python's headers that it needs to start a kernel.

    Slim container images have PyTorch and Triton but often lack these two.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return find_spec("triton") is not None and compiler is not None and headers.exists()


def dropout_seed(x: Tensor, rate: float) -> Tensor | None:
    """Return the seed (1,) that a mask of dropout follows from, drawn where `x` is; None without dropout."""
    return torch.randint(2**62, (1,), device=x.device) if rate else None


_LIBRARY = Library("dtg_lknet", "DEF")
OPERATORS = torch.ops.dtg_lknet


def _operator(empty: Callable[..., Any], changed: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], OpOverload]:
    """Make a function an operator of PyTorch's, of the same name.

    Not by `torch.library.custom_op`, which loads PyTorch's compiler: that takes longer than a forecast.

    Args:
        empty: returns the results without their values.
        changed: the arguments that the function writes to.
    """

    def register(function: Callable[..., Any]) -> OpOverload:
        name = function.__name__.lstrip("_")
        _LIBRARY.define(name + infer_schema(function, mutates_args=changed), tags=torch.Tag.pt2_compliant_tag)
        for key, form in (("CUDA", function), ("CPU", function), ("Meta", empty)):  # on a CPU Triton interprets
            _LIBRARY.impl(name, form, key)
        operator: OpOverload = getattr(OPERATORS, name).default
        return operator

    return register


def _differentiate(operator: OpOverload, gradient: Callable[..., Any], keep: Callable[..., None]) -> None:
    """Give an operator its gradient, and what keeps the tensors for it."""
    register_autograd(
        operator._schema.name,
        gradient,
        setup_context=lambda ctx, inputs, output: keep(ctx, inputs, output),
        lib=_LIBRARY,
    )


def _kernels() -> ModuleType:
    from model import triton_kernels  # only where one of them is about to run

    return triton_kernels


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _warps(entries: int) -> int:
    """Return how many warps hold a tile of so many entries."""
    return max(1, min(8, entries // 256))


def _precision_of_products(x: Tensor) -> torch.dtype:
    """Return the precision in which a product takes `x`: under autocast the lower one."""
    device = "cuda" if x.is_meta else x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _sizes(packed: Tensor, heads: int, tokens: int = 0) -> tuple[int, int, int, int, float]:
    """Return what kernels for a CPU want to know: sensors, tokens, heads, channels of a head, scale of the scores."""
    width = packed.shape[-1] // 3 // heads
    return packed.shape[:-2].numel(), tokens or packed.shape[-2], heads, width, width**-0.5


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


# ------------------------------------------------------------------------------------------ attention over tokens


@dataclass(frozen=True)
class _HeadTiles:
    """How heads are cut into tiles: constants of the kernels, and how many tiles there are."""

    constants: dict[str, int]
    count: int
    warps: int

    @classmethod
    def of(cls, tokens: int, heads: int, channels: int) -> "_HeadTiles":
        width = channels // heads
        token_tile, width_tile = _power_of_two(tokens), _power_of_two(width)
        head_tile = min(_power_of_two(heads), max(1, 2 * TILE // (token_tile * width_tile)))
        constants = {
            "TOKENS": tokens,
            "HEADS": heads,
            "WIDTH": width,
            "TOKEN_TILE": token_tile,
            "HEAD_TILE": head_tile,
            "WIDTH_TILE": width_tile,
        }
        return cls(constants, -(-heads // head_tile), _warps(token_tile * width_tile * head_tile))


def _attended_empty(packed: Tensor, heads: int, causal: bool, dropout: float = 0, seed: Tensor | None = None) -> Tensor:
    del heads, causal, dropout, seed
    return packed.new_empty(*packed.shape[:-1], packed.shape[-1] // 3)


@_operator(_attended_empty)
def attend_tokens(packed: Tensor, heads: int, causal: bool, dropout: float = 0, seed: Tensor | None = None) -> Tensor:
    """Let the tokens of each sensor attend to each other: packed (B, N, M, 3C) to attended values (B, N, M, C)."""
    output = _attended_empty(packed, heads, causal)
    if _on_cpu(packed):
        cpu_kernels.call("attend_tokens", packed, output, *_sizes(packed, heads), causal, seed, float(dropout))
        return output
    *outer, tokens, channels = output.shape
    tiles = _HeadTiles.of(tokens, heads, channels)
    _kernels().attend_tokens_forward[math.prod(outer), tiles.count](
        packed,
        output,
        seed,
        tiles.constants["WIDTH"] ** -0.5,
        dropout,
        **tiles.constants,
        CAUSAL=causal,
        DROPOUT=seed is not None,
        num_warps=tiles.warps,
    )
    return output


@_operator(lambda _gradient, packed, *_: torch.empty_like(packed))
def attend_tokens_backward(
    gradient: Tensor, packed: Tensor, heads: int, causal: bool, dropout: float = 0, seed: Tensor | None = None
) -> Tensor:
    """Return the gradient of `packed` (B, N, M, 3C) from that of the attended values."""
    packed_gradient = torch.empty_like(packed)
    if _on_cpu(packed):
        tensors = (gradient, packed, packed_gradient)
        cpu_kernels.call("attend_tokens_backward", *tensors, *_sizes(packed, heads), causal, seed, float(dropout))
        return packed_gradient
    *outer, tokens, channels = gradient.shape
    tiles = _HeadTiles.of(tokens, heads, channels)
    _kernels().attend_tokens_backward[math.prod(outer), tiles.count](
        gradient,
        packed,
        packed_gradient,
        seed,
        tiles.constants["WIDTH"] ** -0.5,
        dropout,
        **tiles.constants,
        CAUSAL=causal,
        DROPOUT=seed is not None,
        num_warps=tiles.warps,
    )
    return packed_gradient


def _keep_attend_tokens(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    packed, ctx.heads, ctx.causal, ctx.dropout, seed = inputs
    ctx.save_for_backward(packed, seed)


def _attend_tokens_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    packed, seed = ctx.saved_tensors
    result = attend_tokens_backward(gradient.contiguous(), packed, ctx.heads, ctx.causal, ctx.dropout, seed)
    return result, None, None, None, None


_differentiate(attend_tokens, _attend_tokens_gradient, _keep_attend_tokens)


# ------------------------------------------------------------------------------- attention of a rollout's newest token


class TokenCache:
    """Keys and values of all tokens of a rollout, and their gradients on the way back.

    Every step writes its own place once, so what is kept stays as it was. On the way back each step adds to the
    gradients of the tokens before it, the last step first.
    """

    def __init__(self, packed: Tensor, tokens: int, heads: int) -> None:
        """Make room for the keys and values of so many tokens as `packed` (B, N, 1, 3C) has of one."""
        B, N, _, channels = packed.shape
        self.keys_values = packed.new_empty(B, N, tokens, channels // 3 * 2)  # (B, N, P, 2C)
        if _on_cpu(packed):  # as the vectors of model/cpu_kernels.cpp have them, the last with some that are unused
            vectors, width = -(-B * N // cpu_kernels.LANES), channels // 3 // heads
            shape = (vectors, heads, 2, tokens, width, cpu_kernels.LANES)
            self.keys_values = packed.new_empty(shape, dtype=torch.float32)
        self.gradients: Tensor | None = None


def _step_empty(
    packed: Tensor, keys_values: Tensor, step: int, heads: int, dropout: float = 0, seed: Tensor | None = None
) -> Tensor:
    del keys_values, step
    return _attended_empty(packed, heads, True, dropout, seed)


@_operator(_step_empty, changed=("keys_values",))
def attend_step(
    packed: Tensor, keys_values: Tensor, step: int, heads: int, dropout: float = 0, seed: Tensor | None = None
) -> Tensor:
    """Let the newest token, packed (B, N, 1, 3C), attend to itself and those before it: (B, N, 1, C).

    Its key and value are written to their place in `keys_values`, which a `TokenCache` has.
    """
    output = _step_empty(packed, keys_values, step, heads)
    if _on_cpu(packed):
        sizes = _sizes(packed, heads, keys_values.shape[3])
        cpu_kernels.call("attend_step", packed, keys_values, output, *sizes, step, seed, float(dropout))
        return output
    *outer, tokens, channels = keys_values.shape
    tiles = _HeadTiles.of(tokens, heads, channels // 2)
    _kernels().attend_step_forward[math.prod(outer), tiles.count](
        packed,
        keys_values,
        output,
        seed,
        tiles.constants["WIDTH"] ** -0.5,
        dropout,
        step,
        **tiles.constants,
        DROPOUT=seed is not None,
        num_warps=tiles.warps,
    )
    return output


@_operator(lambda _gradient, packed, *_: torch.empty_like(packed), changed=("gradients",))
def attend_step_backward(
    gradient: Tensor,
    packed: Tensor,
    keys_values: Tensor,
    gradients: Tensor,
    step: int,
    heads: int,
    dropout: float = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """Return the gradient of `packed`, and add to the `gradients` of earlier keys and values."""
    packed_gradient = torch.empty_like(packed)
    if _on_cpu(packed):
        tensors, sizes = (gradient, packed, keys_values, gradients), _sizes(packed, heads, keys_values.shape[3])
        cpu_kernels.call("attend_step_backward", *tensors, packed_gradient, *sizes, step, seed, float(dropout))
        return packed_gradient
    *outer, tokens, channels = keys_values.shape
    tiles = _HeadTiles.of(tokens, heads, channels // 2)
    _kernels().attend_step_backward[math.prod(outer), tiles.count](
        gradient,
        packed,
        keys_values,
        gradients,
        packed_gradient,
        seed,
        tiles.constants["WIDTH"] ** -0.5,
        dropout,
        step,
        **tiles.constants,
        DROPOUT=seed is not None,
        num_warps=tiles.warps,
    )
    return packed_gradient


class _Step(torch.autograd.Function):
    """`attend_step` with its gradient: the output, and what the next step takes, so that it is gone back first."""

    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        order: Tensor | None,
        cache: TokenCache,
        step: int,
        heads: int,
        dropout: float,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        del order
        ctx.save_for_backward(packed, seed)
        ctx.cache, ctx.options = cache, (step, heads, dropout)
        return attend_step(packed, cache.keys_values, step, heads, dropout, seed), packed.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, seed = ctx.saved_tensors
        cache = ctx.cache
        if cache.gradients is None:
            cache.gradients = torch.zeros_like(cache.keys_values, dtype=torch.float32)
        gradient = gradients[0].contiguous()
        result = attend_step_backward(gradient, packed, cache.keys_values, cache.gradients, *ctx.options, seed)
        return result, None, None, None, None, None, None


def attend_newest(
    packed: Tensor, order: Tensor | None, cache: TokenCache, step: int, heads: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """Let the newest token, packed (B, N, 1, 3C) at position `step`, attend to itself and the cache.

    Returns:
        The attended values (B, N, 1, C), and the `order` that the next step is given, without values: it ties each step
        to the one before. It is not kept in the cache, which every step keeps: nothing would ever free such a circle.
    """
    seed = dropout_seed(packed, dropout)
    output, order = _Step.apply(packed, order, cache, step, heads, dropout, seed)
    return output, order


# ----------------------------------------------------------------------------------------- attention over sensors


def _sensor_tiles(packed: Tensor, heads: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid of programs, and the constants of both kernels."""
    samples, sensors, tokens, channels = packed.shape
    width = channels // 3 // heads
    head_tile, width_tile = _power_of_two(heads), _power_of_two(width)
    token_tile = min(_power_of_two(tokens), max(1, TILE // (head_tile * width_tile)))
    constants = {
        "HEADS": heads,
        "WIDTH": width,
        "TOKEN_TILE": token_tile,
        "HEAD_TILE": head_tile,
        "WIDTH_TILE": width_tile,
        "num_warps": _warps(token_tile * head_tile * width_tile),
    }
    return (samples * sensors, -(-tokens // token_tile)), constants


def _attended_sensors_empty(
    packed: Tensor,
    starts: Tensor,
    others: Tensor,
    seeing_starts: Tensor,
    seeing: Tensor,
    voice: Tensor | None,
    heads: int,
    dropout: float = 0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    del starts, others, seeing_starts, seeing, dropout, seed
    normalisers = packed.new_empty(*packed.shape[:-1], heads, dtype=torch.float32)
    shares = normalisers.new_empty(0 if voice is None else normalisers.shape)
    return _attended_empty(packed, heads, False), normalisers, shares


@_operator(_attended_sensors_empty)
def _attend_sensors(
    packed: Tensor,
    starts: Tensor,
    others: Tensor,
    seeing_starts: Tensor,
    seeing: Tensor,
    voice: Tensor | None,
    heads: int,
    dropout: float = 0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attended values after ReLU, and what the backward pass needs of the weights."""
    results = _attended_sensors_empty(packed, starts, others, seeing_starts, seeing, voice, heads)
    output, normalisers, shares = results
    if _on_cpu(packed):
        graph = (starts, others, None if voice is None else voice.float())
        sizes = (len(packed), *_sizes(packed[0], heads))
        cpu_kernels.call("attend_sensors", packed, *results, *graph, *sizes, seed, float(dropout), LEAST_VOICE)
        return results
    grid, constants = _sensor_tiles(packed, heads)
    _kernels().attend_sensors_forward[grid](
        packed,
        output,
        normalisers,
        None if voice is None else shares,
        starts,
        others,
        voice,
        seed,
        constants["WIDTH"] ** -0.5,
        dropout,
        LEAST_VOICE,
        *packed.shape[1:3],
        **constants,
        DROPOUT=seed is not None,
    )
    return results


@_operator(lambda _gradient, packed, *_: torch.empty_like(packed))
def _attend_sensors_backward(
    gradient: Tensor,
    packed: Tensor,
    output: Tensor,
    normalisers: Tensor,
    shares: Tensor,
    starts: Tensor,
    others: Tensor,
    seeing_starts: Tensor,
    seeing: Tensor,
    voice: Tensor | None,
    heads: int,
    dropout: float = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """Return the gradient of `packed`."""
    packed_gradient = torch.empty_like(packed)
    if _on_cpu(packed):
        tensors = (gradient, packed, output, normalisers, shares, packed_gradient)
        graph = (starts, others, seeing_starts, seeing, None if voice is None else voice.float())
        sizes = (len(packed), *_sizes(packed[0], heads))
        cpu_kernels.call("attend_sensors_backward", *tensors, *graph, *sizes, seed, float(dropout), LEAST_VOICE)
        return packed_gradient
    grid, constants = _sensor_tiles(packed, heads)
    _kernels().attend_sensors_backward[grid](
        gradient,
        packed,
        output,
        normalisers,
        None if voice is None else shares,
        starts,
        others,
        seeing_starts,
        seeing,
        voice,
        packed_gradient,
        seed,
        constants["WIDTH"] ** -0.5,
        dropout,
        LEAST_VOICE,
        *packed.shape[1:3],
        **constants,
        DROPOUT=seed is not None,
    )
    return packed_gradient


def _keep_attend_sensors(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    packed, *graph, voice, ctx.heads, ctx.dropout, seed = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(packed, *output, *graph, voice, seed)


def _attend_sensors_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *kept, seed = ctx.saved_tensors
    result = _attend_sensors_backward(gradient.contiguous(), *kept, ctx.heads, ctx.dropout, seed)
    return result, *(None for _ in range(8))


_differentiate(_attend_sensors, _attend_sensors_gradient, _keep_attend_sensors)


def attend_sensors(
    packed: Tensor, neighbours: tuple[Tensor, Tensor, Tensor, Tensor], voice: Tensor | None, heads: int, dropout: float
) -> Tensor:
    """Let sensors attend to their neighbours, packed (B, N, M, 3C), with ReLU on the attended values: (B, N, M, C).

    Args:
        packed: queries, keys and values.
        neighbours: starts (N + 1,) and sensors (E,) of the neighbours of each, and the same of those who see it.
        voice: (B, N) of 0 and 1, who is attended to, as `SpatialAttention` has it; None: all.
        heads: of attention.
        dropout: rate on the weights.
    """
    output: Tensor = _attend_sensors(packed, *neighbours, voice, heads, dropout, dropout_seed(packed, dropout))[0]
    return output


# ------------------------------------------------------------------------------------- convolutions over tokens


def _row_tiles(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return the number of row tiles of `x` (..., C), and the constants of kernels that go row by row."""
    channels = x.shape[-1]
    channel_tile = _power_of_two(channels)
    row_tile = max(1, 2 * TILE // channel_tile)
    count = -(-(x.numel() // channels) // row_tile)
    return count, {"C": channels, "ROW_TILE": row_tile, "CHANNEL_TILE": channel_tile}


@_operator(lambda x, taps, _: x.new_empty(*x.shape[:-1], taps * x.shape[-1]))
def _token_columns(x: Tensor, taps: int, left: int) -> Tensor:
    columns = x.new_empty(*x.shape[:-1], taps * x.shape[-1])
    if _on_cpu(x):
        cpu_kernels.call("token_columns", x, columns, x.shape[:-2].numel(), *x.shape[-2:], taps, left)
        return columns
    count, constants = _row_tiles(x)
    rows, tokens = x.numel() // x.shape[-1], x.shape[-2]
    _kernels().token_columns_forward[count,](x, columns, rows, TOKENS=tokens, TAPS=taps, LEFT=left, **constants)
    return columns


@_operator(lambda gradient, taps, _: gradient.new_empty(*gradient.shape[:-1], gradient.shape[-1] // taps))
def _token_columns_backward(gradient: Tensor, taps: int, left: int) -> Tensor:
    """Return the gradient of `x` from that of its columns."""
    x_gradient = gradient.new_empty(*gradient.shape[:-1], gradient.shape[-1] // taps)
    if _on_cpu(gradient):
        sizes = (gradient.shape[:-2].numel(), *x_gradient.shape[-2:])
        cpu_kernels.call("token_columns_backward", gradient, x_gradient, *sizes, taps, left)
        return x_gradient
    count, constants = _row_tiles(x_gradient)
    rows, tokens = x_gradient.numel() // x_gradient.shape[-1], x_gradient.shape[-2]
    _kernels().token_columns_backward[count,](
        gradient, x_gradient, rows, TOKENS=tokens, TAPS=taps, LEFT=left, **constants
    )
    return x_gradient


def _keep_token_columns(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, ctx.taps, ctx.left = inputs


def _token_columns_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _token_columns_backward(gradient.contiguous(), ctx.taps, ctx.left), None, None


_differentiate(_token_columns, _token_columns_gradient, _keep_token_columns)


def token_columns(x: Tensor, taps: int, left: int) -> Tensor:
    """Lay tokens m - left .. m - left + taps - 1 of `x` (B, N, M, C) side by side: (B, N, M, taps * C).

    They are made for a product, so they are in the precision that it takes.
    """
    columns: Tensor = _token_columns(x.to(_precision_of_products(x)).contiguous(), taps, left)
    return columns


# ------------------------------------------------------------------------------------------------ sum and norm


def _add_norm_empty(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    del weight, bias, epsilon
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype)), x.new_empty(x.shape, dtype=dtype)


@_operator(_add_norm_empty)
def _add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return x + y, and its LayerNorm in a precision of its own."""
    summed, normed = _add_norm_empty(x, y, weight, bias, epsilon, dtype)
    count, constants = _row_tiles(x)
    rows = x.numel() // x.shape[-1]
    _kernels().add_norm_forward[count,](x, y, weight, bias, summed, normed, rows, epsilon, **constants)
    return summed, normed


def _add_norm_backward_empty(
    sum_gradient: Tensor | None, norm_gradient: Tensor, summed: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    del sum_gradient, norm_gradient, epsilon
    count, _ = _row_tiles(summed)
    return torch.empty_like(summed), weight.new_empty(min(count, PROGRAMS), 2, len(weight), dtype=torch.float32)


@_operator(_add_norm_backward_empty)
def _add_norm_backward(
    sum_gradient: Tensor | None, norm_gradient: Tensor, summed: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the gradient of both summands, and parts (programs, 2, C) of those of weight and bias."""
    x_gradient, parts = _add_norm_backward_empty(sum_gradient, norm_gradient, summed, weight, epsilon)
    _, constants = _row_tiles(summed)
    rows = summed.numel() // summed.shape[-1]
    _kernels().add_norm_backward[len(parts),](
        sum_gradient, norm_gradient, summed, weight, x_gradient, parts, rows, epsilon, **constants
    )
    return x_gradient, parts


def _keep_add_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, weight, _, ctx.epsilon, _ = inputs
    ctx.precisions = x.dtype, y.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], weight)


def _add_norm_gradient(
    ctx: Any, sum_gradient: Tensor | None, norm_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    summed, weight = ctx.saved_tensors
    if norm_gradient is None:
        gradient, of_weight, of_bias = sum_gradient, None, None
    else:
        kept = None if sum_gradient is None else sum_gradient.contiguous()
        gradient, parts = _add_norm_backward(kept, norm_gradient.contiguous(), summed, weight, ctx.epsilon)
        of_weight, of_bias = parts.sum(0).to(weight.dtype)
    of_x, of_y = (None if gradient is None else gradient.to(precision) for precision in ctx.precisions)
    return of_x, of_y, of_weight, of_bias, None, None


_differentiate(_add_norm, _add_norm_gradient, _keep_add_norm)


def add_norm(x: Tensor, y: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return x + y, of (..., C), and the norm of this sum; y None: of x itself."""
    if y is None:
        return x, norm(x)
    if not fuses(x):
        x = x + y
        return x, norm(x)
    summed, normed = _add_norm(*_contiguous(x, y), norm.weight, norm.bias, norm.eps, _precision_of_products(x))
    return summed, normed


# ------------------------------------------------------------------------------------------ element by element


@_operator(lambda x, *_: torch.empty_like(x))
def _scaled_add(x: Tensor, y: Tensor, scale: Tensor, gelu: bool) -> Tensor:
    output = torch.empty_like(x)
    grid = (-(-x.numel() // TILE),)
    _kernels().scaled_add_forward[grid](x, y, scale, output, x.numel(), GELU=gelu, TILE=TILE)
    return output


def _scaled_add_backward_empty(gradient: Tensor, y: Tensor, scale: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    del gradient, gelu
    parts = min(-(-y.numel() // TILE), PROGRAMS)
    return torch.empty_like(y), scale.new_empty(parts, dtype=torch.float32)


@_operator(_scaled_add_backward_empty)
def _scaled_add_backward(gradient: Tensor, y: Tensor, scale: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient of y, and parts (programs,) of that of the scale."""
    y_gradient, parts = _scaled_add_backward_empty(gradient, y, scale, gelu)
    _kernels().scaled_add_backward[len(parts),](gradient, y, scale, y_gradient, parts, y.numel(), GELU=gelu, TILE=TILE)
    return y_gradient, parts


def _keep_scaled_add(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, y, scale, ctx.gelu = inputs
    ctx.save_for_backward(y, scale)


def _scaled_add_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    y, scale = ctx.saved_tensors
    of_y, parts = _scaled_add_backward(gradient.contiguous(), y, scale, ctx.gelu)
    return gradient, of_y, parts.sum().to(scale.dtype), None


_differentiate(_scaled_add, _scaled_add_gradient, _keep_scaled_add)


def scaled_add(x: Tensor, y: Tensor, scale: Tensor, gelu: bool = False) -> Tensor:
    """Return x + scale * y, or x + scale * GELU(y), for a scale ()."""
    if fuses(x):
        result: Tensor = _scaled_add(*_contiguous(x, y), scale, gelu)
        return result
    return x + scale * (nn.functional.gelu(y) if gelu else y)


def _gate_empty(terms: Tensor) -> Tensor:
    return terms.new_empty(*terms.shape[:-1], terms.shape[-1] // 2)


@_operator(_gate_empty)
def _open_gate(terms: Tensor) -> Tensor:
    output = _gate_empty(terms)
    count, constants = _row_tiles(output)
    _kernels().open_gate_forward[count,](terms, output, terms.numel() // terms.shape[-1], **constants)
    return output


@_operator(lambda _gradient, terms: torch.empty_like(terms))
def _open_gate_backward(gradient: Tensor, terms: Tensor) -> Tensor:
    terms_gradient = torch.empty_like(terms)
    count, constants = _row_tiles(gradient)
    _kernels().open_gate_backward[count,](
        gradient, terms, terms_gradient, terms.numel() // terms.shape[-1], **constants
    )
    return terms_gradient


_differentiate(
    _open_gate,
    lambda ctx, gradient: _open_gate_backward(gradient.contiguous(), *ctx.saved_tensors),
    lambda ctx, inputs, _: ctx.save_for_backward(*inputs),
)


def open_gate(terms: Tensor) -> Tensor:
    """Return sigmoid(gate) + content (..., C) of terms (..., 2C), the gate first."""
    if fuses(terms):
        result: Tensor = _open_gate(terms.contiguous())
        return result
    gate, content = terms.chunk(2, dim=-1)
    return torch.sigmoid(gate) + content


@_operator(lambda x, _: torch.empty_like(x))
def _add_relu(x: Tensor, y: Tensor) -> Tensor:
    output = torch.empty_like(x)
    grid = (-(-x.numel() // TILE),)
    size = x.shape[-2] * x.shape[-1]
    _kernels().add_relu_forward[grid](x, y, output, x.numel(), size, y.stride(1), TILE=TILE)
    return output


def _add_relu_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    (output,) = ctx.saved_tensors
    gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
    return gradient, gradient


_differentiate(_add_relu, _add_relu_gradient, lambda ctx, _, output: ctx.save_for_backward(output))


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    """Return relu(x + y) of (B, N, T, C); y may be some tokens of a contiguous tensor with more."""
    if fuses(x):
        result: Tensor = _add_relu(x.contiguous(), y)
        return result
    return torch.relu(x + y)
