"""Comparing finished runs on the same test samples: means with spread, and paired differences with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import InputError
from lib.files import load_json, load_npz
from lib.metrics import absolute_errors
from lib.reporting import METRICS, PREDICTIONS

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class FinishedRuns:
    """The same settings, run with several seeds.

    Attributes:
        name: what sets them apart from others.
        metrics: metrics.json of each run.
        sample_errors: (runs, samples), what each test sample adds to the MAE, their mean, in raw units: its sum of
            absolute errors over the mean number of known targets of a sample.
    """

    name: str
    metrics: Sequence[dict[str, Any]]
    sample_errors: NDArray[np.float64]

    def spread(self, score: str) -> tuple[float, float]:
        """Return mean and standard deviation over the seeds (0 for one seed) of an overall test score."""
        values = np.array([run["test"]["overall"][score] for run in self.metrics], dtype=np.float64)
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0

    def validation(self) -> float | None:
        """Return the mean over the seeds of the best validation MAE; None for weights that were only tested."""
        values = [run["best_val_mae"] for run in self.metrics]
        return None if None in values else float(np.mean(values))


def read_runs(name: str, folders: Sequence[Path]) -> FinishedRuns:
    """Read finished runs from their folders."""
    errors = []
    for folder in folders:
        predictions = load_npz(folder / PREDICTIONS, ("forecast", "target"))
        total, count = absolute_errors(predictions["forecast"], predictions["target"], (1, 2))
        errors.append(total / count.mean())
    metrics = [load_json(folder / METRICS) for folder in folders]
    for folder, content in zip(folders, metrics, strict=True):
        for key in ("test_set", "test", "baselines", "best_val_mae"):
            if not isinstance(content, dict) or key not in content:
                raise InputError(f"{folder / METRICS}: found no '{key}', expected the metrics of a finished run")
    return FinishedRuns(name, metrics, np.stack(errors))


def check_same_targets(groups: Sequence[FinishedRuns]) -> None:
    """Refuse to compare runs that were tested on different targets.

    Raises:
        InputError: the test sets of two runs differ.
    """
    found = {run["test_set"]["fingerprint"]: group.name for group in groups for run in group.metrics}
    if len(found) > 1:
        names = " and ".join(f"'{name}'" for name in list(found.values())[:2])
        raise InputError(f"{names}: found runs tested on different targets, expected the same test set")


def paired_difference(
    errors: NDArray[np.float64], reference: NDArray[np.float64], block: int, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean difference of errors to a reference, and its 95 % bootstrap interval over test samples.

    Samples are drawn with replacement in blocks of neighbours: samples that share targets are not independent.

    Args:
        errors, reference: (runs, samples); runs are averaged first.
        block: neighbouring samples drawn together, at most all of them.
        seed: of the draws.
    """
    difference = errors.mean(axis=0) - reference.mean(axis=0)
    samples = len(difference)
    block = min(block, samples)
    sums = np.convolve(difference, np.ones(block), mode="valid")  # of every block of neighbours
    drawn = np.random.default_rng(seed).integers(0, len(sums), (BOOTSTRAP_DRAWS, max(1, round(samples / block))))
    means = sums[drawn].mean(axis=1) / block
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
