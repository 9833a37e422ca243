"""INI files: kinds of values, reading with a place for every message, and writing.

A section is a dataclass. The annotation of a field says how its value is read, checked and written, and what it means:
`Annotated[Count, "samples in a step of the optimiser"]`. A field without a default is required.
"""

import math
import re
from collections.abc import Callable, Iterable
from configparser import (
    DuplicateOptionError,
    DuplicateSectionError,
    MissingSectionHeaderError,
    ParsingError,
    RawConfigParser,
)
from dataclasses import MISSING, Field, dataclass, fields
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from lib.errors import InputError, nearest
from lib.files import REPOSITORY_ROOT

Name = tuple[str, str]  # section and key


# ---------------------------------------------------------------------------------------------- kinds of values


@dataclass(frozen=True)
class Kind:
    """How a value is read from text and written to it, which values are valid, and what messages call them."""

    expected: str
    read: Callable[[str], Any]
    valid: Callable[[Any], bool] = lambda _: True
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()  # of a word

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for.

        Raises:
            ValueError: the text is not of this kind.
        """
        value = self.read(text)
        if not self.valid(value):
            raise ValueError(f"expected {self.expected}")
        return value


def kind_of(annotation: Any) -> Kind:
    """Return the kind of a field: of `Literal[...]`, of `Annotated[type, Kind(...)]`, or of one of these `| None`.

    Further `Annotated` around any of these adds the meaning.
    """
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return one_of(arguments)
    if get_origin(annotation) is Annotated:
        own = [item for item in annotation.__metadata__ if isinstance(item, Kind)]
        return own[0] if own else kind_of(arguments[0])
    assert NoneType in arguments  # an empty text stands for None
    kind = kind_of(arguments[0])
    return Kind(
        f"{kind.expected}, or nothing",
        lambda text: kind.parse(text) if text else None,
        write=lambda value: "" if value is None else kind.write(value),
    )


def one_of(choices: Iterable[str]) -> Kind:
    """Return the kind of one of some words."""
    choices = tuple(choices)
    return Kind(f"one of {', '.join(choices)}", str, lambda value: value in choices, choices=choices)


def divisors(number: int) -> str:
    """Return the divisors of a number, for a message."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return ", ".join(map(str, sorted({*small, *(number // divisor for divisor in small)})))


def meaning_of(annotation: Any) -> str:
    """Return what a field means, the text in its annotation."""
    return next((item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, str)), "")


def _write_path(path: Path) -> str:
    inside = path.is_relative_to(REPOSITORY_ROOT)
    return (path.relative_to(REPOSITORY_ROOT) if inside else path).as_posix()


def _names_path(path: Path) -> bool:
    # Line breaks, outer spaces and what starts a comment would not come back from a written file.
    text = _write_path(path)
    return text != "." and text.isprintable() and text == text.strip() and not re.search(r"(^| )[#;]", text)


def _path_to(what: str) -> Kind:
    expected = f"the name of a {what} (relative names start at the repository's root)"
    return Kind(expected, lambda text: REPOSITORY_ROOT / text, _names_path, _write_path)


def _read_switch(text: str) -> bool:
    return ("off", "on").index(text) == 1


Count = Annotated[int, Kind("an integer of at least 1", int, lambda value: value >= 1)]
CountOrZero = Annotated[int, Kind("an integer of at least 0", int, lambda value: value >= 0)]
# Larger values are typing errors. They would make arrays of any size, or more layers and threads than there can be.
Size = Annotated[int, Kind("an integer from 1 to 1000000", int, lambda value: 1 <= value <= 10**6)]
OddSize = Annotated[
    int, Kind("an odd integer from 1 to 999999", int, lambda value: 1 <= value < 10**6 and value % 2 == 1)
]
SmallCount = Annotated[int, Kind("an integer from 1 to 1000", int, lambda value: 1 <= value <= 1000)]
Horizon = Annotated[int, Kind("an integer from 1 to 10000", int, lambda value: 1 <= value <= 10000)]
Segments = Annotated[int, Kind("an integer from 0 to 1000", int, lambda value: 0 <= value <= 1000)]
Threads = Annotated[int, Kind("an integer from 0 to 1024", int, lambda value: 0 <= value <= 1024)]
StepsPerHour = Annotated[int, Kind("an integer from 1 to 60", int, lambda value: 1 <= value <= 60)]
Seed = Annotated[int, Kind("an integer from 0 to 4294967295", int, lambda value: 0 <= value < 2**32)]
PositiveNumber = Annotated[float, Kind("a number above 0", float, lambda value: 0 < value < math.inf)]
LearningRate = Annotated[float, Kind("a number above 0 and at most 1000", float, lambda value: 0 < value <= 1000)]
NumberOrZero = Annotated[float, Kind("a number of at least 0", float, lambda value: 0 <= value < math.inf)]
DropoutRate = Annotated[float, Kind("a number of at least 0 and below 1", float, lambda value: 0 <= value < 1)]
Fraction = Annotated[float, Kind("a number above 0 and at most 1", float, lambda value: 0 < value <= 1)]
Switch = Annotated[bool, Kind("on or off", _read_switch, write=lambda value: "on" if value else "off")]
FolderName = Annotated[  # it becomes part of file and folder names
    str,
    Kind(
        "letters, digits, '.', '_' and '-', not starting with '.'",
        str,
        lambda value: re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", value) is not None,
    ),
]
FilePath = Annotated[Path, _path_to("file")]
FolderPath = Annotated[Path, _path_to("folder")]
LocalTime = Annotated[
    datetime,
    Kind(
        "a local time such as 2018-03-05 or 2018-03-05 00:05",
        datetime.fromisoformat,
        lambda value: value.tzinfo is None and value.year < 9000,  # so that there are times after it
        lambda value: value.isoformat(sep=" "),
    ),
]


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Entry:
    """A value as the user wrote it, and where: how a message about it begins."""

    text: str
    place: str


