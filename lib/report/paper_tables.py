"""The paper's table: published results, baselines and finished runs side by side, for each data set."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.baselines import BASELINES
from lib.config import load_config
from lib.errors import InputError
from lib.experiments import Experiment, experiments_of
from lib.interface import Variants
from lib.metrics import Scores
from lib.run_folder import METRICS, RunFolder

SCORES = ("mae", "rmse", "mape")
HORIZONS = (3, 6, 12)  # steps ahead of the second table
# Footnotes: how a row's MAE and RMSE count targets of 0. MAPE leaves them out everywhere.
COUNTINGS = {"yes": "a", "no": "b", "not stated": "c"}
FOOTNOTES = {
    "a": "MAE and RMSE count targets of 0, as the paper's code does",
    "b": "MAE and RMSE leave targets of 0 out, as most other papers do",
    "c": "the source does not say whether MAE and RMSE count targets of 0",
}


@dataclass(frozen=True)
class Row:
    """One model's results on one data set.

    Attributes:
        model: its name, or that of a baseline.
        dataset: name of the data set.
        zeros: `yes`, `no` or `not stated`: whether MAE and RMSE count targets of 0.
        seeds: number of runs behind the means; None for results from elsewhere and for baselines.
        scores: mean and, of several runs, standard deviation by name; empty where nothing was measured.
        source: who reports it; empty for what was measured here.
    """

    model: str
    dataset: str
    zeros: str
    seeds: int | None
    scores: dict[str, tuple[float, float | None]]
    source: str


@dataclass(frozen=True)
class Collection:
    """What was found: rows over all horizons together, rows by horizon, and the runs left out, with the reason."""

    rows: list[Row]
    horizon_rows: dict[int, list[Row]]
    left_out: list[str]


def read_published(path: Path, datasets: Sequence[str]) -> list[Row]:
    """Read the results that other papers report.

    Raises:
        InputError: the file is missing, or a row does not have the columns it should.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            for line, entry in enumerate(csv.DictReader(handle), start=2):
                try:
                    scores: dict[str, tuple[float, float | None]] = {
                        name: (float(entry[name]), None) for name in SCORES
                    }
                    row = Row(entry["model"], entry["dataset"], entry["zeros_in_mae"], None, scores, entry["source"])
                    COUNTINGS[row.zeros]
                except (KeyError, TypeError, ValueError) as error:
                    raise InputError(
                        f"{path} row {line}: found no valid {error}, expected a published result"
                    ) from None
                if row.dataset in datasets:
                    rows.append(row)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows


def collect(config_path: Path, experiments: Path, variants: Variants) -> Collection:
    """Collect the finished runs of a data set that were made by its configuration and a recipe, and the baselines.

    Of the settings, the seed and what [Runtime] says beside precision may differ (`Config.experiment`). A run that
    differs in anything else, was tested on other targets than the first that counts, or repeats a seed, is left out,
    and it is said.
    """
    base = load_config(config_path, variants)
    dataset = base.data.dataset_name
    found, repeated = experiments_of(
        [RunFolder(path.parent) for path in sorted((experiments / dataset).glob(f"*/{METRICS}"))], variants
    )
    left_out = [f"{folder.name}: {why}" for folder, why in repeated]
    # metrics.json of the runs that count, by variant and recipe. Those of the paper keep a row until they are measured.
    counted: dict[str, dict[str, list[dict[str, Any]]]] = {
        name: {name: []} if variant.of_the_paper else {} for name, variant in variants.items()
    }
    test_set: tuple[str, RunFolder] | None = None
    for experiment in found:
        fault = _other_settings(experiment, config_path, variants)
        for folder in experiment.runs.values():
            metrics = folder.read_metrics()
            fingerprint = metrics["test_set"]["fingerprint"]
            if fault:
                left_out.append(f"{folder.name}: {fault}")
            elif test_set and fingerprint != test_set[0]:
                left_out.append(f"{folder.name}: tested on other targets than {test_set[1].name}")
            else:
                test_set = test_set or (fingerprint, folder)
                counted[experiment.config.variant.name].setdefault(experiment.name, []).append(metrics)

    groups = {
        variants[variant].label + (f", {recipe}" if recipe != variant else ""): runs
        for variant, by_recipe in counted.items()
        for recipe, runs in sorted(by_recipe.items())
    }
    rows = _rows(groups, dataset, lambda scores: scores["overall"])
    by_horizon = {
        horizon: _rows(groups, dataset, lambda scores, step=horizon - 1: scores["by_horizon"][step])  # type: ignore[misc]
        for horizon in HORIZONS
        if horizon <= base.data.num_for_predict
    }
    return Collection(rows, by_horizon, left_out)


