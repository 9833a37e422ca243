"""Real SIGKILLs at random moments, those of writing a checkpoint included. Slow: `make test-slow`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.checkpoints import load_checkpoint
from lib.files import REPOSITORY_ROOT
from lib.run_folder import RunFolder
from tests.conftest import DatasetMaker

KILLS = 12


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = make_dataset(epochs=4, fine_tune_epochs=3)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name: str) -> list[str]:
        settings = ["--set", "Training.dropout=0.1", "--set", "Runtime.checkpoint_minutes=1e-9"]  # after every batch
        start = ["--config", str(config), "--output", str(tmp_path / "out"), "--name", name]
        folder = tmp_path / "out" / "TINY" / name
        arguments = ["--resume", str(folder)] if folder.exists() else [*start, *settings]
        return [sys.executable, str(REPOSITORY_ROOT / "run.py"), *arguments]

    started = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    duration = time.monotonic() - started

    moments, kills = random.Random(0), 0
    while kills < KILLS:
        process = subprocess.Popen(
            command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        try:
            _, errors = process.communicate(timeout=moments.uniform(0.25, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, errors
    subprocess.run(command("killed"), check=True, capture_output=True, env=environment)

    whole, killed = (RunFolder(tmp_path / "out" / "TINY" / name) for name in ("whole", "killed"))
    assert whole.metrics.read_bytes() == killed.metrics.read_bytes()
    for one, other in ((whole.last, killed.last), (whole.best, killed.best)):
        assert weights_bytes(one) == weights_bytes(other)
    assert not list(killed.path.rglob("*.partial"))


def weights_bytes(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_checkpoint(path)["weights"].items()}
