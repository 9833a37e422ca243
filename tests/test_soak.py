"""Many short epochs in one process: memory stays where it was. Slow: `make test-slow`."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.runs import start_run
from tests.conftest import DatasetMaker, load

EPOCHS = 150
# Growth in the second half of a stage: less than a copy of the tiny model an epoch, in any of the three.
GROWTH_ALLOWED = np.array([2**20, 100 * EPOCHS // 4, 2**20])
MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)  # of glibc 2.33 and later


class MallocStatistics(ctypes.Structure):
    """What `mallinfo2` returns (man mallinfo), in bytes but for three counts."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def memory_in_use(device: torch.device) -> tuple[int, int, int]:
    """Return the bytes that malloc has given out, Python's small blocks, and the bytes of tensors on a GPU.

    Not the size of the process, which depends on what malloc gives back, and grows without a leak.
    """
    assert MALLINFO is not None
    MALLINFO.restype = MallocStatistics
    malloc = MALLINFO()
    on_gpu = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return malloc.uordblks + malloc.hblkhd, sys.getallocatedblocks(), on_gpu


@pytest.mark.slow
@pytest.mark.skipif(MALLINFO is None, reason="needs glibc's mallinfo2")
def test_memory_is_flat_over_many_epochs(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    settings = ["Training.max_batches=2", "Training.dropout=0.1", "Runtime.checkpoint_minutes=1e-9"]
    config = load(make_dataset(epochs=EPOCHS // 2, fine_tune_epochs=EPOCHS // 2), settings)
    trainer = start_run(config, tmp_path / "out", "soak").trainer
    report, used = trainer.report, []

    def measured(history: list[dict[str, Any]]) -> None:
        report(history)
        used.append(memory_in_use(trainer.windows.device))

    trainer.report = measured
    trainer.fit()
    assert len(used) == EPOCHS
    for stage in np.array_split(np.array(used), 2):  # each speaks for itself: a rollout needs more than one pass
        early, late = (part.max(axis=0) for part in np.array_split(stage, 2))
        assert (late - early <= GROWTH_ALLOWED).all(), f"grew by {late - early} (bytes, blocks, bytes on a GPU)"
