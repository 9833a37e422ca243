"""C++ functions, compiled for this machine's CPU at their first use."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

# Without -fopenmp for the linker: the threads are those of the library that PyTorch has loaded. A loop over a few
# vectors stays one: as a call that copies memory it was measured a tenth slower.
COMPILE = (
    *("-std=c++20", "-O3", "-march=native", "-fno-tree-loop-distribute-patterns"),
    *("-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c"),
)


def compiled(source: Path, *options: str) -> ctypes.CDLL | None:
    """Return the functions of a C++ file; None, with a printed line, where this machine cannot compile it.

    The result is kept in the user's folder of caches, by source, command and machine, so the compiler runs once. A
    result that cannot be loaded any more is made again.

    Args:
        source: the file.
        options: more options of the compiler.
    """
    name = os.environ.get("CXX", "g++")
    compiler = shutil.which(name)
    reason = f"found no C++ compiler {name}"
    if compiler is not None:
        command = [compiler, *COMPILE, *options]
        try:
            return _from_cache(source, command)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip() or str(error)
            reason = f"{compiler} failed: {said.splitlines()[0]}"
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            reason = str(error)
    print(f"{source.name} is not compiled, so PyTorch's own operators compute, slower: {reason}")
    return None


def _from_cache(source: Path, command: list[str]) -> ctypes.CDLL:
    compiler = command[0]
    # The last says what `native` means here.
    parts = source.read_bytes(), " ".join(command).encode(), _output(compiler, "-march=native", "-Q", "--help=target")
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtg_lknet")
    target = folder / f"{key}.so"
    if target.exists():
        with suppress(OSError):
            return ctypes.CDLL(str(target))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # under its name only when it is whole
        made = Path(scratch, "compiled.o"), Path(scratch, "compiled.so")
        _output(*command, str(source), "-o", str(made[0]))
        _output(compiler, "-shared", str(made[0]), "-o", str(made[1]))
        made[1].replace(target)
    return ctypes.CDLL(str(target))


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
