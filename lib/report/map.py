"""The map of a page: stations as dots, coloured by what the reader picks, and links as lines.

It is drawn by the browser from data in the page alone, without a network or tiles. A page has one map at most.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from lib.data.positions import plane
from lib.metrics import absolute_errors, mean_or_nan

WIDTH, HEIGHTS = 830, (260, 620)  # of the map in units of the drawing, and the least and greatest height
VALUES_EMBEDDED = 2**19  # of a layer, at most, of about five characters each
COLOURS = 48  # steps of a colour bar
SHARE_SHOWN = 0.98  # of the values within the limits of the colour bar
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

MAP_STYLE = """
#map-panel .road { stroke: #999; stroke-width: 1.2; vector-effect: non-scaling-stroke; }
#map-panel circle { stroke: #333; stroke-width: 0.6; vector-effect: non-scaling-stroke; }
#map-panel .picked { stroke: #000; stroke-width: 2.5; }
#map-panel .frame { fill: none; stroke: #ccc; }
#map-panel .paper { fill: #fafafa; }
#map-panel .tip { fill: #fff; stroke: #888; }
#map-ruler text { paint-order: stroke; stroke: #fafafa; stroke-width: 4; }
#map-area { cursor: grab; touch-action: pan-y; }
#map-frame { width: 24rem; max-width: 60%; vertical-align: middle; }
"""

# All numbers that depend on the run are in the data.
MAP_SCRIPT = """
(() => {
"use strict";
const data = JSON.parse(document.getElementById("map-data").textContent);
const element = id => document.getElementById("map-" + id);
const layers = element("layer"), frames = element("frame"), area = element("area"), width = data.width;
const content = element("content"), tip = element("tip"), bar = element("bar"), ruler = element("ruler");
const known = data.names.map((_, sensor) => sensor).filter(sensor => data.x[sensor] !== null);
const left = Math.min(...known.map(sensor => data.x[sensor])), right = Math.max(...known.map(sensor => data.x[sensor]));
const low = Math.min(...known.map(sensor => data.y[sensor])), high = Math.max(...known.map(sensor => data.y[sensor]));
const margin = 30, scale = Math.min(  // units of the drawing in a kilometre
  (width - 2 * margin) / Math.max(right - left, 1e-3), (data.height - 2 * margin) / Math.max(high - low, 1e-3));
const x = sensor => width / 2 + scale * (data.x[sensor] - (left + right) / 2);
const y = sensor => data.height / 2 - scale * (data.y[sensor] - (low + high) / 2);
const radius = Math.max(2.5, Math.min(7, 90 / Math.sqrt(known.length)));
let zoom = 1, moved = [0, 0], grabbed = null, picked = null;

function add(parent, name, attributes, text) {
  const child = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) child.setAttribute(key, attributes[key]);
  if (text !== undefined) child.textContent = text;
  parent.append(child);
  return child;
}

const road = data.links.filter(ends => ends.every(sensor => data.x[sensor] !== null));
const line = road.map(([a, b]) => `M${x(a).toFixed(1)} ${y(a).toFixed(1)}L${x(b).toFixed(1)} ${y(b).toFixed(1)}`);
add(content, "path", {class: "road", d: line.join("")});
const dots = known.map(sensor => add(content, "circle", {cx: x(sensor).toFixed(1), cy: y(sensor).toFixed(1)}));

const layer = () => data.layers[layers.selectedIndex];
const values = () => layer().frames[Number(frames.value)].values;
const text = number => number === null ? "unknown" : `${number} ${layer().unit}`;

function place() {
  const clamp = (shift, size) => Math.min(0, Math.max(size * (1 - zoom), shift));
  moved = [clamp(moved[0], width), clamp(moved[1], data.height)];
  content.setAttribute("transform", `translate(${moved[0]} ${moved[1]}) scale(${zoom})`);
  for (const dot of dots) dot.setAttribute("r", (radius / zoom).toFixed(3));
  const most = 160 / (scale * zoom), power = 10 ** Math.floor(Math.log10(most));  // kilometres
  const length = [5, 2, 1].map(factor => factor * power).find(kilometres => kilometres <= most);
  const end = 20 + length * scale * zoom, base = data.height - 16;
  ruler.replaceChildren();
  add(ruler, "path", {class: "axis", d: `M20 ${base - 5}V${base}H${end}V${base - 5}`});
  add(ruler, "text", {x: 24, y: base - 5},
      length >= 1 ? length + " km" : +(length * 1000).toPrecision(3) + " m");
  hide();
}

function colour() {
  const {low, high, colours} = layer(), now = values();
  known.forEach((sensor, index) => {
    const share = (now[sensor] - low) / (high - low), step = Math.floor(share * colours.length);
    dots[index].setAttribute("fill", now[sensor] === null ? "#fff" :
      colours[Math.max(0, Math.min(colours.length - 1, step))]);
  });
  element("frame-name").textContent = layer().frames[Number(frames.value)].name;
  hide();
}

function pickLayer() {
  const shown = layer(), last = shown.frames.length - 1;
  frames.max = last;
  frames.value = Math.min(Number(frames.value), last);
  frames.parentElement.hidden = last === 0;
  const top_ = 20, height = data.height - 40, edge = width + 22;
  bar.replaceChildren();
  shown.colours.forEach((fill, step) => add(bar, "rect", {x: edge, width: 16, fill,
    y: top_ + height * (1 - (step + 1) / shown.colours.length), height: height / shown.colours.length + 0.5}));
  for (let tick = 0; tick <= 4; tick++) {
    const sign = tick === 0 && shown.below ? "\\u2264 " : tick === 4 && shown.above ? "\\u2265 " : "";
    const label = sign + +(shown.low + (shown.high - shown.low) * tick / 4).toPrecision(3);
    add(bar, "text", {x: edge + 21, y: top_ + height * (1 - tick / 4) + 4}, label);
  }
  add(bar, "text", {"text-anchor": "middle", transform: `translate(${width + 14} ${data.height / 2}) rotate(-90)`},
      shown.unit);
  colour();
}

function hide() { tip.replaceChildren(); }

function point(event) {
  const box = area.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * data.height];
}

