"""Checkpoints of the released code: its parameter names and shapes, to and from those of DTG-LKNet (either variant)."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.attention import TokenConvolution
from model.deformable_patches import DeformablePatches
from model.dtg_lknet import DTGLKNet
from model.large_kernels import LargeKernelBlock

Layout = Literal["as is", "convolution", "pointwise", "depthwise", "position encoding"]


class Correspondence(NamedTuple):
    """One tensor here, and the tensor or tensors of the released code that it holds, stacked along the first axis."""

    name: str
    released: tuple[str, ...]
    layout: Layout


def _module(name: str, released: str | tuple[str, ...], layout: Layout = "as is") -> Iterator[Correspondence]:
    """Yield the weight and the bias of a module. Only weights have a layout of their own."""
    prefixes = (released,) if isinstance(released, str) else released
    yield Correspondence(f"{name}.weight", tuple(f"{prefix}.weight" for prefix in prefixes), layout)
    yield Correspondence(f"{name}.bias", tuple(f"{prefix}.bias" for prefix in prefixes), "as is")


def _attention(name: str, released: str, layers: int, spatial_norm: int) -> Iterator[Correspondence]:
    """Yield what encoder and decoder layers have in common."""
    for i in range(layers):
        own, theirs = f"{name}.{i}", f"{released}.layers.{i}"
        yield from _module(f"{own}.temporal.value", f"{theirs}.self_attn.linears.0")
        yield from _module(f"{own}.temporal.output", f"{theirs}.self_attn.linears.1")
        context = f"{theirs}.self_attn.conv1Ds_aware_temporal_context"
        yield from _module(f"{own}.temporal.query_key.linear", (f"{context}.0", f"{context}.1"), "convolution")
        projections = tuple(f"{theirs}.feed_forward_gcn.att.linears.{j}" for j in range(3))
        yield from _module(f"{own}.spatial.query_key_value", projections)
        yield from _module(f"{own}.temporal_norm", f"{theirs}.sublayer.0.norm")
        yield from _module(f"{own}.spatial_norm", f"{theirs}.sublayer.{spatial_norm}.norm")
    yield from _module(f"{name}_norm", f"{released}.norm")


def correspondences(model: DTGLKNet) -> Iterator[Correspondence]:
    """Yield every tensor of the model that the released code has, with its names there."""
    yield from _attention("encoder", "encoder", len(model.encoder), spatial_norm=1)
    yield from _attention("decoder", "decoder", len(model.decoder), spatial_norm=2)
    for i in range(len(model.decoder)):
        own, theirs = f"decoder.{i}", f"decoder.layers.{i}"
        yield from _module(f"{own}.gate_norm", f"{theirs}.sublayer.1.norm")
        yield from _module(f"{own}.gate.output", f"{theirs}.src_attn.linears")
        yield from _module(f"{own}.gate.causal.linear", f"{theirs}.src_attn.cauasl_conv", "convolution")
        memory = (f"{theirs}.src_attn.conv", f"{theirs}.src_attn.conv1")
        yield from _module(f"{own}.gate.gate_content.linear", memory, "convolution")

    front_end = "src_embed.0.LKMS_Conv"
    predictor = f"{front_end}.deformable_sampling.offset_predictor.offset_predictor"
    yield from _module("front_end.patches.predictor.0", f"{predictor}.0", "depthwise")
    yield from _module("front_end.patches.predictor.2", f"{predictor}.2", "pointwise")
    yield from _module("front_end.patch_embedding", f"{front_end}.backbone.W_P")
    for i in range(len(model.front_end.blocks)):
        own, theirs = f"front_end.blocks.{i}", f"{front_end}.backbone.layers.{i}"
        yield from _module(f"{own}.large", f"{theirs}.DW_conv_large", "depthwise")
        yield from _module(f"{own}.small", f"{theirs}.DW_conv_small", "depthwise")
        yield from _module(f"{own}.expand", f"{theirs}.ff.0", "pointwise")
        yield from _module(f"{own}.contract", f"{theirs}.ff.3", "pointwise")
        yield Correspondence(f"{own}.convolution_scale", (f"{theirs}.sublayerconnect1.a",), "as is")
        yield Correspondence(f"{own}.feed_forward_scale", (f"{theirs}.sublayerconnect2.a",), "as is")
        for norm, released_norm in (("convolution_norm", "dw_norm"), ("feed_forward_norm", "norm_ffn")):
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                yield Correspondence(f"{own}.{norm}.{part}", (f"{theirs}.{released_norm}.{part}",), "as is")

    yield from _module("value_embedding", "trg_embed.0")
    for embedding, theirs in (("encoder_embedding", "src_embed"), ("decoder_embedding", "trg_embed")):
        yield Correspondence(f"{embedding}.positions", (f"{theirs}.1.pe",), "position encoding")
        yield from _module(f"{embedding}.node", f"{theirs}.2.embedding_lap_pos_enc")
    yield from _module("prediction", "prediction_generator")


def _released_shape(layout: Layout, shape: torch.Size, kernel_size: int) -> tuple[int, ...]:
    """Return the shape in the released code of a tensor that has `shape` here."""
    match layout:
        case "convolution":  # (out, taps * in) here: a two-dimensional convolution over (sensor, token) there
            return shape[0], shape[1] // kernel_size, 1, kernel_size
        case "pointwise":
            return *shape, 1
        case "depthwise":
            return shape[0], 1, shape[1]
        case "position encoding":
            return 1, 1, *shape
        case "as is":
            return tuple(shape)


def _unused(model: DTGLKNet) -> dict[str, Tensor]:
    """Return the tensors that the released code has in its checkpoints and never reads, by its names."""
    tensors = {}
    if isinstance(model.front_end.patches, DeformablePatches):
        tensors["src_embed.0.LKMS_Conv.deformable_sampling.box_coder.anchor"] = model.front_end.patches.centres
    channels = model.prediction.in_features
    for part, layers in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i in range(len(layers)):
            tensors[f"{part}.layers.{i}.feed_forward_gcn.att.Theta.weight"] = torch.eye(channels)
    for i, block in enumerate(model.front_end.blocks):
        assert isinstance(block, LargeKernelBlock)
        if block.large is None:
            continue
        name = f"src_embed.0.LKMS_Conv.backbone.layers.{i}.DW_infer"
        tensors[f"{name}.weight"] = block.large.weight.detach().unsqueeze(1)
        tensors[f"{name}.bias"] = block.large.bias.detach()
    return tensors


def _kernel_size(model: DTGLKNet) -> int:
    return next(module.kernel_size for module in model.modules() if isinstance(module, TokenConvolution))


def from_released(released: Mapping[str, Tensor], model: DTGLKNet) -> dict[str, Tensor]:
    """Return the released code's weights under the names and shapes of `model`.

    Raises:
        ValueError: names are missing or unknown, or a shape is another; the message lists all of them.
    """
    own_state = model.state_dict()
    rows = [row for row in correspondences(model) if row.name in own_state]  # an ablation lacks some
    expected = {name for row in rows for name in row.released}
    unused = set(_unused(model))
    faults = [f"missing {name}" for name in sorted(expected - released.keys())]
    faults += [f"unknown {name}" for name in sorted(released.keys() - expected - unused)]
    tensors = {name: value for name, value in released.items() if isinstance(value, Tensor)}
    faults += [f"no tensor in {name}" for name in sorted(released.keys() & expected - tensors.keys())]
    state = {}
    for row in rows:
        shape = own_state[row.name].shape
        parts = [tensors[name] for name in row.released if name in tensors]
        part_shape = torch.Size([shape[0] // len(row.released), *shape[1:]]) if shape else shape
        wanted = _released_shape(row.layout, part_shape, _kernel_size(model))
        wrong = [part for part in parts if tuple(part.shape) != wanted]
        faults += [f"{row.released[0]} of shape {tuple(part.shape)}, expected {wanted}" for part in wrong]
        if len(parts) == len(row.released) and not wrong:
            parts = [part if row.layout == "as is" else part.movedim(1, -1).reshape(part_shape) for part in parts]
            state[row.name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    if faults:
        raise ValueError("; ".join(faults))
    return state


def to_released(state: Mapping[str, Tensor], model: DTGLKNet) -> dict[str, Tensor]:
    """Return `state`, tensors under the names of `model`, under the names and shapes of the released code.

    `state` is usually `model.state_dict()`; any tensors of the same shapes do, such as gradients. Names that `state`
    lacks are left out. What the released code keeps and never reads is not part of it: see `to_released_checkpoint`.
    """
    released = {}
    for row in correspondences(model):
        if row.name not in state:
            continue
        tensor = state[row.name]
        for name, part in zip(row.released, tensor.chunk(len(row.released)) if tensor.dim() else [tensor], strict=True):
            if row.layout != "as is":
                rows, columns, *taps = _released_shape(row.layout, part.shape, _kernel_size(model))
                part = part.reshape(rows, *taps, columns).movedim(-1, 1)
            released[name] = part
    return released


def to_released_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model as the released code would load it, with the tensors that it never reads."""
    assert isinstance(model, DTGLKNet)
    return {**to_released(model.state_dict(), model), **_unused(model)}


def load_released(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give a model the weights of a checkpoint of the released code.

    Its graphs stay its own: checkpoints of the released code lack the Laplacian encoding, whose eigenbasis depends on
    the LAPACK that computed it.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; the message lists them.
        RuntimeError: the model has weights that the released code has not, such as those of an ablation.
    """
    assert isinstance(model, DTGLKNet)
    model.load_state_dict(from_released(checkpoint, model))
