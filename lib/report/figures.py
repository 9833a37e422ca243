"""Figures: made from what a run wrote, with units on their axes, readable in print and by the colour-blind."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist, squareform

from lib.data.graphs import hop_distances
from lib.errors import InputError
from lib.files import reason, written_whole
from lib.intervals import bounds
from lib.metrics import Scores
from lib.report.style import COLOURS, HORIZONS

# Names come from data, and Matplotlib would read two `$` in one as a formula. So formulas are off in all figures.
matplotlib.rcParams["text.parse_math"] = False

MANY_COLOURS = (*COLOURS, "#000000", "#999999")
MARKERS = "os^vDPX*<"  # one more than colours, so that no two of 72 lines have the same colour and marker
DPI = 150  # of PNG files
LAYOUT_ITERATIONS = 100
PLACED_BY_ALL, PIVOTS = 1500, 200  # sensors of a map
NAMED_SENSORS = 100  # a map of more names those of greatest error only
SENSOR_TICKS = 40  # a matrix of more sensors does not name them
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, at `path`, and as PDF beside it; the same figure gives the same bytes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a box stands for a letter that the font lacks
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once is enough, and takes half of the time
        for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
            with written_whole(path.with_suffix(suffix)) as partial:
                figure.savefig(partial, format=suffix[1:], dpi=DPI, metadata=metadata)


def draw_figure(draw: Callable[[], Figure | None], path: Path) -> list[Path]:
    """Draw a figure and write it as `save_figure` does; return its path, or nothing where there is no figure.

    One that cannot be drawn is left out, and it is said: a figure must not cost the results that it shows.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        figure = draw()
    except Exception as error:
        return _left_out(path, error)
    if figure is None:
        return []
    try:
        save_figure(figure, path)
    except InputError:
        raise
    except Exception as error:
        return _left_out(path, error)
    return [path]


def _left_out(path: Path, error: Exception) -> list[Path]:
    why = error if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}"
    print(f"figure {path.stem} left out: {why}")
    return []


