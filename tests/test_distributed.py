"""Several processes on the CPU (gloo) compute what one does: steps, both stages, scores, forecasts, files, messages.

A process here is forked from a server that has imported everything, and gets the variables that torchrun sets. This
process keeps the store, as torchrun does.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # optimisers import it when they are made: once for all processes here
import torch.distributed as dist
from torch import Tensor

from lib.checkpoints import load_tensors, save_tensors
from lib.distributed import ONE_PROCESS, Processes, joined_processes
from lib.errors import run_script
from lib.files import REPOSITORY_ROOT
from lib.run_folder import RunFolder
from lib.runs import finish_run, open_run, resume_run, start_run
from lib.training import Stage, Trainer, evaluate
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, load, tiny_series

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_distributed"])
GAPPY = ["Data.missing=interpolate", "Training.batch_size=8"]


def gappy_series() -> np.ndarray:
    data = tiny_series()
    data[np.random.default_rng(0).random(data.shape) < 0.2] = np.nan
    return data


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
        process.join()
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
        run = start_run(load(config, [*GAPPY, *changes, *kernels]), root, case.replace(" ", "-"), processes)
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
    config = make_dataset(gappy_series())
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


# ------------------------------------------------------------------------------------------------------ whole runs

# Five batches an epoch, the last of which has 8 samples; splits of odd numbers of samples.
RUN = [
    *("Data.missing=interpolate", "Training.batch_size=48", "Training.dropout=0.2", "Model.large_kernels=3"),
    "Runtime.checkpoint_minutes=1e-9",
]


def train(config: Path, root: Path, name: str, folder: Path) -> None:
    """Train a run to its end, keeping what each process has after each epoch."""
    with joined_processes() as processes:
        run = start_run(load(config, RUN), root, name, processes)
        run_epoch = run.trainer._run_epoch

        def run_and_save(stage: Stage) -> None:
            run_epoch(stage)
            content = {"weights": run.trainer.model.state_dict(), "drawn": torch.rand(3)}
            save_tensors(folder / f"{stage.name}{processes.rank}.pt", content)

        run.trainer._run_epoch = run_and_save  # type: ignore[method-assign]
        finish_run(run)


def run_until(script: str, arguments: Sequence[object], rank: int = -1, number: int = signal.SIGINT) -> None:
    """Call a script as the command line would; one of the processes gets a signal in the second step, or none does."""
    step = Trainer._step

    def last_step(self: Trainer, *others: object) -> Tensor:
        if self.processes.rank == rank and self.progress.batch == 1:
            os.kill(os.getpid(), number)
        return step(self, *others)  # type: ignore[arg-type]

    Trainer._step = last_step  # type: ignore[method-assign]
    import_module("lib.report.page").make_report = lambda *_: []  # figures take longer than the training
    sys.argv = [script, *map(str, arguments)]
    run_script(import_module(Path(script).stem).main)


def test_both_stages_keep_all_processes_alike_and_scores_exact(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config, root, folder = make_dataset(gappy_series()), tmp_path / "out", tmp_path / "shared"
    assert (in_processes(2, folder, train, config, root, "two", folder), printed(folder, 2, "err")) == ([0, 0], "")
    stages = ("teacher forcing", "fine-tuning")
    first, second = ([load_tensors(folder / f"{stage}{rank}.pt") for stage in stages] for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(values, other["weights"][name]) for name, values in one["weights"].items())
        assert not torch.equal(one["drawn"], other["drawn"])  # dropout
    assert not all(torch.equal(values, first[1]["weights"][name]) for name, values in first[0]["weights"].items())

    output = (folder / "out0").read_text()
    assert output.count("effective batch: 48 samples a step of the optimiser, 24 in each of 2 processes\n") == 1
    assert output.count("epoch   ") == 2
    assert (folder / "out1").read_text() == ""
    run = RunFolder(root / "TINY" / "two")
    assert run.read_environment()["processes"] == 2
    assert {path.name for path in run.path.iterdir()} >= {"metrics.json", "predictions.npz", "best.pt", "log.jsonl"}

    opened = open_run(run, VARIANTS, "cpu")  # in one process
    starts = opened.prepared.label_starts
    alone = evaluate(opened.model, opened.windows, starts["test"], 16, "", keep_forecast=True)
    predictions = run.read_predictions()
    np.testing.assert_array_equal(predictions["label_starts"], starts["test"])
    np.testing.assert_allclose(predictions["forecast"], alone.forecast, rtol=1e-5, atol=1e-4)
    tested = run.read_metrics()["test"]
    assert tested["overall"] == pytest.approx(alone.errors.overall(), rel=1e-6)
    for found, expected in zip(tested["by_horizon"], alone.errors.by_horizon(), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    opened.model.load_state_dict(first[1]["weights"])
    validated = evaluate(opened.model, opened.windows, starts["val"], 16, "")
    logged = run.read_log()[1]
    assert logged["val_loss"] == pytest.approx(validated.loss, rel=1e-6)
    assert logged["val_mae"] == pytest.approx(validated.errors.overall()["mae"], rel=1e-6)


def test_runs_that_are_interrupted_or_killed_go_on(
    make_dataset: DatasetMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root, folder = make_dataset(gappy_series()), tmp_path / "out", tmp_path / "shared"
    settings = [argument for change in RUN for argument in ("--set", change)]

    def start(name: str) -> list[object]:
        return ["--config", config, *settings, "--output", root, "--name", name]

    run, killed = (RunFolder(root / "TINY" / name) for name in ("stopped", "killed"))
    assert in_processes(2, folder, run_until, "run.py", start("whole")) == [0, 0]
    assert in_processes(2, folder, run_until, "run.py", start("stopped"), 1, signal.SIGINT) == [130, 130]
    message = f"interrupted: go on with: torchrun --nproc_per_node=2 run.py --resume {run} "
    assert printed(folder, 2, "err") == f"{message}(or repeat the command, if it makes several runs)\n"
    assert load_tensors(run.last)["progress"]["batch"] == 2
    shutil.copytree(run.path, root / "TINY" / "alone")

    assert in_processes(2, folder, run_until, "run.py", ["--resume", run]) == [0, 0]
    whole = RunFolder(root / "TINY" / "whole")
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    ones, others = (load_tensors(each.last)["weights"] for each in (run, whole))
    assert all(torch.equal(values, others[name]) for name, values in ones.items())

    capsys.readouterr()
    alone = resume_run(RunFolder(root / "TINY" / "alone"), VARIANTS, None)
    expected = "found a run of 2 processes, going on with 1 process: it is no longer equal to the bit to one that"
    assert expected in capsys.readouterr().out
    assert finish_run(alone)["test"]["overall"]["mae"] > 0

    assert in_processes(2, folder, run_until, "run.py", start("killed"), 1, signal.SIGKILL) == [1, -signal.SIGKILL]
    assert printed(folder, 2, "err").startswith("error: found another process of this run dead")
    assert printed(folder, 2, "err").count("\n") == 1
    assert load_tensors(killed.last)["progress"]["batch"] == 1


def join_late(folder: Path) -> None:
    join = dist.init_process_group

    def joined(*others: Any, rank: int, **settings: Any) -> None:
        join(*others, rank=rank, **settings)
        time.sleep(0.2 * rank)
        (folder / f"joined{rank}").touch()

    dist.init_process_group = joined
    with joined_processes() as processes:
        assert len(list(folder.glob("joined*"))) == processes.size


def test_none_goes_on_or_ends_before_all_have_joined(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    assert (in_processes(2, folder, join_late, folder), printed(folder, 2, "err")) == ([0, 0], "")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run.py", ["--set", "Training.batch_size=9"], "[Training] batch_size: found 9, expected a multiple of the 2 "),
        ("run.py", ["--set", "Training.epoch=9"], "--set Training.epoch=9: found unknown key 'epoch'"),
        ("create_dtw.py", [], "torchrun: found 2 processes, expected one: only run.py trains in several"),
    ],
)
def test_wrong_input_is_told_once(
    script: str, arguments: list[str], message: str, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    config, folder = make_dataset(), tmp_path / "shared"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert in_processes(2, folder, run_until, script, ["--config", config, *arguments]) == [2, 2]
    assert printed(folder, 2, "err").startswith(f"error: {message}")
    assert printed(folder, 2, "err").count("\n") == 1
    assert printed(folder, 2, "out") == ""
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder} == before


def test_several_runs_of_one_command_and_torchrun_itself(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config, root, folder = make_dataset(), tmp_path / "out", tmp_path / "shared"
    stid = ["--config", config, "--set", "Model.variant=stid", "--set", "Training.max_batches=1", "--output", root]
    for finished_before in (0, 2):
        assert in_processes(2, folder, run_until, "run.py", [*stid, "--seed", 1, 2]) == [0, 0]
        output = printed(folder, 2, "out")
        counts = [output.count(text) for text in ("== stid-seed1 ==", "== stid-seed2 ==", "finished before")]
        assert counts == [1, 1, finished_before]
    assert all(RunFolder(root / "TINY" / f"stid-seed{seed}").is_finished() for seed in (1, 2))

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, REPOSITORY_ROOT / "run.py", *stid, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run, one batch of each stage, validation and test") == 1
    assert len(list((root / "TINY").iterdir())) == 2
