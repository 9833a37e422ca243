"""Train the STID-style MLP, the small network that a large one has to beat, and print it beside all baselines."""

import argparse
from pathlib import Path

from lib.baselines import PERCEPTRON_SETTINGS
from lib.command_line import ScriptParser
from lib.comparison import check_same_targets, read_runs
from lib.config import Config, load_config
from lib.errors import InputError, run_script
from lib.experiments import EXPERIMENTS, complete_run
from lib.metrics import SCORES
from lib.reporting import model_name, table
from model.build import build_model, restore_model

EXAMPLES = f"""examples:
  python baselines.py --config configurations/PEMS04.conf
  python baselines.py --config configurations/DEMO.conf --seed 1 2 --set Training.epochs=10

The MLP's settings are its own, in place of the INI's; --set changes them too:
  {" ".join(PERCEPTRON_SETTINGS)}
Each seed is a run of its own, stid-seed1 and so on. Interrupted, the same command goes on where it stopped.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, help="INI file of the data set")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--seed", nargs="+", default=["1", "2", "3"], help="a run for each of them (default: 1 2 3)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: the INI's, or auto)")
    parser.add_argument("--output", type=Path, default=EXPERIMENTS, help="where run folders go (default: experiments/)")
    return parser.parse_args()


def read_configs(arguments: argparse.Namespace) -> list[Config]:
    """Read the INI file with the MLP's settings, once for each seed.

    Raises:
        InputError: a setting is wrong, or makes another model of it.
    """
    device = [] if arguments.device is None else [f"Runtime.device={arguments.device}"]
    changes = [*PERCEPTRON_SETTINGS, *arguments.set, *device]
    configs = [load_config(arguments.config, [*changes, f"Training.seed={seed}"]) for seed in arguments.seed]
    variant = configs[0].model.variant
    if variant != "stid":
        raise InputError(f"--set Model.variant: found {variant}, expected stid, the one that is trained here")
    for notice in configs[0].notices:
        print(notice)
    return list({config.training.seed: config for config in configs}.values())  # a seed given twice is one run


def main() -> None:
    """Train what is missing, seed by seed, and print the table."""
    arguments = parse_arguments()
    folders = []
    for config in read_configs(arguments):
        name = f"stid-seed{config.training.seed}"
        print(f"\n== {name} ==")
        folders.append(complete_run(config, arguments.output, name, build_model, restore_model))
    runs = read_runs(model_name("stid"), folders)
    check_same_targets([runs])
    seeds = len(folders)
    first = runs.metrics[0]
    perceptron = {score: runs.spread(score) for score in SCORES}
    baselines = {name: scores["overall"] for name, scores in first["baselines"].items()}
    print(f"\nBaselines on the test split, all horizons together ({runs.name}: mean ± sd of {seeds} seeds):\n")
    print(table({runs.name: perceptron, **baselines}, "forecast"))


if __name__ == "__main__":
    run_script(main)
