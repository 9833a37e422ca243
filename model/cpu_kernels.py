"""The operators of `model.fused` for attention, compiled for this machine's CPU from `cpu_kernels.cpp`.

Batched products of 12 tokens and 8 channels, and gathers of a few neighbours, leave most of a CPU idle. Here each is
one loop over what lies in its cache. The compiler runs once a machine and precision, for some 4 seconds. Without a
compiler the modules compute by PyTorch's own operators.
"""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lib.compiled import compiled

SOURCE = Path(__file__).with_suffix(".cpp")
LANES = 16  # numbers in a vector there
OPTIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


@lru_cache
def library(precision: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled functions for tensors of a precision; None where there are none."""
    return compiled(SOURCE, *OPTIONS[precision]) if precision in OPTIONS else None


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call the function of that name for the precision of the first tensor; tensors are contiguous."""
    first = arguments[0]
    assert isinstance(first, Tensor)
    function = getattr(library(first.dtype), name)
    function(*map(_passed, arguments), ctypes.c_long(torch.get_num_threads()))


def _passed(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_float:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_long(argument)
