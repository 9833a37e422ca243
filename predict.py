"""Forecast the next hour of every sensor with a trained run, from the last rows of a file."""

import argparse
from pathlib import Path

import numpy as np

from lib.command_line import ScriptParser
from lib.data.sensor_tables import is_table
from lib.errors import InputError, run_script
from lib.files import check_writable
from lib.inference import (
    Forecaster,
    forecast_flow,
    load_forecaster,
    model_inputs,
    outlook_of,
    read_history,
    save_forecast,
    score_observed,
)
from lib.report.text_tables import table
from lib.run_folder import RunFolder
from model.variants import VARIANTS

EXAMPLES = """examples:
  python predict.py --run experiments/PEMS04/paper-seed1 --input today.csv
  python predict.py --run experiments/PEMS04/paper-seed1 --input today.csv --output next_hour.csv --max-gap 6
  python predict.py --run experiments/PEMS04/paper-seed1 --input data/PEMS04/PEMS04.npz --evaluate

Of the run only best.pt is read; its data need not be there. The input is an npz archive as for training, or a table
with a column of times and one column a sensor: .csv, .tsv or .txt, also .gz, .parquet or .h5. Missing values are filled
linearly between those before and after; at the end of the file the last value is repeated. The output is a CSV with a
row for each step and sensor: time (the number of the step, from 0, where neither the input nor the run says when it
begins), sensor, minutes_ahead, forecast in vehicles a step, at least 0. The columns of a table may be in any order:
they are found by the names that the run's sensors had in training, and are 0, 1, ... where they had none.
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
        "--output", type=Path, default=Path("forecast.csv"), metavar="FILE", help="default: forecast.csv"
    )
    parser.add_argument(
        "--by-position", action="store_true", help="take the columns of a table in their order, whatever their names"
    )
    parser.add_argument("--max-gap", type=int, metavar="STEPS", help="longest gap to fill (default: an hour)")
    parser.add_argument(
        "--evaluate", action="store_true", help="forecast the last rows of the file from those before, and score it"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)"
    )
    arguments = parser.parse_args()
    check_writable(arguments.output, "--output", arguments.input, RunFolder(arguments.run).best)
    if arguments.max_gap is not None and arguments.max_gap < 0:
        raise InputError(f"--max-gap: found {arguments.max_gap}, expected a number of steps of at least 0")
    return arguments


def predict(
    forecaster: Forecaster, source: Path, output: Path, max_gap: int, evaluate: bool, by_position: bool
) -> None:
    """Read, forecast, write, and if asked score."""
    horizon = forecaster.config.data.num_for_predict if evaluate else 0
    # A gap longer than max_gap shows its length only with that many steps before the first input.
    useful = forecaster.steps_useful
    read = read_history(source, forecaster, None if useful is None else useful + max_gap + 1 + horizon, by_position)
    history = read.until(max(0, len(read.flow) - horizon))
    inputs, filled = model_inputs(history, forecaster.offsets, max_gap)
    first, last = history.label(len(history.flow) - forecaster.steps_needed), history.label(len(history.flow) - 1)
    print(f"{source}: the forecast needs {forecaster.steps_needed} steps before it: read {first} .. {last}")
    if not history.has_times and history.start is not None:
        print(f"{source} has no times: its step 0 is taken for {history.start}, as in training")
    if by_position and history.sensors != forecaster.sensors:
        pairs = f"{history.sensors[0]!r} for {forecaster.sensors[0]!r}, ..., {history.sensors[-1]!r} for "
        print(f"the columns of {source} are taken by position: {pairs}{forecaster.sensors[-1]!r}")
    if not is_table(source) and forecaster.sensors != tuple(map(str, range(len(forecaster.sensors)))):
        print(f"{source} has no names: its sensors are taken in the run's order, {forecaster.sensors[0]} first")
    if filled:
        print(f"filled {filled} of {inputs.size} input values, in gaps of at most {max_gap} steps")

    outlook = outlook_of(forecaster, history)
    for note in outlook.notes:
        print(note)
    forecast = forecast_flow(forecaster, inputs, outlook)
    negative = np.count_nonzero(forecast < 0)
    save_forecast(output, history, np.where(forecast <= 0, np.float32(0), forecast))
    sensors, steps = forecast.shape
    first, last = history.label(len(history.flow)), history.label(len(history.flow) + steps - 1)
    print(f"wrote {output}: {sensors} sensors, {steps} steps, {first} .. {last}, in vehicles a step")
    if negative:
        scored = "; scored as they were forecast" if evaluate else ""
        print(f"{negative} of {forecast.size} forecasts were below 0, which no flow is, and are written as 0{scored}")

    if evaluate:
        truth = read.flow[len(history.flow) :].T  # (N, P)
        errors = score_observed(forecast, truth)
        minutes = 60 / forecaster.config.data.points_per_hour
        rows = {f"{step * minutes:g} min": row for step, row in enumerate(errors.by_horizon(), start=1)}
        print(f"\nScored on {np.isfinite(truth).sum()} values of {source}, in vehicles a step:\n")
        print(table({**rows, "all": errors.overall()}, "horizon"))


def main() -> None:
    """Load the run and forecast."""
    arguments = parse_arguments()
    forecaster = load_forecaster(RunFolder(arguments.run.resolve()), VARIANTS, arguments.device)
    hour = forecaster.config.data.points_per_hour
    max_gap = hour if arguments.max_gap is None else arguments.max_gap
    predict(forecaster, arguments.input, arguments.output, max_gap, arguments.evaluate, arguments.by_position)


if __name__ == "__main__":
    run_script(main)
