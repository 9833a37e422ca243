"""Forecast the next hour of every sensor with a trained run, from the last rows of a file."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.backtest import backtest, hourly_scores, measured_flow, save_backtest
from lib.command_line import ScriptParser, integer_from
from lib.data.sensor_tables import is_table
from lib.errors import InputError, run_script
from lib.files import check_writable
from lib.inference import (
    Forecaster,
    History,
    check_inputs,
    forecast_next,
    load_forecaster,
    read_history,
    save_forecast,
    what_was_known,
)
from lib.intervals import Intervals, check_levels
from lib.metrics import errors_of
from lib.report.text_tables import markdown_table, table
from lib.run_folder import RunFolder
from model.variants import VARIANTS

EXAMPLES = """examples:
  python predict.py --run experiments/PEMS04/paper-seed1 --input today.csv
  python predict.py --run experiments/PEMS04/paper-seed1 --input today.csv --output next_hour.csv --max-gap 6
  python predict.py --run experiments/PEMS04/paper-seed1 --input today.csv --interval 0.8 0.95
  python predict.py --run experiments/PEMS04/paper-seed1 --input data/PEMS04/PEMS04.npz --evaluate
  python predict.py --run experiments/PEMS04/paper-seed1 --input last_month.csv --evaluate --days 7 --interval 0.8

Of the run only best.pt is read, and for --interval intervals.npz; its data need not be there. A run of an earlier
version has no intervals.npz. It is made then, by forecasts of the validation split, for which its data must be there.

The input is an npz archive as for training, or a table with a column of times and one column a sensor: .csv, .tsv or
.txt, also .gz, .parquet or .h5. The columns of a table may be in any order: they are found by the names that the run's
sensors had in training, and are 0, 1, ... where they had none. Missing values are filled linearly between those before
and after; at the end of the file the last value is repeated.

