"""Train the model with one part changed at a time, and write the table of what each part is worth."""

import argparse
from pathlib import Path

from lib.command_line import ScriptParser
from lib.comparison import FinishedRuns, Row, check_same_targets, group_row, read_runs, table_paths, write_tables
from lib.config import DEVIATION_VARIANTS, OWN_SETTINGS, ModelConfig, load_config
from lib.errors import InputError, nearest, run_script
from lib.experiments import EXPERIMENTS, complete_run
from lib.files import REPOSITORY_ROOT, check_writable
from model.build import build_model, restore_model

EXAMPLES = """examples:
  python ablation.py --config configurations/PEMS04.conf
  python ablation.py --config configurations/DEMO.conf --seeds 2 --only full released-code

Interrupted, the same command goes on where it stopped. The first variant is what the others are compared with.
"""


def without_each_part(variant: str) -> dict[str, tuple[str, ...]]:
    """Return the rows of a variant that forecasts deviations: the whole, and without each of its own parts."""
    chosen, early = f"Model.variant={variant}", "Training.early_samples={}".format
    own = [key for key, variants in OWN_SETTINGS.items() if variants == DEVIATION_VARIANTS]
    parts = [key for key in own if getattr(ModelConfig, key) is True]
    return {
        variant: (chosen, early("on")),
        **{f"{variant}-no-{part.replace('_', '-')}": (chosen, early("on"), f"Model.{part}=off") for part in parts},
        f"{variant}-8-harmonics": (chosen, early("on"), "Model.harmonics=8"),
        f"{variant}-no-early-samples": (chosen, early("off")),
    }


ABLATIONS: dict[str, tuple[str, ...]] = {
    "full": (),
    "regular-patches": ("Model.deformable_patches=off",),
    "small-kernels-only": ("Model.large_branch=off",),
    "large-kernels-only": ("Model.small_branch=off",),
    "no-similarity-graph": ("Graph.similarity=full",),
    "no-topology-graph": ("Graph.topology=full",),
    "no-laplacian-encoding": ("Model.laplacian_encoding=off",),
    "cross-attention": ("Model.time_gate=off",),
    "no-fine-tuning": ("Training.fine_tune_epochs=0",),
    "gaussian-similarity": ("Graph.similarity=gaussian",),
    "released-similarity": ("Graph.similarity=released",),
    "dtw-of-all-days": ("Graph.dtw_rows=all",),
    "released-code": ("Model.variant=released",),
    **without_each_part("enhanced"),
    **without_each_part("perceptron"),  # which is enhanced without the encoder
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        InputError: a variant is unknown.
    """
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, help="INI file of the data set")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting for all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant, with seeds 1, 2, ... (default: 3)")
    paper = [name for name in ABLATIONS if not name.startswith(DEVIATION_VARIANTS)]
    parser.add_argument(
        "--only",
        nargs="+",
        default=paper,
        metavar="VARIANT",
        help=f"{', '.join(ABLATIONS)} (default: those of the paper, without enhanced... and perceptron...)",
    )
    parser.add_argument("--output", type=Path, default=EXPERIMENTS, help="where run folders go (default: experiments/)")
    parser.add_argument("--results", type=Path, default=REPOSITORY_ROOT / "results", help="where the tables go")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        raise InputError(f"--seeds: found {arguments.seeds}, expected an integer of at least 1")
    for name in arguments.only:
        if name not in ABLATIONS:
            raise InputError(
                f"--only: found unknown variant '{name}', expected one of {', '.join(ABLATIONS)}"
                f"{nearest(name, ABLATIONS)}"
            )
    return arguments


def rows(groups: list[FinishedRuns]) -> list[Row]:
    """Return a row of the table for each variant, with what is changed."""
    changed = [" ".join(ABLATIONS[group.name]) or "nothing" for group in groups]
    return [
        {"name": group.name, "changed": change, **group_row(group, groups[0])}
        for group, change in zip(groups, changed, strict=True)
    ]


def main() -> None:
    """Train what is missing, variant by variant, and rewrite the tables after each."""
    arguments = parse_arguments()
    seeds = [f"Training.seed={seed}" for seed in range(1, arguments.seeds + 1)]
    configs = {  # all before the first is trained: a fault in the last one shows at once
        name: [load_config(arguments.config, [*arguments.set, *ABLATIONS[name], seed]) for seed in seeds]
        for name in arguments.only
    }
    config = configs[arguments.only[0]][0]
    stem = arguments.results / config.data.dataset_name / "ablation"
    for path in table_paths(stem):
        check_writable(path, "--results")
    groups: list[FinishedRuns] = []
    for name, with_seeds in configs.items():
        folders = []
        for one in with_seeds:
            run = f"ablation-{name}-seed{one.training.seed}"
            print(f"\n== {run} ==")
            folders.append(complete_run(one, arguments.output, run, build_model, restore_model))
        groups.append(read_runs(name, folders))
        check_same_targets(groups)
        write_tables(stem, "Ablation", rows(groups), groups, groups[0], config.data)
    print(f"\nwrote {stem}.csv and {stem.name}.md")


if __name__ == "__main__":
    run_script(main)
