"""Tables as text: scores in Markdown, on the screen and in files."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.config import Config
from lib.metrics import SCORES
from lib.run_folder import forecasts_scored

FLOW_UNIT = "vehicles / {minutes:g} min"
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mape": "MAPE %",
    "mae_nonzero": "MAE (no zeros)",
    "rmse_nonzero": "RMSE (no zeros)",
}


def score_text(value: float | tuple[float, float] | None) -> str:
    """Return a score, or its mean and standard deviation over several runs, as tables show it."""
    if isinstance(value, tuple):
        return " ± ".join(map(score_text, value))
    return "-" if value is None else f"{value:.3f}"


def table(rows: Mapping[str, Mapping[str, float | tuple[float, float] | None]], first_column: str) -> str:
    """Return a Markdown table of scores, a line a row."""
    lines = [[first_column, *TITLES.values()]]
    lines += [[name, *(score_text(scores[metric]) for metric in SCORES)] for name, scores in rows.items()]
    return markdown_table(lines)


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
    horizons = {f"{step * minutes:g} min": row for step, row in enumerate(metrics["test"]["by_horizon"], start=1)}
    print(f"\n{metrics['label']} on the test split, by horizon ({unit}):\n")
    print(table(horizons, "horizon"))
    print("\nAll horizons together:\n")
    print(table({name: scores["overall"] for name, scores in forecasts_scored(metrics).items()}, "forecast"))
