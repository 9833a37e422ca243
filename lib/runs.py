"""A run from its settings to its results: started, resumed, finished, opened."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lib.baselines import score_baselines, targets
from lib.bias_correction import corrected
from lib.calibration import RULES, calibrate_run, targets_of
from lib.captured import recorder_for, uses_graphs
from lib.checkpoints import CARRIED, load_checkpoint, load_tensors, restored, save_checkpoint
from lib.config import FILE_SETTINGS, Config, RuntimeConfig, parse_config
from lib.data.autoregression import graph_autoregression
from lib.data.prepared import Prepared, padded_label_starts
from lib.data.preparing import (
    calendar_for,
    check_origin,
    graphs_for,
    links_for,
    origin,
    positions_for,
    prepared_for,
    sensor_names,
)
from lib.data.profile import DECAY, HistoricalProfile, historical_profile
from lib.data.series import Scaling
from lib.data.windowing import evenly_spaced
from lib.data.windows import Windows
from lib.devices import choose_device, configure_cpu, describe_device, peak_memory
from lib.distributed import ONE_PROCESS, Processes
from lib.errors import InputError
from lib.event_log import EventLog
from lib.files import fingerprint, fingerprint_arrays, save_npz
from lib.ini import read_sections
from lib.interface import Encoder, Graphs, Neighbours, Variants
from lib.intervals import Intervals
from lib.metrics import errors_of, metrics_content
from lib.numbers import number_text
from lib.precision import accelerate, in_precision, resolved
from lib.provenance import provenance
from lib.run_folder import RunFolder, new_run_folder, refuse_taken, remove_partial_files
from lib.training import Evaluation, Trainer, epoch_line, evaluate

SCORED_SPLITS = ("val", "test")  # in time order
WEIGHTS = "weights"  # in `made_from` of a run that began with the weights of a file
SIZES = ("num_layers", "d_model", "nb_head", "kernel_size", "num_for_predict", "points_per_hour", "num_of_hours")
PATCH_SAMPLES, PATCH_BATCH = 50, 16  # test samples whose patches are looked at, and how many at once


@dataclass(frozen=True)
class Run:
    """A run that can be looked into: its settings, series and network with the best weights."""

    folder: RunFolder
    config: Config
    prepared: Prepared
    windows: Windows
    model: nn.Module

    def evaluations(self) -> Mapping[str, Evaluation]:
        """Forecast and score validation and test split, keeping the forecasts."""
        config = self.config
        batch_size, loss = config.runtime.micro_batch or config.training.batch_size, config.training.loss
        recorder = recorder_for(config.runtime, self.windows.device)
        starts = self.prepared.label_starts
        evaluated = {
            split: evaluate(self.model, self.windows, starts[split], batch_size, split, loss, True, recorder)
            for split in SCORED_SPLITS
        }
        return _with_bias_correction(config, self.prepared, evaluated)


@dataclass(frozen=True)
class TrainingRun:
    """A run in training: its folder, settings and series, and the trainer."""

    folder: RunFolder
    config: Config
    prepared: Prepared
    trainer: Trainer


# --------------------------------------------------------------------------------------------- starting and resuming


def start_run(config: Config, root: Path, name: str, processes: Processes = ONE_PROCESS) -> TrainingRun:
    """Prepare series and graphs, build the network with its seed, and make the folder of a new run.

    The folder appears only once it holds all that resuming needs. Of several processes the first does all of this, and
    the others go on from its first checkpoint.

    Args:
        config: the settings.
        root: the folder of the data sets' folders.
        name: of the run; only that of the first process counts.
        processes: that train it.

    Raises:
        InputError: any input is not as it should be; there is no folder then.
    """
    folder = RunFolder(root / config.data.dataset_name / name)
    device = _device_for(config, config.runtime.device, processes)
    if not processes.first:
        folder = RunFolder(Path(processes.text_of_first("")))
        return _at_last_checkpoint(folder, config, device, {config.variant.name: config.variant}, processes)
    refuse_taken(folder)  # before the minutes that a fit may take
    configure_cpu(config.runtime.threads)
    events = _event_log(config, folder)
    links = links_for(config)
    positions = positions_for(config, links)
    names, files, weights = sensor_names(config, links), origin(config, links), config.training.weights
    checkpoint = {} if weights is None else load_tensors(weights)
    prepared = _scaled_as_in(checkpoint, prepared_for(config))
    sensor_graphs = graphs_for(config, prepared, links)
    profile = profile_for(config, prepared)
    print(f"graphs and scaling are those of {weights}" if "graphs" in checkpoint else sensor_graphs.summary())
    if weights is None:
        graphs = sensor_graphs.tensors(_fitted_autoregression(config, prepared, profile, sensor_graphs.topology))
        model = new_network(config, graphs)
    else:
        model, graphs = _network_of(weights, checkpoint, config, sensor_graphs.tensors(), names)
        files |= {WEIGHTS: fingerprint(weights)}
    extra = {
        "settings": config.to_ini(),
        "graphs": graphs.content(),
        "scaling": {"minimum": prepared.scaling.minimum, "maximum": prepared.scaling.maximum},
        "sensor_ids": names,
        "made_from": {**prepared.made_from, **files},
        "profile_week": None if profile is None else torch.from_numpy(profile.week),
        "map": None
        if positions is None
        else {"positions": torch.from_numpy(positions), "links": torch.from_numpy(links.pairs)},
    }
    windows = windows_for(config, prepared, device, profile)
    trainer = _trainer(model, windows, config, folder, extra, events, processes)
    with new_run_folder(folder) as partial:
        how = how_computed(config.runtime, device, processes.size)
        partial.save_start(config, {"seed": config.training.seed, **provenance(device, processes.size), **how})
        save_checkpoint(partial.last, trainer.checkpoint())
    processes.text_of_first(str(folder.path.absolute()))
    return TrainingRun(folder, config, prepared, trainer)


def _device_for(config: Config, name: str, processes: Processes) -> torch.device:
    """Return the device called `name` of this process.

    Raises:
        InputError: there is none, or the batch cannot be shared out.
    """
    device = choose_device(name)
    processes.check(config.training.batch_size, device)
    return device


def new_network(config: Config, graphs: Graphs) -> nn.Module:
    """Return the network of a configuration with the first weights that its seed draws."""
    torch.manual_seed(config.training.seed)
    return config.variant.network(graphs, config.sizes, config.model)


def _fitted_autoregression(
    config: Config, prepared: Prepared, profile: HistoricalProfile | None, topology: Neighbours
) -> NDArray[np.float32] | None:
    if profile is None or not config.needs.autoregression:
        return None
    started = time.perf_counter()
    imputed = _filled_in(prepared, imputed_for(config, prepared)) if config.needs.muted_imputed else None
    coefficients = graph_autoregression(prepared, profile, topology, calendar_for(config), imputed)
    seconds = time.perf_counter() - started
    print(f"autoregression: {np.count_nonzero(coefficients):,} coefficients fitted in {seconds:.1f} s")
    return coefficients


def _network_of(
    weights: Path, checkpoint: Mapping[str, Any], config: Config, graphs: Graphs, names: Sequence[str] | None
) -> tuple[nn.Module, Graphs]:
    """Return a network with the weights of a file, and its graphs: those of the file where it has them.

    Args:
        weights: the file.
        checkpoint: what it holds.
        config: the settings of the run.
        graphs: by these settings.
        names: of the sensors, where they are known.

    Raises:
        InputError: the weights are not those of the network and the sensors that the settings say.
    """
    try:
        if "weights" not in checkpoint:  # a bare state dict
            if config.variant.load_released is None:
                raise ValueError("found weights of the released code, expected a variant that it has")
            model = new_network(config, graphs)
            config.variant.load_released(model, checkpoint)
            print(f"{weights}: a checkpoint of the released code, which lacks its Laplacian encoding: the one computed")
            print("here has another basis where eigenvalues are equal, so results may differ from those of its author")
            return model, graphs
        if "graphs" not in checkpoint:
            raise ValueError("found weights without graphs, expected a checkpoint of this project or the released code")
        own = Graphs.from_content(checkpoint["graphs"])
        if len(own.topology) != len(graphs.topology):
            raise ValueError(f"found graphs of {len(own.topology)} sensors, expected {len(graphs.topology)}")
        before = checkpoint.get("sensor_ids")
        for place, (was, now) in enumerate(zip(before or (), names or (), strict=False)):
            if was != now:
                raise ValueError(f"found sensor {was!r} at position {place}, expected {now!r}, as in this series")
        if config.variant.sees_other_sensors and (other := _other_settings(checkpoint, config, ("Graph",), ())):
            raise ValueError(f"{other[0]}: a network keeps its graphs")
        if (own.autoregression is not None) != (wanted := config.needs.autoregression):
            raise ValueError(
                "found no autoregression, expected one" if wanted else "found an autoregression, expected none"
            )
        model = new_network(config, own)
        model.load_state_dict(checkpoint["weights"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reasons = [line.strip() for line in str(error).splitlines()]
        faults = [*reasons[len(reasons) > 1 :], *_other_settings(checkpoint, config, ("Model",), SIZES)]
        raise InputError(f"{weights}: {'; '.join(faults)}") from None
    return model, own


def _scaled_as_in(checkpoint: Mapping[str, Any], prepared: Prepared) -> Prepared:
    """Return a series with the scaling that the weights of a checkpoint were trained with, where it says which."""
    scaling = checkpoint.get("scaling")
    return prepared if scaling is None else prepared.with_scaling(Scaling(**scaling))


def _other_settings(
    checkpoint: Mapping[str, Any], config: Config, of_sections: Sequence[str], of_keys: Sequence[str]
) -> list[str]:
    """Return how the network of a checkpoint differs from that of a configuration, in some sections and keys."""
    sections = read_sections(str(checkpoint.get("settings", "")), config.source, [])
    found = []
    for name, text in config.texts().items():
        section, key = name.split(".")
        kept = sections.get(section, {}).get(key)
        if (section in of_sections or key in of_keys) and kept is not None and kept != text:
            found.append(f"its network has {name} {kept}, this one {text}")
    return found


def resume_run(
    folder: RunFolder, variants: Variants, device_name: str | None, processes: Processes = ONE_PROCESS
) -> TrainingRun:
    """Return an interrupted run at its last checkpoint, on its own device or another.

    Raises:
        InputError: there is no such run, it has no checkpoint yet, or what it was trained on has changed.
    """
    config = folder.read_config(variants)
    device = _device_for(config, config.runtime.device if device_name is None else device_name, processes)
    with processes.first_goes_first():  # it makes a prepared file that is not there any more
        if processes.first:
            remove_partial_files(folder)
        return _at_last_checkpoint(folder, config, device, variants, processes)


def _at_last_checkpoint(
    folder: RunFolder, config: Config, device: torch.device, variants: Variants, processes: Processes
) -> TrainingRun:
    checkpoint = load_checkpoint(folder.last)
    configure_cpu(checkpoint.get("threads", 0))  # another number of threads adds up in another order
    if (before := checkpoint.get("processes", 1)) != processes.size:  # and so does another number of processes
        print(
            f"{folder}: found a run of {_processes(before)}, going on with {_processes(processes.size)}: it is no "
            "longer equal to the bit to one that was not interrupted"
        )
    events = _event_log(config, folder) if processes.first else None
    prepared, profile = _what_it_was_trained_on(config, checkpoint, folder.last, variants)
    model = restored(folder.last, checkpoint, config)
    extra = {key: checkpoint[key] for key in CARRIED}
    windows = windows_for(config, prepared, device, profile)
    trainer = _trainer(model, windows, config, folder, extra, events, processes)
    trainer.resume(checkpoint)
    return TrainingRun(folder, config, prepared, trainer)


def how_computed(runtime: RuntimeConfig, device: torch.device, processes: int) -> dict[str, str]:
    """Return what [Runtime] comes to on a device, where it may say `auto`."""
    runtime = resolved(runtime, device)
    graphs = "on" if uses_graphs(runtime, device, processes) else "off"
    return {"precision": runtime.precision, "compile": runtime.compile, "cuda_graphs": graphs}


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"


def open_run(folder: RunFolder, variants: Variants, device_name: str) -> Run:
    """Open a run's best weights.

    Raises:
        InputError: there is no such run, it has no weights yet, or what it was trained on has changed.
    """
    config = folder.read_config(variants)
    configure_cpu(config.runtime.threads)
    device = choose_device(device_name)
    checkpoint = load_checkpoint(folder.best)
    prepared, profile = _what_it_was_trained_on(config, checkpoint, folder.best, variants)
    model = restored(folder.best, checkpoint, config).to(device).eval()
    return Run(folder, config, prepared, windows_for(config, prepared, device, profile), model)


def _what_it_was_trained_on(
    config: Config, checkpoint: Mapping[str, Any], path: Path, variants: Variants
) -> tuple[Prepared, HistoricalProfile | None]:
    kept = parse_config(checkpoint["settings"], path, variants)
    now = {name: getattr(config.data, name) for name in FILE_SETTINGS}  # files may have other names since
    kept = replace(kept, data=replace(kept.data, **now))
    if differing := kept.differences(config):
        raise InputError(f"{path}: found {differing[0]}, expected the settings in settings.ini beside it")
    check_origin(config, checkpoint["made_from"], path)
    prepared = _scaled_as_in(checkpoint, prepared_for(config))
    profile, kept = profile_for(config, prepared), checkpoint["profile_week"]
    if profile is not None and (kept is None or not np.allclose(profile.week, kept, rtol=1e-4)):
        raise InputError(
            f"{path}: found the historical profile of an earlier version, expected this one's: train the run anew; "
            "predict.py forecasts with it as it is"
        )
    return prepared, profile


def profile_for(config: Config, prepared: Prepared) -> HistoricalProfile | None:
    """Return the historical profile, where the network asks for it."""
    if not config.needs.profile:
        return None
    flow, rows, calendar = prepared.observed, prepared.training_rows, calendar_for(config)
    middle = prepared.scaling.middle
    if not config.needs.carried_profile:
        return historical_profile(flow, rows, calendar, middle)
    carried = historical_profile(flow, len(flow), calendar, middle, DECAY)
    # Of the week only the training rows may tell: predict.py takes it, perhaps for a day of the test.
    return replace(carried, week=historical_profile(flow[:rows], rows, calendar, middle, DECAY).week)


def imputed_for(config: Config, prepared: Prepared) -> NDArray[np.bool_] | None:
    """Return which sensors are imputed at each step (T + 1, N), where the network asks and any is."""
    if not config.needs.imputed:
        return None
    return prepared.imputed_flags(calendar_for(config))


def _filled_in(prepared: Prepared, imputed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return which values (T, N) a network takes for filled in, by the flags of its forecasts (T + 1, N)."""
    if imputed is None:
        return None
    return imputed[1:] if prepared.marked else imputed[:-1]  # a mark is known with its value


