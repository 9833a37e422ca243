"""Figures: made from what a run wrote, with units on their axes, readable in print and by the colour-blind."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lib.files import written_whole
from lib.metrics import Scores

# Okabe and Ito's palette, whose colours differ in brightness as well as in hue; black is for the truth.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FLOW_UNIT = "vehicles / {minutes:g} min"


def flow_unit(points_per_hour: int) -> str:
    """Return the unit of the flow at this time step."""
    return FLOW_UNIT.format(minutes=60 / points_per_hour)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, at `path`, and as PDF beside it."""
    for suffix in (".png", ".pdf"):
        with written_whole(path.with_suffix(suffix)) as partial:
            figure.savefig(partial, format=suffix[1:], dpi=150)


def new_figure(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def training_curve(history: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Draw the losses of both stages by epoch, and the validation MAE in raw units on the right."""
    figure, axes = new_figure()
    epochs = [entry["epoch"] for entry in history]
    axes.plot(epochs, [entry["train_loss"] for entry in history], "o-", color=COLOURS[0], label="training loss")
    axes.plot(epochs, [entry["val_loss"] for entry in history], "s-", color=COLOURS[1], label="validation loss")
    right = axes.twinx()
    right.plot(epochs, [entry["val_mae"] for entry in history], "^:", color=COLOURS[2], label="validation MAE (right)")
    right.set_ylabel(f"MAE ({unit})")
    best = [entry for entry in history if entry["best"]][-1]
    axes.plot(best["epoch"], best["val_loss"], "*", color="black", markersize=14, label="best weights")
    fine_tuning = [entry["epoch"] for entry in history if entry["stage"] != history[0]["stage"]]
    if fine_tuning:
        axes.axvline(fine_tuning[0] - 0.5, color="grey", linestyle="--", linewidth=1)
        axes.annotate(" fine-tuning", (fine_tuning[0] - 0.5, 0.98), xycoords=("data", "axes fraction"), va="top")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean absolute loss (scaled flow)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [*axes.get_lines(), *right.get_lines()]
    named = [line for line in handles if not str(line.get_label()).startswith("_")]
    axes.legend(named, [str(line.get_label()) for line in named], frameon=False)
    return figure


def error_by_horizon(scores: Mapping[str, Sequence[Scores]], minutes_per_step: float, unit: str) -> Figure:
    """Draw the MAE at each horizon of the model (the first entry) and of the baselines."""
    figure, axes = new_figure()
    for (name, by_horizon), colour, marker in zip(scores.items(), COLOURS, "os^vDP", strict=False):
        ahead = minutes_per_step * np.arange(1, len(by_horizon) + 1)
        axes.plot(ahead, [step["mae"] or 0.0 for step in by_horizon], f"{marker}-", color=colour, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("forecast horizon (min)")
    axes.set_ylabel(f"MAE ({unit})")
    axes.legend(frameon=False)
    return figure


def forecast_against_truth(
    forecast: NDArray[np.float32],
    target: NDArray[np.float32],
    label_starts: NDArray[np.int64],
    sensor: int,
    unit: str,
    minutes_per_step: float,
    start: datetime | None,
    samples: int,
    horizons: Sequence[int] = (1, 6, 12),
) -> Figure:
    """Draw what was forecast for one sensor, some steps ahead, against what came.

    Args:
        forecast, target: (samples, N, P), raw units.
        label_starts: (samples,), consecutive.
        sensor: position of the sensor.
        unit: of the flow.
        minutes_per_step: length of a time step.
        start: time of the series' first step; None labels the axis in hours.
        samples: how many of the first samples to draw.
        horizons: steps ahead to draw; those beyond P are left out.
    """
    figure, axes = new_figure(9.0, 4.0)

    def times(steps: NDArray[np.int64]) -> Any:
        if start is None:
            return steps * minutes_per_step / 60
        return np.array([start + timedelta(minutes=minutes_per_step * int(step)) for step in steps])

    drawn = slice(0, samples)
    axes.plot(times(label_starts[drawn]), target[drawn, sensor, 0], color="black", linewidth=1.2, label="truth")
    ahead = [horizon for horizon in horizons if horizon <= forecast.shape[2]]
    for horizon, colour in zip(ahead, COLOURS, strict=False):
        steps = label_starts[drawn] + horizon - 1
        name = f"{horizon * minutes_per_step:g} min ahead"
        axes.plot(times(steps), forecast[drawn, sensor, horizon - 1], color=colour, linewidth=0.9, label=name)
    if start is None:
        axes.set_xlabel("time since the first step (h)")
    else:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_xlabel("local time")
    axes.set_ylabel(f"flow ({unit})")
    axes.set_title(f"sensor {sensor}, test split")
    axes.legend(frameon=False, ncols=4)
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
    bar.set_ticks([1 - tick / decades for tick in ticks], labels=["1", *(f"$10^{{-{tick}}}$" for tick in ticks[1:])])
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
