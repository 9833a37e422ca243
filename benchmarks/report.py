"""What a benchmark leaves: a JSON file of the machine, tables made from it, and the figure of cost against N."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.limits import CLASSES, Limit
from benchmarks.measure import Comparison
from lib.devices import describe_device
from lib.files import load_json, save_json, written_whole
from lib.report.figures import label_powers, save_figure
from lib.report.style import COLOURS

# Of each unit: size, name, and the least figure that it is shown in; the first that fits.
UNITS = {
    "s": ((60.0, "min", 180.0), (1.0, "s", 1.0), (1e-3, "ms", 0.0)),
    "bytes": ((2.0**30, "GiB", 2.0**30), (2.0**20, "MiB", 0.0)),
    "operations": ((1e12, "Tflop", 1e12), (1e9, "Gflop", 1e9), (1e6, "Mflop", 0.0)),
    "calls": ((1.0, "calls", 0.0),),
}
NETWORKS = {"fast": "this project", "plain": "plain reference"}
LEAST_GROWN = 1000  # sensors: with fewer, what does not grow with them has its part in the cost
CASE = ("measured", "shape", "N", "batch")
LEGEND = """\
Medians of repeats after a warm-up, taken by turns, with both quartiles. Memory is that of one step in a process of its
own, above what the interpreter had in use before. ≈ marks what was measured on a part of the work and multiplied. The
ratio is plain reference / this project; the difference is the largest one of both results, relative to their scale.
Both ways had the same threads and the same settings of the allocator (`lib.devices.configure_cpu`). The group `limits`
compares nothing: benchmarks/README.md says how to read it.
"""


def machine_name(device: torch.device) -> str:
    """Return the name of the machine's files: hardware and threads in lower case, joined by hyphens."""
    return re.sub("[^a-z0-9]+", "-", describe_device(device).lower()).strip("-")


class Report:
    """The results of one machine, in a folder: `<machine>.json`, `<machine>.md` and `<machine>_cost_against_n.png`.

    Groups that were measured earlier stay as they are until they are measured again.
    """

    def __init__(self, folder: Path, machine: str) -> None:
        self.json, self.table = folder / f"{machine}.json", folder / f"{machine}.md"
        self.figure = folder / f"{machine}_cost_against_n.png"
        self.groups: dict[str, dict[str, Any]] = load_json(self.json)["groups"] if self.json.exists() else {}

    def begin(self, group: str, origin: Mapping[str, Any]) -> None:
        """Begin a group anew."""
        self.groups[group] = {**origin, "complete": False}

    def add(self, group: str, row: Comparison | Limit) -> None:
        """Add a row to a group, and write the JSON file, so that a broken-off run keeps it."""
        self.groups[group].setdefault(row.table, []).append(row.record())
        save_json(self.json, {"groups": self.groups})

    def end(self, group: str) -> None:
        """Write all files, the group being complete."""
        self.groups[group]["complete"] = True
        save_json(self.json, {"groups": self.groups})
        with written_whole(self.table) as partial:
            partial.write_text(markdown(self.groups), encoding="utf-8")
        if group == "scaling":
            save_figure(cost_against_sensors(self.groups[group]["comparisons"]), self.figure)