def windows_for(config: Config, prepared: Prepared, device: torch.device, profile: HistoricalProfile | None) -> Windows:
    """Return the windows of a prepared series for networks on a device, with the historical profile if there is."""
    kept, series = config.runtime.data, None if profile is None else profile.series
    imputed = imputed_for(config, prepared)
    calendar, hours = calendar_for(config), config.training.num_of_hours
    return Windows(prepared, config.data.num_for_predict, calendar, device, kept, series, imputed, hours)


def _event_log(config: Config, folder: RunFolder) -> EventLog | None:
    return EventLog(folder.events, 60 / config.data.points_per_hour) if config.runtime.tensorboard else None


def _trainer(
    model: nn.Module,
    windows: Windows,
    config: Config,
    folder: RunFolder,
    extra: dict[str, Any],
    events: EventLog | None,
    processes: Processes,
) -> Trainer:
    device = windows.device
    print(f"{config.variant.name}: {_parameters(model):,} parameters on {device.type} ({describe_device(device)})")
    how = how_computed(config.runtime, device, processes.size)
    if device.type == "cuda":
        print(f"computed with {', '.join(f'{name} = {value}' for name, value in how.items())}")

    def report(history: list[dict[str, Any]]) -> None:
        folder.save_log(history)
        if events is not None:
            events.record(history)
        print(epoch_line(history[-1]), flush=True)

    size, at_once = config.training.batch_size, config.runtime.micro_batch
    own = size // processes.size
    if 0 < at_once < own or own < size:
        in_each = f", {own} in each of {_processes(processes.size)}" if own < size else ""
        in_parts = f", computed {at_once} at a time" if 0 < at_once < own else ""
        print(f"effective batch: {size} samples a step of the optimiser{in_each}{in_parts}")
    label_starts = windows.prepared.label_starts
    if config.training.padded_history:
        padded = padded_label_starts(windows.prepared, config.data.steps_per_day)
        print(f"padded history: {len(padded):,} more samples beside {len(label_starts['train']):,} in training")
        label_starts = {**label_starts, "train": np.concatenate([padded, label_starts["train"]])}
    runtime = resolved(config.runtime, device)
    accelerate(model.to(device), runtime, device)
    encoder = cast(Encoder, model)
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
        front=in_precision(encoder.front, runtime, device) if config.variant.has_encoder else None,
        processes=processes,
        recorder=recorder_for(runtime, device, processes.size),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- finishing


