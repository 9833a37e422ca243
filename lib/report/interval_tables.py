"""Tables of prediction intervals: what they cover, how wide they are, and their interval score."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.calibration import METHODS
from lib.numbers import number_text
from lib.report.text_tables import markdown_table

WIDTH_DECIMALS = 2
INTERVALS_NOTE = (
    "Coverage is the share of measured targets within the interval. The interval score (Winkler 1972) is the width, "
    "and a penalty for each target outside; less is better."
)


def percent(share: float | None) -> str:
    """Return a share as percent with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}"


def _cells(scores: Mapping[str, Any]) -> list[str]:
    if not scores["targets"]:
        return ["-", "-", "-"]
    return [
        percent(scores["coverage"]),
        *(number_text(scores[name], WIDTH_DECIMALS) for name in ("width", "score")),
    ]


def method_table(scores: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of all levels and methods in intervals.json, its header first.

    Coverage stands as a whole, and from the least to the greatest of all horizons and hours. Where some targets were
    imputed, it stands of all targets too.
    """
    with_all = all("all" in content for methods in scores.values() for content in methods.values())
    header = ["intervals", "coverage %", "by horizon", "by hour", "mean width", "interval score"]
    lines = [header + ["coverage of all targets %"] * with_all]
    for level, methods in scores.items():
        for name, content in methods.items():
            coverage, *rest = _cells(content["overall"])
            ranges = [_range(content[part]) for part in ("by_horizon", "by_hour")]
            of_all = [percent(content["all"]["coverage"])] if with_all else []
            lines.append([f"{level}, {METHODS[name]}", coverage, *ranges, *rest, *of_all])
    return lines


def _range(parts: Sequence[Mapping[str, Any]]) -> str:
    shares = [part["coverage"] for part in parts if part["targets"]]
    return f"{percent(min(shares))} to {percent(max(shares))}" if shares else "-"


def print_intervals(scores: Mapping[str, Any] | None) -> None:
    """Print what intervals are worth on the test split; nothing for a run that has none."""
    if scores:
        print(f"\nPrediction intervals on the test split:\n\n{markdown_table(method_table(scores))}")


def breakdown(scores: Mapping[str, Any], method: str, part: str, names: Sequence[str]) -> list[list[str]]:
    """Return rows of coverage and mean width of each level, by horizon or hour.

    Args:
        scores: as in intervals.json.
        method: of `lib.calibration.METHODS`.
        part: `by_horizon` or `by_hour`.
        names: of the rows.
    """
    levels = [methods[method][part] for methods in scores.values()]
    return [
        [name, *(cell for level in levels for cell in _cells(level[place])[:2])] for place, name in enumerate(names)
    ]


def breakdown_titles(scores: Mapping[str, Any], first: str) -> list[str]:
    """Return the header of `breakdown`."""
    return [first, *(f"{what} of {level}" for level in scores for what in ("coverage %", "width"))]


def worst_rows(scores: Mapping[str, Any], sensors: Sequence[str]) -> list[list[str]]:
    """Return the sensor of least coverage of each level and method, with how many targets it has."""
    return [
        [f"{level}, {METHODS[name]}", sensors[worst["sensor"]], f"{worst['targets']:,}", *_cells(worst)[:2]]
        for level, methods in scores.items()
        for name, content in methods.items()
        if (worst := content["worst_sensor"]) is not None
    ]


WORST_TITLES = ("intervals", "sensor of least coverage", "targets", "coverage %", "mean width")
