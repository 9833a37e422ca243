"""report.html: a run on one self-contained page, which needs neither network nor server, with a picker of sensors."""

import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config import Config
from lib.errors import InputError
from lib.files import written_whole
from lib.intervals import HOURS, SCORED_LEVELS
from lib.numbers import number_text
from lib.report.explorer import EXPLORER_SCRIPT, EXPLORER_STYLE, Curve, embedded, explorer
from lib.report.figures import DPI
from lib.report.html import document, html_table, score_table
from lib.report.interval_tables import (
    INTERVALS_NOTE,
    WORST_TITLES,
    breakdown,
    breakdown_titles,
    method_table,
    print_intervals,
    worst_rows,
)
from lib.report.map import MAP_SCRIPT, MAP_STYLE, Layer, every_shown, forecast_layers, map_section
from lib.report.results import DAYS_DRAWN, Results, load_results, make_figures, road_map, usual_flow
from lib.report.style import HORIZONS
from lib.report.text_tables import MEASURED_NOTE, print_results, score_text, scores_of
from lib.run_folder import RunFolder, forecasts_scored

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # how such a file begins; width and height follow
CSS_DPI = 96  # pixels of a style sheet in an inch
VALUES_EMBEDDED = 2**21  # at most, of at most five characters each: the page stays below about 15 MB

# What a figure shows, by the beginning of its file's name.
CAPTIONS = {
    "training_curve": "Training and validation loss of both stages by epoch, with the validation MAE on the right.",
    "error_by_horizon": "MAE of the test split by horizon, beside forecasts that need no network.",
    "error_by_time_of_day": "MAE of the test split by the time of day of the forecast step.",
    "forecast_sensor": "What was forecast for one sensor some steps ahead, against what came.",
    "error_map": "MAE of each sensor over all horizons, on the road graph.",
    "imputed": "Share of values that were filled in and not measured, by sensor and day (data/README.md).",
    "graphs": "Which sensors may attend to which, in the order of clusters of similar days, and of clusters by road.",
    "patch_positions": "Where the deformable patches read the input, against the regular patches they start from.",
    "kernels": "Mean magnitude of the taps of the large-kernel blocks, both branches summed. Taps beyond the grey "
    "range never meet data and keep their initial values.",
    "erf_": "Effective receptive field: how much each input moves the centre token of a layer.",
}


def show_run(folder: RunFolder, config: Config) -> list[Path]:
    """Print the results of a finished run, make its figures and page, and return their paths."""
    print_results(folder.read_metrics(), config)
    print_intervals(folder.read_interval_scores())
    return make_report(folder, config)


def make_report(
    folder: RunFolder, config: Config, sensors: Sequence[int] = (), days: int = DAYS_DRAWN, first_day: int = 0
) -> list[Path]:
    """Draw all figures of a finished run and write its page, from its files alone; return their paths.

    The arguments and errors are those of `lib.report.results.make_figures`.
    """
    figures = make_figures(folder, config, sensors, days, first_day)
    fields = sorted(folder.figures.glob("erf_*.png"))  # made by erf_conv.py, when asked
    text = page_of(load_results(folder, config), [*figures, *fields], days, first_day)
    with written_whole(folder.page) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name need not be text
    return [*figures, folder.page]


def page_of(results: Results, figures: Sequence[Path], days: int, first_day: int) -> str:
    """Return the page of a run as HTML: results, forecasts, figures, training, settings, environment.

    Args:
        results: of the run.
        figures: PNG files to show.
        days, first_day: which days of the test split are embedded for the picker of sensors.

    Raises:
        InputError: environment.json is missing or damaged, or there is no such day.
    """
    metrics = results.metrics
    title = f"{metrics['label']} on {metrics['dataset']}: {results.folder.name}"
    sections = {
        "Results": _results(results),
        "Forecast against truth": _explorer(results, days, first_day),
        "Map": _map(results, days, first_day),
        "Prediction intervals": _intervals(results),
        "Figures": "".join(_figure(path) for path in figures),
        "Training": _training(results.history),
        "Settings": f"<pre>{escape(results.config.to_ini())}</pre>",
        "Environment": _environment(results.folder.read_environment()),
        "Files": _files(results.folder),
    }
    style, script = EXPLORER_STYLE, EXPLORER_SCRIPT
    if sections["Map"]:
        style, script = style + MAP_STYLE, script + MAP_SCRIPT
    return document(title, sections, style, script)