def dry_run(config: Config, processes: Processes = ONE_PROCESS) -> str:
    """Train, validate and test on one batch each, keep nothing, and return a line on time and memory.

    Raises:
        InputError: any input is not as it should be, or other machines have processes that see none of these files.
    """
    if processes.size > processes.on_machine:
        raise InputError(f"--dry-run: found {processes.size} processes on several machines, expected one machine")
    training = replace(config.training, epochs=1, fine_tune_epochs=1, max_batches=1)
    with TemporaryDirectory() as root:
        trainer = start_run(replace(config, training=training), Path(root), "dry-run", processes).trainer
        trainer.label_starts = {name: starts[: training.batch_size] for name, starts in trainer.label_starts.items()}
        started = time.perf_counter()
        trainer.fit()
        trainer.test()
        processes.any(False)  # before the folder is gone
    seconds, memory = time.perf_counter() - started, peak_memory(trainer.windows.device) / 2**30
    return f"dry run, one batch of each stage, validation and test: {seconds:.1f} s, peak memory {memory:.2f} GiB"


def finish_run(run: TrainingRun) -> dict[str, Any]:
    """Train to the end and score, as `score_run` does.

    Raises:
        InputError: training failed.
        KeyboardInterrupt: with the command that goes on.
    """
    try:
        run.trainer.fit()
        return score_run(run)
    except KeyboardInterrupt:
        command = f"{run.trainer.processes.command} run.py --resume {run.folder}"
        raise KeyboardInterrupt(f"go on with: {command} (or repeat the command, if it makes several runs)") from None


