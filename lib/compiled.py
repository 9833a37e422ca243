"""C++ functions, compiled for this machine's CPU at their first use."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# Without -fopenmp for the linker: the threads are those of the library that PyTorch has loaded.
COMPILE = (
    *("-std=c++20", "-O3", "-march=native"),
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c"),
)


def compiled(source: Path, *options: str) -> ctypes.CDLL | None:
    """Return the functions of a C++ file; None where this machine cannot compile or load them.

    The result is kept in the user's folder of caches, by source, command and machine, so the compiler runs once.

    Args:
        source: the file.
        options: more options of the compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    command = [compiler, *COMPILE, *options]
    try:
        # The last says what `native` means here.
        parts = (
            source.read_bytes(),
            " ".join(command).encode(),
            _output(compiler, "-march=native", "-Q", "--help=target"),
        )
        name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtg_lknet")
        target = folder / f"{name}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:  # under its name only when it is whole
                made = Path(scratch, "compiled.o"), Path(scratch, "compiled.so")
                _output(*command, str(source), "-o", str(made[0]))
                _output(compiler, "-shared", str(made[0]), "-o", str(made[1]))
                made[1].replace(target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # RuntimeError: there is no home
        return None


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
