"""Train DTG-LKNet, test its best weights, and write all results into a folder of their own."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lib.checkpoints import BEST, LAST, load_checkpoint, load_tensors, other_network, save_tensors
from lib.command_line import ScriptParser
from lib.config import Config, load_config
from lib.errors import InputError, run_script
from lib.experiments import (
    EXPERIMENTS,
    SETTINGS,
    complete_run,
    dry_run,
    finish_experiment,
    report_test,
    resume_experiment,
    run_name,
    start_experiment,
)
from lib.files import check_writable
from model.build import build_model, restore_model
from model.released_weights import is_exportable, is_released, load_weights, released_checkpoint

EXAMPLES = """examples:
  python run.py --config configurations/PEMS04.conf --seed 1
  python run.py --config configurations/PEMS04.conf --set Training.batch_size=8 --name small-batches
  python run.py --config configurations/PEMS04.conf --seed 1 2 3 4 5
  python run.py --config configurations/PEMS04.conf --dry-run
  python run.py --resume experiments/PEMS04/small-batches
  python run.py --config configurations/PEMS04.conf --set Model.variant=released --test-only --weights epoch50
"""
SETTING_FLAGS = {
    "epochs": "Training.epochs",
    "fine_tune_epochs": "Training.fine_tune_epochs",
    "device": "Runtime.device",
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        InputError: flags do not go together, or the weights cannot be exported to the file named.
    """
    parser = ScriptParser(__doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="INI file of the data set: start a new run")
    source.add_argument("--resume", type=Path, metavar="DIR", help="run folder: go on from its last checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--seed", nargs="+", help="seed of weights, order and dropout; several make a run each")
    parser.add_argument("--epochs", help="epochs of stage 1, teacher forcing")
    parser.add_argument("--fine-tune-epochs", help="epochs of stage 2, through the rollout")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: the INI's, or auto)")
    parser.add_argument("--name", help="name of the run's folder (default: variant, seed and time)")
    parser.add_argument("--output", type=Path, default=EXPERIMENTS, help="where run folders go (default: experiments/)")
    parser.add_argument("--dry-run", action="store_true", help="one batch of everything; keeps nothing")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from these weights, the released code's too"
    )
    parser.add_argument("--test-only", action="store_true", help="test the weights without training")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the best weights as the released code would")
    arguments = parser.parse_args()
    for flag in ("set", "seed", "epochs", "fine_tune_epochs", "name", "dry_run", "weights", "test_only"):
        if arguments.resume and getattr(arguments, flag) not in (None, [], False):
            raise InputError(f"--resume: found --{flag.replace('_', '-')} too, expected the run's own settings alone")
    if arguments.test_only and not arguments.weights:
        raise InputError("--test-only: found no --weights, expected the weights to test")
    for flag in ("test_only", "export"):
        if arguments.dry_run and getattr(arguments, flag):
            other = f"--{flag.replace('_', '-')}"
            raise InputError(f"--dry-run: found {other} too, expected one of them: a dry run trains and keeps nothing")
    for flag in ("weights", "export", "dry_run"):
        if len(arguments.seed or ()) > 1 and getattr(arguments, flag):
            raise InputError(f"--seed: found several with --{flag.replace('_', '-')}, expected one")
    if arguments.export:
        resumed = [arguments.resume / name for name in (SETTINGS, LAST, BEST)] if arguments.resume else []
        check_writable(arguments.export, "--export", arguments.config, arguments.weights, *resumed)
    return arguments


def read_configs(arguments: argparse.Namespace) -> list[Config]:
    """Read the INI file, once for each seed; a flag is a setting said otherwise, and is checked like one."""
    flags = {flag: getattr(arguments, flag) for flag in SETTING_FLAGS}
    changes = [
        *arguments.set,
        *(f"{SETTING_FLAGS[flag]}={value}" for flag, value in flags.items() if value is not None),
    ]
    seeds = [[f"Training.seed={seed}"] for seed in arguments.seed or ()]
    configs = [load_config(arguments.config, [*changes, *seed]) for seed in seeds or [[]]]
    for notice in configs[0].notices:
        print(notice)
    return configs


def check_exportable(config: Config) -> None:
    """Check, before training, that the released code can hold the weights of the run.

    Raises:
        InputError: it has no such model.
    """
    variant = config.model.variant
    if variant not in ("described", "released"):
        raise InputError(
            f"--export: found variant {variant}, expected described or released, whose code the file is for"
        )


def builder(weights: Path) -> Callable[..., nn.Module]:
    """Return what builds the model with the weights of a file, of this project or of the released code."""

    def build_with_weights(*graphs: Tensor, **arguments: Any) -> nn.Module:
        model, checkpoint = build_model(*graphs, **arguments), load_tensors(weights)
        try:
            load_weights(model, checkpoint)
        except ValueError as error:
            raise InputError(f"{weights}: {error}{other_network(checkpoint, arguments)}") from None
        if is_released(checkpoint):
            print(f"{weights}: a checkpoint of the released code, which lacks its Laplacian encoding: the one computed")
            print("here has another basis where eigenvalues are equal, so results may differ from those of its author")
        return model

    return build_with_weights


def main() -> None:
    """Start or resume a run, try one out, or test weights."""
    arguments = parse_arguments()
    if arguments.resume:
        experiment = resume_experiment(arguments.resume.resolve(), restore_model, arguments.device)
        if arguments.export:
            check_exportable(experiment.config)
    else:
        config, *others = read_configs(arguments)
        if arguments.export:
            check_exportable(config)
        if arguments.name is not None:
            run_name(config, arguments.name)  # before it becomes part of several names
        if others:  # named by seed, so that the same command goes on where it stopped
            for one in (config, *others):
                name = f"{one.model.variant if arguments.name is None else arguments.name}-seed{one.training.seed}"
                print(f"\n== {name} ==")
                complete_run(one, arguments.output, name, build_model, restore_model)
            return
        build = builder(arguments.weights) if arguments.weights else build_model
        if arguments.dry_run:
            print(dry_run(config, build))
            return
        experiment = start_experiment(config, arguments.output, arguments.name, build)
    print(f"run folder: {experiment.folder}")
    if arguments.test_only:
        experiment.trainer.save(BEST)
        figures = report_test(experiment)
    else:
        figures = finish_experiment(experiment)
    print("\nlook at:", *figures, sep="\n  ")
    if arguments.export:
        best = restore_model(experiment.trainer.extra["model"], load_checkpoint(experiment.folder / BEST)["weights"])
        assert is_exportable(best)  # check_exportable saw to it
        save_tensors(arguments.export, released_checkpoint(best))
        print(f"wrote {arguments.export}, with the names of the released code")


if __name__ == "__main__":
    run_script(main)