def score_run(run: TrainingRun) -> dict[str, Any]:
    """Test the best weights, write the results, and return the content of metrics.json.

    Of several processes the first alone does so; the others share its forecasts, and return nothing.
    """
    trainer, prepared, config = run.trainer, run.prepared, run.config
    of_network = {split: trainer.test(split) for split in SCORED_SPLITS}
    if not trainer.processes.first:
        return {}
    scored = _with_bias_correction(config, prepared, of_network)
    tested = scored["test"]
    horizon, starts = config.data.num_for_predict, prepared.label_starts["test"]
    baselines = score_baselines(prepared, "test", horizon, calendar_for(config))
    best: Mapping[str, Any] = next((entry for entry in reversed(trainer.progress.history) if entry["best"]), {})
    metrics = {
        "dataset": config.data.dataset_name,
        "variant": config.variant.name,
        "label": config.variant.label,
        "seed": config.training.seed,
        "parameters": _parameters(trainer.model),
        "epochs": len(trainer.progress.history),
        "best_epoch": best.get("epoch"),
        "best_val_mae": scored["val"].errors.overall()["mae"],
        # Two results compare only when their targets are the same.
        "test_set": {
            "fingerprint": _fingerprint_of_targets(prepared, horizon),
            "samples": len(starts),
            "first_label_start": int(starts[0]),
            "last_label_start": int(starts[-1]),
            "horizon": horizon,
        },
        "test": metrics_content(tested.errors, tested.measured),
        "baselines": {name: metrics_content(*errors) for name, errors in baselines.items()},
    }
    if config.training.bias_correction:
        network = of_network["test"]
        metrics["uncorrected"] = metrics_content(network.errors, network.measured)
    assert tested.forecast is not None
    run.folder.save_predictions(tested.forecast, targets(prepared, starts, horizon), starts)
    _save_intervals(run.folder, config, prepared, scored)
    if config.variant.has_encoder and cast(Encoder, trainer.model).deformable:
        _save_patch_positions(run.folder, trainer.model, trainer.windows, starts)
    run.folder.save_metrics(metrics)
    return metrics


