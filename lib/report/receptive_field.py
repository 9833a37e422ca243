"""Effective receptive field: which inputs move the centre token of a layer, and how far they lie from it.

The loss of a sample is the mean over channels of the layer's token M // 2 at a sensor; the contribution of an input is
|d loss / d flow|, in raw units, summed over samples (after RepLKNet, arXiv 2203.06717, which drops negative gradients
instead, and Luo et al., arXiv 1701.04128). What it needs of a network is `lib.interface.Encoder`.

A LayerNorm makes the mean of its normalised channels zero whatever the input is, so of its output the loss sees only
what the norm's weights differ from each other by: look at the layer before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn
from tqdm import tqdm

from lib.data.graphs import graph_centre
from lib.data.windows import Windows
from lib.errors import InputError
from lib.files import save_npz
from lib.interface import Encoder, Inputs
from lib.report.figures import draw_figure, receptive_field_map
from lib.run_folder import RunFolder

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)  # shares of the contribution, those of RepLKNet's table
DECADES = 3  # below the largest contribution, that a picture tells apart
ROWS_DRAWN = 30
NEAR_HOPS = 5  # what the summary calls near: the reach of the topology mask, as shipped


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What a layer's centre token sees of the input.

    Attributes:
        layer: dotted name of the module.
        contribution: (N, L) of each input, summed over samples; layer output per raw flow.
        nodes: (n,) the sensors whose token the loss is the mean of: one, or all.
        hops: (N,) links from a sensor to the nearest of the nodes, infinite where there is no road.
        token: the token's position, M // 2.
        tokens: M.
        first_step: the step of the input that the first token starts at.
        label_starts: (samples,) the samples.
    """

    layer: str
    contribution: NDArray[np.float64]
    nodes: NDArray[np.int64]
    hops: NDArray[np.float64]
    token: int
    tokens: int
    first_step: int
    label_starts: NDArray[np.int64]

    @property
    def sees_others(self) -> bool:
        """Whether sensors are told apart here: the token is that of one sensor, and inputs of others move it."""
        return len(self.nodes) == 1 and bool(np.delete(self.contribution, self.nodes, axis=0).any())

    @property
    def inputs(self) -> NDArray[np.float64]:
        """The contributions that shares are taken of: (N, L) where sensors are told apart, else their sum (1, L)."""
        return self.contribution if self.sees_others else self.contribution.sum(axis=0, keepdims=True)

    @property
    def sensors(self) -> NDArray[np.int64]:
        """The sensors drawn, nearest by hops first, then by position; where not told apart, the nodes, in one row."""
        return np.argsort(self.hops, kind="stable")[:ROWS_DRAWN] if self.sees_others else self.nodes

    @property
    def rows(self) -> NDArray[np.float64]:
        """The contributions drawn: (sensors, L) where sensors are told apart, else (1, L)."""
        return self.contribution[self.sensors] if self.sees_others else self.inputs


def choose_nodes(choice: str, adjacency: csr_array) -> NDArray[np.int64]:
    """Return the positions (n,) that `center`, `all` or the text of a position stand for, by the adjacency (N, N).

    Raises:
        InputError: it is none of these.
    """
    num_nodes = adjacency.shape[0]
    if choice == "all":
        return np.arange(num_nodes)
    if choice == "center":
        return np.array([graph_centre(adjacency)])
    if not (choice.isascii() and choice.isdigit() and int(choice) < num_nodes):
        raise InputError(f"--node: found {choice!r}, expected center, all or a position 0..{num_nodes - 1}")
    return np.array([int(choice)])