def read_text(path: Path) -> str:
    """Return the text of an INI file; configparser would pass over one that it cannot open.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise InputError(f"{path}: found a folder, expected an INI file") from None
    except FileNotFoundError:
        hint = nearest(path.name, [other.name for other in path.parent.glob("*.conf")])
        raise InputError(f"{path}: found no such file, expected an INI file{hint}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: found bytes in line {line} that are not UTF-8, expected UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_sections(text: str, path: Path, faults: list[str]) -> dict[str, dict[str, str]]:
    """Read the texts of all sections and keys; what the format forbids becomes a fault, and reading goes on.

    configparser stops at the first duplicate, so the line it names is taken out and the rest is read again. It takes an
    indented line for more of the value before, which would swallow a setting, so the indentation goes.
    """
    lines = [line.strip() for line in text.split("\n")]
    while True:
        # No header can be empty, so naming the default section thus makes [DEFAULT] a section like any other.
        parser = RawConfigParser(default_section="", inline_comment_prefixes=("#", ";"))
        try:
            parser.read_string("\n".join(lines))
            break
        except DuplicateOptionError as error:
            place = f"{path} [{error.section.partition(chr(0))[0]}] {error.option}"
            faults.append(f"{place}: found it again in line {error.lineno}, expected it once")
            lines[(error.lineno or 1) - 1] = ""
        except DuplicateSectionError as error:
            faults.append(f"{path} [{error.section}]: found it again in line {error.lineno}, expected it once")
            lines[(error.lineno or 1) - 1] = f"[{error.section}\0{error.lineno}]"  # joined to its section below
        except MissingSectionHeaderError as error:
            raise InputError(
                f"{path}: found {lines[error.lineno - 1]!r} in line {error.lineno}, expected a section such as [Data]"
            ) from None
        except ParsingError as error:
            for number, _ in error.errors:
                faults.append(f"{path}: found {lines[number - 1]!r} in line {number}, expected key = value")
                lines[number - 1] = ""
    sections: dict[str, dict[str, str]] = {}
    for section in parser.sections():
        sections.setdefault(section.partition("\0")[0], {}).update(parser[section])
    return sections


def read_value(setting: Field[Any], entry: Entry | None) -> Any:
    """Return a setting's value, or its default where there is no entry.

    Raises:
        ValueError: the value is wrong, or a required one is missing; it says what was found and expected.
    """
    kind = kind_of(setting.type)
    if entry is None:
        if setting.default is MISSING:
            raise ValueError(f"found no such key, expected {kind.expected}")
        return setting.default
    return parse_value(kind, entry.text)


def parse_value(kind: Kind, text: str) -> Any:
    """Return the value that a text stands for.

    Raises:
        ValueError: it is not of that kind; it says what was found and expected.
    """
    try:
        return kind.parse(text)
    except ValueError:
        raise ValueError(f"found {text!r}, expected {kind.expected}{nearest(text, kind.choices)}") from None


def section_text(name: str, settings: Any, first: str = "") -> str:
    """Return a section of an INI file with every setting of a dataclass, after a first line."""
    written = {item.name: kind_of(item.type).write(getattr(settings, item.name)) for item in fields(settings)}
    lines = [f"{key} = {text}".rstrip() for key, text in written.items()]
    return "\n".join([f"[{name}]", *([first] if first else []), *lines])