def _with_bias_correction(
    config: Config, prepared: Prepared, evaluated: Mapping[str, Evaluation]
) -> Mapping[str, Evaluation]:
    """Return the scores and forecasts of splits in time order, with [Training] bias_correction after correcting them.

    The first split starts with no errors that are known.
    """
    if not config.training.bias_correction:
        return evaluated
    horizon, flags = config.data.num_for_predict, imputed_for(config, prepared)
    starts = {split: prepared.label_starts[split] for split in evaluated}
    target = {split: targets(prepared, starts[split], horizon) for split in evaluated}
    # As predict.py has them: whether a value is imputed may be known only by later ones, so none is left out for that.
    known = {split: targets_of(prepared.observed, starts[split], horizon) for split in evaluated}
    forecasts = [evaluation.forecast for evaluation in evaluated.values() if evaluation.forecast is not None]
    every = np.concatenate(list(starts.values()))
    forecast = corrected(
        np.concatenate(forecasts),
        np.concatenate(list(known.values())),
        every,
        config.data.steps_per_day,
        None if flags is None else flags[every],
    )
    parts = np.split(forecast, np.cumsum([len(part) for part in starts.values()])[:-1])
    scored = {}
    for (split, evaluation), part in zip(evaluated.items(), parts, strict=True):
        of_measured = None
        if evaluation.measured is not None and prepared.measured is not None:
            of_measured = errors_of(part, targets_of(prepared.measured, starts[split], horizon))
        scored[split] = Evaluation(evaluation.loss, errors_of(part, target[split]), of_measured, part)
    return scored