def new_figure(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label_powers(axis: Axis) -> None:
    """Label a logarithmic axis with numbers written out, not as powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def label_times(axis: Axis) -> None:
    """Label an axis of dates with weekdays and hours."""
    locator = AutoDateLocator()
    axis.set_major_locator(locator)
    day = "%a %d %b"
    formats, at_zero = ["%Y", "%b", day, "%H:%M", "%H:%M", "%S"], ["", "%Y", day, day, "%H:%M", "%H:%M"]
    offsets = ["", *["%Y"] * 5]  # what stands once at the axis
    axis.set_major_formatter(ConciseDateFormatter(locator, None, formats, offsets, zero_formats=at_zero))


def _legend_name(name: str) -> str:
    """Return a name as a legend shows it; it would pass over one that begins with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def training_curve(history: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Draw the losses of both stages by epoch, and the validation MAE in raw units on the right."""
    figure, axes = new_figure()
    epochs = [entry["epoch"] for entry in history]
    axes.plot(epochs, [entry["train_loss"] for entry in history], "o-", color=COLOURS[0], label="training loss")
    axes.plot(epochs, [entry["val_loss"] for entry in history], "s-", color=COLOURS[1], label="validation loss")
    right = axes.twinx()
    right.plot(epochs, [entry["val_mae"] for entry in history], "^:", color=COLOURS[2], label="validation MAE (right)")
    right.set_ylabel(f"MAE ({unit})")
    right.spines["top"].set_visible(False)
    best = [entry for entry in history if entry["best"]][-1]
    axes.plot(best["epoch"], best["val_loss"], "*", color="black", markersize=14, label="best weights")
    fine_tuning = [entry["epoch"] for entry in history if entry["stage"] != history[0]["stage"]]
    if fine_tuning:
        axes.axvline(fine_tuning[0] - 0.5, color="grey", linestyle="--", linewidth=1)
        axes.annotate(" fine-tuning", (fine_tuning[0] - 0.5, 0.98), xycoords=("data", "axes fraction"), va="top")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (scaled flow)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    handles = [*axes.get_lines(), *right.get_lines()]
    named = [line for line in handles if not str(line.get_label()).startswith("_")]
    figure.legend(named, [str(line.get_label()) for line in named], loc="outside upper center", ncols=4, frameon=False)
    return figure


def error_by_horizon(scores: Mapping[str, Sequence[Scores]], minutes_per_step: float, unit: str) -> Figure:
    """Draw the MAE at each horizon of the model (the first entry) and of the baselines, where targets are known."""
    figure, axes = new_figure()
    for (name, by_horizon), colour, marker in zip(scores.items(), cycle(MANY_COLOURS), cycle(MARKERS)):
        ahead = minutes_per_step * np.arange(1, len(by_horizon) + 1)
        maes = [np.nan if step["mae"] is None else step["mae"] for step in by_horizon]
        axes.plot(ahead, maes, f"{marker}-", color=colour, label=_legend_name(name))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("forecast horizon (min)")
    axes.set_ylabel(f"MAE ({unit})")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def horizons_compared(
    groups: Mapping[str, NDArray[np.float64]],
    baselines: Mapping[str, NDArray[np.float64]],
    minutes_per_step: float,
    unit: str,
) -> Figure:
    """Draw the MAE at each horizon of groups of runs, with a band of a standard deviation, and of baselines.

    Args:
        groups: (runs, P) each, by name.
        baselines: (P,) each, by name, drawn thinner.
        minutes_per_step: length of a time step.
        unit: of the flow.
    """
    figure, axes = new_figure()
    horizon = next(iter(groups.values())).shape[1]
    ahead = minutes_per_step * np.arange(1, horizon + 1)
    for (name, maes), colour, marker in zip(groups.items(), cycle(MANY_COLOURS), cycle(MARKERS)):
        mean = maes.mean(axis=0)
        axes.plot(ahead, mean, f"{marker}-", color=colour, label=_legend_name(name))
        if len(maes) > 1:
            sd = maes.std(axis=0, ddof=1)
            axes.fill_between(ahead, mean - sd, mean + sd, color=colour, alpha=0.25, linewidth=0)
    for (name, mae), style in zip(baselines.items(), cycle(("--", ":"))):
        axes.plot(ahead, mae, style, color="0.4", linewidth=1, label=_legend_name(name))
    axes.set_xlabel("forecast horizon (min)")
    axes.set_ylabel(f"MAE ({unit})")
    _legend_of_groups(figure)
    return figure


def error_against_time(
    groups: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64], float]]], unit: str
) -> Figure:
    """Draw the validation MAE of runs against the time that their training has taken.

    The axis is cut where the first epochs would squash the rest: above what the worst run comes to in the end, by as
    much as lies between it and the best, or a quarter.

    Args:
        groups: for each run of a group, by the group's name: minutes at the end of each epoch (epochs,), the
            validation MAE then (epochs,), which is never bias-corrected, and the test MAE of the finished run, which is
            marked at its end.
        unit: of the flow.
    """
    figure, axes = new_figure()
    reached = []
    for (name, runs), colour, marker in zip(groups.items(), cycle(MANY_COLOURS), cycle(MARKERS)):
        for number, (minutes, mae, test) in enumerate(runs):
            label = "_" if number else _legend_name(name)
            axes.plot(minutes, mae, f"{marker}-", color=colour, markersize=4, linewidth=1, label=label)
            axes.plot(minutes[-1], test, "*", color=colour, markeredgecolor="black", markersize=12, zorder=3)
            reached += [float(np.nanmin(mae)), test]
    stars = "test MAE at the end, bias-corrected where a run is"
    axes.plot([], [], "*", color="white", markeredgecolor="black", markersize=12, label=stars)
    low, high = min(reached), max(reached)
    top = high + max(high - low, 0.25 * high)
    axes.set_ylim(low - 0.08 * (top - low), top)
    axes.set_xscale("log")
    label_powers(axes.xaxis)
    axes.set_xlabel("training time, with validation (min)")
    axes.set_ylabel(f"validation MAE\n({unit})")
    _legend_of_groups(figure)
    return figure


def _legend_of_groups(figure: Figure) -> None:
    """Add a legend above the axes: long names in fewer columns and on several lines, and the figure higher for them."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    folded = [fill(name, 80) for name in names]
    longest = max(len(line) for name in folded for line in name.splitlines())
    columns = min(3, 100 // (longest + 10))  # 100 letters fill the width, and 10 are a line's sample and its margins
    rows = sum(len(name.splitlines()) for name in folded) / columns
    figure.set_figheight(figure.get_figheight() + 0.21 * max(0.0, rows - 2))
    figure.legend(handles, folded, loc="outside upper center", ncols=columns, frameon=False)


def forecast_against_truth(
    forecast: NDArray[np.float32],
    target: NDArray[np.float32],
    label_starts: NDArray[np.int64],
    title: str,
    unit: str,
    minutes_per_step: float,
    start: datetime | None,
    half_width: NDArray[np.float32] | None = None,
    band: str = "",
) -> Figure:
    """Draw what was forecast for one sensor, `HORIZONS` steps ahead, against what came, and an interval of the middle.

    Args:
        forecast, target: (samples, P), raw units; horizons beyond P are left out.
        label_starts: (samples,), consecutive.
        title: of the figure.
        unit: of the flow.
        minutes_per_step: length of a time step.
        start: time of the series' first step; None labels the axis in hours.
        half_width: (samples, P), by which intervals reach to both sides of the forecasts; None: there are none.
        band: what the interval is called.
    """
    figure, axes = new_figure(9.0, 4.0)

    def times(steps: NDArray[np.int64]) -> Any:
        if start is None:
            return steps * minutes_per_step / 60
        return np.array([start + timedelta(minutes=minutes_per_step * int(step)) for step in steps])

    axes.plot(times(label_starts), target[:, 0], color="black", linewidth=1.2, label="truth")
    ahead = [horizon for horizon in HORIZONS if horizon <= forecast.shape[1]]
    for horizon, colour in zip(ahead, COLOURS, strict=False):
        known = max(0, len(label_starts) - horizon + 1)  # forecasts of steps whose truth is drawn
        name = f"{horizon * minutes_per_step:g} min ahead"
        axes.plot(
            times(label_starts[horizon - 1 :]), forecast[:known, horizon - 1], color=colour, linewidth=0.9, label=name
        )
        if half_width is not None and horizon == ahead[len(ahead) // 2]:
            lower, upper = bounds(forecast[:known, horizon - 1], half_width[:known, horizon - 1])
            of_steps = times(label_starts[horizon - 1 :])
            axes.fill_between(of_steps, lower, upper, color=colour, alpha=0.2, linewidth=0, label=f"{band}, {name}")
    if start is None:
        axes.set_xlabel("time since the first step (h)")
    else:
        label_times(axes.xaxis)
        axes.set_xlabel("local time")
    axes.set_ylabel(f"flow ({unit})")
    axes.set_title(title)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def error_by_time_of_day(
    error: NDArray[np.float64], minutes_per_step: float, unit: str, start: datetime | None
) -> Figure:
    """Draw the MAE by the time of day of the target.

    Args:
        error: (steps per day,), from the time of day of the series' first step on; NaN where there is no target.
        minutes_per_step: length of a time step.
        unit: of the flow.
        start: time of the series' first step; None leaves the time of day unknown but for a shift.
    """
    figure, axes = new_figure()
    first = 0 if start is None else start.hour + start.minute / 60
    hours = (first + np.arange(len(error)) * minutes_per_step / 60) % 24
    order = np.argsort(hours)
    axes.plot(hours[order], error[order], ".-", color=COLOURS[0], markersize=4, linewidth=1)
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 3))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the first step, modulo a day (h)")
    if start is not None:
        axes.set_xticks(range(0, 25, 3), [f"{hour:02d}:00" for hour in range(0, 25, 3)])
        axes.set_xlabel("local time of day of the target")
    axes.set_ylabel(f"MAE ({unit})")
    return figure


def road_layout(adjacency: csr_array) -> NDArray[np.float64]:
    """Place sensors in the plane so that their distances come near the numbers of links between them.

    There are no coordinates in the data. Within a component the stress of Kamada and Kawai (1989), the sum of
    (|x_i - x_j| - hops_ij)^2 / hops_ij^2 over all pairs, is lowered by majorisation (Gansner, Koren and North, 2004)
    from classical scaling on; components then stand side by side, the largest first. A component of more than
    `PLACED_BY_ALL` sensors is placed by the distances to some of them alone (pivot MDS, Brandes and Pich, 2007).

    Args:
        adjacency: (N, N), true where a road links two sensors.

    Returns:
        Positions (N, 2), in links.
    """
    _, component = connected_components(adjacency, directed=False)
    members = [np.flatnonzero(component == label) for label in np.unique(component)]
    members.sort(key=len, reverse=True)
    placed = [_place_component(adjacency[member][:, member]) for member in members]
    gap = 2 + 0.1 * np.sqrt(len(component))
    sizes = [positions.max(axis=0) + gap for positions in placed]
    width = max(max(size[0] for size in sizes), float(np.sqrt(3 * sum(size.prod() for size in sizes))))
    layout = np.empty((len(component), 2))
    left, top, row_height = 0.0, 0.0, 0.0
    for member, positions, size in zip(members, placed, sizes, strict=True):
        if left > 0 and left + size[0] > width:
            left, top, row_height = 0.0, top - row_height, 0.0
        layout[member] = positions * (1, -1) + (left, top)
        left, row_height = left + size[0], max(row_height, size[1])
    return layout


def _place_component(adjacency: csr_array) -> NDArray[np.float64]:
    """Return positions (n, 2) of the sensors of one component, the least of each coordinate 0."""
    number = adjacency.shape[0]
    if number == 1:
        return np.zeros((1, 2))
    draw = np.random.default_rng(0)
    pivots = None if number <= PLACED_BY_ALL else draw.choice(number, PIVOTS, replace=False)
    hops = hop_distances(adjacency, pivots)
    centred = hops**2 - (hops**2).mean(axis=0)
    scalars = -(centred - centred.mean(axis=1, keepdims=True)) / 2
    if pivots is not None:
        values, vectors = np.linalg.eigh(scalars @ scalars.T)
        scaled = scalars.T @ vectors[:, -1:-3:-1]
        scaled /= np.sqrt(np.linalg.norm(scaled, axis=0))  # as long as roads are, and not as their squares
        # To scale: as far from the pivots as the roads are long, but for what two dimensions cannot show.
        scaled *= np.sqrt((hops**2).mean() / (cdist(scaled[pivots], scaled) ** 2).mean())
        placed: NDArray[np.float64] = scaled - scaled.min(axis=0)
        return placed
    values, vectors = np.linalg.eigh(scalars)
    positions = vectors[:, -1:-3:-1] * np.sqrt(np.maximum(values[-1:-3:-1], 0))
    # Sensors that coincide, like the leaves of a star may, would never part.
    positions += draw.normal(0, 1e-3, positions.shape)
    weight = 1 / np.where(hops > 0, hops, np.inf) ** 2
    inverse = np.linalg.inv(np.diag(weight.sum(axis=1)) - weight + 1 / number)
    for _ in range(LAYOUT_ITERATIONS):
        distance = cdist(positions, positions)
        pull = weight * hops / np.where(distance > 0, distance, np.inf)
        positions = inverse @ (positions * pull.sum(axis=1, keepdims=True) - pull @ positions)
    placed = positions - positions.min(axis=0)
    return placed


def imputed_days(share: NDArray[np.float64], start: datetime | None) -> Figure:
    """Draw the share of imputed values by sensor and day, (N, days)."""
    figure, axes = new_figure(height=5.0)
    days = share.shape[1]
    image = axes.imshow(share, aspect="auto", interpolation="nearest", cmap="cividis", vmin=0, vmax=1)
    axes.set_ylabel("sensor")
    axes.set_title("Values that were filled in and not measured")
    axes.set_xlabel("day of the series")
    if start is not None:
        places = np.unique(np.linspace(0, days - 1, min(days, 5)).round().astype(int))
        axes.set_xticks(places, [f"{start + timedelta(days=int(place)):%a %d %b}" for place in places])
        axes.set_xlabel("day")
    figure.colorbar(image, label="share of the day's values")
    return figure


def error_map(
    positions: NDArray[np.float64],
    links: NDArray[np.int64],
    error: NDArray[np.float64],
    unit: str,
    kilometres: bool = False,
) -> Figure:
    """Draw the MAE of each sensor on the road graph.

    Args:
        positions: (N, 2), of `road_layout`; with `kilometres` in kilometres east and north, NaN where unknown.
        links: (E, 2), pairs of linked sensors.
        error: (N,), MAE of the sensors.
        unit: of the flow.
        kilometres: whether the positions are those on the earth.
    """
    known = ~np.isnan(positions[:, 0])
    least, most = positions[known].min(axis=0), positions[known].max(axis=0)
    link = float(max(most - least) / max(1.0, 2 * np.sqrt(known.sum()))) or 1.0 if kilometres else 1.0  # about
    width, height = most - least + 2 * link
    inches = min(8.0 / width, 7.0 / height, 0.6 / link)  # of a unit of the positions
    figure, axes = new_figure(max(5.0, inches * width + 1.2), max(2.0, inches * height + 0.4))
    size = float(np.clip(72 * inches * link * 0.4, 3, 11))  # of a sensor, in points
    axes.add_collection(LineCollection(list(positions[links]), colors="grey", linewidths=0.8, zorder=1))
    x, y = positions.T
    edge = 0.04 * size
    dots = axes.scatter(x, y, c=error, s=size**2, cmap="viridis", edgecolors="black", linewidths=edge, zorder=2)
    figure.colorbar(dots, ax=axes, label=f"MAE ({unit})", pad=0.01, aspect=30)
    all_named = len(error) <= NAMED_SENSORS and not kilometres  # both directions of a road would write on each other
    for sensor in range(len(error)) if all_named else np.flatnonzero(known)[np.argsort(error[known])[-5:]]:
        shift = (0, 0.6 * size)
        axes.annotate(str(sensor), positions[sensor], shift, textcoords="offset points", ha="center", fontsize=6)
    limits = np.stack([least - link, most + link])
    axes.set(xlim=limits[:, 0], ylim=limits[:, 1], aspect="equal")
    shown = "" if all_named else "; the five of greatest error are named"
    if kilometres:
        axes.set(xlabel="east of the middle (km)", ylabel="north of the middle (km)")
        axes.set_title(f"sensors by latitude and longitude{shown}", fontsize=9)
    else:
        axes.axis("off")
        axes.set_title(f"sensors placed by links between them, for want of coordinates{shown}", fontsize=9)
    return figure


def clustered_order(distance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the sensors in the order of average-linkage clustering, so that near ones stand together: (N,).

    Args:
        distance: (N, N), symmetric, zero on the diagonal; infinite ones count as twice the greatest other.
    """
    if len(distance) == 1:
        return np.zeros(1, dtype=np.int64)
    finite = np.isfinite(distance)
    filled = np.where(finite, distance, 2 * distance[finite].max() + 1)
    return leaves_list(linkage(squareform(filled, checks=False), "average")).astype(np.int64)


def graph_matrices(
    distance: NDArray[np.float64] | None,
    masks: Mapping[str, NDArray[np.bool_]],
    orders: Mapping[str, NDArray[np.int64]],
    unit: str,
) -> Figure:
    """Draw the DTW distances and the attention masks, a row of panels for each order of the sensors.

    Args:
        distance: (N, N); None leaves its panels out.
        masks: (N, N) each, by name.
        orders: (N,) positions of the sensors each, by name.
        unit: of the distances.
    """
    columns = len(masks) + (distance is not None)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 0.4 + 2.9 * len(orders)), layout="constrained")
    panels = figure.subplots(len(orders), columns, squeeze=False)
    switch = ListedColormap(["#f0f0f0", COLOURS[0]])
    for row, (order_name, order) in zip(panels, orders.items(), strict=True):
        matrices = {**({} if distance is None else {"DTW distance": distance}), **masks}
        for axes, (name, matrix) in zip(row, matrices.items(), strict=True):
            ordered = matrix[np.ix_(order, order)]
            if matrix is distance:
                image = axes.imshow(ordered, cmap="viridis")
                bar = figure.colorbar(image, ax=axes, shrink=0.8)
                bar.set_label(unit, fontsize=8)
                bar.ax.tick_params(labelsize=7)
                axes.set_title(name, fontsize=10)
                axes.set_xlabel("sensor, in the same order", fontsize=9)
            else:
                axes.imshow(ordered, cmap=switch, vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(f"{name}: {matrix.mean():.1%} allowed", fontsize=10)
                axes.set_xlabel("sensor attended to, in the same order", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        if len(order) <= SENSOR_TICKS:
            row[0].set_yticks(range(len(order)), [str(sensor) for sensor in order], fontsize=5)
        row[0].set_ylabel(f"sensor, ordered by {order_name}", fontsize=9)
    return figure


def patch_displacement(
    mean: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    first_step: int,
    segments: Sequence[str],
) -> Figure:
    """Draw how far from the regular grid each patch reads the input.

    Args:
        mean, low, high: (M, patch_len), mean reading positions of the patches and their range, in input steps.
        first_step: the step of the input that the first patch starts at; the patches reach to the end.
        segments: names of the parts of equal length that the input consists of.
    """
    figure, axes = new_figure(9.0, 4.0)
    steps = first_step + mean.size
    for patch, regular in enumerate(np.arange(first_step, steps).reshape(mean.shape)):
        axes.fill_between(
            regular, low[patch] - regular, high[patch] - regular, color=COLOURS[5], alpha=0.5, linewidth=0
        )
        axes.plot(regular, mean[patch] - regular, ".-", color=COLOURS[0], markersize=4, linewidth=1)
        axes.axvline(regular[0] - 0.5, color="lightgrey", linewidth=0.6, zorder=0)
    axes.axhline(0, color="black", linewidth=0.8, linestyle="--")
    axes.plot([], [], ".-", color=COLOURS[0], label="mean over samples and sensors")
    axes.fill_between([], [], [], color=COLOURS[5], alpha=0.5, label="5-95 %")
    least = 0.5  # steps; smaller displacements do not fill the axis, so that none looks like none
    axes.set_ylim(min(axes.get_ylim()[0], -least), max(axes.get_ylim()[1], least))
    length = steps / len(segments)
    axes.set_xticks(length * (np.arange(len(segments)) + 0.5) - 0.5, segments)
    axes.tick_params(axis="x", length=0, labelsize=8, rotation=90 if len(segments) > 14 else 0)
    axes.set_xlim(-0.5, steps - 0.5)
    axes.set_xlabel(f"regular position in the input of {steps} steps, in segments of one hour (oldest first)")
    axes.set_ylabel("read at, from the regular\nposition (steps)")
    axes.legend(frameon=False, ncols=2)
    return figure


def kernel_profiles(kernels: Sequence[NDArray[np.float32]], tokens: int) -> Figure:
    """Draw how large the taps of each large-kernel block are, by their offset.

    Args:
        kernels: (C, K) each, K odd, the summed taps of a block's branches.
        tokens: M, so that taps beyond +-(M - 1) never touch data.
    """
    columns = min(3, len(kernels))
    rows = -(-len(kernels) // columns)
    figure = Figure(figsize=(9.0, 0.6 + 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(kernels) :]:
        axes.set_visible(False)
    for block, (axes, kernel) in enumerate(zip(panels.flat, kernels, strict=False)):
        reach = kernel.shape[1] // 2
        axes.axvspan(-tokens + 0.5, tokens - 0.5, color="0.92", zorder=0)
        axes.plot(
            np.arange(-reach, reach + 1), np.abs(kernel).mean(axis=0), ".-", color=COLOURS[0], markersize=4, linewidth=1
        )
        axes.set_xlim(-max(reach, tokens) - 0.5, max(reach, tokens) + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"block {block}: {kernel.shape[1]} taps", fontsize=10)
    panels[0, 0].set_ylim(bottom=0)  # of all, when the taps of all are known
    figure.supxlabel(f"offset (tokens); grey: within {tokens - 1} tokens, where a tap can touch data", fontsize=10)
    figure.supylabel("mean |weight| over channels\n(no unit)", fontsize=10)
    return figure


def receptive_field_map(
    picture: NDArray[np.float64],
    decades: int,
    sensors: NDArray[np.int64] | None,
    hops: NDArray[np.float64],
    segments: Sequence[str],
    token_steps: tuple[int, int],
    title: str,
) -> Figure:
    """Draw how much each input contributes to one token.

    Args:
        picture: (rows, L) on a logarithmic scale, 1 the largest contribution and 0 that many `decades` below it or
            less; NaN, drawn grey, where there is none at all.
        decades: powers of ten from 0 to 1.
        sensors: (rows,), the sensor of each row, nearest first; None labels no row.
        hops: (rows,), links from the token's sensor to the row's; lines part rows of different ones.
        segments: names of the parts of equal length that the input consists of.
        token_steps: the input steps, first and behind the last, at which the token stands.
        title: of the figure.
    """
    rows, steps = picture.shape
    height = 0.5 + 0.17 * rows  # of the picture, in inches
    figure, axes = new_figure(9.0, height + 1.3)
    axes.set_facecolor("lightgrey")
    image = axes.imshow(picture, cmap="viridis", vmin=0, vmax=1, aspect="auto", extent=(0, steps, rows, 0))
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=max(5.0, 0.7 * rows))
    ticks = range(decades + 1)
    powers = [f"10{str(-tick).translate(SUPERSCRIPT)}" for tick in ticks]
    bar.set_ticks([1 - tick / decades for tick in ticks], labels=["1", *powers[1:]])
    bar.set_label("contribution, of the\nlargest (grey: none)", fontsize=8)
    bar.ax.tick_params(labelsize=8)

    length = steps / len(segments)
    axes.vlines(length * np.arange(1, len(segments)), 0, rows, color="white", linewidth=0.8)
    axes.set_xticks(length * (np.arange(len(segments)) + 0.5), segments)
    axes.tick_params(axis="x", length=0, labelsize=8, rotation=90 if len(segments) > 14 else 0)
    axes.set_xlabel(
        f"input: {steps} steps, in segments of one hour named by their distance from the forecast", fontsize=9
    )
    axes.set_yticks([])
    if sensors is not None:
        names = ["no road" if np.isinf(count) else f"{count:g}" for count in hops]
        labels = [f"{sensor} ({name})" for sensor, name in zip(sensors, names, strict=True)]
        axes.set_yticks(np.arange(rows) + 0.5, labels, fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.set_ylabel("sensor (hops)", fontsize=9)
        axes.hlines(1 + np.flatnonzero(hops[1:] != hops[:-1]), 0, steps, color="white", linewidth=0.8)
    above = 1 + 0.08 / height
    transform = axes.get_xaxis_transform()
    marker = axes.hlines(above, *token_steps, transform=transform, color=COLOURS[1], linewidth=4)
    marker.set_clip_on(False)
    axes.text(token_steps[1] + 1, above, "centre token", transform=transform, color=COLOURS[1], fontsize=8, va="center")
    axes.set_title(title, pad=16, fontsize=11)
    return figure
