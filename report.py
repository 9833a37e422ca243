"""Print a finished run's results, and make its figures and its page, report.html, from the files in its folder."""

import argparse
from pathlib import Path

from lib.command_line import ScriptParser
from lib.errors import run_script
from lib.publishing import publish
from lib.report.interval_tables import print_intervals
from lib.report.page import make_report
from lib.report.results import DAYS_DRAWN
from lib.report.text_tables import print_results
from lib.run_folder import RunFolder
from lib.runs import forecast_test_split
from model.variants import VARIANTS

EXAMPLES = """examples:
  python report.py --run experiments/PEMS04/paper-seed1
  python report.py --run experiments/PEMS04/paper-seed1 --sensors 3 17 --days 2
  python report.py --run experiments/PEMS04/paper-seed1 --sensors 3 --days 1 --first-day 5
  python report.py --run experiments/PEMS04/paper-seed1 --publish results/PEMS04/runs/paper

Nothing is trained again. Figures go to the run's folder figures/, PNG and PDF, in place of older ones of that name.
Where predictions.npz is missing, as in a published run, the test split is forecast again, which needs the data set.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a finished run")
    parser.add_argument(
        "--sensors",
        type=int,
        nargs="+",
        default=[],
        metavar="POSITION",
        help="sensors whose forecast is drawn (default: the one of median error)",
    )
    parser.add_argument("--days", type=int, default=DAYS_DRAWN, help=f"days of forecast drawn (default: {DAYS_DRAWN})")
    parser.add_argument(
        "--first-day", type=int, default=0, metavar="K", help="days of the test split before them (default: 0)"
    )
    parser.add_argument(
        "--publish", type=Path, metavar="DIR", help="only write a small folder for others, with weights and an example"
    )
    return parser.parse_args()


def main() -> None:
    """Make figures and page, and print the results and their paths."""
    arguments = parse_arguments()
    folder = RunFolder(arguments.run.resolve())
    config = folder.read_config(VARIANTS)
    if arguments.publish is not None:
        print("wrote", *publish(folder, RunFolder(arguments.publish.resolve()), VARIANTS), sep="\n  ")
        return
    if folder.is_finished() and not folder.predictions.exists():
        print(f"{folder.predictions} is missing: making it")
        forecast_test_split(folder, VARIANTS)
    written = make_report(folder, config, arguments.sensors, arguments.days, arguments.first_day)
    print_results(folder.read_metrics(), config)
    print_intervals(folder.read_interval_scores())
    print("\nwrote", *written, sep="\n  ")


if __name__ == "__main__":
    run_script(main)