def _fingerprint_of_targets(prepared: Prepared, horizon: int) -> str:
    return fingerprint_arrays(prepared.truth, prepared.label_starts["test"], np.array(horizon))


def _save_intervals(
    folder: RunFolder, config: Config, prepared: Prepared, evaluated: Mapping[str, Evaluation]
) -> Intervals | None:
    """Make and write the prediction intervals of a run; none where too few values are known for the levels scored."""
    forecasts = {split: part.forecast for split, part in evaluated.items() if part.forecast is not None}
    try:
        intervals, scores = calibrate_run(
            prepared, forecasts, calendar_for(config), imputed_for(config, prepared), fingerprint(folder.best)
        )
    except InputError as error:
        print(f"prediction intervals left out: {error}")
        return None
    folder.save_intervals(intervals, scores)
    return intervals


def intervals_for(folder: RunFolder, variants: Variants) -> Intervals:
    """Return the prediction intervals of a run, from their file where that is of its weights, else made anew.

    Raises:
        InputError: they are missing or stale and cannot be made: the run's data are not there, or have changed.
    """
    path, made_from = folder.intervals, {"rules": RULES, "checkpoint": fingerprint(folder.best)}
    found = f"{path} is missing"
    if path.exists():
        intervals = folder.read_intervals()
        if intervals.made_from == made_from:
            return intervals
        found = f"{path} is stale: other weights or an earlier version made it"
    try:
        run = open_run(folder, variants, "auto")
        print(f"{found}: making it")
        evaluated = run.evaluations()
    except InputError as error:
        raise InputError(f"{found}, and cannot be made without the data of the run: {error}") from None
    made = _save_intervals(folder, run.config, run.prepared, evaluated)
    if made is None:
        raise InputError(f"{found}, and cannot be made, expected a run with more validation samples")
    return made