def layer_output(model: nn.Module, layer: str, inputs: Inputs) -> Tensor:
    """Return a module's output (B, N, M, channels), the last time it runs while `model` encodes the inputs.

    Raises:
        InputError: there is no such module, encoding does not run it, or its output has other axes. Axes are told by
            their lengths alone: with N = M, an output (B, M, N, channels) passes.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if layer not in modules:
        near = ", ".join(get_close_matches(layer, modules, n=5, cutoff=0.0))
        raise InputError(f"--layer: found no module {layer!r}, expected the dotted name of one, the nearest: {near}")
    outputs: list[Any] = []
    handle = modules[layer].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        memory = cast(Encoder, model).encode(inputs)
    finally:
        handle.remove()
    if not outputs:
        raise InputError(
            f"--layer {layer}: found a module that encoding does not run (of the decoder, or a list of modules), "
            "expected one that it runs"
        )
    B, N, M, _ = memory.shape
    output = outputs[-1]
    if not isinstance(output, Tensor) or output.dim() != memory.dim() or output.shape[:3] != (B, N, M):
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise InputError(
            f"--layer {layer}: found an output of {found}, expected one with a node and a token axis: "
            f"({B}, {N}, {M}, channels)"
        )
    return output


def receptive_field(
    model: nn.Module,
    layer: str,
    windows: Windows,
    label_starts: NDArray[np.int64],
    nodes: NDArray[np.int64],
    hops: NDArray[np.float64],
    batch_size: int,
) -> ReceptiveField:
    """Compute the effective receptive field of a layer's centre token.

    The loss is the mean over `nodes` too. With all of them, the sum of contributions over sensors is thus the mean of
    the sensors' own receptive fields where a layer keeps sensors apart, and the effect on the network's mean elsewhere.

    Args:
        model: with unmerged kernels; is put into evaluation mode, where samples do not mix.
        layer: dotted name of a module with output (B, N, M, channels).
        windows: of the series.
        label_starts: (samples,), the samples.
        nodes: (n,), the positions of the sensors.
        hops: (N,), links from each sensor to the nearest of the nodes.
        batch_size: has no influence on the result beyond rounding.

    Raises:
        InputError: the module has no such output.
    """
    model.eval()
    token = tokens = 0
    total = torch.zeros(len(hops), len(windows.input_offsets), dtype=torch.float64)
    with tqdm(total=len(label_starts), desc=layer, unit="sample", leave=False, disable=None) as bar:
        for batch in windows.batches(label_starts, batch_size):
            series = batch.inputs.series.requires_grad_()
            output = layer_output(model, layer, batch.inputs)  # (B, N, M, channels)
            tokens = output.shape[2]
            token = tokens // 2
            loss = output[:, torch.from_numpy(nodes), token].mean(dim=(1, 2)).sum()
            # Zero where the model cuts the gradient off, as the released variant does at its embedding.
            (gradient,) = torch.autograd.grad(loss, series, allow_unused=True, materialize_grads=True)
            total += gradient.abs().sum(0).cpu().double()
            bar.update(len(series))
    first_step = cast(Encoder, model).first_step
    contribution = total.numpy() / windows.scaling.raw_per_scaled  # d scaled / d raw
    return ReceptiveField(layer, contribution, nodes, hops, token, tokens, first_step, label_starts)


def input_share(contribution: NDArray[np.float64], threshold: float) -> float:
    """Return the least share of inputs that holds `threshold` of the total contribution: RepLKNet's area ratio.

    There it is the share of the smallest centred rectangle; here inputs are taken by contribution, the largest first,
    wherever they lie. Not all contributions may be zero.
    """
    cumulated = np.sort(contribution, axis=None)[::-1].cumsum()
    reached = cumulated >= threshold * cumulated[-1] * (1 - 1e-12)  # no rounding error may cost one more input
    return float((reached.argmax() + 1) / reached.size)


def log_normalised(contribution: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the decimal logarithm, mapped to 1 at the largest contribution and 0 at `DECADES` below it and less.

    Inputs of no contribution at all, which lie outside of what the layer can see, are NaN. RepLKNet's log10(x + 1)
    would look different in every unit of x. Not all contributions may be zero.
    """
    relative = np.maximum(contribution / contribution.max(), 10.0**-DECADES)
    return np.where(contribution > 0, 1 + np.log10(relative) / DECADES, np.nan)


