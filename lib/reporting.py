"""What a run tells: tables on the screen, metrics as JSON and CSV, forecasts as npz, and figures from these files."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from lib.checkpoints import BEST, load_checkpoint
from lib.config import ENCODER_VARIANTS, Config
from lib.data import Windows, load_prepared
from lib.dtw import load_dtw
from lib.errors import InputError, nearest
from lib.figures import (
    clustered_order,
    error_by_horizon,
    error_by_time_of_day,
    error_map,
    flow_unit,
    forecast_against_truth,
    graph_matrices,
    kernel_profiles,
    patch_displacement,
    road_layout,
    save_figure,
    training_curve,
)
from lib.files import load_json, load_npz, save_json, save_npz, written_whole
from lib.graphs import Links, adjacency_matrix, hop_distances, topology_mask
from lib.metrics import SCORES, ForecastErrors, absolute_errors, mean_or_nan
from lib.preparation import links_for, wanted_record, window_shape
from lib.receptive_field import evenly_spaced

METRICS, PREDICTIONS, LOG, PATCH_POSITIONS = "metrics.json", "predictions.npz", "log.jsonl", "patch_positions.npz"
METRICS_KEYS = (  # of metrics.json
    *("dataset", "variant", "seed", "parameters", "epochs", "best_epoch", "best_val_mae"),
    *("test_set", "test", "baselines"),
)
DAYS_DRAWN = 2
PATCH_SAMPLES, PATCH_BATCH = 50, 16  # test samples whose patches are looked at, and how many at once
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mape": "MAPE %",
    "mae_nonzero": "MAE (no zeros)",
    "rmse_nonzero": "RMSE (no zeros)",
}


def metrics_content(errors: ForecastErrors) -> dict[str, Any]:
    """Return errors as metrics.json has them: `overall`, and a list `by_horizon`."""
    return {"overall": errors.overall(), "by_horizon": errors.by_horizon()}


def score_text(value: float | tuple[float, float] | None) -> str:
    """Return a score, or its mean and standard deviation over several runs, as tables show it."""
    if isinstance(value, tuple):
        return " ± ".join(map(score_text, value))
    return "-" if value is None else f"{value:.3f}"


def table(rows: Mapping[str, Mapping[str, float | tuple[float, float] | None]], first_column: str) -> str:
    """Return a Markdown table of scores, a line a row."""
    lines = [[first_column, *TITLES.values()]]
    lines += [[name, *(score_text(scores[metric]) for metric in SCORES)] for name, scores in rows.items()]
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, its header being the first line: first columns of text, then numbers on the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pads = [str.ljust] * text_columns + [str.rjust] * (len(widths) - text_columns)
    padded = [[pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)] for line in lines]
    rule = ["-" * width if column < text_columns else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def save_metrics(folder: Path, content: Mapping[str, Any]) -> None:
    """Write metrics.json, and metrics.csv with a row for each forecast and horizon."""
    save_json(folder / METRICS, content)
    with written_whole(folder / "metrics.csv") as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["forecast", "horizon", *SCORES])
        for name, scores in forecasts_scored(content).items():
            for step, row in enumerate(scores["by_horizon"], start=1):
                writer.writerow([name, step, *(row[metric] for metric in SCORES)])
            writer.writerow([name, "overall", *(scores["overall"][metric] for metric in SCORES)])


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json.

    Raises:
        InputError: there is no finished run in the folder, or the file is damaged or not of a run.
    """
    if not (folder / METRICS).exists():
        finished = [path.name for path in folder.parent.glob("*") if (path / METRICS).exists()]
        raise InputError(f"{folder}: found no {METRICS}, expected a finished run{nearest(folder.name, finished)}")
    metrics: dict[str, Any] = load_json(folder / METRICS)
    missing = [key for key in METRICS_KEYS if not isinstance(metrics, dict) or key not in metrics]
    if missing:
        raise InputError(f"{folder / METRICS}: found no {', '.join(missing)}, expected what run.py writes")
    return metrics


def model_name(variant: str) -> str:
    """Return what tables and pages call the model of a run."""
    return {"stid": "STID-style MLP", "perceptron": "deviation MLP"}.get(variant, "DTG-LKNet")


