"""Train a network, test its best weights, and write all results into a folder of their own."""

import argparse
from datetime import datetime
from pathlib import Path

from lib.checkpoints import load_checkpoint, restored, save_tensors
from lib.command_line import ScriptParser
from lib.config import Config, load_config, recipe_names, settings_table
from lib.data.preparing import input_files
from lib.distributed import Processes, joined_processes
from lib.errors import InputError, run_script
from lib.files import EXPERIMENTS, check_unused, check_writable
from lib.report.page import show_run
from lib.run_folder import RunFolder, check_run_name
from lib.runs import TrainingRun, complete_run, dry_run, finish_run, resume_run, score_run, start_run
from model.variants import VARIANTS

EXAMPLES = f"""examples:
  python run.py --config configurations/PEMS04.conf --seed 1
  python run.py --config configurations/PEMS04.conf --recipe residual_mlp stid --seed 1 2 3
  python run.py --config configurations/PEMS04.conf --set Training.batch_size=8 --name small-batches
  python run.py --config configurations/PEMS04.conf --dry-run
  python run.py --resume experiments/PEMS04/small-batches
  python run.py --config configurations/PEMS04.conf --recipe released --test-only --weights epoch50
  torchrun --nproc_per_node=2 run.py --config configurations/PEMS04.conf --seed 1

torchrun shares every batch out to several processes: GPUs of this machine, or with its own flags of several machines
that see the same files. [Training] batch_size stays that of the whole batch, and the results those of one process.

recipes, the files in configurations/recipes/: {", ".join(recipe_names())}
Interrupted, a command with several recipes or seeds goes on where it stopped.
"""
SETTING_FLAGS = {
    "epochs": "Training.epochs",
    "fine_tune_epochs": "Training.fine_tune_epochs",
    "device": "Runtime.device",
    "weights": "Training.weights",
}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        InputError: flags do not go together, or the weights cannot be exported to the file named.
    """
    parser = ScriptParser(__doc__, EXAMPLES, several_processes=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="INI file of the data set: start a new run")
    source.add_argument("--resume", type=Path, metavar="DIR", help="run folder: go on from its last checkpoint")
    source.add_argument("--settings", action="store_true", help="print a table of all settings")
    parser.add_argument("--recipe", nargs="+", help="settings over those of the INI file; several make a run each")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--seed", nargs="+", help="seed of weights, order and dropout; several make a run each")
    parser.add_argument("--epochs", help="epochs of stage 1, teacher forcing")
    parser.add_argument("--fine-tune-epochs", help="epochs of stage 2, through the rollout")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: the INI's, or auto)")
    parser.add_argument(
        "--name",
        help="name of the run's folder, or how the names of several begin (default: recipe or variant; seed and, for "
        "one run alone, time follow)",
    )
    parser.add_argument("--output", type=Path, help="where run folders go (default: experiments/)")
    parser.add_argument("--dry-run", action="store_true", help="one batch of everything; keeps nothing")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from these weights, the released code's too"
    )
    parser.add_argument("--test-only", action="store_true", help="test the weights without training")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the best weights as the released code would")
    arguments = parser.parse_args()
    flags = ("recipe", "set", "seed", "epochs", "fine_tune_epochs", "name", "output", "dry_run", "weights", "test_only")
    for flag in flags:
        if arguments.resume and getattr(arguments, flag) not in (None, [], False):
            raise InputError(f"--resume: found --{flag.replace('_', '-')} too, expected the run's own settings alone")
    if arguments.test_only and not arguments.weights:
        raise InputError("--test-only: found no --weights, expected the weights to test")
    for flag in ("test_only", "export"):
        if arguments.dry_run and getattr(arguments, flag):
            other = f"--{flag.replace('_', '-')}"
            raise InputError(f"--dry-run: found {other} too, expected one of them: a dry run trains and keeps nothing")
    for several in ("recipe", "seed"):
        for flag in ("weights", "export", "dry_run"):
            if len(getattr(arguments, several) or ()) > 1 and getattr(arguments, flag):
                raise InputError(f"--{several}: found several with --{flag.replace('_', '-')}, expected one")
    if arguments.export:
        resumed = RunFolder(arguments.resume) if arguments.resume else None
        files = [resumed.settings, resumed.last, resumed.best] if resumed else []
        check_writable(arguments.export, "--export", arguments.config, arguments.weights, *files)
    arguments.output = arguments.output or EXPERIMENTS
    arguments.weights = arguments.weights and arguments.weights.absolute()  # settings start at the repository's root
    return arguments


def read_configs(arguments: argparse.Namespace) -> dict[str, Config]:
    """Read the settings of each recipe and seed, by the beginning of the run's name.

    A flag is a setting said otherwise, and is checked like one.
    """
    flags = {flag: getattr(arguments, flag) for flag in SETTING_FLAGS}
    changes = [
        *arguments.set,
        *(f"{SETTING_FLAGS[flag]}={value}" for flag, value in flags.items() if value is not None),
    ]
    configs = {}
    for recipe in arguments.recipe or [None]:
        for seed in [[f"Training.seed={seed}"] for seed in arguments.seed or ()] or [[]]:
            config = load_config(arguments.config, VARIANTS, [*changes, *seed], recipe)
            own = recipe or config.variant.name
            prefix = own if arguments.name is None else arguments.name
            if arguments.name is not None and len(arguments.recipe or ()) > 1:
                prefix = f"{arguments.name}-{own}"
            configs[f"{prefix}-seed{config.training.seed}"] = config
    for notice in next(iter(configs.values())).notices:
        print(notice)
    return configs


def check_exportable(config: Config, path: Path) -> None:
    """Check, before training, that the released code can hold the weights of the run, in a file of their own.

    Raises:
        InputError: it has no such model, or the file is one that the configuration names.
    """
    check_unused(path, "--export", *input_files(config))
    if config.variant.to_released is None:
        exportable = " or ".join(name for name, variant in VARIANTS.items() if variant.to_released)
        raise InputError(
            f"--export: found variant {config.variant.name}, expected {exportable}, whose code the file is for"
        )


def export(run: TrainingRun, path: Path) -> None:
    """Write the best weights of a run as the released code would."""
    assert run.config.variant.to_released is not None  # check_exportable saw to it
    best = restored(run.folder.best, load_checkpoint(run.folder.best), run.config)
    save_tensors(path, run.config.variant.to_released(best))
    print(f"wrote {path}, with the names of the released code")


def main() -> None:
    """Start or resume a run, or several, try one out, or test weights; in as many processes as torchrun has started."""
    with joined_processes() as processes:
        arguments = parse_arguments()
        if arguments.settings:
            print(settings_table(VARIANTS), end="")
        elif arguments.resume:
            train(resume_run(RunFolder(arguments.resume.resolve()), VARIANTS, arguments.device, processes), arguments)
        else:
            start(arguments, processes)


def start(arguments: argparse.Namespace, processes: Processes) -> None:
    """Start what the arguments ask for."""
    configs = read_configs(arguments)
    name, config = next(iter(configs.items()))
    if arguments.export:
        check_exportable(config, arguments.export)
    if arguments.name is not None:
        check_run_name(arguments.name)  # before it becomes part of several names
    if len(configs) > 1:  # named by recipe and seed, so that the same command goes on where it stopped
        for name, config in configs.items():
            print(f"\n== {name} ==")
            folder = complete_run(config, arguments.output, name, VARIANTS, processes)
            if processes.first and not folder.page.exists():
                show_run(folder, config)
    elif arguments.dry_run:
        print(dry_run(config, processes))
    else:
        name = arguments.name or f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
        train(start_run(config, arguments.output, name, processes), arguments)


def train(run: TrainingRun, arguments: argparse.Namespace) -> None:
    """Train a run to its end, or test it as it is, and show it."""
    if arguments.export:
        check_exportable(run.config, arguments.export)
    print(f"run folder: {run.folder}")
    if arguments.test_only:
        run.trainer.skip()
        score_run(run)
    else:
        finish_run(run)
    if run.trainer.processes.first:
        print("\nlook at:", *show_run(run.folder, run.config), sep="\n  ")
        if arguments.export:
            export(run, arguments.export)


if __name__ == "__main__":
    run_script(main)
