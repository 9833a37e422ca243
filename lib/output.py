"""Output of the scripts. It never raises: not for a letter that the terminal cannot show, nor for a closed pipe."""

import codecs
import io
import sys
from contextlib import suppress

PLAIN = {"±": "+-"}  # our own letters that are not ASCII


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a letter that an encoding lacks in plain ones, `+-` or `\\xe9`."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] in PLAIN:
        return PLAIN[error.object[error.start]], error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error("plain", _plain)


class _Descriptor(io.FileIO):
    """A file descriptor that drops what is written to a closed pipe, so that the script goes on to write its files."""

    def write(self, data: object) -> int:
        with suppress(BrokenPipeError):
            return super().write(data)  # type: ignore[arg-type]
        return len(memoryview(data))  # type: ignore[arg-type]


def make_output_safe() -> None:
    """Make standard output and errors take any text, and go on when the reader of a pipe, such as `head`, has ended."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # it may be None, or a notebook's
            stream.flush()
            stream.reconfigure(errors="plain")
            if stream is getattr(sys, f"__{name}__"):  # not where a test or a caller has put its own
                raw = _Descriptor(stream.fileno(), "w", closefd=False)
                line_buffering = stream.line_buffering or name == "stderr"
                safe = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "plain", line_buffering=line_buffering)
                setattr(sys, name, safe)
