"""The page of a backtest: scores by day, hour and sensor, and forecasts against what came, with a picker of sensors."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.backtest import Backtest, HourlyScores
from lib.files import written_whole
from lib.intervals import HOURS
from lib.metrics import errors_of
from lib.numbers import number_text
from lib.report.explorer import EXPLORER_SCRIPT, EXPLORER_STYLE, Curve, embedded, explorer
from lib.report.html import document, html_table, score_table
from lib.report.interval_tables import (
    INTERVALS_NOTE,
    WORST_TITLES,
    breakdown,
    breakdown_titles,
    method_table,
    worst_rows,
)
from lib.report.map import MAP_SCRIPT, MAP_STYLE, Layer, every_shown, forecast_layers, map_section
from lib.report.style import HORIZONS

VALUES_EMBEDDED = 3 * 2**20  # at most, mostly of a byte each: the page stays below about 5 MB
LARGEST_VALUE = 999  # that a number is embedded as: whole vehicles for a busy road
SHADES = 8  # of the table of hours
DECIMALS = 2

BACKTEST_STYLE = "".join(
    f".shade{shade} {{ background: hsl(38 90% {98 - 6 * shade}%); }}\n" for shade in range(SHADES)
) + (
    ".hours { font-size: 12.5px; }\n"
    ".hours td, .hours th, .hours th:first-child { padding: 0.15rem 0.3rem; white-space: nowrap; }\n"
    ".hours .worst { font-weight: 700; outline: 2px solid #D55E00; outline-offset: -2px; }\n"
)


RoadMap = tuple[NDArray[np.float64], NDArray[np.int64]]


def save_backtest_page(
    path: Path, title: str, test: Backtest, scores: HourlyScores, names: Sequence[str], road_map: RoadMap | None = None
) -> None:
    """Write the page of a backtest.

    Args:
        path: of the page.
        title: of the page.
        test: the backtest.
        scores: of it.
        names: (N,) of the sensors.
        road_map: latitude and longitude (N, 2) of the sensors, and the pairs (E, 2) of linked ones; None if unknown.
    """
    text = backtest_page(title, test, scores, names, road_map)
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def backtest_page(
    title: str, test: Backtest, scores: HourlyScores, names: Sequence[str], road_map: RoadMap | None = None
) -> str:
    """Return the page of a backtest as HTML; the arguments are those of `save_backtest_page`."""
    unit = f"vehicles / {_minutes(test):g} min"
    sections = {
        "Results": _results(test, scores, names, unit),
        "Forecast against truth": _explorer(test, scores, names, unit),
        "Map": "" if road_map is None else map_section(*road_map, names, _layers(test, scores, unit)),
        "Prediction intervals": _intervals(test, names, unit),
        "By sensor": _by_sensor(scores, names),
    }
    style, script = EXPLORER_STYLE + BACKTEST_STYLE, EXPLORER_SCRIPT
    if sections["Map"]:
        style, script = style + MAP_STYLE, script + MAP_SCRIPT
    return document(title, sections, style, script)


def _minutes(test: Backtest) -> float:
    return 60 / test.history.points_per_hour


def _results(test: Backtest, scores: HourlyScores, names: Sequence[str], unit: str) -> str:
    errors = errors_of(test.forecast, test.measured)
    rows: dict[str, Any] = {
        f"{step * _minutes(test):g} min": row for step, row in enumerate(errors.by_horizon(), start=1)
    }
    first, last = (test.history.label(int(test.label_starts[place])) for place in (0, -1))
    refused = f" {test.refused} were left out, for a gap among their inputs." if test.refused else ""
    return (
        f"<p>{len(test.label_starts):,} forecasts of {len(names)} sensors, from {escape(first)} to {escape(last)}, "
        f"each from the steps before it alone.{refused} Scores are of measured values, in {escape(unit)}.</p>"
        + score_table("By horizon", "horizon", {**rows, "all": errors.overall()})
        + _hours(test, scores)
        + html_table(
            "Worst hours", ("hour", "MAE", "MAE of the historical profile", "worst sensor"), _worst(test, scores, names)
        )
    )


def _hours(test: Backtest, scores: HourlyScores) -> str:
    """Return the MAE over all sensors and horizons as a table of days and hours, the greater the darker."""
    errors = scores.of_all(scores.mae, 1)
    peak = float(np.nanmax(errors)) if np.isfinite(errors).any() else 1.0
    days = range(scores.first // HOURS, (scores.first + len(errors) - 1) // HOURS + 1)
    lines = []
    for day in days:
        cells = []
        for hour in range(HOURS):
            row = day * HOURS + hour - scores.first
            if not 0 <= row < len(errors) or np.isnan(errors[row]):
                cells.append("<td></td>")
                continue
            shade = min(SHADES - 1, int(SHADES * errors[row] / max(peak, 1e-30)))
            worst = " worst" if scores.worst[row] else ""
            cells.append(f'<td class="shade{shade}{worst}">{number_text(errors[row], 1)}</td>')
        lines.append(f'<tr><th scope="row">{escape(_day(test, day))}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{hour}</th>' for hour in range(HOURS))
    return (
        '<div class="wide"><table class="hours"><caption>MAE by day and hour of the target, over all sensors and '
        f'horizons; the worst hours are framed</caption><thead><tr><th scope="col">day</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _day(test: Backtest, day: int) -> str:
    if test.start is None:
        return f"day {day}"
    name = test.day_name(day)
    return f"{np.datetime64(name).astype(object):%a} {name}"


def _worst(test: Backtest, scores: HourlyScores, names: Sequence[str]) -> list[tuple[str, ...]]:
    errors, usual = scores.of_all(scores.mae, 1), scores.of_all(scores.profile_mae, 1)
    rows = sorted(np.flatnonzero(scores.worst), key=lambda row: -errors[row])
    found = []
    for row in rows:
        day, hour = divmod(scores.first + int(row), HOURS)
        sensor = int(np.nanargmax(scores.mae[row]))
        worst = f"{names[sensor]}, {number_text(scores.mae[row, sensor], DECIMALS)}"
        numbers = (number_text(values[row], DECIMALS) for values in (errors, usual))
        found.append((f"{_day(test, day)}, {hour:02d} h", *numbers, worst))
    return found


def _layers(test: Backtest, scores: HourlyScores, unit: str) -> list[Layer]:
    """Return what the stations of the map are coloured by: errors, forecasts, and how far these are from usual."""
    rate, sensors, horizon = test.history.points_per_hour, test.forecast.shape[1], test.forecast.shape[2]
    samples = slice(None, None, max(1, every_shown(len(test.label_starts) * test.every, rate, sensors) // test.every))
    times = [test.history.label(int(start)) for start in test.label_starts[samples]]
    usual = test.profile[test.targets[samples]].transpose(0, 2, 1)
    ahead = f"the next {horizon * _minutes(test):g} min"
    whole = Layer("error (MAE), all days", unit, scores.of_all(scores.mae, 0)[None], ["all days"])
    return [whole, *forecast_layers(test.forecast[samples], test.measured[samples], usual, times, ahead, unit)]


def _by_sensor(scores: HourlyScores, names: Sequence[str]) -> str:
    errors, usual = scores.of_all(scores.mae, 0), scores.of_all(scores.profile_mae, 0)
    shares = {level: scores.of_all(coverage, 0) for level, coverage in scores.coverage.items()}
    ranked = [int(sensor) for sensor in np.argsort(-errors, kind="stable") if np.isfinite(errors[sensor])]
    rows = [
        (
            names[sensor],
            *(number_text(values[sensor], DECIMALS) for values in (errors, usual)),
            *(f"{100 * share[sensor]:.1f}" for share in shares.values()),
        )
        for sensor in ranked
    ]
    header = ("sensor", "MAE", "MAE of the historical profile", *(f"coverage % of {level:g}" for level in shares))
    return (
        f"<details><summary>{len(rows)} sensors, greatest error first</summary>{html_table('', header, rows)}</details>"
    )


def _intervals(test: Backtest, names: Sequence[str], unit: str) -> str:
    scores = test.interval_scores()
    if not scores:
        return ""
    table = method_table(scores)
    method = "adapted" if test.adapted else "scaled"
    horizons = [f"{(step + 1) * _minutes(test):g} min" for step in range(test.forecast.shape[2])]
    hours = [f"{hour:02d} h" for hour in range(HOURS)]
    return (
        f"<p>Widths in {escape(unit)}. {escape(INTERVALS_NOTE)}</p>"
        + html_table("Coverage, width and score", table[0], table[1:])
        + html_table(
            "By horizon", breakdown_titles(scores, "horizon"), breakdown(scores, method, "by_horizon", horizons)
        )
        + html_table(
            "By hour of the day", breakdown_titles(scores, "hour"), breakdown(scores, method, "by_hour", hours)
        )
        + html_table("Sensor of least coverage", WORST_TITLES, worst_rows(scores, names))
    )


def _explorer(test: Backtest, scores: HourlyScores, names: Sequence[str], unit: str) -> str:
    horizons = [horizon for horizon in HORIZONS if horizon <= test.forecast.shape[2]]
    first, end = int(test.label_starts[0]), int(test.targets[-1, -1]) + 1
    steps, number, minutes = end - first, len(names), _minutes(test)
    widths = test.adapted or test.half_widths
    level, half_width = next(iter(widths.items()), (0.0, None))
    curves_each = 2 + len(horizons) * (1 if half_width is None else 2) / test.every
    sensors = _some(number, max(1, int(VALUES_EMBEDDED / (steps * curves_each))))
    places = (test.label_starts - first) // test.every  # where a gap left one out, nothing is drawn

    def on_grid(values: NDArray[np.float32], horizon: int) -> NDArray[np.float64]:
        grid = np.full((int(places[-1]) + 1, len(sensors)), np.nan)
        grid[places] = values[:, sensors, horizon - 1]
        return grid

    curves = [Curve("truth", test.history.flow[first:end, sensors])]
    for horizon in horizons:
        curves.append(
            Curve(
                f"{horizon * minutes:g} min ahead",
                on_grid(test.forecast, horizon),
                horizon - 1,
                test.every,
                None if half_width is None else on_grid(half_width, horizon),
                shown=horizon == horizons[len(horizons) // 2],
            )
        )
    curves.append(Curve("historical profile", test.profile[first:end, sensors]))
    start = test.start
    midnights: dict[int, int] = {}
    for step in range(first, end):
        label = int(np.floor(((0 if start is None else start.hour * 60 + start.minute) + step * minutes) / (24 * 60)))
        midnights.setdefault(label, step - first)
    marks = []
    hour_of_step = test.hours[:, 0]
    for row in np.flatnonzero(scores.worst):
        within = np.flatnonzero(hour_of_step == scores.first + row)
        if len(within):
            marks.append(
                (int(test.label_starts[within[0]]) - first, int(test.label_starts[within[-1]]) - first + test.every)
            )
    content = embedded(
        curves,
        steps,
        minutes,
        start,
        test.history.first_step + first,
        unit,
        marks,
        f"{level:.0%} interval" if widths else "",
        LARGEST_VALUE,
    )
    errors = scores.of_all(scores.mae, 0)
    options = [
        (
            int(sensor),
            f"{names[sensor]}, "
            + ("no truth" if np.isnan(errors[sensor]) else f"MAE {number_text(errors[sensor], 2)}"),
        )
        for sensor in sensors
    ]
    sparse = (
        ""
        if len(sensors) == number
        else f" {len(sensors)} of {number} sensors, evenly spaced, so that the page stays small."
    )
    days = [(step, _day(test, day)) for day, step in midnights.items()]
    return f"<p>The worst hours are shaded.{sparse}</p>{explorer(content, options, days)}"


def _some(number: int, most: int) -> NDArray[np.int64]:
    """Return so many of the sensors, evenly spaced by position."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))
