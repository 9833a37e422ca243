"""A finished run as a small folder for others: what predict.py, report.py and erf_conv.py need, and an example.

Nothing of the data set is in it but what the checkpoint holds, and no path of the machine that it was trained on.
"""

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.checkpoints import load_checkpoint, save_checkpoint
from lib.config import FILE_SETTINGS, Config
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT, fingerprint, save_npz, written_whole
from lib.inference import Forecaster, check_inputs, forecast_next, load_forecaster, read_history
from lib.interface import Variants
from lib.run_folder import RunFolder, new_run_folder

EXAMPLE = "example.npz"
CHECKSUMS = "SHA256SUMS"


def publish(folder: RunFolder, target: RunFolder, variants: Variants) -> list[Path]:
    """Write what is worth keeping of a finished run into a new folder, and return its files.

    These are settings, environment, log, errors and best weights; example.npz, a made-up series `data` (T, N, 1) with
    the `forecast` (N, P) of the hour after it; and SHA256SUMS, for `sha256sum -c`. The settings name the files of the
    data set in data/<NAME>/. The forecasts of the test split are left out: report.py makes them again.

    Raises:
        InputError: the run is not finished, a file of it is damaged, or the new folder exists.
    """
    if os.path.exists(target.path):
        raise InputError(f"--publish: found {target}, expected the name of a new folder")
    metrics, environment = folder.read_metrics(), folder.read_environment()
    config = _of_any_machine(folder.read_config(variants))
    checkpoint = {**load_checkpoint(folder.best), "settings": config.to_ini()}
    # The same flow comes in several files; whose targets are the same is told by metrics.json.
    checkpoint["made_from"] = {name: text for name, text in checkpoint["made_from"].items() if name != "series"}
    command = [re.sub(r"(^|=)/(.*/)?", r"\1", part) for part in environment.get("command", ())]
    with new_run_folder(target) as partial:
        partial.save_start(config, {**environment, "command": command})
        if history := folder.read_log():
            partial.save_log(history)
        if folder.patch_positions.exists():
            partial.patch_positions.write_bytes(folder.patch_positions.read_bytes())
        save_checkpoint(partial.best, checkpoint)
        if intervals := folder.read_own_intervals():
            made_from = {**intervals.made_from, "checkpoint": fingerprint(partial.best)}
            partial.save_intervals(replace(intervals, made_from=made_from), folder.read_interval_scores() or {})
        partial.save_metrics(metrics)
        forecaster = load_forecaster(partial, variants, "cpu")
        example = partial.path / EXAMPLE
        arrays: dict[str, NDArray[Any]] = {"data": example_series(forecaster)}
        save_npz(example, arrays)
        save_npz(example, {**arrays, "forecast": forecast_of(example, forecaster)}, compressed=True)
        sums = "".join(f"{fingerprint(path)}  {path.name}\n" for path in sorted(partial.path.iterdir()))
        with written_whole(partial.path / CHECKSUMS) as unfinished:
            unfinished.write_text(sums, encoding="utf-8")
    return sorted(target.path.iterdir())


def _of_any_machine(config: Config) -> Config:
    """Return the settings of a run with its files where a reader has them."""
    names: dict[str, Any] = {}
    for name in (*FILE_SETTINGS, "positions_filename"):
        path = getattr(config.data, name)
        names[name] = path and REPOSITORY_ROOT / "data" / config.data.dataset_name / path.name
    weights = config.training.weights
    training = replace(config.training, weights=weights and REPOSITORY_ROOT / weights.name)
    return replace(config, data=replace(config.data, cache=None, **names), training=training)


def example_series(forecaster: Forecaster) -> NDArray[np.float32]:
    """Return a made-up flow (T, N, 1) of a daily rhythm with noise, which reaches as far back as the run's inputs.

    It is above 0 everywhere, as a run may take 0 for missing, and of three significant digits at least at its peaks.
    """
    data, peak = forecaster.config.data, float(forecaster.scaling.maximum)
    draw = np.random.default_rng(0)
    step = np.arange(max(forecaster.steps_needed, forecaster.steps_useful or 0) + data.steps_per_day)[:, None]
    size = draw.uniform(0.2, 0.8, data.num_of_vertices) * peak
    rhythm = 0.5 - 0.45 * np.cos(2 * np.pi * (step / data.steps_per_day - draw.uniform(-0.1, 0.1, len(size))))
    flow = (size * rhythm + draw.normal(0, 0.02 * size, (len(step), len(size)))).clip(0.01 * size)
    digit = 10.0 ** math.floor(math.log10(peak / 1000))
    made_up: NDArray[np.float32] = (np.ceil(flow / digit) * digit)[:, :, None].astype(np.float32)
    return made_up


def forecast_of(source: Path, forecaster: Forecaster) -> NDArray[np.float32]:
    """Return the forecast (N, P) of the steps after a file, in vehicles a step."""
    history = read_history(source, forecaster, None)
    check_inputs(history, forecaster.offsets, 0)
    forecast: NDArray[np.float32] = forecast_next(forecaster, history, 0).flow[0]
    return forecast
