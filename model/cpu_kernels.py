"""The operators of `model.fused` for attention, compiled for this machine's CPU from `cpu_kernels.cpp`.

Batched products of 12 tokens and 8 channels, and gathers of a few neighbours, leave most of a CPU idle. Here each is
one loop over what lies in its cache. The compiler runs once a machine and precision, for some 4 seconds. Its
result is kept in the user's folder of caches. Without a compiler the modules compute by PyTorch's own operators.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
PRECISIONS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
# Without -fopenmp for the linker: the threads are those of the library that PyTorch has loaded.
COMPILE = (
    *("-std=c++20", "-O3", "-march=native"),
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c"),
)


@lru_cache
def library(precision: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled functions for tensors of a precision; None where this machine cannot compile or load them."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if precision not in PRECISIONS or compiler is None:
        return None
    command = [compiler, *COMPILE, *PRECISIONS[precision]]
    try:
        # The last says what `native` means here.
        parts = (
            SOURCE.read_bytes(),
            " ".join(command).encode(),
            _output(compiler, "-march=native", "-Q", "--help=target"),
        )
        name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtg_lknet")
        target = folder / f"{name}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:  # under its name only when it is whole
                made = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
                _output(*command, str(SOURCE), "-o", str(made[0]))
                _output(compiler, "-shared", str(made[0]), "-o", str(made[1]))
                made[1].replace(target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # RuntimeError: there is no home
        return None


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


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