def _results(results: Results) -> str:
    metrics = results.metrics
    facts = {
        "data set": metrics["dataset"],
        "variant": metrics["variant"],
        "seed": metrics["seed"],
        "parameters": f"{metrics['parameters']:,}",
        "epochs": metrics["epochs"],
        "best epoch": "-" if metrics["best_epoch"] is None else metrics["best_epoch"],
        "best validation MAE": score_text(metrics["best_val_mae"]),
        "test samples": f"{metrics['test_set']['samples']:,}",
        "sensors": results.config.data.num_of_vertices,
    }
    test = metrics["test"]
    overall = {name: scores_of(scores) for name, scores in forecasts_scored(metrics).items()}
    steps = range(1, len(test["by_horizon"]) + 1)
    by_horizon = {f"{step * results.minutes:g} min": scores_of(test, step) for step in steps}
    note = f" {MEASURED_NOTE}" if "measured" in test else ""
    errors = results.sensor_errors()
    ranked = [sensor for sensor in np.argsort(-errors, kind="stable") if np.isfinite(errors[sensor])]
    worst = [(results.sensor_name(sensor), score_text(errors[sensor])) for sensor in ranked[:5]]
    return (
        html_table("This run", ("", ""), facts.items(), "text")
        + f"<p>Errors on the test split; MAE and RMSE in {escape(results.unit)}. MAPE leaves out targets of 0."
        + f"{escape(note)}</p>"
        + score_table("All horizons together", "forecast", overall)
        + score_table(f"{metrics['label']} by horizon", "horizon", by_horizon)
        + html_table("Sensors of greatest error", ("sensor", "MAE"), worst)
    )


def _intervals(results: Results) -> str:
    scores = results.folder.read_interval_scores()
    if scores is None or results.intervals is None:
        return ""
    horizons = [f"{(step + 1) * results.minutes:g} min" for step in range(results.forecast.shape[2])]
    hours = [f"{hour:02d} h" for hour in range(HOURS)]
    sensors = [results.sensor_name(sensor) for sensor in range(results.config.data.num_of_vertices)]
    by = partial(breakdown, scores, "scaled")
    table = method_table(scores)
    first_hour = "hour of the day" if results.start is not None else "hour since the first step, modulo a day"
    return (
        f"<p>On the test split; widths in {escape(results.unit)}. {escape(INTERVALS_NOTE)}</p>"
        + html_table("Coverage, width and score", table[0], table[1:])
        + html_table("By horizon", breakdown_titles(scores, "horizon"), by("by_horizon", horizons))
        + html_table("By hour", breakdown_titles(scores, first_hour), by("by_hour", hours))
        + html_table("Sensor of least coverage", WORST_TITLES, worst_rows(scores, sensors))
    )


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    rows = [
        (
            entry["epoch"],
            entry["stage"],
            f"{entry['learning_rate']:g}",
            number_text(entry["train_loss"]),
            number_text(entry["val_loss"]),
            score_text(entry["val_mae"]),
            f"{entry['seconds']:.1f}",
            "best so far" if entry["best"] else "",
        )
        for entry in history
    ]
    header = ("epoch", "stage", "learning rate", "training loss", "validation loss", "validation MAE", "time (s)", "")
    return f"<details><summary>{len(rows)} epochs</summary>{html_table('Training by epoch', header, rows)}</details>"


def _environment(environment: Mapping[str, Any]) -> str:
    def shown(value: object) -> object:
        if isinstance(value, dict):
            return ", ".join(f"{name} {part}" for name, part in value.items())
        return " ".join(map(str, value)) if isinstance(value, list) else value

    rows = [(name.replace("_", " "), shown(value)) for name, value in environment.items()]
    return html_table("What the results depend on beside the settings", ("", ""), rows, "text")


def _files(folder: RunFolder) -> str:
    files = {
        folder.metrics: "all errors on this page, and metrics.csv the same as a table",
        folder.predictions: "forecast and target (samples, N, P) in raw units, and the label starts",
        folder.log: "a line an epoch",
        folder.events: "the same for TensorBoard",
        folder.intervals: "what prediction intervals are made with, and intervals.json their scores",
        folder.patch_positions: "where the patches read the input",
        folder.best: "the best weights with graphs, scaling and sensor ids",
        folder.figures: "every figure, PNG for the screen and PDF for print",
    }
    there = [(path.name, content) for path, content in files.items() if path.exists()]
    return html_table("In the run's folder, beside this page", ("", ""), there, "text")


