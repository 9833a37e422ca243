"""The picker of sensors: forecasts against truth on a page, with intervals, drawn by a small script of the page.

A page of a week of 170 sensors holds a few million numbers. So they are embedded as whole numbers, and of these only
the differences from one to the next, most of which take one byte.
"""

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.report.style import COLOURS

LARGEST_VALUE = 9999  # that a number is embedded as, so that four digits are kept
BITS = 7  # of a number, in a byte; the eighth says that another byte follows

EXPLORER_STYLE = """
:not(svg) > svg { width: 100%; height: auto; }
svg text { font-size: 13px; fill: #1a1a1a; }
svg path { fill: none; stroke-width: 1.3; stroke-linecap: round; }
svg .band { stroke: none; opacity: 0.2; }
svg .mark { fill: #f3e3c0; }
svg .axis { stroke: #888; stroke-width: 1; }
svg .grid { stroke: #e4e4e4; stroke-width: 1; }
svg .cursor { stroke: #1a1a1a; stroke-width: 1; stroke-dasharray: 3 3; }
.controls label { margin-right: 1.2rem; white-space: nowrap; }
.swatch { display: inline-block; width: 1.4em; border-top: 3px solid; vertical-align: middle; }
#time { display: block; margin: 0 1% 0 6.25%; width: 92.75%; }
output { display: block; min-height: 1.5em; font-variant-numeric: tabular-nums; }
""" + "".join(
    f".series{series} {{ stroke: {colour}; border-color: {colour}; }} .band.series{series} {{ fill: {colour}; }}\n"
    for series, colour in enumerate(("#000000", *COLOURS))
)

# Draws the embedded forecasts of the sensor picked; all numbers that depend on the run are in the data.
EXPLORER_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("forecasts").textContent);
const picker = document.getElementById("sensor"), time = document.getElementById("time");
const drawing = document.getElementById("drawing"), readout = document.getElementById("readout");
const switches = [...document.querySelectorAll("#explorer input[name=curve]")];
const band = document.querySelector("#explorer input[name=band]"), days = document.getElementById("days");
const left = 60, right = 950, top_ = 15, bottom = 300;
const x = step => left + (right - left) * (step - first) / Math.max(1, last - first);
const place = (series, step) => (step - data.series[series].offset) / data.series[series].every;
const value = (series, step) => values[series][place(series, step)];
const flow = (series, step) => value(series, step) / data.scale;
const half = (series, index) => values[data.series[series].band][index];
let values = [], unpacked = -1, first = 0, last = data.steps - 1;  // of the sensor picked, and the steps in view
const decimals = Math.max(1, Math.round(Math.log10(data.scale)));  // those that are embedded

function add(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  drawing.append(element);
}

// Numbers are embedded as differences from the one before, seven bits a byte, the sign last; 0 stands for none.
function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  let at = 0;
  return data.lengths.map(length => {
    const numbers = [];
    let number = 0;
    while (numbers.length < length) {
      let code = 0, shift = 0, byte;
      do { byte = bytes[at++]; code += (byte & 127) * 2 ** shift; shift += 7; } while (byte & 128);
      if (code) number += code % 2 ? (code - 1) / 2 : -code / 2;
      numbers.push(code ? number : null);
    }
    return numbers;
  });
}

function when(step) {  // day and time of day
  const minutes = data.first_minute + step * data.minutes_per_step;
  if (!data.clock) return [(minutes / 60).toFixed(1) + " h", ""];
  const [weekday, day, month, year, clock] = new Date(minutes * 60000).toUTCString().split(/,? /);
  return [`${weekday} ${day} ${month} ${year}`, clock.slice(0, 5)];
}

