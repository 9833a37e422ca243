"""The folder of a run: the name of every file in it, and how each is written and read."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config import Config, load_config
from lib.errors import InputError, nearest
from lib.files import fingerprint, load_json, load_npz, reason, save_json, save_npz, written_whole
from lib.interface import Variants
from lib.intervals import LEVELS, Intervals
from lib.metrics import SCORES

SETTINGS, METRICS, BEST = "settings.ini", "metrics.json", "best.pt"  # what makes a folder that of a run
METRICS_KEYS = (  # of metrics.json
    *("dataset", "variant", "label", "seed", "parameters", "epochs", "best_epoch", "best_val_mae"),
    *("test_set", "test", "baselines"),
)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, experiments/<dataset>/<run>/."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.path.name

    @property
    def settings(self) -> Path:
        """Every setting, resolved."""
        return self.path / SETTINGS

    @property
    def environment(self) -> Path:
        """Versions, hardware, seed, commit, command."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """A line an epoch."""
        return self.path / "log.jsonl"

    @property
    def events(self) -> Path:
        """The folder of the same for TensorBoard, where it is asked for."""
        return self.path / "tensorboard"

    @property
    def last(self) -> Path:
        """The checkpoint that training goes on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best weights, with all that a forecast needs."""
        return self.path / BEST

    @property
    def metrics(self) -> Path:
        """The test errors."""
        return self.path / METRICS

    @property
    def metrics_table(self) -> Path:
        """The test errors as a table."""
        return self.path / "metrics.csv"

    @property
    def predictions(self) -> Path:
        """Forecasts and targets of the test split."""
        return self.path / "predictions.npz"

    @property
    def intervals(self) -> Path:
        """What prediction intervals are made with."""
        return self.path / "intervals.npz"

    @property
    def interval_scores(self) -> Path:
        """What these intervals are worth on the test split."""
        return self.path / "intervals.json"

    @property
    def patch_positions(self) -> Path:
        """Where the deformable patches read the input."""
        return self.path / "patch_positions.npz"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def page(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def receptive_field(self, layer: str) -> Path:
        """Return where the receptive field of a layer is kept."""
        return self.path / f"erf_{layer}.npz"

    # ------------------------------------------------------------------------------------------------ what it holds

    def exists(self) -> bool:
        """Return whether there is a run."""
        return os.path.exists(self.settings)  # Path.exists raises on a name that is too long

    def is_finished(self) -> bool:
        """Return whether the run has its results."""
        return self.metrics.exists()

    def read_config(self, variants: Variants) -> Config:
        """Return the settings of the run.

        Raises:
            InputError: there is no run here, or its settings are not valid.
        """
        if not self.exists():
            siblings = [path.name for path in self.path.parent.glob("*") if (path / SETTINGS).exists()]
            raise InputError(f"{self}: found no run here ({SETTINGS} is missing){nearest(self.name, siblings)}")
        return load_config(self.settings, variants)

    def save_start(self, config: Config, environment: Mapping[str, Any]) -> None:
        """Write what is known of a run before its first epoch."""
        with written_whole(self.settings) as partial:
            partial.write_text(config.to_ini(), encoding="utf-8")
        save_json(self.environment, environment)

    def read_environment(self) -> dict[str, Any]:
        """Return versions, hardware, seed, commit and command.

        Raises:
            InputError: the file is missing or damaged.
        """
        environment: dict[str, Any] = load_json(self.environment)
        return environment

    def save_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write log.jsonl, a line an epoch."""
        with written_whole(self.log) as partial:
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")

    def read_log(self) -> list[dict[str, Any]]:
        """Return the entries of log.jsonl, one an epoch; none for weights that were tested without training.

        Raises:
            InputError: the file is damaged.
        """
        if not self.log.exists():
            return []
        try:
            return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"{self.log}: found a damaged file ({error}), expected JSON in each line") from None

    def save_metrics(self, content: Mapping[str, Any]) -> None:
        """Write metrics.csv, a row for each forecast and horizon, then of measured targets; and metrics.json.

        metrics.json comes last: the run is finished once it is there.
        """
        with written_whole(self.metrics_table) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["forecast", "horizon", *SCORES])
            forecasts = forecasts_scored(content)
            measured = {
                f"{name} (measured)": each["measured"] for name, each in forecasts.items() if "measured" in each
            }
            for name, scores in {**forecasts, **measured}.items():
                for step, row in enumerate(scores["by_horizon"], start=1):
                    writer.writerow([name, step, *(row[metric] for metric in SCORES)])
                writer.writerow([name, "overall", *(scores["overall"][metric] for metric in SCORES)])
        save_json(self.metrics, content)

    def read_metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json.

        Raises:
            InputError: there is no finished run in the folder, or the file is damaged or not of a run.
        """
        if not self.is_finished():
            finished = [path.name for path in self.path.parent.glob("*") if (path / METRICS).exists()]
            raise InputError(f"{self}: found no {METRICS}, expected a finished run{nearest(self.name, finished)}")
        metrics: dict[str, Any] = load_json(self.metrics)
        missing = [key for key in METRICS_KEYS if not isinstance(metrics, dict) or key not in metrics]
        if missing:
            raise InputError(f"{self.metrics}: found no {', '.join(missing)}, expected what run.py writes")
        return metrics

    def save_predictions(
        self, forecast: NDArray[np.float32], target: NDArray[np.float32], label_starts: NDArray[np.int64]
    ) -> None:
        """Write `forecast` and `target` (samples, N, P) in raw units, NaN where missing, and `label_starts`."""
        arrays: dict[str, NDArray[Any]] = {"forecast": forecast, "target": target, "label_starts": label_starts}
        save_npz(self.predictions, arrays, compressed=True)

    def read_predictions(self) -> dict[str, NDArray[Any]]:
        """Return `forecast`, `target` and `label_starts`.

        Raises:
            InputError: the file is missing or damaged.
        """
        return load_npz(self.predictions, ("forecast", "target", "label_starts"))

    def save_intervals(self, intervals: Intervals, scores: Mapping[str, Any]) -> None:
        """Write intervals.npz, the attributes of `Intervals`; and intervals.json, their scores on the test split."""
        arrays: dict[str, NDArray[Any]] = {"spread": intervals.spread, "quantiles": intervals.quantiles}
        if intervals.imputed_quantiles is not None:
            arrays["imputed_quantiles"] = intervals.imputed_quantiles
        save_json(self.interval_scores, scores)
        made_from = np.array(json.dumps(intervals.made_from))
        save_npz(self.intervals, {**arrays, "made_from": made_from}, compressed=True)

    def read_intervals(self) -> Intervals:
        """Return what prediction intervals are made with.

        Raises:
            InputError: the file is missing or damaged, or its arrays do not fit together.
        """
        arrays = load_npz(self.intervals, ("spread", "quantiles", "made_from"), optional=("imputed_quantiles",))
        try:
            made_from = {str(key): str(value) for key, value in json.loads(str(arrays.pop("made_from"))).items()}
        except (AttributeError, ValueError):
            raise InputError(f"{self.intervals} made_from: found a damaged text, expected a file of run.py") from None
        sensors, horizon = arrays["spread"].shape[1:], arrays["quantiles"].shape[2:]
        for name, array in arrays.items():
            expected = array.shape[:1] + sensors if name == "spread" else (len(LEVELS), *sensors, *horizon)
            if array.dtype != np.float32 or array.ndim != len(expected) or array.shape != expected or not array.size:
                raise InputError(
                    f"{self.intervals} {name}: found type {array.dtype} and shape {array.shape}, expected a file of "
                    "this version of run.py"
                )
        return Intervals(**arrays, made_from=made_from)

    def read_own_intervals(self) -> Intervals | None:
        """Return the intervals of best.pt; None where there are none, or other weights made them.

        Raises:
            InputError: as `read_intervals`.
        """
        intervals = self.read_intervals() if self.intervals.exists() else None
        is_own = intervals is not None and intervals.made_from.get("checkpoint") == fingerprint(self.best)
        return intervals if is_own else None

    def read_interval_scores(self) -> dict[str, Any] | None:
        """Return what the intervals are worth on the test split; None for a run that has none.

        Raises:
            InputError: the file is damaged.
        """
        if not self.interval_scores.exists():
            return None
        scores: dict[str, Any] = load_json(self.interval_scores)
        return scores


def forecasts_scored(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores in metrics.json by the name of the forecast, the model first."""
    label = metrics["label"]
    uncorrected = {f"{label} (uncorrected)": metrics["uncorrected"]} if "uncorrected" in metrics else {}
    return {label: metrics["test"], **uncorrected, **metrics["baselines"]}


