"""Train the model with one part changed at a time, and write the table of what each part is worth."""

import argparse
import csv
import shlex
import sys
from datetime import date
from pathlib import Path

import torch

from lib.command_line import ScriptParser
from lib.comparison import FinishedRuns, check_same_targets, paired_difference, read_runs
from lib.config import Config, load_config
from lib.devices import choose_device, describe_device
from lib.errors import InputError, nearest, run_script
from lib.experiments import EXPERIMENTS, complete_run
from lib.files import REPOSITORY_ROOT, check_writable, written_whole
from model.build import build_model, restore_model

EXAMPLES = """examples:
  python ablation.py --config configurations/PEMS04.conf
  python ablation.py --config configurations/DEMO.conf --seeds 2 --only full released-code

Interrupted, the same command goes on where it stopped. The first variant is what the others are compared with.
"""
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
    "enhanced": ("Model.variant=enhanced",),
    "enhanced-no-deviation": ("Model.variant=enhanced", "Model.deviation=off"),
    "enhanced-no-identity": ("Model.variant=enhanced", "Model.identity=off"),
    "enhanced-no-graph-means": ("Model.variant=enhanced", "Model.graph_means=off"),
    "enhanced-no-encoder": ("Model.variant=perceptron",),
}
HEADER = ("variant", "changed", "seeds", "val_mae", "mae", "mae_sd", "rmse", "rmse_sd", "mape", "mape_sd")
DIFFERENCE_HEADER = ("mae_difference", "interval_low", "interval_high")


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
    paper = [name for name in ABLATIONS if not name.startswith("enhanced")]
    parser.add_argument(
        "--only",
        nargs="+",
        default=paper,
        metavar="VARIANT",
        help=f"{', '.join(ABLATIONS)} (default: those of the paper, without enhanced...)",
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


def rows(groups: list[FinishedRuns], horizon: int) -> list[list[str]]:
    """Return a row of the table for each variant."""
    table = []
    for group in groups:
        scores = [f"{number:.4f}" for score in ("mae", "rmse", "mape") for number in group.spread(score)]
        difference = ["", "", ""]
        if group is not groups[0]:
            paired = paired_difference(group.sample_errors, groups[0].sample_errors, block=horizon)
            difference = [f"{number:.4f}" for number in paired]
        changed = " ".join(ABLATIONS[group.name]) or "nothing"
        table.append([group.name, changed, str(len(group.metrics)), f"{group.validation():.4f}", *scores, *difference])
    return table


def write_tables(folder: Path, table: list[list[str]], config: Config) -> None:
    """Write ablation.csv and ablation.md into a folder."""
    with written_whole(folder / "ablation.csv") as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([[*HEADER, *DIFFERENCE_HEADER], *table])
    device = choose_device(config.runtime.device)
    lines = [
        f"# Ablation on {config.data.dataset_name}",
        "",
        f"`python {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        "",
        f"{date.today()}, {describe_device(device)}, PyTorch {torch.__version__}. Test split, all horizons; mean +-",
        "standard deviation over seeds; the difference of the MAE to the first row, with its 95 % bootstrap interval",
        "over test samples in blocks of one horizon.",
        "",
        "| variant | changed | seeds | val MAE | MAE | RMSE | MAPE % | MAE difference |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, changed, seeds, validation, *numbers in table:
        scores = [
            f"{float(mean):.2f} +- {float(sd):.2f}" for mean, sd in zip(numbers[0:6:2], numbers[1:6:2], strict=True)
        ]
        mean, low, high = numbers[6:]
        difference = f"{float(mean):+.2f} ({float(low):+.2f} .. {float(high):+.2f})" if mean else ""
        cells = [name, f"`{changed}`", seeds, f"{float(validation):.2f}", *scores, difference]
        lines.append(f"| {' | '.join(cells)} |")
    with written_whole(folder / "ablation.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Train what is missing, variant by variant, and rewrite the tables after each."""
    arguments = parse_arguments()
    seeds = [f"Training.seed={seed}" for seed in range(1, arguments.seeds + 1)]
    configs = {  # all before the first is trained: a fault in the last one shows at once
        name: [load_config(arguments.config, [*arguments.set, *ABLATIONS[name], seed]) for seed in seeds]
        for name in arguments.only
    }
    config = configs[arguments.only[0]][0]
    folder = arguments.results / config.data.dataset_name
    for name in ("ablation.csv", "ablation.md"):
        check_writable(folder / name, "--results")
    groups: list[FinishedRuns] = []
    for name, with_seeds in configs.items():
        folders = []
        for one in with_seeds:
            run = f"ablation-{name}-seed{one.training.seed}"
            print(f"\n== {run} ==")
            folders.append(complete_run(one, arguments.output, run, build_model, restore_model))
        groups.append(read_runs(name, folders))
        check_same_targets(groups)
        write_tables(folder, rows(groups, config.data.num_for_predict), config)
    print(f"\nwrote {folder / 'ablation.csv'} and ablation.md")


if __name__ == "__main__":
    run_script(main)