@torch.no_grad()
def _save_patch_positions(
    folder: RunFolder, model: nn.Module, windows: Windows, label_starts: NDArray[np.int64]
) -> None:
    """Write patch_positions.npz, where the deformable patches of a network read the input.

    The npz holds `mean`, `low` and `high` (M, patch_len), the mean and the 5 % and 95 % quantiles over sensors and
    over samples spread over `label_starts`, and the `label_starts` of these.
    """
    model.eval()
    chosen = evenly_spaced(label_starts, PATCH_SAMPLES)
    read = []
    for batch in windows.batches(chosen, PATCH_BATCH):
        positions = cast(Encoder, model).patch_positions(batch.inputs)
        read.append(positions.flatten(0, 1).cpu())
    values = torch.cat(read).double().numpy()  # (samples * N, M, patch_len)
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    arrays = {"mean": values.mean(axis=0), "low": low, "high": high, "label_starts": chosen}
    save_npz(folder.patch_positions, arrays)


def forecast_test_split(folder: RunFolder, variants: Variants) -> None:
    """Forecast the test split by the best weights of a finished run, and write predictions.npz, as after its training.

    Raises:
        InputError: there is no such run, or what it was trained on is not there or has changed.
    """
    run = open_run(folder, variants, "auto")
    starts, horizon = run.prepared.label_starts["test"], run.config.data.num_for_predict
    metrics = folder.read_metrics()
    if metrics["test_set"]["fingerprint"] != _fingerprint_of_targets(run.prepared, horizon):
        series = run.config.data.graph_signal_matrix_filename
        raise InputError(f"{series}: found other targets than those of {folder.metrics}, expected the same flow")
    tested = run.evaluations()["test"]
    assert tested.forecast is not None
    before, now = metrics["test"]["overall"]["mae"], tested.errors.overall()["mae"]
    assert before is not None
    assert now is not None  # every split has a target
    print(f"test MAE {number_text(now)}; after its training it was {number_text(before)}")
    folder.save_predictions(tested.forecast, targets(run.prepared, starts, horizon), starts)


def complete_run(
    config: Config, root: Path, name: str, variants: Variants, processes: Processes = ONE_PROCESS
) -> RunFolder:
    """Return the folder of a finished run of that name: found finished, resumed, or started and taken to its end.

    Raises:
        InputError: there is a run of that name with other settings, or trained on other files.
    """
    folder = RunFolder(root / config.data.dataset_name / name)
    exists, finished = processes.any(folder.exists(), folder.is_finished())
    if not exists:
        finish_run(start_run(config, root, name, processes))
        return folder
    there = folder.read_config(variants)
    differing = there.differences(config)
    if there.training.seed != config.training.seed:
        differing.append(f"Training.seed {there.training.seed}")
    if differing:
        raise InputError(
            f"{folder.settings}: found {differing[0]}, expected the settings asked for, or a new name for the run"
        )
    checkpoint, weights = folder.best if finished else folder.last, config.training.weights
    made_from = load_checkpoint(checkpoint)["made_from"]
    check_origin(config, made_from, checkpoint)
    if weights is not None and weights.exists():  # a run that has begun does not need them
        now = fingerprint(weights)
        if made_from.get(WEIGHTS, now) != now:
            raise InputError(f"{weights}: found other weights than {folder} began with, expected the same file")
    if not finished:
        finish_run(resume_run(folder, variants, config.runtime.device, processes))
    elif processes.first:
        print(f"finished before: {folder}")
        remove_partial_files(folder)  # a kill may have come while the figures were drawn
    return folder