function draw() {
  const shown = data.series.map((_, series) => series).filter(series => switches[series].checked);
  if (unpacked !== picker.selectedIndex) {
    unpacked = picker.selectedIndex;
    values = unpack(data.packed[unpacked]);
  }
  first = days && days.value !== "" ? Number(days.value) : 0;
  last = days && days.value !== "" ? Math.min(data.steps - 1, first + data.day - 1) : data.steps - 1;
  time.min = first;
  time.max = last;
  const bands = band && band.checked ? shown.filter(series => data.series[series].band !== undefined) : [];
  const heights = values.slice(0, data.series.length).flat().map(number => number / data.scale);  // null counts as 0
  for (const series of bands)
    values[series].forEach((number, index) => heights.push((number + half(series, index)) / data.scale));
  const low = heights.reduce((a, b) => Math.min(a, b), 0), high = heights.reduce((a, b) => Math.max(a, b), low + 1e-9);
  const y = number => bottom - (bottom - top_) * (number - low) / (high - low);
  drawing.replaceChildren();
  for (const [from, to] of data.marks)
    if (from <= last && to >= first) {
      const begin = x(Math.max(from, first)), end = x(Math.min(to, last));
      add("rect", {class: "mark", x: begin, width: Math.max(1, end - begin), y: top_, height: bottom - top_});
    }
  const power = 10 ** Math.floor(Math.log10((high - low) / 4));
  const spacing = [1, 2, 5, 10].map(factor => factor * power).find(gap => (high - low) / gap <= 6);
  for (let tick = Math.ceil(low / spacing); tick * spacing <= high; tick++) {
    add("line", {class: "grid", x1: left, x2: right, y1: y(tick * spacing), y2: y(tick * spacing)});
    const label = +(tick * spacing).toPrecision(6);
    add("text", {x: left - 6, y: y(tick * spacing) + 4, "text-anchor": "end"}, label);
  }
  const first_minute = data.first_minute + first * data.minutes_per_step;
  const last_minute = data.first_minute + last * data.minutes_per_step;
  const ten = (last_minute - first_minute) / 10;  // no more ticks than ten
  const every = [60, 180, 360, 720, 1440, 2880, 10080, 43200, 525600].find(minutes => minutes >= ten);
  for (let minute = Math.ceil(first_minute / every) * every; minute <= last_minute; minute += every) {
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
  const within = series => {  // the indices of its numbers that are in view
    const {offset, every} = data.series[series];
    const from = Math.max(0, Math.ceil((first - offset) / every)), to = Math.floor((last - offset) / every);
    return [...values[series].keys()].slice(from, to + 1);
  };
  const point = (series, index, number) => {
    const step = data.series[series].offset + index * data.series[series].every;
    return x(step).toFixed(1) + " " + y(number / data.scale).toFixed(1);
  };
  for (const series of bands) {
    const there = within(series).filter(index => values[series][index] !== null);
    const upper = there.map(index => point(series, index, Math.max(0, values[series][index]) + half(series, index)));
    const lower = there.map(index => point(series, index, Math.max(0, values[series][index] - half(series, index))));
    const around = [...upper, ...lower.reverse()];
    if (there.length) add("path", {class: "band series" + series, d: "M" + around.join("L") + "Z"});
  }
  for (const series of shown) {
    let line = "", pen = "M";  // a curve breaks where the truth is missing; a point alone is a line to itself
    for (const index of within(series)) {
      const number = values[series][index], here = number === null ? "" : point(series, index, number);
      const alone = pen === "M" && (values[series][index + 1] ?? null) === null;
      if (number !== null) line += pen + here + (alone ? "L" + here : "");
      pen = number === null ? "M" : "L";
    }
    if (line) add("path", {class: "series" + series, d: line});
  }
  const step = Math.min(last, Math.max(first, Number(time.value)));
  add("line", {class: "cursor", x1: x(step), x2: x(step), y1: top_, y2: bottom});
  readout.textContent = when(step).join(" ").trim() + ": " + shown.map(series => {
    const name = data.series[series].name, number = value(series, step) ?? null;
    if (number === null) return name + " -";
    const text = name + " " + flow(series, step).toFixed(decimals);
    if (!bands.includes(series)) return text;
    const width = half(series, place(series, step)), middle = Math.max(0, number);
    const ends = [Math.max(0, middle - width), middle + width].map(end => (end / data.scale).toFixed(decimals));
    return text + " (" + ends.join(" to ") + ")";
  }).join(", ");
  const name = picker.selectedOptions[0].textContent;
  drawing.setAttribute("aria-label", "forecast against truth, " + name);
  drawing.dataset.sensor = picker.value;
}

document.getElementById("explorer").hidden = false;
for (const control of [picker, time, band, days, ...switches].filter(Boolean)) control.addEventListener("input", draw);
drawing.addEventListener("pointermove", event => {
  const box = drawing.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 960;
  time.value = Math.round(first + (at - left) / (right - left) * (last - first));
  draw();
});
draw();
document.documentElement.dataset.explorer = "drawn";
"""


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve of every sensor.

    Attributes:
        name: of the curve.
        values: (k, sensors), NaN where there is none.
        offset: steps between the first step of the page and the first value.
        every: steps between two values.
        half_width: (k, sensors), by which an interval reaches to both sides; None: there is no interval.
        shown: whether it is drawn before somebody asks.
    """

    name: str
    values: NDArray[Any]
    offset: int = 0
    every: int = 1
    half_width: NDArray[Any] | None = None
    shown: bool = True


def embedded(
    curves: Sequence[Curve],
    steps: int,
    minutes_per_step: float,
    start: datetime | None,
    first_step: int,
    unit: str,
    marks: Sequence[tuple[int, int]] = (),
    band: str = "",
    largest: int = LARGEST_VALUE,
) -> dict[str, Any]:
    """Return what the script draws, as plain values.

    Args:
        curves: the truth first.
        steps: shown.
        minutes_per_step: length of a time step.
        start: time of the series' first step; None where it is not known.
        first_step: the number of the first step shown, in the series.
        unit: of the flow.
        marks: first and last step of what is shaded, from the first step shown.
        band: what intervals are called.
        largest: the value that the largest number is embedded as, at most.

    Returns:
        `series`, each with its name, `offset`, `every`, `shown` and perhaps `band`, the place of its half widths;
        `values[sensor]`, of each series and then of each half width, as integers that times 1 / `scale` are in `unit`,
        None where there is none; `first_minute`, the time of the first step, since 1970 in local time where `clock` is
        true and since the series' first step where not; `steps` of `minutes_per_step`, `day` of them in a day;
        `marks` and `band`.
    """
    half_widths = [curve.half_width for curve in curves if curve.half_width is not None]
    arrays = [np.asarray(array, dtype=np.float64) for array in (*(curve.values for curve in curves), *half_widths)]
    peak = max((float(np.nan_to_num(np.abs(array)).max()) for array in arrays if array.size), default=0.0)
    scale = 10.0 ** math.floor(math.log10(largest / peak)) if peak > 0 else 1.0
    whole = [_whole_numbers(array.T * scale) for array in arrays]
    series: list[dict[str, Any]] = [
        {"name": curve.name, "offset": curve.offset, "every": curve.every, "shown": curve.shown} for curve in curves
    ]
    with_band = [entry for entry, curve in zip(series, curves, strict=True) if curve.half_width is not None]
    for place, entry in enumerate(with_band, start=len(curves)):
        entry["band"] = place
    since = 0.0 if start is None else (start - datetime(1970, 1, 1)).total_seconds() / 60
    return {
        "series": series,
        "values": [list(of_sensor) for of_sensor in zip(*whole, strict=True)],
        "scale": scale,
        "unit": f"flow ({unit})",
        "clock": start is not None,
        "first_minute": since + first_step * minutes_per_step,
        "minutes_per_step": minutes_per_step,
        "steps": steps,
        "day": round(24 * 60 / minutes_per_step),
        "marks": [list(map(int, mark)) for mark in marks],
        "band": band,
    }


def _whole_numbers(values: NDArray[np.float64]) -> list[list[int | None]]:
    """Return numbers as the nearest integers, None for NaN, which JSON has no word for."""
    return [[None if math.isnan(value) else round(value) for value in row] for row in values.tolist()]


def packed(numbers: Sequence[int | None]) -> bytes:
    """Return integers as bytes, the way the script unpacks them.

    The difference d from the number before is written as 2 d + 1 where it is not negative and as -2 d where it is,
    seven bits a byte, the lowest first, and the eighth bit of all bytes but the last set. 0 stands for None.
    """
    written, before = bytearray(), 0
    for number in numbers:
        code = 0
        if number is not None:
            difference, before = number - before, number
            code = 2 * difference + 1 if difference >= 0 else -2 * difference
        while code >> BITS:
            written.append(code % 2**BITS + 2**BITS)
            code >>= BITS
        written.append(code)
    return bytes(written)


def explorer(content: dict[str, Any], options: Sequence[tuple[int, str]], days: Sequence[tuple[int, str]] = ()) -> str:
    """Return the picker of sensors as HTML.

    Args:
        content: of `embedded`.
        options: position and name of each sensor in it.
        days: first step and name of each day that can be picked.
    """
    data = {key: value for key, value in content.items() if key != "values"}
    data["lengths"] = [len(numbers) for numbers in content["values"][0]]
    data["packed"] = [b64encode(b"".join(map(packed, of_sensor))).decode() for of_sensor in content["values"]]
    choices = "".join(f'<option value="{value}">{escape(name)}</option>' for value, name in options)
    switches = "".join(
        f'<label><input type="checkbox" name="curve"{" checked" if entry["shown"] else ""}> '
        f'<span class="swatch series{place}"></span> {escape(entry["name"])}</label>'
        for place, entry in enumerate(content["series"])
    )
    if content["band"]:
        switches += f'<label><input type="checkbox" name="band" checked> {escape(content["band"])}</label>'
    day_picker = ""
    if days:
        one_day = "".join(f'<option value="{step}">{escape(name)}</option>' for step, name in days)
        day_picker = f'<label>Day <select id="days"><option value="">all</option>{one_day}</select></label>'
    # "<" is written otherwise, for no text within may end the script element.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<noscript><p>The picker of sensors needs JavaScript; tables and figures do not.</p></noscript>"
        f'<div id="explorer" hidden><p class="controls"><label>Sensor <select id="sensor">{choices}</select></label>'
        f"{day_picker}{switches}</p>"
        '<svg id="drawing" viewBox="0 0 960 350" role="img"></svg>'
        f'<label>Time <input id="time" type="range" min="0" max="{content["steps"] - 1}" value="0"></label>'
        '<output id="readout" for="time sensor"></output></div>'
        f'<script type="application/json" id="forecasts">{text}</script>'
    )