The output is a CSV with a row for each step and sensor: time (the number of the step, from 0, where neither the input
nor the run says when it begins), sensor, minutes_ahead, forecast in vehicles a step, at least 0, and for --interval 0.8
lower_0.8 and upper_0.8. With --days it is a CSV of errors by day, hour and sensor, with a page beside it, .html.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        InputError: the output cannot be written or would replace an input, or the longest gap is negative.
    """
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a trained run")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="npz archive or table up to now")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: forecast.csv, and with --days backtest.csv"
    )
    parser.add_argument(
        "--interval", type=float, nargs="+", default=[], metavar="LEVEL", help="write intervals, such as 0.8 0.95"
    )
    parser.add_argument("--until", metavar="TIME", help="read only what comes before, as if it were then")
    parser.add_argument(
        "--by-position", action="store_true", help="take the columns of a table in their order, whatever their names"
    )
    parser.add_argument(
        "--max-gap", type=integer_from(0), metavar="STEPS", help="longest gap to fill (default: an hour)"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="forecast the last rows of the file from those before, and score it"
    )
    parser.add_argument(
        "--days", type=integer_from(1), metavar="K", help="with --evaluate: forecast from each step of the last days"
    )
    parser.add_argument(
        "--every", type=integer_from(1), metavar="STEPS", help="with --days: steps between two forecasts (default: 1)"
    )
    parser.add_argument(
        "--interval-update", action="store_true", help="with --days: intervals that learn from what came, step by step"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)"
    )
    arguments = parser.parse_args()
    for flag, needed in (
        ("days", "evaluate"),
        ("every", "days"),
        ("interval_update", "days"),
        ("interval_update", "interval"),
    ):
        if getattr(arguments, flag) and not getattr(arguments, needed):
            raise InputError(f"--{flag.replace('_', '-')}: found no --{needed}, expected both")
    check_levels(arguments.interval, "--interval")
    arguments.interval = sorted(set(arguments.interval))
    if arguments.output is None:
        arguments.output = Path("backtest.csv" if arguments.days else "forecast.csv")
    folder = RunFolder(arguments.run)
    read = (arguments.input, folder.best, folder.intervals)
    check_writable(arguments.output, "--output", *read)
    if arguments.days:
        check_writable(page_of(arguments.output), "--output", arguments.output, *read)
    return arguments


def page_of(output: Path) -> Path:
    """Return the page that stands beside the table of a backtest."""
    return output.with_suffix(".html")


def intervals_of(forecaster: Forecaster, folder: RunFolder, history: History, levels: list[float]) -> Intervals:
    """Return the intervals of a run, which fit the times of a file and go up to the highest of the levels."""
    if history.has_times and forecaster.config.data.start is None:
        raise InputError(
            f"--interval: found times in {history.path} but no [Data] start in the run, expected both or none, for "
            "intervals depend on the time of the week"
        )
    from lib.runs import intervals_for  # takes a second to load: it can train

    intervals = intervals_for(folder, VARIANTS)
    intervals.check_level(max(levels))
    return intervals


def say_what_was_read(forecaster: Forecaster, history: History, by_position: bool) -> None:
    """Print how a file is understood."""
    source = history.path
    if not history.has_times and history.start is not None:
        print(f"{source} has no times: its step 0 is taken for {history.start}, as in training")
    if by_position and history.sensors != forecaster.sensors:
        pairs = f"{history.sensors[0]!r} for {forecaster.sensors[0]!r}, ..., {history.sensors[-1]!r} for "
        print(f"the columns of {source} are taken by position: {pairs}{forecaster.sensors[-1]!r}")
    if not is_table(source) and forecaster.sensors != tuple(map(str, range(len(forecaster.sensors)))):
        print(f"{source} has no names: its sensors are taken in the run's order, {forecaster.sensors[0]} first")


def predict(forecaster: Forecaster, folder: RunFolder, arguments: argparse.Namespace, max_gap: int) -> None:
    """Read, forecast, write, and if asked score."""
    source, output, evaluate = arguments.input, arguments.output, arguments.evaluate
    horizon = forecaster.config.data.num_for_predict if evaluate else 0
    # A gap longer than max_gap shows its length only with that many steps before the first input. What the whole file
    # says of imputed values counts in scores.
    useful = None if arguments.until or evaluate else forecaster.steps_useful
    steps = None if useful is None else useful + max_gap + 1
    read = read_history(source, forecaster, steps, arguments.by_position, arguments.until)
    history = read.until(max(0, len(read.flow) - horizon))
    filled = check_inputs(history, forecaster.offsets, max_gap)
    first, last = history.label(len(history.flow) - forecaster.steps_needed), history.label(len(history.flow) - 1)
    print(f"{source}: the forecast needs {forecaster.steps_needed} steps before it: read {first} .. {last}")
    say_what_was_read(forecaster, history, arguments.by_position)
    if filled:
        values = len(forecaster.offsets) * len(forecaster.sensors)
        print(f"filled {filled} of {values} input values, in gaps of at most {max_gap} steps")

    forecasts = forecast_next(forecaster, history, max_gap)
    forecast, imputed = forecasts.flow[0], forecasts.imputed
    for line in what_was_known(forecaster, history, None if imputed is None else imputed[0]):
        print(line)
    half_widths = {}
    if arguments.interval:
        intervals = intervals_of(forecaster, folder, history, arguments.interval)
        week = history.calendar.step_of_week(np.array([len(history.flow)]))
        half_widths = {level: intervals.half_width(week, level, imputed)[0] for level in arguments.interval}
    if forecaster.config.training.bias_correction:
        print(f"bias correction by the errors of {forecasts.earlier} earlier forecasts")
    negative = np.count_nonzero(forecast < 0)
    save_forecast(output, history, np.where(forecast <= 0, np.float32(0), forecast), half_widths)
    sensors, steps = forecast.shape
    first, last = history.label(len(history.flow)), history.label(len(history.flow) + steps - 1)
    print(f"wrote {output}: {sensors} sensors, {steps} steps, {first} .. {last}, in vehicles a step")
    if negative:
        scored = "; scored as they were forecast" if evaluate else ""
        print(f"{negative} of {forecast.size} forecasts were below 0, which no flow is, and are written as 0{scored}")

    if evaluate:
        truth, measured = (values[len(history.flow) :].T for values in (read.flow, measured_flow(read)))  # (N, P)
        print(scored_on(source, truth, measured))
        print(score_lines(forecaster, forecast, measured))


def scored_on(source: Path, truth: NDArray[np.floating], measured: NDArray[np.floating]) -> str:
    """Return the line above the scores: how many values of a file they are of."""
    known, scored = np.isfinite(truth).sum(), np.isfinite(measured).sum()
    imputed = f"; {known - scored} imputed values are left out" if known > scored else ""
    return f"\nScored on {scored} values of {source}, in vehicles a step{imputed}:\n"


def score_lines(forecaster: Forecaster, forecast: NDArray[np.float32], truth: NDArray[np.floating]) -> str:
    """Return a table of the errors by horizon of forecasts (N, P) or (B, N, P)."""
    errors = errors_of(forecast, truth)
    minutes = 60 / forecaster.config.data.points_per_hour
    rows = {f"{step * minutes:g} min": row for step, row in enumerate(errors.by_horizon(), start=1)}
    return table({**rows, "all": errors.overall()}, "horizon")


def evaluate_days(forecaster: Forecaster, folder: RunFolder, arguments: argparse.Namespace, max_gap: int) -> None:
    """Forecast from each step of the last days, and write scores and page."""
    from lib.report.backtest_page import save_backtest_page  # only a backtest needs pages
    from lib.report.interval_tables import method_table

    output, page, every = arguments.output, page_of(arguments.output), arguments.every or 1
    history = read_history(arguments.input, forecaster, None, arguments.by_position, arguments.until)
    levels = arguments.interval
    intervals = intervals_of(forecaster, folder, history, levels) if levels else None
    test = backtest(forecaster, history, arguments.days, every, max_gap, levels, intervals, arguments.interval_update)
    say_what_was_read(forecaster, history, arguments.by_position)
    first, last = (history.label(int(test.label_starts[place])) for place in (0, -1))
    print(f"{len(test.label_starts)} forecasts from {first} .. {last}, each from the steps before it alone")
    if test.refused:
        print(f"{test.refused} forecasts left out: gaps of more than {max_gap} steps among their inputs (--max-gap)")
    scores = hourly_scores(test)
    save_backtest(output, test, scores)
    config = forecaster.config
    title = f"Backtest: {config.variant.label} on {arguments.input.name}, {arguments.days} days to {last}"
    names = [f"sensor {name}" for name in history.sensors]
    save_backtest_page(page, title, test, scores, names, forecaster.road_map)
    print(scored_on(arguments.input, test.truth, test.measured))
    print(score_lines(forecaster, test.forecast, test.measured))
    if levels:
        print(f"\nIntervals:\n\n{markdown_table(method_table(test.interval_scores()))}")
    print("\nwrote", output, page, sep="\n  ")


def main() -> None:
    """Load the run and forecast."""
    arguments = parse_arguments()
    folder = RunFolder(arguments.run.resolve())
    forecaster = load_forecaster(folder, VARIANTS, arguments.device)
    hour = forecaster.config.data.points_per_hour
    max_gap = hour if arguments.max_gap is None else arguments.max_gap
    (evaluate_days if arguments.days else predict)(forecaster, folder, arguments, max_gap)


if __name__ == "__main__":
    run_script(main)
