"""Compare finished runs of any settings on the same test samples: tables, and figures by horizon and training time."""

import argparse
from pathlib import Path

from lib.command_line import ScriptParser
from lib.errors import InputError, nearest, run_script
from lib.files import check_writable
from lib.report.comparison import (
    baseline_rows,
    best_baselines,
    check_same_targets,
    group_folders,
    group_row,
    read_runs,
    table_paths,
    write_tables,
)
from lib.report.figures import draw_figure, error_against_time, horizons_compared
from lib.report.text_tables import flow_unit
from lib.run_folder import RunFolder
from model.variants import VARIANTS

EXAMPLES = """examples:
  python compare.py --runs experiments/PEMS04/stid-* experiments/PEMS04/paper-* --output results/PEMS04/comparison
  python compare.py --runs experiments/DEMO/* --reference "stid (Training.epochs 40)" --output comparison

Runs that differ by the seed alone, and by what [Runtime] says beside precision, are one row, named by their recipe, or
by their variant where they are of no recipe; rows of the same name also by the settings in which they differ. Nothing
is trained.
"""
BASELINES_DRAWN = 2


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="folders of finished runs")
    parser.add_argument(
        "--reference", metavar="NAME", help="the row that others are compared with (default: that of the first run)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="STEM",
        help="what the names of the files begin with: STEM.md, STEM.csv, STEM_by_horizon.png, STEM_against_time.png",
    )
    return parser.parse_args()


def main() -> None:
    """Read the runs, and write and print tables and figures."""
    arguments = parse_arguments()
    stem: Path = arguments.output
    by_horizon, against_time = Path(f"{stem}_by_horizon.png"), Path(f"{stem}_against_time.png")
    runs = [RunFolder(path) for path in arguments.runs]
    folders = group_folders(runs, VARIANTS)
    taken = [path for run in runs for path in run.path.rglob("*")]
    figures = [path.with_suffix(suffix) for path in (by_horizon, against_time) for suffix in (".png", ".pdf")]
    for path in (*table_paths(stem), *figures):
        check_writable(path, "--output", *taken)
    reference = next(iter(folders)) if arguments.reference is None else arguments.reference
    if reference not in folders:
        names = ", ".join(f"'{name}'" for name in folders)
        raise InputError(f"--reference: found '{reference}', expected one of {names}{nearest(reference, folders)}")

    check_same_targets(runs)
    groups = {name: read_runs(name, paths) for name, paths in folders.items()}
    compared = list(groups.values())
    rows = [*baseline_rows(compared), *(group_row(group, groups[reference]) for group in compared)]
    data = runs[0].read_config(VARIANTS).data
    print(write_tables(stem, "Comparison", rows, compared, groups[reference], data))
    unit, minutes = flow_unit(data.points_per_hour), 60 / data.points_per_hour
    maes = {name: group.by_horizon() for name, group in groups.items()}
    best = best_baselines(compared, BASELINES_DRAWN)
    written = [*table_paths(stem), *draw_figure(lambda: horizons_compared(maes, best, minutes, unit), by_horizon)]
    if curves := {name: found for name, group in groups.items() if (found := group.curves())}:
        written += draw_figure(lambda: error_against_time(curves, unit), against_time)
    print("wrote", *written, sep="\n  ")


if __name__ == "__main__":
    run_script(main)