function near(event) {  // the sensors under the pointer, the nearest first
  const [px, py] = point(event), reach = Math.max(radius, 6) + 2;
  return known.map(sensor => [Math.hypot(zoom * x(sensor) + moved[0] - px, zoom * y(sensor) + moved[1] - py), sensor])
    .filter(([distance]) => distance < reach).sort((a, b) => a[0] - b[0]).map(([, sensor]) => sensor);
}

function show(event) {
  const found = near(event), now = values();
  hide();
  if (!found.length) return;
  const lines = found.slice(0, 4).map(sensor => `${data.names[sensor]}: ${text(now[sensor])}`);
  if (found.length > 4) lines.push(`and ${found.length - 4} more here: zoom in`);
  const back = add(tip, "rect", {class: "tip", rx: 3}), label = add(tip, "text", {});
  lines.forEach((line, row) => add(label, "tspan", {x: 0, dy: row ? 17 : 0}, line));
  const box = label.getBBox(), [px, py] = [zoom * x(found[0]) + moved[0], zoom * y(found[0]) + moved[1]];
  const across = Math.max(8, Math.min(px + 12, width - box.width - 12));
  const down = py - box.height > 20 ? py - box.height - 2 : py + 28;  // above the dot where there is room
  label.setAttribute("transform", `translate(${across} ${down})`);
  const around = {x: across - 6, y: down - 16, width: box.width + 12, height: box.height + 8};
  for (const key in around) back.setAttribute(key, around[key]);
}

