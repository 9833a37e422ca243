"""The paper's table: published results, baselines and finished runs side by side, for each data set."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.baselines import BASELINES
from lib.config import Config, load_config
from lib.errors import InputError
from lib.experiments import Experiment, experiments_of
from lib.interface import Variants
from lib.metrics import Scores
from lib.numbers import decimals_for
from lib.run_folder import METRICS, RunFolder

SCORES = ("mae", "rmse", "mape")
HORIZONS = (3, 6, 12)  # steps ahead of the second table
DECIMALS, CSV_DECIMALS = 2, 4  # of a score from 1 on; smaller ones have as many significant digits
# Footnotes: which targets a row's MAE and RMSE count. MAPE leaves targets of 0 out everywhere.
COUNTINGS = {"yes": "a", "no": "b", "not stated": "c", "measured": "d"}
FOOTNOTES = {
    "a": "MAE and RMSE count targets of 0, as the paper's code does",
    "b": "MAE and RMSE leave targets of 0 out, as most other papers do",
    "c": "the source does not say whether MAE and RMSE count targets of 0",
    "d": "measured targets alone: those that the source of the data filled in are left out, and targets of 0 count",
}
OWN_COUNTINGS = {"yes": SCORES, "no": ("mae_nonzero", "rmse_nonzero", "mape"), "measured": SCORES}


@dataclass(frozen=True)
class Row:
    """One model's results on one data set.

    Attributes:
        model: its name, or that of a baseline.
        dataset: name of the data set.
        zeros: which targets MAE and RMSE count, a key of `COUNTINGS`: with those of 0 (`yes`), without (`no`), one of
            these (`not stated`), or the measured ones alone, with those of 0 (`measured`).
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


def published_split(config: Config) -> str | None:
    """Return what published.csv calls the split of papers that have a configuration's targets; None: none has them."""
    texts = config.texts()
    other_targets = texts["Data.missing"] != "error" or texts["Data.imputed"] != "keep"
    if other_targets or config.data.num_for_predict != config.data.points_per_hour:
        return None
    if config.data.split == "windows":
        return "all windows of one hour"
    return "samples with a whole week" if config.training.num_of_weeks == 1 else None


def read_published(path: Path, splits: Mapping[str, str | None]) -> list[Row]:
    """Read the results that other papers report on the same targets as ours.

    Args:
        path: of the table.
        splits: of each data set, as `published_split` has it.

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
                    split = entry["split"]
                except (KeyError, TypeError, ValueError) as error:
                    raise InputError(
                        f"{path} row {line}: found no valid {error}, expected a published result"
                    ) from None
                if splits.get(row.dataset) == split:
                    rows.append(row)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows


def collect(config_path: Path, experiments: Path, variants: Variants, changes: Sequence[str] = ()) -> Collection:
    """Collect the finished runs of a data set that were made by its configuration and a recipe, and the baselines.

    Each of the changes, `Section.key=value`, goes over the configuration.

    Of the settings, the seed and what [Runtime] says beside precision may differ (`Config.experiment`). A run that
    differs in anything else, was tested on other targets than the first that counts, or repeats a seed, is left out,
    and it is said.
    """
    base = load_config(config_path, variants, changes)
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
        fault = _other_settings(experiment, config_path, variants, changes)
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


def _other_settings(
    experiment: Experiment, config_path: Path, variants: Variants, changes: Sequence[str]
) -> str | None:
    """Return in what an experiment is not its recipe over a configuration; None where it is."""
    differing, recipe = experiment.differing, experiment.recipe
    if not differing:
        try:
            differing = experiment.config.differences(load_config(config_path, variants, [*recipe.overrides, *changes]))
        except InputError as error:
            return f"recipe {recipe.name} does not go with {config_path.name}: {str(error).splitlines()[0]}"
    return f"{differing[0]}, not as in {config_path.name} with recipe {recipe.name}" if differing else None


def _rows(
    groups: dict[str, list[dict[str, Any]]], dataset: str, select: Callable[[dict[str, Any]], Scores]
) -> list[Row]:
    """Return two rows for each baseline and label, with targets of 0 and without, and of measured targets if known."""
    # The baselines of all runs are the same, but earlier versions did not score measured targets.
    all_runs = sorted((run for runs in groups.values() for run in runs), key=lambda run: "measured" in run["test"])
    baselines = {name: scores for run in all_runs for name, scores in run["baselines"].items()}
    contents: list[tuple[str, int | None, list[Any]]]
    contents = [(name, None, [baselines[name]]) for name in BASELINES if name in baselines]
    contents += [(label, len(runs), [run["test"] for run in runs]) for label, runs in groups.items()]
    rows = []
    for zeros, names in OWN_COUNTINGS.items():
        for name, seeds, scores in contents:
            counted = scores
            if zeros == "measured":
                counted = [measured for each in scores if (measured := each.get("measured")) is not None]
                if not counted or len(counted) < len(scores):
                    continue
            rows.append(Row(name, dataset, zeros, seeds, _means([select(each) for each in counted], names), ""))
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
    own = {row.model for row in rows if not row.source}
    rows = [replace(row, model=f"{row.model}, published") if row.source and row.model in own else row for row in rows]
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
    decimals = decimals_for(mean, DECIMALS)
    text = f"{mean:.{decimals}f}"
    if mean == best:
        text = bold.format(text)
    if deviation is None:
        return text
    sign = "±" if style == "md" else r"$\pm$"
    return f"{text} {sign} {deviation:.{decimals}f}"


def _render_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    deviations = [f"{score}_sd" for score in SCORES]
    writer.writerow(["dataset", "model", "seeds", *SCORES, *deviations, "zeros_in_mae", "source"])
    for row in rows:
        scores = [row.scores.get(score, (None, None)) for score in SCORES]
        decimals = [decimals_for(mean or 0.0, CSV_DECIMALS) for mean, _ in scores]
        means, deviations = (
            ["" if value is None else f"{value:.{digits}f}" for value, digits in zip(values, decimals, strict=True)]
            for values in zip(*scores, strict=True)
        )
        seeds = "" if row.seeds is None else row.seeds
        writer.writerow([row.dataset, row.model, seeds, *means, *deviations, row.zeros, row.source])
    return text.getvalue()