def summary(field: ReceptiveField, segments: Sequence[str]) -> str:
    """Return in a few lines how the contribution is spread; `segments` are the names of the input's, oldest first."""
    samples = len(field.label_starts)
    lines = [f"{field.layer}: token {field.token} of 0..{field.tokens - 1} at {_where(field)}, {samples} test samples"]
    total = field.contribution.sum()
    if total == 0:
        return (
            f"{lines[0]}\n  no gradient reaches the input: the contribution is 0 everywhere, there is nothing to draw"
        )
    lines.append("  contribution    " + "".join(f"{threshold:8.0%}" for threshold in THRESHOLDS))
    shares = "".join(f"{input_share(field.inputs, threshold):8.1%}" for threshold in THRESHOLDS)
    sensors, steps = field.inputs.shape
    lines.append(f"  share of input  {shares}  of {f'{sensors} sensors x ' if sensors > 1 else ''}{steps} steps")
    by_segment = field.contribution.reshape(len(field.contribution), len(segments), -1).sum(axis=(0, 2)) / total
    parts = [("by segment", zip(segments, by_segment, strict=True))]
    if field.sees_others:
        near, linked = field.hops < NEAR_HOPS, np.isfinite(field.hops)
        groups = {
            "the sensor itself": field.hops == 0,
            f"1 to {NEAR_HOPS - 1} hops": near & (field.hops > 0),
            "more hops": linked & ~near,
            "no road": ~linked,
            f"the {len(field.sensors)} sensors drawn": np.isin(np.arange(len(field.hops)), field.sensors),
        }
        by_group = [field.contribution[members].sum() / total for members in groups.values()]
        parts.append(("by distance", zip(groups, by_group, strict=True)))
    for title, shares_of in parts:
        lines.append(f"  {title:15s} " + ", ".join(f"{name} {share:.1%}" for name, share in shares_of))
    return "\n".join(lines)


def save_receptive_field(
    folder: RunFolder, field: ReceptiveField, offsets: NDArray[np.int64], segments: Sequence[str]
) -> list[Path]:
    """Write `erf_<layer>.npz` and `figures/erf_<layer>.png` and `.pdf`, in place of older ones; return the paths.

    The npz holds `contribution` (N, L) in raw units; `hops` (N,) to the nodes; `nodes` (n,), the sensors of the loss;
    `sensors` (rows,), those drawn, and `log_normalised` (rows, L), as drawn, NaN at contributions of 0: one row alone
    where the layer keeps sensors apart, and where `nodes` are several; `offsets` (L,) of the inputs from a label start;
    `label_starts` (samples,); `thresholds` and `input_shares` (4,). Not all contributions may be zero.
    """
    picture = log_normalised(field.rows)
    path = folder.receptive_field(field.layer)
    save_npz(
        path,
        {
            "contribution": field.contribution,
            "hops": field.hops,
            "nodes": field.nodes,
            "sensors": field.sensors,
            "log_normalised": picture,
            "offsets": offsets,
            "label_starts": field.label_starts,
            "thresholds": np.array(THRESHOLDS),
            "input_shares": np.array([input_share(field.inputs, threshold) for threshold in THRESHOLDS]),
        },
        compressed=True,
    )
    patch_len = (len(offsets) - field.first_step) // field.tokens
    start = field.first_step + field.token * patch_len
    draw = partial(
        receptive_field_map,
        picture,
        DECADES,
        sensors=field.sensors if field.sees_others else None,
        hops=field.hops[field.sensors],
        segments=segments,
        token_steps=(start, start + patch_len),
        title=f"Effective receptive field of {field.layer} at {_where(field)}",
    )
    drawn = draw_figure(draw, folder.figures / f"{path.stem}.png")
    return [path, *drawn, *(figure.with_suffix(".pdf") for figure in drawn)]


def _where(field: ReceptiveField) -> str:
    return f"sensor {field.nodes[0]}" if len(field.nodes) == 1 else f"the mean of all {len(field.nodes)} sensors"
