"""Tables as text: scores in Markdown, on the screen and in files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lib.config import Config
from lib.numbers import decimals_for, number_text
from lib.run_folder import forecasts_scored

DECIMALS = 3  # of a score from 1 on; smaller ones have as many significant digits
FLOW_UNIT = "vehicles / {minutes:g} min"
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mape": "MAPE %",
    "mae_nonzero": "MAE (no zeros)",
    "rmse_nonzero": "RMSE (no zeros)",
}
MEASURED = "mae_measured"  # in tables of a series where some targets are imputed
MEASURED_NOTE = "Measured: targets that the source filled in are left out (data/README.md, Imputed values)."


def score_text(value: float | tuple[float, float] | None) -> str:
    """Return a score, or its mean and standard deviation over several runs, as tables show it."""
    if isinstance(value, tuple):
        decimals = decimals_for(value[0], DECIMALS)
        return " ± ".join(f"{part:.{decimals}f}" for part in value)
    return "-" if value is None else number_text(value, DECIMALS)


def titles_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the columns of a table of scores, with the MAE of measured targets where a row has one."""
    return {**TITLES, MEASURED: "MAE (measured)"} if any(MEASURED in scores for scores in rows) else TITLES


def table(rows: Mapping[str, Mapping[str, float | tuple[float, float] | None]], first_column: str) -> str:
    """Return a Markdown table of scores, a line a row."""
    titles = titles_of(rows.values())
    lines = [[first_column, *titles.values()]]
    lines += [[name, *(score_text(scores.get(metric)) for metric in titles)] for name, scores in rows.items()]
    return markdown_table(lines)


def scores_of(content: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
    """Return the scores of a forecast in metrics.json, overall or of one step, with the MAE of measured targets."""

    def at(scores: Mapping[str, Any]) -> dict[str, Any]:
        return dict(scores["overall"] if step is None else scores["by_horizon"][step - 1])

    measured = content.get("measured")
    return at(content) | ({} if measured is None else {MEASURED: at(measured)["mae"]})


def markdown_table(lines: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, its header being the first line: first columns of text, then numbers on the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    pads = [str.ljust] * text_columns + [str.rjust] * (len(widths) - text_columns)
    padded = [[pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)] for line in lines]
    rule = ["-" * width if column < text_columns else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def flow_unit(points_per_hour: int) -> str:
    """Return the unit of the flow at this time step."""
    return FLOW_UNIT.format(minutes=60 / points_per_hour)


def print_results(metrics: Mapping[str, Any], config: Config) -> None:
    """Print the model's scores by horizon, and the overall scores beside those of the baselines."""
    minutes, unit = 60 / config.data.points_per_hour, flow_unit(config.data.points_per_hour)
    test = metrics["test"]
    steps = range(1, len(test["by_horizon"]) + 1)
    horizons = {f"{step * minutes:g} min": scores_of(test, step) for step in steps}
    print(f"\n{metrics['label']} on the test split, by horizon ({unit}):\n")
    print(table(horizons, "horizon"))
    print("\nAll horizons together:\n")
    print(table({name: scores_of(scores) for name, scores in forecasts_scored(metrics).items()}, "forecast"))
    if "measured" in test:
        print(f"\n{MEASURED_NOTE}")