def markdown(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of all groups, with what they were measured on."""
    lines = []
    for name, group in groups.items():
        changes = " with changes" if group["git_changes"] else ""
        state = "" if group["complete"] else ", broken off"
        lines += [
            f"## {name}",
            "",
            f"{group['started'][:10]}, {group['hardware']}, torch {group['packages']['torch']}, "
            f"commit {str(group['git_commit'])[:7]}{changes}{state}: `python {' '.join(group['command'])}`",
            "",
            tables(group),
        ]
    return f"# Benchmarks\n\n{LEGEND}\n" + "\n".join(lines)


def tables(group: Mapping[str, Any]) -> str:
    """Return the rows of a group as Markdown tables, and how what was measured at several N grows with it."""
    parts = [table(layout, group[name]) for name in LAYOUTS if name in group for layout in LAYOUTS[name]]
    return "\n".join([*parts, *growth(group.get(Comparison.table, ()))])


def growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line on the exponents b of the power laws a N^b, of what was measured from `LEAST_GROWN` sensors on."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["sensors"] >= LEAST_GROWN:
            points.setdefault(row["what"], {})[row["sensors"]] = row["fast"]["median"]
    fitted = {what: exponent_of(np.array(list(cost.items()))) for what, cost in points.items() if len(cost) > 2}
    if not fitted:
        return []
    shown_exponents = "; ".join(f"{what} {exponent:.2f}" for what, exponent in fitted.items())
    return [f"Exponents b of a N^b, fitted from N = {LEAST_GROWN} on: {shown_exponents}.\n"]


def exponent_of(points: NDArray[np.float64]) -> float:
    """Return the exponent b of the power law a N^b fitted to points (n, 2) of cost against N."""
    sensors, cost = np.log(points).T
    return float(np.polyfit(sensors, cost, 1)[0])


def table(layout: "Layout", rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table whose columns are aligned."""
    cells = [(*CASE, *layout.header), *((*case_cells(row), *layout.cells(row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, tuple("-" * width for width in widths))
    return "".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |\n" for row in cells
    )


def case_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells that say what was measured, of a row as JSON has it."""
    return row["what"], row["shape"], str(row["sensors"]), "" if row["batch"] is None else str(row["batch"])


def comparison_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the figures of a comparison, as JSON has it."""
    return (
        *(shown(row[name], row["unit"], name in row["extrapolated"]) for name in NETWORKS),
        "" if row["ratio"] is None else f"{row['ratio']:.3g} x",
        "" if row["difference"] is None else f"{row['difference']:.0e}",
        row["note"],
    )


def shown(figure: Mapping[str, float] | None, unit: str, extrapolated: bool) -> str:
    """Return a figure in a unit that fits it, with its quartiles where it was measured more than once."""
    if figure is None:
        return ""
    size, name = fitting_unit(figure["median"], unit)
    median, lower, upper = (digits(figure[key] / size) for key in ("median", "lower_quartile", "upper_quartile"))
    quartiles = f" ({lower} to {upper})" if figure["repeats"] > 1 else ""
    return f"{'≈ ' if extrapolated else ''}{median} {name}{quartiles}"


def quantity(value: float, unit: str) -> str:
    """Return a number in a unit that fits it."""
    size, name = fitting_unit(value, unit)
    return f"{digits(value / size)} {name}"


def digits(value: float) -> str:
    """Return a number with three digits, or as a whole one where it has more before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def fitting_unit(value: float, unit: str) -> tuple[float, str]:
    """Return size and name of the unit that a value is shown in."""
    return next((size, name) for size, name, least in UNITS[unit] if value >= least)


def limit_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return time, work, rates and least times of a step, as JSON has them."""
    cells = [shown(row["time"], "s", False)]
    for name, rate, unit in (("operations", "operation_rate", "operations"), ("traffic", "traffic_rate", "bytes")):
        least = quantity(row["least_seconds"][name], "s")
        cells += [quantity(row[name], unit), f"{quantity(row[rate], unit)}/s", least, f"{row['reached'][name]:.0%}"]
    return tuple(cells)


def profile_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the time of a step's operators, and the share of each class, as JSON has them."""
    return quantity(row["operator_seconds"], "s"), *(f"{row['shares'][title]:.1f}%" for title in CLASSES)


@dataclass(frozen=True)
class Layout:
    """The columns of a table, beside those that say what was measured, and what makes a row's cells of its record."""

    header: tuple[str, ...]
    cells: Callable[[Mapping[str, Any]], tuple[str, ...]]


# By what the list of the rows is called in the JSON file: the tables that are made of them.
LAYOUTS = {
    Comparison.table: (Layout((*NETWORKS.values(), "ratio", "difference", "remarks"), comparison_cells),),
    Limit.table: (
        Layout(
            (
                *("time", "operations", "product's rate", "least time", "reached"),
                *("traffic", "copy's rate", "least time", "reached"),
            ),
            limit_cells,
        ),
        Layout(("in operators", *CLASSES), profile_cells),
    ),
}


def cost_against_sensors(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw time and memory of a training step against N, on logarithmic scales, with the exponent b of a N^b."""
    drawing = Figure(figsize=(9.0, 4.0), layout="constrained")
    for axes, unit, size, label in zip(
        drawing.subplots(1, 2),
        ("s", "bytes"),
        (1.0, 2.0**20),
        ("training step, 1 sample (s)", "its peak memory (MiB)"),
        strict=True,
    ):
        for (name, title), colour, marker in zip(NETWORKS.items(), COLOURS, "os", strict=False):
            points = [(row["sensors"], row[name]["median"] / size) for row in rows if row["unit"] == unit and row[name]]
            if points:
                draw_power_law(axes, np.array(points), title, colour, marker)
        axes.set_xscale("log")
        axes.set_yscale("log")
        label_powers(axes.yaxis)
        sensors = sorted({row["sensors"] for row in rows})
        axes.set_xticks(sensors, labels=map(str, sensors))
        axes.set_xticks([], minor=True)
        axes.set_xlabel("sensors N")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return drawing


def draw_power_law(axes: Axes, points: NDArray[np.float64], title: str, colour: str, marker: str) -> None:
    """Draw points (n, 2) of cost against N, and the power law fitted to them where there are two or more."""
    sensors, cost = points.T
    if len(points) > 1:
        exponent, factor = np.polyfit(np.log(sensors), np.log(cost), 1)
        axes.plot(sensors, np.exp(factor) * sensors**exponent, "--", color=colour, linewidth=1)
        title = f"{title}, N^{exponent:.2f}"
    axes.plot(sensors, cost, marker, color=colour, label=title)


def progress_line(group: str, row: Comparison | Limit) -> str:
    """Return one line on a row as soon as it is there."""
    record = row.record()
    what, shape, sensors, batch = case_cells(record)
    named = (cell for layout in LAYOUTS[row.table] for cell in zip(layout.header, layout.cells(record), strict=True))
    figures = " | ".join(f"{name} {cell}" for name, cell in named if cell)
    return f"{group}: {what}, {shape} N={sensors}{f' B={batch}' if batch else ''}: {figures}"