def _other_settings(experiment: Experiment, config_path: Path, variants: Variants) -> str | None:
    """Return in what an experiment is not its recipe over a configuration; None where it is."""
    differing, recipe = experiment.differing, experiment.recipe
    if not differing:
        try:
            differing = experiment.config.differences(load_config(config_path, variants, recipe.overrides))
        except InputError as error:
            return f"recipe {recipe.name} does not go with {config_path.name}: {str(error).splitlines()[0]}"
    return f"{differing[0]}, not as in {config_path.name} with recipe {recipe.name}" if differing else None


def _rows(
    groups: dict[str, list[dict[str, Any]]], dataset: str, select: Callable[[dict[str, Any]], Scores]
) -> list[Row]:
    """Return two rows for each baseline and label: with targets of 0 counted, and left out."""
    rows = []
    baselines = {name: scores for runs in groups.values() for run in runs for name, scores in run["baselines"].items()}
    for zeros, names in (("yes", SCORES), ("no", ("mae_nonzero", "rmse_nonzero", "mape"))):
        for name in (name for name in BASELINES if name in baselines):
            scores = _means([select(baselines[name])], names)
            rows.append(Row(name, dataset, zeros, None, scores, ""))
        for label, runs in groups.items():
            scores = _means([select(run["test"]) for run in runs], names)
            rows.append(Row(label, dataset, zeros, len(runs), scores, ""))
    return rows


def _means(scores: Sequence[Scores], names: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    means: dict[str, tuple[float, float | None]] = {}
    for title, name in zip(SCORES, names, strict=True):
        values = [value for row in scores if (value := row[name]) is not None]
        if values:
            means[title] = (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)
    return means


def render(rows: Iterable[Row], datasets: Sequence[str], style: str) -> str:
    """Return a table as `md`, `tex` or `csv`: a line for each model and way of counting, three columns a data set.

    The best mean of each column is bold, for each way of counting; a cell that has not been measured is empty.
    """
    rows = list(rows)
    if style == "csv":
        return _render_csv(rows)
    cells = {(row.model, row.zeros, row.dataset, score): row for row in rows for score in row.scores}
    best = {
        (zeros, dataset, score): min(
            row.scores[score][0] for row in rows if (row.zeros, row.dataset) == (zeros, dataset) and score in row.scores
        )
        for _, zeros, dataset, score in cells
    }
    bold, mark = ("**{}**", "<sup>{}</sup>") if style == "md" else (r"\textbf{{{}}}", "$^{{{}}}$")
    header = ["model", *(f"{dataset} {score.upper()}" for dataset in datasets for score in SCORES)]
    lines = [header]
    for model, zeros in dict.fromkeys((row.model, row.zeros) for row in rows):
        runs = [row.seeds for row in rows if (row.model, row.zeros) == (model, zeros) and row.seeds]
        line = [f"{model}{_seeds(runs)}{mark.format(COUNTINGS[zeros])}"]
        for dataset in datasets:
            for score in SCORES:
                row = cells.get((model, zeros, dataset, score))
                line.append("" if row is None else _cell(row.scores[score], best[zeros, dataset, score], bold, style))
        lines.append(line)
    used = {COUNTINGS[row.zeros] for row in rows}
    notes = [f"{mark.format(letter)} {text}." for letter, text in FOOTNOTES.items() if letter in used]
    if style == "md":
        rule = ["---", *("--:" for _ in header[1:])]
        body = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
        return "\n".join([*body, "", *(f"{note}  " for note in notes)]) + "\n"
    escaped = [[cell.replace("%", r"\%").replace("_", r"\_") for cell in line] for line in lines]
    body = [" & ".join(line) + r" \\" for line in escaped]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join([begin, r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}", "", *notes]) + "\n"


def _seeds(runs: Sequence[int]) -> str:
    """Return how many seeds a line is of; where that differs between data sets, for each of them."""
    numbers = list(runs if len(set(runs)) > 1 else runs[:1])
    return f" ({', '.join(map(str, numbers))} seed{'' if numbers == [1] else 's'})" if numbers else ""


def _cell(score: tuple[float, float | None], best: float, bold: str, style: str) -> str:
    mean, deviation = score
    text = bold.format(f"{mean:.2f}") if mean == best else f"{mean:.2f}"
    if deviation is None:
        return text
    return f"{text} ± {deviation:.2f}" if style == "md" else rf"{text} $\pm$ {deviation:.2f}"


def _render_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    deviations = [f"{score}_sd" for score in SCORES]
    writer.writerow(["dataset", "model", "seeds", *SCORES, *deviations, "zeros_in_mae", "source"])
    for row in rows:
        means = [f"{row.scores[score][0]:.4f}" if score in row.scores else "" for score in SCORES]
        spread = [row.scores.get(score, (0.0, None))[1] for score in SCORES]
        deviations = ["" if deviation is None else f"{deviation:.4f}" for deviation in spread]
        seeds = "" if row.seeds is None else row.seeds
        writer.writerow([row.dataset, row.model, seeds, *means, *deviations, row.zeros, row.source])
    return text.getvalue()
