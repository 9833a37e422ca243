"""The peak memory of one step above the interpreter's own, measured in a process of its own.

    python -m benchmarks.memory DESCRIPTION

is that process; DESCRIPTION is JSON, written by `peak_memory`, and the answer on the last line is the number of bytes.
"""

import ctypes
import gc
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.workloads import Kind, NetworkName, NetworkSizes, Workload, load_workload, save_workload, step
from lib.data.windowing import WindowShape
from lib.devices import configure_cpu
from lib.devices import peak_memory as peak_of_process
from lib.files import REPOSITORY_ROOT
from lib.interface import Graphs, Neighbours

STATUS = Path("/proc/self/status")


def peak_memory(kind: Kind, name: NetworkName, workload: Workload) -> int:
    """Return the peak memory in bytes of one step: on a GPU of its tensors, else of the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.pt"
        save_workload(path, workload)
        description = {
            "kind": kind,
            "name": name,
            "path": str(path),
            "sizes": asdict(workload.sizes),
            "windows": asdict(workload.windows),
            "device": str(workload.device),
            "threads": torch.get_num_threads(),
        }
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(description)]
        answer = subprocess.run(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(answer.splitlines()[-1])


def release_memory() -> None:
    """Give what this process has freed back to the system; `configure_cpu` keeps it, and other processes need it."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _status(key: str, device: torch.device) -> int:
    """Return `VmHWM`, the most memory in bytes that was resident so far, or `VmRSS`, what is resident now.

    Not ru_maxrss of `getrusage`: on Linux that begins with the size of the process that started this one.
    """
    if not STATUS.exists():
        return peak_of_process(device)
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _take_step(kind: Kind, name: NetworkName, workload: Workload) -> None:
    network: nn.Module
    if name == "residual MLP":
        network = workload.residual_mlp()
    else:
        network = workload.plain_network() if name == "plain" else workload.network(name)
    step(kind, network, workload.batch())()


def _tiny(workload: Workload) -> Workload:
    """Return a workload of 2 sensors: what it leaves behind, loaded libraries above all, is the interpreter's own."""
    everything = Neighbours.of(torch.ones(2, 2))
    graphs = Graphs(everything, everything, torch.zeros(2, workload.graphs.laplacian_encoding.shape[1]))
    series, start, target = (x[:1, :2] for x in (workload.series, workload.start, workload.target))
    return replace(workload, graphs=graphs, series=series, start=start, target=target)


def main() -> None:
    """Take one step, and print by how much the peak lies above what was in use before."""
    description = json.loads(sys.argv[1])
    configure_cpu(description["threads"])
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(description["device"])
    windows, sizes = WindowShape(**description["windows"]), NetworkSizes(**description["sizes"])
    workload = load_workload(Path(description["path"]), windows, sizes, device)
    kind, name = description["kind"], description["name"]
    _take_step(kind, name, _tiny(workload))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _take_step(kind, name, workload)
        print(torch.cuda.max_memory_allocated(device) - before)
    else:
        before = _status("VmRSS", device)
        _take_step(kind, name, workload)
        print(_status("VmHWM", device) - before)


if __name__ == "__main__":
    main()
