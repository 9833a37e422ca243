"""The command line of the scripts: one layout of the help, and wrong arguments reported like other wrong input."""

import argparse
from typing import NoReturn

from lib.errors import InputError


class ScriptParser(argparse.ArgumentParser):
    """A parser whose help ends with examples, and which raises an `InputError` where argparse would print its usage."""

    def __init__(self, description: str | None, examples: str) -> None:
        super().__init__(description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise an InputError.

        Raises:
            InputError: always, with the message of argparse.
        """
        raise InputError(message)
