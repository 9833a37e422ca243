"""Comparing finished runs on the same test samples: means with spread, paired differences, and the tables of these."""

import csv
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from lib.config import DataConfig
from lib.errors import InputError
from lib.experiments import Experiment, experiments_of
from lib.files import written_whole
from lib.interface import Variants
from lib.metrics import absolute_errors
from lib.numbers import decimals_for
from lib.provenance import command
from lib.report.text_tables import DECIMALS, MEASURED, TITLES, flow_unit, markdown_table, score_text, scores_of
from lib.run_folder import RunFolder

BOOTSTRAP_DRAWS = 2000
LEAST_BLOCKS = 10  # of fewer, the draws say little of how much a mean varies
SCORES = ("mae", "rmse", "mape")  # of the tables
DIFFERENCE = ("mae_difference", "interval_low", "interval_high")
STEPS = (3, 6, 12)  # steps ahead of the second table beside the last, where there are more than MOST_STEPS
MOST_STEPS = 12

Row = dict[str, Any]  # of a table: text, numbers and None by the columns of its CSV file


@dataclass(frozen=True)
class FinishedRuns:
    """The same settings, run with several seeds.

    Attributes:
        name: what sets them apart from others.
        metrics: metrics.json of each run.
        sample_errors: (runs, samples), what each test sample adds to the MAE, their mean, in raw units: its sum of
            absolute errors over the mean number of observed targets of a sample.
        histories: log.jsonl of each run; empty for weights that were only tested.
        machines: the hardware and the PyTorch that each run was made with.
    """

    name: str
    metrics: Sequence[dict[str, Any]]
    sample_errors: NDArray[np.float64]
    histories: Sequence[Sequence[dict[str, Any]]]
    machines: Sequence[str]

    def validation(self) -> float | None:
        """Return the mean over the seeds of the best validation MAE; None for weights that were only tested."""
        values = [run["best_val_mae"] for run in self.metrics]
        return None if None in values else float(np.mean(values))

    def minutes(self) -> float | None:
        """Return the mean over the seeds of the time of all epochs; None for weights that were only tested."""
        if not all(self.histories):
            return None
        return float(np.mean([sum(entry["seconds"] for entry in history) / 60 for history in self.histories]))

    def by_horizon(self) -> NDArray[np.float64]:
        """Return the test MAE of each run at each step, (runs, P); NaN where no target is known."""
        return np.stack([_mae_by_horizon(run["test"]) for run in self.metrics])

    def curves(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
        """Return of each run that was trained: minutes (epochs,), validation MAE (epochs,) then, and its test MAE."""
        return [
            (
                np.cumsum([entry["seconds"] for entry in history]) / 60,
                np.array([entry["val_mae"] for entry in history], dtype=np.float64),
                run["test"]["overall"]["mae"],
            )
            for history, run in zip(self.histories, self.metrics, strict=True)
            if history
        ]


def spread(values: Sequence[float | None]) -> float | tuple[float, float] | None:
    """Return mean and standard deviation of a score over seeds; of one seed the score, and None where one is None."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return known[0] if len(known) == 1 else (float(np.mean(known)), float(np.std(known, ddof=1)))


def _mae_by_horizon(scores: Mapping[str, Any]) -> NDArray[np.float64]:
    return np.array([step["mae"] for step in scores["by_horizon"]], dtype=np.float64)


def group_folders(folders: Sequence[RunFolder], variants: Variants) -> dict[str, list[RunFolder]]:
    """Group finished runs of the same experiment, in their order.

    Returns:
        The folders of each experiment by its name: its recipe, or its variant where it differs from all recipes; and
        where several have the same name the settings in which these differ, such as `stid (Training.epochs 40)`.

    Raises:
        InputError: a folder is not that of a finished run, or two runs of an experiment have the same seed.
    """
    experiments, left_out = experiments_of(folders, variants)
    for folder, why in left_out:
        raise InputError(f"{folder}: {why}")
    return {_name_among(experiments, experiment): list(experiment.runs.values()) for experiment in experiments}


def _name_among(experiments: Sequence[Experiment], experiment: Experiment) -> str:
    """Return a name that no other of the experiments has. The only one made by a recipe has the recipe's name alone."""
    alike = [other for other in experiments if other.name == experiment.name]
    if not experiment.differing and sum(not other.differing for other in alike) == 1:
        return experiment.name
    texts = [other.config.texts() for other in alike]
    differing = [
        f"{name} {text or 'none'}"
        for name, text in experiment.config.texts().items()
        if any(other.get(name) != text for other in texts)
    ]
    return f"{experiment.name} ({', '.join(differing)})" if differing else experiment.name


def read_runs(name: str, folders: Sequence[RunFolder]) -> FinishedRuns:
    """Read finished runs from their folders.

    Raises:
        InputError: a run is not finished, or one of its files is missing or damaged.
    """
    metrics = [folder.read_metrics() for folder in folders]
    errors = []
    for folder, content in zip(folders, metrics, strict=True):
        predictions = folder.read_predictions()
        forecast, target = predictions["forecast"], predictions["target"]
        if forecast.shape != target.shape or len(target) != content["test_set"]["samples"]:
            found = f"shapes {forecast.shape} of forecast and {target.shape} of target"
            raise InputError(f"{folder.predictions}: found {found}, expected those of the samples in {folder.metrics}")
        total, count = absolute_errors(forecast, target, (1, 2))
        errors.append(total / count.mean())
    histories = [folder.read_log() for folder in folders]
    return FinishedRuns(name, metrics, np.stack(errors), histories, [_machine(folder) for folder in folders])


def _machine(folder: RunFolder) -> str:
    environment = folder.read_environment()
    try:
        return f"{environment['hardware']}, PyTorch {environment['packages']['torch']}"
    except (KeyError, TypeError):
        raise InputError(f"{folder.environment}: found no hardware or packages, expected what run.py writes") from None


def check_same_targets(folders: Iterable[RunFolder]) -> None:
    """Refuse to compare runs that were tested on different targets, before their forecasts are read.

    Raises:
        InputError: the test sets of two runs differ, or a run is not finished.
    """
    found: dict[str, RunFolder] = {}
    for folder in folders:
        found.setdefault(folder.read_metrics()["test_set"]["fingerprint"], folder)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise InputError(f"{first} and {second}: found runs tested on different targets, expected the same test set")


def paired_difference(
    errors: NDArray[np.float64], reference: NDArray[np.float64], block: int, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Return the mean difference of errors to a reference, and its 95 % bootstrap interval over samples and runs.

    Samples are drawn with replacement, the same for all runs, in blocks of neighbours: samples that share targets are
    not independent. The runs of each side are drawn with replacement too, as other seeds would give other errors. With
    one run on each side the interval cannot know by how much.

    Args:
        errors, reference: (runs, samples).
        block: neighbouring samples drawn together. With fewer than ten blocks there is no interval.
        seed: of the draws.
    """
    difference = float(errors.mean() - reference.mean())
    samples = errors.shape[1]
    if samples < LEAST_BLOCKS * block:
        return difference, None, None
    # Few runs say little of their spread: Student's t in place of the normal distribution, as for a pooled variance.
    wider = float(t.ppf(0.975, max(1, len(errors) + len(reference) - 2)) / norm.ppf(0.975))
    draw = np.random.default_rng(seed)
    drawn = draw.integers(0, samples - block + 1, (BOOTSTRAP_DRAWS, round(samples / block)))  # first samples of blocks

    def means(side: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean error of each draw, (draws,)."""
        of_blocks = [np.convolve(run, np.full(block, 1 / block), mode="valid") for run in side]
        of_runs = np.stack([run[drawn].mean(axis=1) for run in of_blocks], axis=1)  # (draws, runs)
        runs = len(side)
        if runs == 1:
            return of_runs[:, 0]
        share = draw.multinomial(runs, np.full(runs, 1 / runs), BOOTSTRAP_DRAWS) / runs  # (draws, runs)
        # The mean of R drawn runs varies by (R - 1) / R of what the mean of R runs does.
        share = 1 / runs + (share - 1 / runs) * wider * np.sqrt(runs / (runs - 1))
        return np.asarray((share * of_runs).sum(axis=1))

    low, high = np.quantile(means(errors) - means(reference), [0.025, 0.975])
    return difference, float(low), float(high)


# ------------------------------------------------------------------------------------------------------- tables


def baselines_of(groups: Sequence[FinishedRuns]) -> dict[str, Any]:
    """Return the scores of the baselines that metrics.json holds, by name; with those of measured targets if known."""
    runs = sorted((run for group in groups for run in group.metrics), key=lambda run: "measured" in run["test"])
    return {name: scores for run in runs for name, scores in run["baselines"].items()}


def best_baselines(groups: Sequence[FinishedRuns], number: int) -> dict[str, NDArray[np.float64]]:
    """Return the MAE at each step, (P,), of so many baselines, those of least overall MAE, by name."""
    scored = sorted(baselines_of(groups).items(), key=lambda item: item[1]["overall"]["mae"])
    return {name: _mae_by_horizon(scores) for name, scores in scored[:number]}


def baseline_rows(groups: Sequence[FinishedRuns]) -> list[Row]:
    """Return a row for each baseline."""
    return [{"name": name, **_overall([scores]), **_steps([scores])} for name, scores in baselines_of(groups).items()]


def group_row(group: FinishedRuns, reference: FinishedRuns) -> Row:
    """Return the row of a group, with the paired difference of its MAE to that of the reference, unless it is this."""
    first = group.metrics[0]
    row: Row = {"name": group.name, "seeds": len(group.metrics), "parameters": first["parameters"]}
    row |= {"minutes": group.minutes(), "val_mae": group.validation()}
    row |= _overall([run["test"] for run in group.metrics])
    row |= dict.fromkeys(DIFFERENCE)
    if group is not reference:
        block = first["test_set"]["horizon"]
        paired = paired_difference(group.sample_errors, reference.sample_errors, block)
        row |= zip(DIFFERENCE, paired, strict=True)
    return row | _steps([run["test"] for run in group.metrics])


def _overall(scores: Sequence[Mapping[str, Any]]) -> Row:
    row: Row = {}
    for name in SCORES:
        row |= _mean_and_sd(name, [each["overall"][name] for each in scores])
    measured = [scores_of(each).get(MEASURED) for each in scores]
    return row | (_mean_and_sd(MEASURED, measured) if None not in measured else {})


def _steps(scores: Sequence[Mapping[str, Any]]) -> Row:
    row: Row = {}
    horizon = len(scores[0]["by_horizon"])
    for step in range(1, horizon + 1) if horizon <= MOST_STEPS else (*STEPS, horizon):
        row |= _mean_and_sd(f"mae_step_{step}", [each["by_horizon"][step - 1]["mae"] for each in scores])
    return row


def _mean_and_sd(name: str, values: Sequence[float | None]) -> Row:
    value = spread(values)
    mean, deviation = value if isinstance(value, tuple) else (value, None)
    return {name: mean, f"{name}_sd": deviation}


def write_tables(
    stem: Path,
    title: str,
    rows: Sequence[Row],
    groups: Sequence[FinishedRuns],
    reference: FinishedRuns,
    data: DataConfig,
) -> str:
    """Write `<stem>.csv`, and `<stem>.md` with the command, the machines and two tables; return the tables.

    Args:
        stem: of the files.
        title: of the Markdown file, which adds the name of the data set.
        rows: of the table, a group's last. Columns of text stand first; those that a row lacks stay empty.
        groups, reference: what was compared, and with what.
        data: [Data] of the runs.
    """
    # Earlier versions did not score measured targets, so any row may have columns that others lack.
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    csv_path, markdown_path = table_paths(stem)
    with written_whole(csv_path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _rounded(row, name) for name in row})
    texts = [name for name, cell in rows[-1].items() if isinstance(cell, str)]
    tables = f"{_main_table(rows, texts)}\n\nMAE by horizon:\n\n{_horizon_table(rows, texts, data)}\n"
    machines = dict.fromkeys(machine for group in groups for machine in group.machines)
    lines = [
        f"# {title} on {data.dataset_name}",
        "",
        f"`python {shlex.join(command())}`",
        "",
        f"{date.today()}. Runs made on {'; '.join(machines)}.",
        f"Errors on the test split, all horizons, in {flow_unit(data.points_per_hour)}: mean ± standard deviation over",
        f"seeds; the difference of the MAE to {reference.name}, with its 95 % bootstrap interval over test samples, in",
        "blocks of one horizon, and over seeds where there are several. Parameters are those that training changes;",
        "minutes are those of all epochs with their validation, mean over seeds. Neither holds the autoregression,",
        "which is fitted before.",
        "",
        tables,
    ]
    with written_whole(markdown_path) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")
    return tables


def table_paths(stem: Path) -> tuple[Path, Path]:
    """Return the paths of the tables, CSV and Markdown."""
    return Path(f"{stem}.csv"), Path(f"{stem}.md")


def _main_table(rows: Sequence[Row], texts: Sequence[str]) -> str:
    names = [*SCORES, *([MEASURED] if any(MEASURED in row for row in rows) else [])]
    scores = [{**TITLES, MEASURED: "MAE (measured)"}[name] for name in names]
    lines = [[*texts, "seeds", "parameters", "minutes", "val MAE", *scores, "MAE difference"]]
    formats = {"seeds": "{}", "parameters": "{:,}", "minutes": "{:.1f}"}
    for row in rows:
        known = {name: cell for name, cell in row.items() if cell is not None}
        cells = [str(known.get(name, "")) for name in texts]
        cells += [layout.format(known[name]) if name in known else "" for name, layout in formats.items()]
        cells.append(score_text(known["val_mae"]) if "val_mae" in known else "")
        cells += [score_text(_score(row, name)) if name in row else "" for name in names]
        decimals = _decimals(row, "mae", DECIMALS)
        difference = [f"{known[name]:+.{decimals}f}" for name in DIFFERENCE if name in known]
        layout = "{} ({} .. {})" if len(difference) == len(DIFFERENCE) else "{}"  # too few samples for an interval
        cells.append(layout.format(*difference) if difference else "")
        lines.append(cells)
    return markdown_table(lines, len(texts))


def _rounded(row: Row, name: str) -> Any:
    return f"{row[name]:.{_decimals(row, name, DECIMALS + 1)}f}" if isinstance(row[name], float) else row[name]


def _decimals(row: Row, name: str, least: int) -> int:
    """Return how many decimals a number of a row has: a deviation those of its mean, a difference those of the MAE."""
    return decimals_for(row["mae" if name in DIFFERENCE else name.removesuffix("_sd")] or 0.0, least)


def _score(row: Row, name: str) -> Any:
    return row[name] if row[f"{name}_sd"] is None else (row[name], row[f"{name}_sd"])


def _horizon_table(rows: Sequence[Row], texts: Sequence[str], data: DataConfig) -> str:
    steps = [name for name in rows[-1] if name.startswith("mae_step_") and not name.endswith("_sd")]
    minutes = [int(name.removeprefix("mae_step_")) * 60 / data.points_per_hour for name in steps]
    lines = [[texts[0], *(f"{ahead:g} min" for ahead in minutes)]]
    lines += [[str(row[texts[0]]), *(score_text(row[name]) for name in steps)] for row in rows]
    return markdown_table(lines)
