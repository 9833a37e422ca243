"""What a run tells: tables on the screen, metrics as JSON and CSV, forecasts as npz, and figures from these files."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config import Config
from lib.figures import error_by_horizon, flow_unit, forecast_against_truth, save_figure, training_curve
from lib.files import load_json, load_npz, save_json, save_npz, written_whole
from lib.metrics import SCORES, ForecastErrors, Scores

METRICS, PREDICTIONS, LOG = "metrics.json", "predictions.npz", "log.jsonl"
MODEL = "DTG-LKNet"  # the model's row beside the baselines
DAYS_DRAWN = 2
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


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(rows: Mapping[str, Scores], first_column: str) -> str:
    """Return a Markdown table of scores, a line a row."""
    lines = [[first_column, *TITLES.values()]]
    lines += [[name, *(_cell(scores[metric]) for metric in SCORES)] for name, scores in rows.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
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


def forecasts_scored(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores in metrics.json by the name of the forecast, the model first."""
    return {MODEL: metrics["test"], **metrics["baselines"]}


def print_results(metrics: Mapping[str, Any], config: Config) -> None:
    """Print the model's scores by horizon, and the overall scores beside those of the baselines."""
    minutes = 60 / config.data.points_per_hour
    horizons = {f"{step * minutes:g} min": row for step, row in enumerate(metrics["test"]["by_horizon"], start=1)}
    print(f"\n{MODEL} on the test split, by horizon ({flow_unit(config.data.points_per_hour)}):\n")
    print(table(horizons, "horizon"))
    print("\nAll horizons together:\n")
    print(table({name: scores["overall"] for name, scores in forecasts_scored(metrics).items()}, "forecast"))


def save_predictions(
    folder: Path, forecast: NDArray[np.float32], target: NDArray[np.float32], label_starts: NDArray[np.int64]
) -> None:
    """Write predictions.npz: `forecast` and `target` (samples, N, P) in raw units, `label_starts` (samples,)."""
    arrays: dict[str, NDArray[Any]] = {"forecast": forecast, "target": target, "label_starts": label_starts}
    save_npz(folder / PREDICTIONS, arrays, compressed=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of log.jsonl, one an epoch; none for weights that were tested without training."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def save_log(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write log.jsonl, a line an epoch."""
    with written_whole(folder / LOG) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")


def make_figures(folder: Path, config: Config) -> list[Path]:
    """Draw the figures of a run from its files, and return their paths.

    The forecast is drawn for the sensor of median error, over the first days of the test split.
    """
    metrics = load_json(folder / METRICS)
    predictions = load_npz(folder / PREDICTIONS, ("forecast", "target", "label_starts"))
    unit, minutes = flow_unit(config.data.points_per_hour), 60 / config.data.points_per_hour
    error_of_sensor = np.abs(predictions["forecast"] - predictions["target"]).mean(axis=(0, 2))
    median_sensor = int(np.argsort(error_of_sensor)[len(error_of_sensor) // 2])
    by_horizon = {name: scores["by_horizon"] for name, scores in forecasts_scored(metrics).items()}
    history = read_log(folder)
    figures = {
        **({"training_curve": training_curve(history, unit)} if history else {}),
        "error_by_horizon": error_by_horizon(by_horizon, minutes, unit),
        "forecast": forecast_against_truth(
            predictions["forecast"],
            predictions["target"],
            predictions["label_starts"],
            sensor=median_sensor,
            unit=unit,
            minutes_per_step=minutes,
            start=config.data.start,
            samples=DAYS_DRAWN * config.data.steps_per_day,
        ),
    }
    paths = [folder / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths
