"""report.html: a run on one self-contained page, which needs neither network nor server, with a picker of sensors."""

import hashlib
import json
import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config import Config
from lib.errors import InputError
from lib.files import written_whole
from lib.numbers import number_text
from lib.report.figures import COLOURS, DPI, HORIZONS
from lib.report.map import MAP_SCRIPT, MAP_STYLE, Layer, every_shown, forecast_layers, map_section
from lib.report.results import DAYS_DRAWN, Results, load_results, make_figures, road_map, usual_flow
from lib.report.text_tables import MEASURED_NOTE, print_results, score_text, scores_of, titles_of
from lib.run_folder import RunFolder, forecasts_scored

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # how such a file begins; width and height follow
CSS_DPI = 96  # pixels of a style sheet in an inch
VALUES_EMBEDDED = 2**21  # at most, of at most five characters each: the page stays below about 15 MB
LARGEST_VALUE = 9999  # that a forecast is embedded as, so that four digits are kept

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

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
nav a { margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
caption { text-align: left; white-space: nowrap; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, .text td { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.8rem; }
summary { cursor: pointer; }
:not(svg) > svg { width: 100%; height: auto; }
svg text { font-size: 13px; fill: #1a1a1a; }
svg path { fill: none; stroke-width: 1.3; stroke-linecap: round; }
svg .axis { stroke: #888; stroke-width: 1; }
svg .grid { stroke: #e4e4e4; stroke-width: 1; }
svg .cursor { stroke: #1a1a1a; stroke-width: 1; stroke-dasharray: 3 3; }
.controls label { margin-right: 1.2rem; white-space: nowrap; }
.swatch { display: inline-block; width: 1.4em; border-top: 3px solid; vertical-align: middle; }
#time { display: block; margin: 0 1% 0 6.25%; width: 92.75%; }
output { display: block; min-height: 1.5em; font-variant-numeric: tabular-nums; }
"""

# Draws the embedded forecasts of the sensor picked; all numbers that depend on the run are in the data.
SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("forecasts").textContent);
const picker = document.getElementById("sensor"), time = document.getElementById("time");
const drawing = document.getElementById("drawing"), readout = document.getElementById("readout");
const switches = [...document.querySelectorAll("#explorer input[type=checkbox]")];
const left = 60, right = 950, top_ = 15, bottom = 300;
const x = step => left + (right - left) * step / Math.max(1, data.steps - 1);
const value = (series, step) => data.values[picker.selectedIndex][series][step - data.series[series].offset];
const flow = (series, step) => value(series, step) / data.scale;
const decimals = Math.max(1, Math.round(Math.log10(data.scale)));  // those that are embedded

function add(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  drawing.append(element);
}

function when(step) {  // day and time of day
  const minutes = data.first_minute + step * data.minutes_per_step;
  if (!data.clock) return [(minutes / 60).toFixed(1) + " h", ""];
  const [weekday, day, month, year, clock] = new Date(minutes * 60000).toUTCString().split(/,? /);
  return [`${weekday} ${day} ${month} ${year}`, clock.slice(0, 5)];
}

function draw() {
  const shown = data.series.map((_, series) => series).filter(series => switches[series].checked);
  const values = data.values[picker.selectedIndex].flat().map(number => number / data.scale);  // null counts as 0
  const low = values.reduce((a, b) => Math.min(a, b), 0), high = values.reduce((a, b) => Math.max(a, b), low + 1e-9);
  const y = number => bottom - (bottom - top_) * (number - low) / (high - low);
  drawing.replaceChildren();
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const spacing = [1, 2, 5, 10].map(factor => factor * power).find(gap => (high - low) / gap <= 6);
  for (let tick = Math.ceil(low / spacing); tick * spacing <= high; tick++) {
    add("line", {class: "grid", x1: left, x2: right, y1: y(tick * spacing), y2: y(tick * spacing)});
    const label = +(tick * spacing).toPrecision(6);
    add("text", {x: left - 6, y: y(tick * spacing) + 4, "text-anchor": "end"}, label);
  }
  const last_minute = data.first_minute + (data.steps - 1) * data.minutes_per_step;
  const ten = (last_minute - data.first_minute) / 10;  // no more ticks than ten
  const every = [60, 180, 360, 720, 1440, 2880, 10080, 43200, 525600].find(minutes => minutes >= ten);
  for (let minute = Math.ceil(data.first_minute / every) * every; minute <= last_minute; minute += every) {
    const step = (minute - data.first_minute) / data.minutes_per_step;
    add("line", {class: "axis", x1: x(step), x2: x(step), y1: bottom, y2: bottom + 5});
    const [day, clock] = when(step);
    const label = data.clock && every < 1440 && minute % 1440 ? clock : day.replace(/ \\d{4}$/, "");
    add("text", {x: x(step), y: bottom + 20, "text-anchor": "middle"}, label);
  }
  add("line", {class: "axis", x1: left, x2: right, y1: bottom, y2: bottom});
  add("text", {x: (left + right) / 2, y: bottom + 42, "text-anchor": "middle"},
      data.clock ? "local time" : "time since the first step");
  add("text", {transform: `translate(14 ${(top_ + bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, data.unit);
  for (const series of shown) {
    const offset = data.series[series].offset;
    let line = "", pen = "M";  // a curve breaks where the truth is missing; a point alone is a line to itself
    data.values[picker.selectedIndex][series].forEach((number, index, all) => {
      const point = x(index + offset).toFixed(1) + " " + y(number / data.scale).toFixed(1);
      if (number !== null) line += pen + point + (pen === "M" && (all[index + 1] ?? null) === null ? "L" + point : "");
      pen = number === null ? "M" : "L";
    });
    if (line) add("path", {class: "series" + series, d: line});
  }
  const step = Number(time.value);
  add("line", {class: "cursor", x1: x(step), x2: x(step), y1: top_, y2: bottom});
  readout.textContent = when(step).join(" ").trim() + ": " + shown.map(series => data.series[series].name + " " +
    ((value(series, step) ?? null) === null ? "-" : flow(series, step).toFixed(decimals))).join(", ");
  const name = picker.selectedOptions[0].textContent;
  drawing.setAttribute("aria-label", "forecast against truth, " + name);
  drawing.dataset.sensor = picker.value;
}

document.getElementById("explorer").hidden = false;
for (const control of [picker, time, ...switches]) control.addEventListener("input", draw);
drawing.addEventListener("pointermove", event => {
  const box = drawing.getBoundingClientRect(), place = (event.clientX - box.left) / box.width * 960;
  time.value = Math.round((place - left) / (right - left) * (data.steps - 1));
  draw();
});
draw();
document.documentElement.dataset.explorer = "drawn";
"""


def show_run(folder: RunFolder, config: Config) -> list[Path]:
    """Print the results of a finished run, make its figures and page, and return their paths."""
    print_results(folder.read_metrics(), config)
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
        "Figures": "".join(_figure(path) for path in figures),
        "Training": _training(results.history),
        "Settings": f"<pre>{escape(results.config.to_ini())}</pre>",
        "Environment": _environment(results.folder.read_environment()),
        "Files": _files(results.folder),
    }
    sections = {name: content for name, content in sections.items() if content}
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{anchors[name]}"><h2>{name}</h2>{part}</section>' for name, part in sections.items())
    colours = "".join(
        f".series{series} {{ stroke: {colour}; border-color: {colour}; }}"
        for series, colour in enumerate(("#000000", *COLOURS))
    )
    style, script = STYLE + colours, SCRIPT
    if "Map" in sections:
        style, script = style + MAP_STYLE, script + MAP_SCRIPT
    # The browser itself keeps the page to its own parts: nothing is loaded, and no other script runs.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_integrity(style)}'; script-src '{_integrity(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<nav aria-label="sections">{links}</nav></header>\n'
        f"<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _integrity(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "numbers") -> str:
    """Return a table whose first column names its rows; everything in it is escaped."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _score_table(caption: str, first_column: str, rows: Mapping[str, Mapping[str, float | None]]) -> str:
    titles = titles_of(rows.values())
    lines = [[name, *(score_text(scores.get(metric)) for metric in titles)] for name, scores in rows.items()]
    return _table(caption, (first_column, *titles.values()), lines)


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
        _table("This run", ("", ""), facts.items(), "text")
        + f"<p>Errors on the test split; MAE and RMSE in {escape(results.unit)}. MAPE leaves out targets of 0."
        + f"{escape(note)}</p>"
        + _score_table("All horizons together", "forecast", overall)
        + _score_table(f"{metrics['label']} by horizon", "horizon", by_horizon)
        + _table("Sensors of greatest error", ("sensor", "MAE"), worst)
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
    return f"<details><summary>{len(rows)} epochs</summary>{_table('Training by epoch', header, rows)}</details>"


def _environment(environment: Mapping[str, Any]) -> str:
    def shown(value: object) -> object:
        if isinstance(value, dict):
            return ", ".join(f"{name} {part}" for name, part in value.items())
        return " ".join(map(str, value)) if isinstance(value, list) else value

    rows = [(name.replace("_", " "), shown(value)) for name, value in environment.items()]
    return _table("What the results depend on beside the settings", ("", ""), rows, "text")


def _files(folder: RunFolder) -> str:
    files = {
        folder.metrics: "all errors on this page, and metrics.csv the same as a table",
        folder.predictions: "forecast and target (samples, N, P) in raw units, and the label starts",
        folder.log: "a line an epoch",
        folder.events: "the same for TensorBoard",
        folder.patch_positions: "where the patches read the input",
        folder.best: "the best weights with graphs, scaling and sensor ids",
        folder.figures: "every figure, PNG for the screen and PDF for print",
    }
    there = [(path.name, content) for path, content in files.items() if path.exists()]
    return _table("In the run's folder, beside this page", ("", ""), there, "text")


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
        `sensors`, positions; `series`, each with its name and `offset`, the steps between the first truth and its first
        value; `values[sensor][series]`, which times 1 / `scale` are in `unit`, None where the truth is missing;
        `first_minute`, the time of the first truth, since 1970 in local time where `clock` is true and since the
        series' first step where not; `steps` of `minutes_per_step`. With too many sensors for one page they are some,
        evenly spaced by position.

    Raises:
        InputError: there is no such day.
    """
    drawn = results.days(days, first_day)
    horizons = [horizon for horizon in HORIZONS if horizon <= results.forecast.shape[2]]
    steps = drawn.stop - drawn.start
    number = results.forecast.shape[1]
    most = max(1, VALUES_EMBEDDED // (steps * (1 + len(horizons))))
    sensors = np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))
    truth = results.target[drawn, :, 0][:, sensors]  # (steps, sensors)
    ahead = [results.forecast[drawn, :, horizon - 1][: max(0, steps - horizon + 1), sensors] for horizon in horizons]
    peak = max((float(np.nan_to_num(np.abs(part)).max()) for part in (truth, *ahead) if part.size), default=0.0)
    scale = 10.0 ** math.floor(math.log10(LARGEST_VALUE / peak)) if peak > 0 else 1.0
    whole = [_whole_numbers(part.T.astype(np.float64) * scale) for part in (truth, *ahead)]
    names = [("truth", 0), *((f"{horizon * results.minutes:g} min ahead", horizon - 1) for horizon in horizons)]
    start, first = results.start, int(results.label_starts[drawn.start])
    epoch = datetime(1970, 1, 1)
    return {
        "sensors": sensors.tolist(),
        "series": [{"name": name, "offset": offset} for name, offset in names],
        "values": [list(of_sensor) for of_sensor in zip(*whole, strict=True)],
        "scale": scale,
        "unit": f"flow ({results.unit})",
        "clock": start is not None,
        "first_minute": (0 if start is None else (start - epoch).total_seconds() / 60) + first * results.minutes,
        "minutes_per_step": results.minutes,
        "steps": steps,
    }


def _whole_numbers(values: NDArray[np.float64]) -> list[list[int | None]]:
    """Return numbers as the nearest integers, None for NaN, which JSON has no word for."""
    return [[None if math.isnan(value) else round(value) for value in row] for row in values.tolist()]


def _explorer(results: Results, days: int, first_day: int) -> str:
    content = forecasts_embedded(results, days, first_day)
    errors = results.sensor_errors()
    options = "".join(
        f'<option value="{sensor}">{escape(results.sensor_name(sensor))}, '
        f"{'no truth' if np.isnan(errors[sensor]) else f'MAE {number_text(errors[sensor], 2)}'}</option>"
        for sensor in content["sensors"]
    )
    switches = "".join(
        f'<label><input type="checkbox" checked> <span class="swatch series{place}"></span> {escape(entry["name"])}'
        "</label>"
        for place, entry in enumerate(content["series"])
    )
    shown, number = len(content["sensors"]), results.config.data.num_of_vertices
    sparse = "" if shown == number else f" {shown} of {number} sensors, evenly spaced, so that the page stays small."
    days_shown = content["steps"] / results.config.data.steps_per_day
    # "<" is written otherwise, for no text within may end the script element.
    embedded = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f"<p>{days_shown:.3g} days of the test split.{sparse}</p>"
        "<noscript><p>The picker of sensors needs JavaScript; the figures below do not.</p></noscript>"
        f'<div id="explorer" hidden><p class="controls"><label>Sensor <select id="sensor">{options}</select></label>'
        f"{switches}</p>"
        '<svg id="drawing" viewBox="0 0 960 350" role="img"></svg>'
        f'<label>Time <input id="time" type="range" min="0" max="{content["steps"] - 1}" value="0"></label>'
        '<output id="readout" for="time sensor"></output></div>'
        f'<script type="application/json" id="forecasts">{embedded}</script>'
    )


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