def forecasts_scored(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores in metrics.json by the name of the forecast, the model first."""
    return {model_name(metrics["variant"]): metrics["test"], **metrics["baselines"]}


def print_results(metrics: Mapping[str, Any], config: Config) -> None:
    """Print the model's scores by horizon, and the overall scores beside those of the baselines."""
    minutes, unit = 60 / config.data.points_per_hour, flow_unit(config.data.points_per_hour)
    horizons = {f"{step * minutes:g} min": row for step, row in enumerate(metrics["test"]["by_horizon"], start=1)}
    print(f"\n{model_name(metrics['variant'])} on the test split, by horizon ({unit}):\n")
    print(table(horizons, "horizon"))
    print("\nAll horizons together:\n")
    print(table({name: scores["overall"] for name, scores in forecasts_scored(metrics).items()}, "forecast"))


def save_predictions(
    folder: Path, forecast: NDArray[np.float32], target: NDArray[np.float32], label_starts: NDArray[np.int64]
) -> None:
    """Write predictions.npz: `forecast` and `target` (samples, N, P) in raw units, `label_starts` (samples,).

    Targets that are missing are NaN.
    """
    arrays: dict[str, NDArray[Any]] = {"forecast": forecast, "target": target, "label_starts": label_starts}
    save_npz(folder / PREDICTIONS, arrays, compressed=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of log.jsonl, one an epoch; none for weights that were tested without training.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / LOG
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: found a damaged file ({error}), expected JSON in each line") from None


def save_log(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write log.jsonl, a line an epoch."""
    with written_whole(folder / LOG) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")


@torch.no_grad()
def save_patch_positions(folder: Path, model: nn.Module, windows: Windows, label_starts: NDArray[np.int64]) -> None:
    """Write patch_positions.npz, where the patches of a model read the input; nothing for regular patches, or none.

    Patches are `model.front_end.patches`, whose `positions(series)` are the reading positions (B, N, M, patch_len) in
    steps of the input (B, N, L), where they are not regular.

    The npz holds `mean`, `low` and `high` (M, patch_len), the mean and the 5 % and 95 % quantiles over sensors and
    over samples spread over `label_starts`, and the `label_starts` of these.
    """
    positions_of = getattr(dict(model.named_modules()).get("front_end.patches"), "positions", None)
    if positions_of is None:
        return
    model.eval()
    chosen = evenly_spaced(label_starts, PATCH_SAMPLES)
    read = [positions_of(batch.series).flatten(0, 1).cpu() for batch in windows.batches(chosen, PATCH_BATCH)]
    positions = torch.cat(read).double().numpy()  # (samples * N, M, patch_len)
    low, high = np.quantile(positions, [0.05, 0.95], axis=0)
    mean = positions.mean(axis=0)
    save_npz(folder / PATCH_POSITIONS, {"mean": mean, "low": low, "high": high, "label_starts": chosen})


@dataclass(frozen=True, eq=False)
class Results:
    """What the folder of a finished run holds.

    Attributes:
        folder: of the run.
        config: its settings.
        metrics: content of metrics.json.
        history: entries of log.jsonl.
        forecast, target: (samples, N, P), raw units; targets that are missing are NaN.
        label_starts: (samples,), consecutive.
        checkpoint: content of best.pt.
    """

    folder: Path
    config: Config
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    forecast: NDArray[np.float32]
    target: NDArray[np.float32]
    label_starts: NDArray[np.int64]
    checkpoint: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """The unit of the flow."""
        return flow_unit(self.config.data.points_per_hour)

    @property
    def minutes(self) -> float:
        """The length of a time step in minutes."""
        return 60 / self.config.data.points_per_hour

    def sensor_errors(self) -> NDArray[np.float64]:
        """Return the MAE of each sensor over all samples and horizons, (N,); NaN where all its targets are missing."""
        return mean_or_nan(*absolute_errors(self.forecast, self.target, (0, 2)))

    def sensor_name(self, sensor: int) -> str:
        """Return how a sensor is called: by its position, and by its id where the network has ids."""
        ids = self.checkpoint["sensor_ids"]
        return f"sensor {sensor}" if ids is None else f"sensor {sensor} (id {ids[sensor]})"

    def days(self, days: int, first_day: int) -> slice:
        """Return the samples of so many days of the test split, from that one on.

        Raises:
            InputError: there is no such day.
        """
        samples, steps_per_day = len(self.label_starts), self.config.data.steps_per_day
        if days < 1:
            raise InputError(f"--days: found {days}, expected at least 1")
        if not 0 <= first_day * steps_per_day < samples:
            last = (samples - 1) // steps_per_day
            raise InputError(f"--first-day: found {first_day}, expected 0..{last}, days from the test split's first on")
        return slice(first_day * steps_per_day, min(samples, (first_day + days) * steps_per_day))


def load_results(folder: Path, config: Config) -> Results:
    """Read what a finished run has written.

    Raises:
        InputError: a file is missing or damaged, or the forecasts are of another shape than the settings say.
    """
    metrics = read_metrics(folder)
    predictions = load_npz(folder / PREDICTIONS, ("forecast", "target", "label_starts"))
    expected = (len(predictions["label_starts"]), config.data.num_of_vertices, config.data.num_for_predict)
    for name in ("forecast", "target"):
        place = f"{folder / PREDICTIONS} {name}"
        if predictions[name].shape != expected:
            raise InputError(f"{place}: found shape {predictions[name].shape}, expected {expected}")
        wrong = ~np.isfinite(predictions[name])
        if name == "target" and config.data.missing != "error":
            wrong &= ~np.isnan(predictions[name])
        if wrong.any():
            raise InputError(f"{place}: found values that are not finite, expected numbers only")
    return Results(
        folder,
        config,
        metrics,
        read_log(folder),
        **predictions,
        checkpoint=load_checkpoint(folder / BEST),
    )


def mae_by_time_of_day(
    forecast: NDArray[np.float32], target: NDArray[np.float32], label_starts: NDArray[np.int64], steps_per_day: int
) -> NDArray[np.float64]:
    """Return the MAE by the step of the day of the target, counted from that of the series' first step.

    Args:
        forecast, target: (samples, N, P), targets NaN where missing.
        label_starts: (samples,).
        steps_per_day: steps in a day.

    Returns:
        (steps_per_day,), in the unit of the forecasts; NaN where there is no target.
    """
    parts = absolute_errors(forecast, target, axis=1)  # sums and counts, each (samples, P)
    steps = (label_starts[:, None] + np.arange(forecast.shape[2])) % steps_per_day
    return mean_or_nan(*(np.bincount(steps.ravel(), part.ravel(), steps_per_day) for part in parts))


def make_figures(
    folder: Path, config: Config, sensors: Sequence[int] = (), days: int = DAYS_DRAWN, first_day: int = 0
) -> list[Path]:
    """Draw the figures of a run from its files, and return their paths.

    A figure whose files are missing is left out, and it is said.

    Args:
        folder: of the finished run.
        config: its settings.
        sensors: positions of those whose forecast is drawn; none stands for the sensor of median error.
        days: how many days of forecast are drawn.
        first_day: from which day of the test split on.

    Raises:
        InputError: there is no such sensor or day, or a file that every run writes is missing or damaged.
    """
    results = load_results(folder, config)
    unit, minutes, start = results.unit, results.minutes, config.data.start
    drawn = results.days(days, first_day)
    number = config.data.num_of_vertices
    errors = results.sensor_errors()
    for sensor in sensors:
        if not 0 <= sensor < number:
            raise InputError(f"--sensors: found {sensor}, expected positions 0..{number - 1}")

    figures: dict[str, Figure] = {}
    if results.history:
        figures["training_curve"] = training_curve(results.history, unit)
    by_horizon = {name: scores["by_horizon"] for name, scores in forecasts_scored(results.metrics).items()}
    figures["error_by_horizon"] = error_by_horizon(by_horizon, minutes, unit)
    by_time = mae_by_time_of_day(results.forecast, results.target, results.label_starts, config.data.steps_per_day)
    figures["error_by_time_of_day"] = error_by_time_of_day(by_time, minutes, unit, start)
    median = np.argsort(errors)[np.isfinite(errors).sum() // 2]  # NaN comes last
    for sensor in sensors or [int(median)]:
        figures[f"forecast_sensor{sensor}"] = forecast_against_truth(
            results.forecast[drawn, sensor],
            results.target[drawn, sensor],
            results.label_starts[drawn],
            f"{results.sensor_name(sensor)}, test split",
            unit,
            minutes,
            start,
        )
    by_need: dict[str, Callable[[Results], Figure | None]] = {"error_map": _error_map}
    if config.model.variant != "stid":  # which sees no other sensor
        by_need["graphs"] = _graph_matrices
    if config.model.variant in ENCODER_VARIANTS:
        by_need |= {"patch_positions": _patch_displacement, "kernels": _kernel_profiles}
    for name, draw in by_need.items():
        try:
            figure = draw(results)
        except InputError as error:
            print(f"figure {name} left out: {error}")
        else:
            figures.update({name: figure} if figure else {})

    paths = [folder / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def _own_links(results: Results) -> tuple[Links, NDArray[np.float64]]:
    """Return the road links of the run's network with its hop distances (N, N).

    Raises:
        InputError: there is no such file, or it is not the one that the run was made with.
    """
    config, path = results.config, results.config.data.adj_filename
    links = links_for(config)
    hops = hop_distances(adjacency_matrix(links, config.data.num_of_vertices))
    mask = results.checkpoint["weights"]["topology_mask"].numpy()
    if config.graph.topology == "hops" and not np.array_equal(topology_mask(hops, config.graph.hops), mask):
        raise InputError(f"{path}: found other links than the run was made with, expected the same file")
    return links, hops


def _own_distance(results: Results) -> NDArray[np.float64]:
    """Return the DTW distances (N, N) of the run's graphs.

    Raises:
        InputError: there is no such file, or it was made otherwise or of another series.
    """
    config = results.config
    matrix, record = load_dtw(config.dtw_path, config.dtw_record_path, config.data.num_of_vertices)
    prepared = load_prepared(config.prepared_path)
    same_series = prepared.source_fingerprint == results.checkpoint["data_fingerprint"]
    if record != wanted_record(config, prepared) or not same_series:
        raise InputError(f"{config.dtw_path}: found the distances of {record}, expected those of the run's series")
    return matrix


def _error_map(results: Results) -> Figure:
    links, hops = _own_links(results)
    errors = results.sensor_errors()
    shown = np.where(np.isnan(errors), -np.inf, errors)  # no dot, and not among the greatest, where nothing is known
    return error_map(road_layout(hops), links.pairs, shown, results.unit)


def _graph_matrices(results: Results) -> Figure:
    distance, orders = None, {}
    try:
        distance = _own_distance(results)
        orders["DTW clusters"] = clustered_order(distance)
    except InputError as error:
        print(f"figure graphs without the DTW distances: {error}")
    try:
        orders["road clusters"] = clustered_order(_own_links(results)[1])
    except InputError as error:
        print(f"figure graphs without the order by road: {error}")
    weights = results.checkpoint["weights"]
    masks = {f"{name} mask": weights[f"{name}_mask"].numpy() for name in ("similarity", "topology")}
    return graph_matrices(
        distance, masks, orders or {"position": np.arange(results.config.data.num_of_vertices)}, results.unit
    )


def _patch_displacement(results: Results) -> Figure | None:
    if not results.config.model.deformable_patches:
        return None
    positions = load_npz(results.folder / PATCH_POSITIONS, ("mean", "low", "high"))
    segments = [name for name, _ in window_shape(results.config).segments]
    return patch_displacement(**positions, segments=segments)


def _kernel_profiles(results: Results) -> Figure:
    weights = results.checkpoint["weights"]
    kernels: dict[int, NDArray[np.float32]] = {}
    for name, weight in weights.items():
        if branch := re.fullmatch(r"front_end\.blocks\.(\d+)\.(?:large|small)\.weight", name):
            block, taps = int(branch[1]), weight.numpy()  # (C, K)
            kernels[block] = _summed_taps(kernels[block], taps) if block in kernels else taps
    sizes = results.checkpoint["model"]
    return kernel_profiles([kernels[block] for block in sorted(kernels)], sizes["input_steps"] // sizes["patch_len"])


def _summed_taps(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of two centred kernels (C, K), of odd lengths that may differ."""
    small, large = sorted((first, second), key=lambda kernel: kernel.shape[1])
    margin = (large.shape[1] - small.shape[1]) // 2
    return large + np.pad(small, ((0, 0), (margin, margin)))
