"""The course of training for TensorBoard: losses, validation errors, also by horizon, and the learning rate."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.errors import InputError

NAMES = {  # of each scalar, by its key in log.jsonl
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "val_mae": "validation/MAE",
    "val_rmse": "validation/RMSE",
    "val_mape": "validation/MAPE",
    "val_mae_measured": "validation/MAE_measured",
    "learning_rate": "learning_rate",
}


class EventLog:
    """Writes the entries of log.jsonl as events, of which an epoch is a step.

    A run that goes on writes all its epochs anew, in place of what it had written before: so none is there twice, and
    none is missing, wherever it was stopped.

    Args:
        folder: for the event file alone.
        minutes: length of a time step.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, so only where it is asked for
        except ImportError:
            raise InputError(
                "[Runtime] tensorboard = on: found no package that writes its files, expected one: "
                "pip install tensorboard"
            ) from None
        self.folder, self.minutes = folder, minutes
        self._open = SummaryWriter
        self._writer: Any = None

    def record(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the last of the entries; the first time all of them."""
        entries = history[-1:]
        if self._writer is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._writer = self._open(str(self.folder))
            entries = history
        # The clock of the events is the time that training took, without the pauses.
        later = sum(entry["seconds"] for entry in entries)
        now = time.time()
        for entry in entries:
            later -= entry["seconds"]
            for name, value in _scalars(entry, self.minutes):
                self._writer.add_scalar(name, value, entry["epoch"], now - later)
        self._writer.flush()


def _scalars(entry: Mapping[str, Any], minutes: float) -> Iterator[tuple[str, float]]:
    """Yield name and value of all that is known of an epoch; runs of earlier versions know no error by horizon."""
    for key, name in NAMES.items():
        if entry.get(key) is not None:
            yield name, entry[key]
    for step, mae in enumerate(entry.get("val_mae_by_horizon", ()), start=1):
        if mae is not None:
            yield f"validation_MAE_by_horizon/{step * minutes:03g}_min", mae
