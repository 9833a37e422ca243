"""Several processes on the CPU (gloo) compute what one does: steps, both stages, scores, forecasts, files, messages.

A process here is forked from a server that has imported everything, and gets the variables that torchrun sets. This
process keeps the store, as torchrun does.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import run as run_script_module
from lib.checkpoints import load_checkpoint, load_tensors, save_tensors
from lib.distributed import ONE_PROCESS, Processes, joined_processes
from lib.errors import run_script
from lib.files import REPOSITORY_ROOT, load_json
from lib.run_folder import RunFolder
from lib.runs import finish_run, open_run, resume_run, start_run
from lib.training import Trainer, evaluate
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load, tiny_series

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_distributed"])
GAPPY = ["Data.missing=interpolate", "Training.batch_size=8"]


def in_processes(size: int, folder: Path, work: Callable[..., None], *arguments: object) -> list[int]:
    """Do work in so many processes, each printing into files of its own in a folder, and return their exit codes."""
    folder.mkdir(exist_ok=True)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    started = [
        FORKS.Process(target=one_of_them, args=(rank, size, store.port, folder, work, arguments))
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        assert process.exitcode is not None, "it hangs"
    return [process.exitcode or 0 for process in started]


def one_of_them(
    rank: int, size: int, port: int, folder: Path, work: Callable[..., None], arguments: Sequence[object]
) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream.fileno())
    os.environ |= {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
    }
    torch.set_num_threads(1)
    work(*arguments)


def printed(folder: Path, size: int, stream: str) -> str:
    return "".join((folder / f"{stream}{rank}").read_text() for rank in range(size))


# ------------------------------------------------------------------------------------------------------- one step

CASES = {
    **{variant: [f"Model.variant={variant}"] for variant in VARIANTS},
    "paper in parts": ["Model.variant=paper", "Runtime.micro_batch=1"],
    "residual recomputed": ["Model.variant=residual", "Runtime.gradient_checkpointing=on"],
}


def steps(config: Path, root: Path, processes: Processes = ONE_PROCESS) -> dict[str, Tensor]:
    """Return losses, gradients and statistics of BatchNorm of steps with a whole batch and with 3 samples."""
    found = {}
    for case, changes in CASES.items():
        kernels = ["Model.large_kernels=3 5"] if VARIANTS[case.split()[0]].has_encoder else []
        run = start_run(load(config, [*GAPPY, *changes, *kernels]), root, case.replace(" ", "-"), processes=processes)
        trainer, starts = run.trainer, run.trainer.label_starts["train"]
        first = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        for stage in trainer.stages:
            for samples in (8, 3):
                name = f"{case}, {stage.name}, {samples} samples:"
                trainer.model.load_state_dict(first)  # Adam makes much of the smallest gradients
                trainer.model.train()
                (batch,) = trainer.windows.batches(starts[:samples], 8, processes)
                loss = trainer._step(stage, batch)
                of_all = trainer.windows.observed_targets(starts[:samples]) / trainer.windows.targets_per_sample
                found[f"{name} loss"] = processes.total(loss * batch.weight) / of_all
                for key, parameter in trainer.model.named_parameters():
                    if parameter.grad is not None:
                        found[f"{name} gradient of {key}"] = parameter.grad.clone()
                for key, buffer in trainer.model.named_buffers():
                    if "running" in key or "tracked" in key:
                        found[f"{name} {key}"] = buffer.clone()
    return found


def save_steps(config: Path, root: Path, folder: Path) -> None:
    with joined_processes() as processes:
        found = steps(config, root, processes)
        save_tensors(folder / f"steps{processes.rank}.pt", found)


def test_a_step_of_several_processes_is_that_of_one(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """With targets that are missing unevenly, and a last batch that leaves one of four processes without a sample."""
    data = tiny_series()
    data[np.random.default_rng(0).random(data.shape) < 0.2] = np.nan
    config = make_dataset(data)
    alone = steps(config, tmp_path / "alone")
    for size in (2, 4):
        folder = tmp_path / f"shared{size}"
        codes = in_processes(size, folder, save_steps, config, tmp_path / f"out{size}", folder)
        assert (codes, printed(folder, size, "err")) == ([0] * size, "")
        for rank in range(size):
            shared = load_tensors(folder / f"steps{rank}.pt")
            assert shared.keys() == alone.keys()
            for name, values in alone.items():
                error = (shared[name] - values).abs().max().item()
                assert error <= 1e-5 * (1 + values.abs().max().item()), name
