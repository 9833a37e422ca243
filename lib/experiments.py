"""A run from its settings to its results: one folder that explains itself, made once and never overwritten."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.acceleration import accelerate
from lib.autoregression import autoregression_lags, graph_autoregression
from lib.baselines import score_baselines, targets
from lib.checkpoints import BEST, CARRIED, LAST, Restorer, load_checkpoint, restored
from lib.config import DEVIATION_VARIANTS, TIMED_VARIANTS, Config, load_settings
from lib.data import Prepared, Windows, early_label_starts
from lib.devices import choose_device, configure_cpu, describe_device, peak_memory
from lib.errors import InputError, nearest
from lib.files import REPOSITORY_ROOT, fingerprint_arrays, reason, save_json, written_whole
from lib.graphs import Graphs
from lib.preparation import calendar, graphs_for, links_for, prepared_for, sensor_names
from lib.provenance import provenance
from lib.report_page import make_report
from lib.reporting import (
    METRICS,
    metrics_content,
    print_results,
    save_log,
    save_metrics,
    save_patch_positions,
    save_predictions,
    score_text,
)
from lib.training import Trainer
from lib.usual_flow import UsualFlow, usual_flow

EXPERIMENTS = REPOSITORY_ROOT / "experiments"
SETTINGS = "settings.ini"
COEFFICIENTS = "decoder.autoregression.coefficients"  # the buffer of a model that is fitted before it is trained

Builder = Callable[..., nn.Module]  # model.build.build_model


def run_name(config: Config, name: str | None) -> str:
    """Return the name of a new run: the one asked for, or one of variant, seed and time.

    Raises:
        InputError: the name is more than a name.
    """
    if name is None:
        return f"{config.model.variant}-seed{config.training.seed}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"--name: found {name!r}, expected a name without '/' that does not start with '.'")
    return name


@contextmanager
def new_run_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes the run's when the block succeeds: a run is there whole or not.

    Raises:
        InputError: there is such a run already, or the folder cannot be made.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    _refuse_taken(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)  # fails when another run has just taken the name
    except OSError as error:
        _refuse_taken(folder)
        raise InputError(f"{folder}: cannot be made: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_taken(folder: Path) -> None:
    if os.path.exists(folder):  # Path.exists raises on a name that is too long
        raise InputError(f"--name: found a run in {folder}, expected a new name, or --resume")


@dataclass(frozen=True)
class Run:
    """A run that can be looked into: its settings, series and model with the best weights."""

    folder: Path
    config: Config
    prepared: Prepared
    windows: Windows
    model: nn.Module


def _load_settings(folder: Path) -> Config:
    if not os.path.exists(folder / SETTINGS):
        siblings = [path.name for path in folder.parent.glob("*") if (path / SETTINGS).exists()]
        raise InputError(f"{folder}: found no run here ({SETTINGS} is missing){nearest(folder.name, siblings)}")
    return load_settings(folder / SETTINGS)


def _what_it_was_trained_on(
    config: Config, checkpoint: Mapping[str, Any], path: Path
) -> tuple[Prepared, UsualFlow | None]:
    if checkpoint["model"] != model_arguments(config):
        raise InputError(f"{path}: found other settings than in {SETTINGS} beside it, expected the same")
    prepared = prepared_for(config)
    if checkpoint["data_fingerprint"] != prepared.source_fingerprint:
        series = config.data.graph_signal_matrix_filename
        raise InputError(f"{series}: found another series than {path} was trained on, expected the same file")
    usual, known = usual_for(config, prepared), checkpoint["usual_week"]
    if usual is not None and (known is None or not np.allclose(usual.week, known, rtol=1e-4)):
        raise InputError(
            f"{path}: found another rule of what is usual, that of an earlier version, expected this one's: train the "
            "run anew; predict.py forecasts with it as it is"
        )
    return prepared, usual


def open_run(folder: Path, restore_model: Restorer, device_name: str) -> Run:
    """Open a run's best weights.

    Raises:
        InputError: there is no such run, it has no weights yet, or its series has changed.
    """
    config = _load_settings(folder)
    configure_cpu(config.runtime.threads)
    device = choose_device(device_name)
    checkpoint = load_checkpoint(folder / BEST)
    prepared, usual = _what_it_was_trained_on(config, checkpoint, folder / BEST)
    model = restored(folder / BEST, checkpoint, restore_model).to(device).eval()
    windows = windows_for(config, prepared, device, usual)
    return Run(folder, config, prepared, windows, model)


def usual_for(config: Config, prepared: Prepared) -> UsualFlow | None:
    """Return what is usual, where the model asks for it."""
    return usual_flow(prepared, calendar(config)) if config.model.knows_usual else None


def windows_for(config: Config, prepared: Prepared, device: torch.device, usual: UsualFlow | None) -> Windows:
    """Return the windows of a prepared series for models on a device, with what is usual if there is."""
    on_host, series = config.runtime.data == "host", None if usual is None else usual.series
    return Windows(prepared, config.data.num_for_predict, calendar(config), device, on_host, series)


@dataclass(frozen=True)
class Experiment:
    """A run on its way: its folder, settings and series, and the trainer that takes it to its end."""

    folder: Path
    config: Config
    prepared: Prepared
    trainer: Trainer


def start_experiment(config: Config, root: Path, name: str | None, build_model: Builder) -> Experiment:
    """Prepare series and graphs, build the model with its seed, and make the folder of a new run.

    The folder is there only with all that it takes to resume the run.

    Raises:
        InputError: any input is not as it should be; there is no folder then.
    """
    folder = root / config.data.dataset_name / run_name(config, name)
    _refuse_taken(folder)  # before the minutes that a fit may take
    configure_cpu(config.runtime.threads)
    device = choose_device(config.runtime.device)
    links = links_for(config)
    prepared = prepared_for(config)
    graphs = graphs_for(config, prepared, links)
    usual = usual_for(config, prepared)
    print(graphs.summary())
    arguments = model_arguments(config)
    torch.manual_seed(config.training.seed)
    tensors = (graphs.similarity, graphs.topology, graphs.laplacian_encoding)
    model = build_model(*(torch.from_numpy(array) for array in tensors), **arguments)
    if usual is not None and config.model.knows_autoregression:
        _fit_autoregression(model.get_buffer(COEFFICIENTS), prepared, usual, graphs, config)

    extra = {
        "model": arguments,
        "settings": config.to_ini(),
        "scaling": {"minimum": prepared.scaling.minimum, "maximum": prepared.scaling.maximum},
        "sensor_ids": sensor_names(config, links),
        "data_fingerprint": prepared.source_fingerprint,
        "usual_week": None if usual is None else torch.from_numpy(usual.week),
    }
    trainer = _trainer(model, windows_for(config, prepared, device, usual), config, folder, extra)
    with new_run_folder(folder) as partial:
        with written_whole(partial / SETTINGS) as settings:
            settings.write_text(config.to_ini(), encoding="utf-8")
        save_json(partial / "environment.json", {"seed": config.training.seed, **provenance(device)})
        trainer.folder = partial
        trainer.save(LAST)
        trainer.folder = folder
    return Experiment(folder, config, prepared, trainer)


def _fit_autoregression(
    coefficients: Tensor, prepared: Prepared, usual: UsualFlow, graphs: Graphs, config: Config
) -> None:
    if coefficients.any():  # those of the weights that a run starts from
        return
    started = time.perf_counter()
    coefficients.copy_(torch.from_numpy(graph_autoregression(prepared, usual, graphs.topology, calendar(config))))
    count, seconds = int(torch.count_nonzero(coefficients)), time.perf_counter() - started
    print(f"autoregression: {count:,} coefficients fitted in {seconds:.1f} s")


def resume_experiment(folder: Path, restore_model: Restorer, device_name: str | None) -> Experiment:
    """Return a run that was broken off, where its last checkpoint left it, on its own device or another.

    Raises:
        InputError: there is no such run, it has no checkpoint yet, or its series has changed.
    """
    config = _load_settings(folder)
    checkpoint = load_checkpoint(folder / LAST)
    configure_cpu(checkpoint["threads"])  # another number of threads adds up in another order
    device = choose_device(config.runtime.device if device_name is None else device_name)
    prepared, usual = _what_it_was_trained_on(config, checkpoint, folder / LAST)
    model = restored(folder / LAST, checkpoint, restore_model)
    extra = {key: checkpoint[key] for key in CARRIED}
    trainer = _trainer(model, windows_for(config, prepared, device, usual), config, folder, extra)
    trainer.resume(checkpoint)
    return Experiment(folder, config, prepared, trainer)


def _trainer(model: nn.Module, windows: Windows, config: Config, folder: Path, extra: dict[str, Any]) -> Trainer:
    device = windows.device
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{config.model.variant}: {parameters:,} parameters on {device.type} ({describe_device(device)})")

    def report(history: list[dict[str, Any]]) -> None:
        save_log(folder, history)
        print(epoch_line(history[-1]), flush=True)

    size, at_once = config.training.batch_size, config.runtime.micro_batch
    if 0 < at_once < size:
        print(f"effective batch: {size} samples a step of the optimiser, computed {at_once} at a time")
    label_starts = windows.prepared.label_starts
    if config.training.early_samples:
        early = early_label_starts(windows.prepared, config.data.steps_per_day)
        print(f"early samples: {len(early):,} beside {len(label_starts['train']):,} in training")
        label_starts = {**label_starts, "train": np.concatenate([early, label_starts["train"]])}
    accelerate(model.to(device), config.runtime, device)
    return Trainer(
        model,
        windows,
        label_starts,
        config.training,
        folder,
        extra,
        report,
        checkpoint_seconds=60 * config.runtime.checkpoint_minutes,
        micro_batch=at_once,
    )


def epoch_line(entry: Mapping[str, Any]) -> str:
    """Return what the screen shows of an epoch."""
    return (
        f"epoch {entry['epoch']:3d}  {entry['stage']:15s}  train {entry['train_loss']:.4f}  "
        f"val {entry['val_loss']:.4f}  val MAE {score_text(entry['val_mae'])}  {entry['seconds']:.1f} s"
        f"{'  best' if entry['best'] else ''}"
    )


def dry_run(config: Config, build_model: Builder) -> str:
    """Train, validate and test on one batch each, keep nothing, and return a line on time and memory."""
    training = replace(config.training, epochs=1, fine_tune_epochs=1, max_batches=1)
    with tempfile.TemporaryDirectory() as root:
        trainer = start_experiment(replace(config, training=training), Path(root), "dry-run", build_model).trainer
        trainer.label_starts = {name: starts[: training.batch_size] for name, starts in trainer.label_starts.items()}
        started = time.perf_counter()
        trainer.fit()
        trainer.test()
    seconds, memory = time.perf_counter() - started, peak_memory(trainer.windows.device) / 2**30
    return f"dry run, one batch of each stage, validation and test: {seconds:.1f} s, peak memory {memory:.2f} GiB"


def finish_experiment(experiment: Experiment) -> list[Path]:
    """Train to the end, test the best weights, write and print all results, and return the paths of figures and page.

    Raises:
        InputError: training failed.
        KeyboardInterrupt: with the command that goes on.
    """
    try:
        experiment.trainer.fit()
        return report_test(experiment)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with: python run.py --resume {experiment.folder}") from None


def report_test(experiment: Experiment) -> list[Path]:
    """Test the best weights, write and print all results, and return the paths of figures and page."""
    trainer, prepared, config = experiment.trainer, experiment.prepared, experiment.config
    tested = trainer.test()
    horizon, starts = config.data.num_for_predict, prepared.label_starts["test"]
    baselines = score_baselines(prepared, "test", horizon, calendar(config))
    best: Mapping[str, Any] = next((entry for entry in reversed(trainer.progress.history) if entry["best"]), {})
    assert tested.forecast is not None
    metrics = {
        "dataset": config.data.dataset_name,
        "variant": config.model.variant,
        "seed": config.training.seed,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "epochs": len(trainer.progress.history),
        "best_epoch": best.get("epoch"),
        "best_val_mae": best.get("val_mae"),
        # Two results compare only when their targets are the same.
        "test_set": {
            "fingerprint": fingerprint_arrays(prepared.truth, starts, np.array(horizon)),
            "samples": len(starts),
            "first_label_start": int(starts[0]),
            "last_label_start": int(starts[-1]),
            "horizon": horizon,
        },
        "test": metrics_content(tested.errors),
        "baselines": {name: metrics_content(errors) for name, errors in baselines.items()},
    }
    save_predictions(experiment.folder, tested.forecast, targets(prepared, starts, horizon), starts)
    save_patch_positions(experiment.folder, trainer.model, trainer.windows, starts)
    save_metrics(experiment.folder, metrics)
    print_results(metrics, config)
    return make_report(experiment.folder, config)


def complete_run(config: Config, root: Path, name: str, build_model: Builder, restore_model: Restorer) -> Path:
    """Return the folder of a finished run of that name: found finished, resumed, or started and taken to its end.

    Raises:
        InputError: there is a run of that name with other settings.
    """
    folder = root / config.data.dataset_name / name
    if not (folder / SETTINGS).exists():
        finish_experiment(start_experiment(config, root, name, build_model))
        return folder
    if _load_settings(folder) != config:
        raise InputError(f"{folder / SETTINGS}: found other settings than asked for, expected the same, or a new name")
    if not (folder / METRICS).exists():
        finish_experiment(resume_experiment(folder, restore_model, config.runtime.device))
    return folder


def model_arguments(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `model.build.build_model` that a configuration stands for."""
    training, model = config.training, config.model
    arguments: dict[str, Any] = {
        "variant": model.variant,
        "input_steps": config.input_steps,
        "horizon": config.data.num_for_predict,
        "patch_len": config.patch_len,
        "channels": training.d_model,
        "layers": training.num_layers,
        "heads": training.nb_head,
        "kernel_size": training.kernel_size,
        "large_kernels": model.large_kernels,
        "dropout": training.dropout,
        "deformable_patches": model.deformable_patches,
        "large_branch": model.large_branch,
        "small_branch": model.small_branch,
        "use_laplacian_encoding": model.laplacian_encoding,
        "time_gate": model.time_gate,
    }
    if model.variant in TIMED_VARIANTS:
        arguments["steps_per_day"] = config.data.steps_per_day
    if model.variant in DEVIATION_VARIANTS:
        arguments.update({name: getattr(model, name) for name in ("deviation", "level", "identity", "graph_means")})
    if model.knows_harmonics:
        arguments["harmonics"] = model.harmonics
    if model.knows_past_days:
        arguments["past_days"] = config.training.num_of_weeks + config.training.num_of_days
    if model.knows_autoregression:
        arguments["autoregression_lags"] = autoregression_lags(config.data.steps_per_day)
    if model.variant == "stid":
        arguments["history_steps"] = model.history_steps or config.data.points_per_hour
    return arguments