def _figure(path: Path) -> str:
    caption = next((text for name, text in CAPTIONS.items() if path.stem.startswith(name)), path.stem)
    content = path.read_bytes()
    if not content.startswith(PNG):
        print(f"figure {path.stem} left out: found a damaged file, expected PNG")
        return ""
    # The header of a PNG holds width and height; letters are then of one size in all figures.
    width, height = (round(pixels * CSS_DPI / DPI) for pixels in struct.unpack(">2I", content[16:24]))
    image = b64encode(content).decode()
    return (
        f'<figure><img alt="{escape(caption)}" width="{width}" height="{height}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(caption)} ({escape(path.stem)})</figcaption></figure>"
    )


def forecasts_embedded(results: Results, days: int, first_day: int) -> dict[str, Any]:
    """Return what the picker of sensors draws: truth, and the forecast some steps ahead, as integers.

    Returns:
        `sensors`, positions, and what `lib.report.explorer.embedded` returns of them. With too many sensors for one
        page they are some, evenly spaced by position.

    Raises:
        InputError: there is no such day.
    """
    drawn = results.days(days, first_day)
    horizons = [horizon for horizon in HORIZONS if horizon <= results.forecast.shape[2]]
    steps = drawn.stop - drawn.start
    number = results.forecast.shape[1]
    half_width = results.half_width(SCORED_LEVELS[0], drawn)
    curves_each = 1 + len(horizons) * (1 if half_width is None else 2)
    most = max(1, VALUES_EMBEDDED // (steps * curves_each))
    sensors = np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))

    def ahead(values: NDArray[Any], horizon: int) -> NDArray[Any]:
        return values[: max(0, steps - horizon + 1), :, horizon - 1][:, sensors]

    curves = [Curve("truth", results.target[drawn, :, 0][:, sensors])]
    for horizon in horizons:
        width = None if half_width is None else ahead(half_width, horizon)
        name = f"{horizon * results.minutes:g} min ahead"
        curves.append(Curve(name, ahead(results.forecast[drawn], horizon), horizon - 1, half_width=width))
    band = "" if half_width is None else f"{SCORED_LEVELS[0]:.0%} interval"
    first = int(results.label_starts[drawn.start])
    content = embedded(curves, steps, results.minutes, results.start, first, results.unit, band=band)
    return {"sensors": sensors.tolist(), **content}


def _explorer(results: Results, days: int, first_day: int) -> str:
    content = forecasts_embedded(results, days, first_day)
    errors = results.sensor_errors()
    options = [
        (
            sensor,
            f"{results.sensor_name(sensor)}, "
            f"{'no truth' if np.isnan(errors[sensor]) else f'MAE {number_text(errors[sensor], 2)}'}",
        )
        for sensor in content["sensors"]
    ]
    shown, number = len(content["sensors"]), results.config.data.num_of_vertices
    sparse = "" if shown == number else f" {shown} of {number} sensors, evenly spaced, so that the page stays small."
    days_shown = content["steps"] / results.config.data.steps_per_day
    return f"<p>{days_shown:.3g} days of the test split.{sparse}</p>{explorer(content, options)}"


def _map(results: Results, days: int, first_day: int) -> str:
    """Return the map of the stations; nothing where their positions are not known."""
    try:
        network = road_map(results)
    except InputError as error:
        print(f"map left out: {error}")
        return ""
    if network is None:
        return ""
    names = [results.sensor_name(sensor) for sensor in range(results.config.data.num_of_vertices)]
    return map_section(*network, names, map_layers(results, days, first_day))


def map_layers(results: Results, days: int, first_day: int) -> list[Layer]:
    """Return what the stations of a map are coloured by: errors, forecasts, and how far these are from usual.

    Beside the error of the whole test split, they are of every hour of the days drawn, or of fewer hours.
    """
    drawn, data = results.days(days, first_day), results.config.data
    samples = np.arange(drawn.start, drawn.stop)[
        :: every_shown(drawn.stop - drawn.start, data.points_per_hour, data.num_of_vertices)
    ]
    times = [results.time_name(int(start)) for start in results.label_starts[samples]]
    usual = None
    try:
        usual = usual_flow(results, results.label_starts[samples])
    except InputError as error:
        print(f"map without the historical profile: {error}")
    ahead = f"the next {data.num_for_predict * results.minutes:g} min"
    whole = Layer("error (MAE), test split", results.unit, results.sensor_errors()[None], ["test split"])
    return [
        whole,
        *forecast_layers(results.forecast[samples], results.target[samples], usual, times, ahead, results.unit),
    ]
