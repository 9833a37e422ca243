"""Collect finished runs into the paper's tables, beside published results and baselines."""

import sys
from pathlib import Path

from lib.command_line import ScriptParser
from lib.config import CONFIGURATIONS, load_config
from lib.errors import InputError, nearest, run_script
from lib.files import EXPERIMENTS, REPOSITORY_ROOT, check_writable, written_whole
from lib.report.paper_tables import collect, published_split, read_published, render
from model.variants import VARIANTS

EXAMPLES = """examples:
  python paper_tables.py                                  # PEMS03, 04, 07 and 08
  python paper_tables.py --dataset PEMS04 PEMS08 --format tex --output tables.tex
  python paper_tables.py --dataset PEMS08 --split windows  # all windows of one hour, as in most papers
  python paper_tables.py --config configurations/DEMO.conf

A run counts when its settings are those of its configuration under one of the recipes, but for the seed and what
[Runtime] says beside precision; others are named on the standard error output, with the first setting that differs.
Cells that have not been measured stay empty. Published rows are only those on the same targets ([Data] split).
"""


def main() -> None:
    """Parse the arguments, collect, and write the tables."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument(
        "--dataset", nargs="+", default=["PEMS03", "PEMS04", "PEMS07", "PEMS08"], help="shipped data sets"
    )
    parser.add_argument("--config", nargs="+", type=Path, default=[], help="INI files instead, of any data sets")
    parser.add_argument(
        "--split", choices=("samples", "windows"), help="[Data] split of the runs (default: that of the INI file)"
    )
    parser.add_argument("--format", choices=("md", "tex", "csv"), default="md")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where run folders are")
    parser.add_argument("--output", type=Path, help="file to write (default: the screen)")
    arguments = parser.parse_args()
    shipped = {path.stem: path for path in sorted(CONFIGURATIONS.glob("*.conf"))}
    for name in arguments.dataset:
        if name not in shipped:
            raise InputError(f"--dataset: found '{name}', expected one of {', '.join(shipped)}{nearest(name, shipped)}")

    paths = arguments.config or [shipped[name] for name in arguments.dataset]
    if arguments.experiments != EXPERIMENTS and not arguments.experiments.is_dir():
        raise InputError(f"--experiments: found no folder {arguments.experiments}, expected that of the run folders")
    published_path = REPOSITORY_ROOT / "results" / "published.csv"
    if arguments.output is not None:
        check_writable(arguments.output, "--output", published_path, *paths)
    changes = [] if arguments.split is None else [f"Data.split={arguments.split}"]
    configs = [load_config(path, VARIANTS, changes) for path in paths]
    datasets = [config.data.dataset_name for config in configs]
    for name in datasets:
        if datasets.count(name) > 1:
            raise InputError(f"found data set {name} {datasets.count(name)} times, expected a column for each once")
    collections = [collect(path, arguments.experiments, VARIANTS, changes) for path in paths]
    for dataset, collection in zip(datasets, collections, strict=True):
        for reason in collection.left_out:
            print(f"left out {dataset}/{reason}", file=sys.stderr)
    splits = {config.data.dataset_name: published_split(config) for config in configs}
    published = read_published(published_path, splits)
    tables = {"all horizons together": [*published, *(row for each in collections for row in each.rows)]}
    for horizon in sorted({horizon for each in collections for horizon in each.horizon_rows}):
        tables[f"step {horizon}"] = [row for each in collections for row in each.horizon_rows.get(horizon, [])]

    comment = {"md": "## {}\n\n", "tex": "% {}\n", "csv": "# {}\n"}[arguments.format]
    text = "\n".join(comment.format(title) + render(rows, datasets, arguments.format) for title, rows in tables.items())
    if arguments.output is None:
        print(text, end="")
        return
    with written_whole(arguments.output) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_script(main)