function pick(event) {
  const [sensor] = near(event);
  if (sensor === undefined) return;
  if (picked) picked.classList.remove("picked");
  picked = dots[known.indexOf(sensor)];
  picked.classList.add("picked");
  const picker = document.getElementById("sensor");  // of the forecasts on the same page
  if (!picker || ![...picker.options].some(option => option.value === String(sensor))) return;
  picker.value = String(sensor);
  picker.dispatchEvent(new Event("input"));
}

function zoomBy(factor, [px, py]) {
  const next = Math.max(1, Math.min(200, zoom * factor));
  moved = [px - (px - moved[0]) * next / zoom, py - (py - moved[1]) * next / zoom];
  zoom = next;
  place();
}

area.addEventListener("pointerdown", event => {
  grabbed = {at: point(event), from: moved, far: false};
  area.setPointerCapture(event.pointerId);
});
area.addEventListener("pointermove", event => {
  if (!grabbed) return show(event);
  const now = point(event), shift = now.map((value, axis) => value - grabbed.at[axis]);
  grabbed.far ||= Math.hypot(...shift) > 4;
  if (!grabbed.far) return;
  moved = shift.map((value, axis) => value + grabbed.from[axis]);
  place();
});
area.addEventListener("pointerup", event => {
  if (grabbed && !grabbed.far) pick(event);
  grabbed = null;
});
area.addEventListener("pointercancel", () => { grabbed = null; });
area.addEventListener("pointerleave", hide);
area.addEventListener("dblclick", event => zoomBy(2, point(event)));
const centre = [width / 2, data.height / 2];
element("in").addEventListener("click", () => zoomBy(1.5, centre));
element("out").addEventListener("click", () => zoomBy(1 / 1.5, centre));
element("whole").addEventListener("click", () => zoomBy(1e-9, centre));
layers.addEventListener("input", pickLayer);
frames.addEventListener("input", colour);
element("panel").hidden = false;
place();
pickLayer();
document.documentElement.dataset.map = "drawn";
})();
"""


@dataclass(frozen=True, eq=False)
class Layer:
    """Something that stations are coloured by, at one time or several.

    Attributes:
        name: as the reader picks it.
        unit: of the values.
        values: (times, N), NaN where unknown.
        times: (times,) names.
        diverging: whether the values lie on both sides of 0, which is then the middle of the colours.
    """

    name: str
    unit: str
    values: NDArray[np.floating[Any]]
    times: Sequence[str]
    diverging: bool = False

    def content(self) -> dict[str, Any]:
        """Return what the script draws."""
        low, high = self._limits()
        colour_map = matplotlib.colormaps[DIVERGING if self.diverging else SEQUENTIAL]
        known = self.values[np.isfinite(self.values)]
        return {
            "name": self.name,
            "unit": self.unit,
            "low": low,
            "high": high,
            "below": bool((known < low).any()),
            "above": bool((known > high).any()),
            "colours": [to_hex(colour_map(share)) for share in (np.arange(COLOURS) + 0.5) / COLOURS],
            "frames": [
                {"name": time, "values": _short_numbers(values)}
                for time, values in zip(self.times, self.values, strict=True)
            ],
        }

    def _limits(self) -> tuple[float, float]:
        """Return round limits that hold nearly all values; 0 is one of them, or the middle."""
        known = self.values[np.isfinite(self.values)]
        if not len(known):
            return 0.0, 1.0
        if self.diverging:
            high = _round_up(float(np.quantile(np.abs(known), SHARE_SHOWN)))
            return -high, high
        low, high = np.quantile(known, [1 - SHARE_SHOWN, SHARE_SHOWN])
        return -_round_up(-float(low)) if low < 0 else 0.0, _round_up(float(high))


def every_shown(times: int, hour: int, sensors: int) -> int:
    """Return how many times lie between two that a map shows: an hour, or more where it would be too large."""
    every = hour
    while -(-times // every) > max(1, VALUES_EMBEDDED // sensors):
        every *= 2
    return every


def forecast_layers(
    forecast: NDArray[np.floating[Any]],
    truth: NDArray[np.floating[Any]],
    usual: NDArray[np.floating[Any]] | None,
    times: Sequence[str],
    ahead: str,
    unit: str,
) -> list[Layer]:
    """Return errors, forecasts, and how far these are from usual, as means over the horizon.

    Args:
        forecast, truth, usual: (times, N, P), truth NaN where missing; None leaves out what is from usual.
        times: (times,) names.
        ahead: the name of the horizon.
        unit: of the flow.
    """
    forecast = forecast.astype(np.float64)
    error = mean_or_nan(*absolute_errors(forecast, truth, 2))
    layers = [
        Layer(f"error (MAE) of {ahead}", unit, error, times),
        Layer(f"forecast, mean of {ahead}", unit, forecast.mean(axis=2), times),
    ]
    if usual is not None:
        name = f"forecast less historical profile, mean of {ahead}"
        layers.append(Layer(name, unit, (forecast - usual).mean(axis=2), times, diverging=True))
    return layers


def _round_up(value: float) -> float:
    """Return the least number of two digits that is not below a value; 1 for one that is not above 0."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def _short_numbers(values: NDArray[np.floating[Any]]) -> list[float | None]:
    """Return numbers of four digits, None for NaN, which JSON has no word for."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def map_section(
    positions: NDArray[np.float64], links: NDArray[np.int64], names: Sequence[str], layers: Sequence[Layer]
) -> str:
    """Return the map as part of a page that has `MAP_STYLE` and, behind it, `MAP_SCRIPT`.

    A station that is clicked is chosen in the page's picker of sensors, `<select id="sensor">`, where there is one
    whose options have positions for values.

    Args:
        positions: (N, 2), latitude and longitude in degrees, NaN where unknown.
        links: (E, 2), pairs of linked sensors.
        names: (N,), of the sensors.
        layers: what the stations are coloured by, the first at the start.
    """
    places = plane(positions)
    known = ~np.isnan(places[:, 0])
    east, north = np.maximum(np.ptp(places[known], axis=0), 1e-3)
    height = round(float(np.clip(WIDTH * north / east, *HEIGHTS)))
    whole = [[float(f"{value:.3f}") if math.isfinite(value) else None for value in axis] for axis in places.T.tolist()]
    content = {
        "width": WIDTH,
        "height": height,
        "names": list(names),
        "x": whole[0],
        "y": whole[1],
        "links": links.tolist(),
        "layers": [layer.content() for layer in layers],
    }
    options = "".join(f"<option>{escape(layer.name)}</option>" for layer in layers)
    # "<" is written otherwise, for no text within may end the script element.
    embedded = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    absent = f" {np.count_nonzero(~known)} of {len(known)} sensors have no position." if not known.all() else ""
    return (
        f"<p>Stations by latitude and longitude; white: unknown. Drag to move, double-click to zoom in, "
        f"click a station to pick it.{absent}</p>"
        "<noscript><p>The map needs JavaScript.</p></noscript>"
        '<div id="map-panel" hidden><p class="controls">'
        f'<label>Colour <select id="map-layer">{options}</select></label>'
        '<label>Time <input id="map-frame" type="range" min="0" max="0" value="0"> '
        '<span id="map-frame-name"></span></label><button type="button" id="map-in">zoom in</button> '
        '<button type="button" id="map-out">zoom out</button> '
        '<button type="button" id="map-whole">whole network</button></p>'
        f'<svg viewBox="0 0 960 {height}" role="img" aria-label="map of the stations">'
        f'<svg id="map-area" width="{WIDTH}" height="{height}"><rect class="paper" width="{WIDTH}" height="{height}"/>'
        '<g id="map-content"></g><g id="map-ruler"></g><g id="map-tip"></g>'
        f'<rect class="frame" width="{WIDTH}" height="{height}"/></svg><g id="map-bar"></g></svg></div>'
        f'<script type="application/json" id="map-data">{embedded}</script>'
    )
