"""Errors in what the user gave, and how a script ends on one."""

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from lib.output import make_output_safe

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class InputError(Exception):
    """Something the user gave is wrong.

    The message is what the user reads, so it names the file, the section, key or row, what was found, and what was
    expected. A check that finds several faults joins them with newlines, one fault a line.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the valid name closest to `name`, or an empty string when none is close."""
    matches = get_close_matches(name, list(valid), n=1)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, ending without a traceback: 2 on an `InputError`, 1 without memory, 130 on Ctrl-C.

    What it prints never raises (`lib.output`).
    """
    make_output_safe()
    try:
        main()
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except (MemoryError, RuntimeError) as error:
        # For the memory of a CPU, PyTorch has no error of its own: its text tells.
        wanted = re.search(r"allocate ([\d.]+ \w+)", str(error))
        if wanted is None and not isinstance(error, MemoryError):
            raise
        size = f" for {wanted[1]}" if wanted else ""
        print(
            f"error: found no memory{size}, expected smaller sizes: configurations/README.md, 'When memory is short'",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_FAILED) from None
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{': ' if interrupt.args else ''}{interrupt}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
