"""Many short epochs in one process: memory stays where it was. Slow: `make test-slow`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.config import load_config
from lib.experiments import start_experiment
from model.build import build_model
from tests.conftest import DatasetMaker

EPOCHS = 150
GROWTH_ALLOWED = 2**20  # bytes in the second half of a stage: less than a copy of the tiny model an epoch
PROC = Path("/proc/self/statm")


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """Return the bytes of this process that are in memory, and those that its tensors hold on a GPU."""
    resident = int(PROC.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@pytest.mark.slow
@pytest.mark.skipif(not PROC.exists(), reason="needs /proc")
def test_memory_is_flat_over_many_epochs(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.max_batches=2", "Training.dropout=0.1", "Runtime.checkpoint_minutes=1e-9"]
    config = load_config(make_dataset(epochs=EPOCHS // 2, fine_tune_epochs=EPOCHS // 2), settings)
    trainer = start_experiment(config, tmp_path / "out", "soak", build_model).trainer
    report, used = trainer.report, []

    def measured(history: list[dict[str, Any]]) -> None:
        report(history)
        used.append(memory_in_use(trainer.windows.device))

    trainer.report = measured
    trainer.fit()
    assert len(used) == EPOCHS
    for stage in np.array_split(np.array(used), 2):  # each speaks for itself: a rollout needs more than one pass
        early, late = (part.max(axis=0) for part in np.array_split(stage, 2))
        assert (late - early <= GROWTH_ALLOWED).all(), f"grew by {late - early} bytes (process, GPU)"