# ---------------------------------------------------------------------------------------------------- new folders


def check_run_name(name: str) -> str:
    """Return a name for a run.

    Raises:
        InputError: the name is more than a name.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"--name: found {name!r}, expected a name without '/' that does not start with '.'")
    return name


@contextmanager
def new_run_folder(folder: RunFolder) -> Iterator[RunFolder]:
    """Yield an empty folder to fill. It becomes the run's folder when the block succeeds: whole, or not at all.

    Raises:
        InputError: there is such a run already, or the folder cannot be made.
    """
    path = folder.path
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    refuse_taken(folder)
    try:
        partial.mkdir(parents=True)
        yield RunFolder(partial)
        partial.rename(path)  # fails when another run has just taken the name
    except OSError as error:
        refuse_taken(folder)
        raise InputError(f"{folder}: cannot be made: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_taken(folder: RunFolder) -> None:
    """Raise an InputError when there is a folder of that name."""
    if os.path.exists(folder.path):  # Path.exists raises on a name that is too long
        raise InputError(f"--name: found a run in {folder}, expected a new name, or --resume")


def remove_partial_files(folder: RunFolder) -> None:
    """Remove the files that a kill left half written in a run's folder."""
    for path in folder.path.rglob("*.partial"):
        path.unlink(missing_ok=True)
