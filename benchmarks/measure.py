"""Honest measurements: after a warm-up, by turns, medians with quartiles, results that are checked to be equal."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

FEWEST_ROUNDS = 2  # however long they take
NEAR_ZERO = 1e-2  # of the largest entry of all tensors: smaller tensors are measured against this much of it

Unit = Literal["s", "bytes", "calls"]


@dataclass(frozen=True)
class Figure:
    """The median of repeated measurements, with both quartiles."""

    median: float
    lower_quartile: float
    upper_quartile: float
    repeats: int

    def scaled(self, factor: float) -> "Figure":
        """Return the figure of so many times as much work."""
        return Figure(self.median * factor, self.lower_quartile * factor, self.upper_quartile * factor, self.repeats)


def figure(values: list[float]) -> Figure:
    """Return median and quartiles of measurements."""
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    return Figure(float(median), float(lower), float(upper), len(values))


@dataclass(frozen=True)
class Comparison:
    """One row of the table: this project's way beside the plain one.

    Attributes:
        what: was measured.
        shape: whose data set's shape, or what it grows with.
        sensors: N.
        batch: samples in a step; None where there is none.
        unit: of both figures.
        fast, plain: the figures; `plain` is None where the plain way was not measured.
        extrapolated: which of both were measured on a part of the work and multiplied.
        difference: largest difference of both results, relative to their scale; None where there is nothing to compare.
        note: what a reader has to know.
    """

    what: str
    shape: str
    sensors: int
    batch: int | None
    unit: Unit
    fast: Figure
    plain: Figure | None = None
    extrapolated: tuple[Literal["fast", "plain"], ...] = ()
    difference: float | None = None
    note: str = ""
    table: ClassVar[str] = "comparisons"  # what the list of such rows is called in the JSON file

    @property
    def ratio(self) -> float | None:
        """How many times as much the plain way takes."""
        return None if self.plain is None else self.plain.median / self.fast.median

    def record(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        return {**asdict(self), "ratio": self.ratio}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes, with the work that it leaves to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def times(
    functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> dict[str, Figure]:
    """Time functions that have been warmed up, in turns, the order reversed in every other round.

    What disturbs the machine for a while then disturbs all of them.

    Args:
        functions: by name.
        device: where they compute.
        repeats: rounds.
        seconds: after which no further round begins, when there have been `FEWEST_ROUNDS`.
    """
    measured: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    started = time.perf_counter()
    for round_ in range(repeats):
        if round_ >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        names = list(functions)
        for name in names if round_ % 2 == 0 else reversed(names):
            measured[name].append(timed(functions[name], device))
    return {name: figure(values) for name, values in measured.items()}


def largest_difference(fast: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> float:
    """Return the largest difference between tensors of the same names, relative to each tensor's largest entry.

    A tensor that is near zero beside the others, as gradients are that cancel exactly, is taken relative to a little
    of the largest of all.
    """
    scales = {name: float(tensor.abs().max()) for name, tensor in plain.items()}
    floor = NEAR_ZERO * max(scales.values())
    return max(float((fast[name] - plain[name]).abs().max()) / max(scale, floor) for name, scale in scales.items())


def checked(what: str, difference: float, tolerance: float) -> float:
    """Return the difference of two results.

    Raises:
        AssertionError: it is greater than the tolerance: the measurement would compare different things.
    """
    if not difference <= tolerance:
        raise AssertionError(f"{what}: found results that differ by {difference:.2g} of their scale, expected the same")
    return difference
