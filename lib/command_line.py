"""The command line of the scripts: one layout of the help, and wrong arguments reported like other wrong input."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lib.distributed import refuse_several_processes
from lib.errors import InputError
from lib.files import EXPERIMENTS, REPOSITORY_ROOT


class ScriptParser(argparse.ArgumentParser):
    """A parser whose help ends with examples, and which raises an `InputError` where argparse would print its usage.

    Args:
        description: what the script does.
        examples: the end of the help.
        several_processes: whether torchrun may start the script in several processes.
    """

    def __init__(self, description: str | None, examples: str, several_processes: bool = False) -> None:
        super().__init__(description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
        if not several_processes:
            refuse_several_processes()

    def error(self, message: str) -> NoReturn:
        """Raise an InputError.

        Raises:
            InputError: always, with the message of argparse.
        """
        raise InputError(message.removeprefix("argument "))


def integer_from(least: int) -> Callable[[str], int]:
    """Return what reads an argument that is an integer of at least so much."""

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"found {text}, expected an integer of at least {least}")

    return read


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a script that trains several runs, each with several seeds, and writes tables."""
    parser.add_argument("--config", type=Path, required=True, help="INI file of the data set")
    parser.add_argument("--recipe", help="settings over those of the INI file (default: none)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting for all"
    )
    parser.add_argument(
        "--seeds", type=integer_from(1), default=3, help="runs of each row, with seeds 1, 2, ... (default: 3)"
    )
    parser.add_argument("--output", type=Path, default=EXPERIMENTS, help="where run folders go (default: experiments/)")
    parser.add_argument("--results", type=Path, default=REPOSITORY_ROOT / "results", help="where the tables go")
