"""Train a recipe with one part changed at a time, and write the table of what each part is worth."""

import argparse
from dataclasses import fields

from lib.command_line import ScriptParser, add_training_flags
from lib.config import Config, load_config
from lib.errors import InputError, nearest, run_script
from lib.files import check_writable
from lib.report.comparison import FinishedRuns, Row, check_same_targets, group_row, read_runs, table_paths, write_tables
from lib.report.page import show_run
from lib.run_folder import RunFolder
from lib.runs import complete_run
from model.variants import VARIANTS

EXAMPLES = """examples:
  python ablation.py --config configurations/PEMS04.conf
  python ablation.py --config configurations/PEMS08.conf --recipe residual_mlp --seeds 2
  python ablation.py --config configurations/DEMO.conf --only paper paper-no-large-branch released

Each row changes one setting: every switch of the variant that is on is turned off, and so on. Interrupted, the same
command goes on where it stopped. The first row is what the others are compared with.
"""


def ablations(config: Config, name: str) -> dict[str, tuple[str, ...]]:
    """Return the rows of an ablation, none of which leaves all as it is: the name of each, and what it changes."""
    variant, model, training = config.variant, config.model, config.training
    rows: dict[str, tuple[str, ...]] = {name: ()}
    for item in fields(model):
        if getattr(model, item.name) is True:
            rows[f"{name}-no-{item.name.replace('_', '-')}"] = (f"Model.{item.name}=off",)
    if "harmonics" in {item.name for item in fields(model)}:
        rows[f"{name}-8-harmonics"] = ("Model.harmonics=8",)
    if variant.sees_other_sensors:
        rows |= {
            f"{name}-no-similarity-graph": ("Graph.similarity=full",),
            f"{name}-no-topology-graph": ("Graph.topology=full",),
            f"{name}-gaussian-similarity": ("Graph.similarity=gaussian",),
            f"{name}-released-similarity": ("Graph.similarity=released",),
            f"{name}-dtw-of-all-days": ("Graph.dtw_rows=all",),
        }
    if training.epochs:
        rows[f"{name}-no-fine-tuning"] = ("Training.fine_tune_epochs=0",)
    rows[f"{name}-no-padded-history"] = ("Training.padded_history=off",)
    rows[f"{name}-no-bias-correction"] = ("Training.bias_correction=off",)
    if variant.of_the_paper:
        others = (other for other in VARIANTS.values() if other.of_the_paper and other is not variant)
        rows |= {other.name: (f"Model.variant={other.name}",) for other in others}
    own = {f"{key}={text}" for key, text in config.texts().items()}
    return {row: changes for row, changes in rows.items() if not changes or not own.issuperset(changes)}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    add_training_flags(parser)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows only (default: all)")
    return parser.parse_args()


def chosen_rows(arguments: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return the rows asked for, with the settings that each changes.

    Raises:
        InputError: there is no such row.
    """
    base = load_config(arguments.config, VARIANTS, arguments.set, arguments.recipe)
    rows = ablations(base, arguments.recipe or base.variant.name)
    for name in arguments.only or ():
        if name not in rows:
            raise InputError(f"--only: found '{name}', expected one of {', '.join(rows)}{nearest(name, rows)}")
    return {name: rows[name] for name in arguments.only or rows}


def table_rows(groups: list[FinishedRuns], changes: dict[str, tuple[str, ...]]) -> list[Row]:
    """Return a row of the table for each group, with what is changed."""
    return [
        {"name": group.name, "changed": " ".join(changes[group.name]) or "nothing", **group_row(group, groups[0])}
        for group in groups
    ]


def main() -> None:
    """Train what is missing, row by row, and rewrite the tables after each."""
    arguments = parse_arguments()
    changes = chosen_rows(arguments)
    seeds = [f"Training.seed={seed}" for seed in range(1, arguments.seeds + 1)]
    configs = {  # all before the first is trained: a fault in the last one shows at once
        name: [
            load_config(arguments.config, VARIANTS, [*arguments.set, *changed, seed], arguments.recipe)
            for seed in seeds
        ]
        for name, changed in changes.items()
    }
    config = next(iter(configs.values()))[0]
    stem = arguments.results / config.data.dataset_name / f"ablation_{next(iter(changes))}"
    for path in table_paths(stem):
        check_writable(path, "--results")
    groups: list[FinishedRuns] = []
    trained: list[RunFolder] = []
    for name, with_seeds in configs.items():
        folders = []
        for one in with_seeds:
            run = f"ablation-{name}-seed{one.training.seed}"
            print(f"\n== {run} ==")
            folder = complete_run(one, arguments.output, run, VARIANTS)
            if not folder.page.exists():
                show_run(folder, one)
            folders.append(folder)
        trained += folders
        check_same_targets(trained)
        groups.append(read_runs(name, folders))
        write_tables(stem, "Ablation", table_rows(groups, changes), groups, groups[0], config.data)
    print(f"\nwrote {stem}.csv and {stem.name}.md")


if __name__ == "__main__":
    run_script(main)
