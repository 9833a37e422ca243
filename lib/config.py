"""The settings of a run: an INI file read into frozen dataclasses, checked as a whole, and written back.

The dataclasses below are the only list of settings. A field's annotation says how its value is read, checked and
written, a field without a default is required, and a new setting is one more field.
"""

import math
import re
from collections.abc import Callable, Sequence
from configparser import (
    DuplicateOptionError,
    DuplicateSectionError,
    MissingSectionHeaderError,
    ParsingError,
    RawConfigParser,
)
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from lib.errors import InputError, nearest
from lib.files import REPOSITORY_ROOT, printable

# Keys that files of the released code have and nothing needs: the input length follows from the segments, the model's
# input and output have one channel, and interrupted runs need no start epoch. Those of [Model] were parts of an earlier
# enhanced variant, and runs of then name them.
UNUSED_KEYS = {
    "Data": ("len_input",),
    "Training": ("use_nni", "model_name", "start_epoch", "encoder_input_size", "decoder_input_size"),
    "Model": ("readout", "residual"),
}
# Keys of [Model] that runs of before do not name, and what these had.
LATER_KEYS = {"autoregression": "off", "past_days": "off", "harmonics": "8"}


# ---------------------------------------------------------------------------------------------- kinds of values


@dataclass(frozen=True)
class Kind:
    """How a value is read from text and written to it, which values are valid, and how a message calls them."""

    expected: str
    read: Callable[[str], Any]
    valid: Callable[[Any], bool] = lambda _: True
    write: Callable[[Any], str] = str

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
    """Return the kind of a field: of `Literal[...]`, of `Annotated[type, Kind(...)]`, or of one of these `| None`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return Kind(f"one of {', '.join(arguments)}", str, lambda value: value in arguments)
    if NoneType in arguments:  # an empty text stands for None
        kind = kind_of(arguments[0])
        return Kind(
            f"{kind.expected}, or nothing",
            lambda text: kind.parse(text) if text else None,
            write=lambda value: "" if value is None else kind.write(value),
        )
    return next(item for item in annotation.__metadata__ if isinstance(item, Kind))


def _write_path(path: Path) -> str:
    inside = path.is_relative_to(REPOSITORY_ROOT)
    return (path.relative_to(REPOSITORY_ROOT) if inside else path).as_posix()


def _names_file(path: Path) -> bool:
    # Line breaks, outer spaces and what starts a comment would not come back from a written file.
    text = _write_path(path)
    return text != "." and text.isprintable() and text == text.strip() and not re.search(r"(^| )[#;]", text)


def _read_switch(text: str) -> bool:
    return ("off", "on").index(text) == 1


Count = Annotated[int, Kind("an integer of at least 1", int, lambda value: value >= 1)]
CountOrZero = Annotated[int, Kind("an integer of at least 0", int, lambda value: value >= 0)]
OddCount = Annotated[int, Kind("an odd integer of at least 1", int, lambda value: value >= 1 and value % 2 == 1)]
# Beyond these limits lie slips of the pen only, and lists of millions of windows, or threads that cannot be made.
Horizon = Annotated[int, Kind("an integer from 1 to 10000", int, lambda value: 1 <= value <= 10000)]
Segments = Annotated[int, Kind("an integer from 0 to 1000", int, lambda value: 0 <= value <= 1000)]
Threads = Annotated[int, Kind("an integer from 0 to 1024", int, lambda value: 0 <= value <= 1024)]
StepsPerHour = Annotated[int, Kind("an integer from 1 to 60", int, lambda value: 1 <= value <= 60)]
Seed = Annotated[int, Kind("an integer from 0 to 4294967295", int, lambda value: 0 <= value < 2**32)]
PositiveNumber = Annotated[float, Kind("a number above 0", float, lambda value: 0 < value < math.inf)]
LearningRate = Annotated[float, Kind("a number above 0 and at most 1000", float, lambda value: 0 < value <= 1000)]
NumberOrZero = Annotated[float, Kind("a number of at least 0", float, lambda value: 0 <= value < math.inf)]
DropoutRate = Annotated[float, Kind("a number of at least 0 and below 1", float, lambda value: 0 <= value < 1)]
Threshold = Annotated[float, Kind("a number above 0 and at most 1", float, lambda value: 0 < value <= 1)]
Switch = Annotated[bool, Kind("on or off", _read_switch, write=lambda value: "on" if value else "off")]
OddKernels = Annotated[
    tuple[int, ...],
    Kind(
        "odd integers of at least 3, separated by spaces",
        lambda text: tuple(int(item) for item in text.replace(",", " ").split()),
        lambda value: len(value) > 0 and all(size >= 3 and size % 2 == 1 for size in value),
        lambda value: " ".join(map(str, value)),
    ),
]
FolderName = Annotated[  # it becomes part of file and folder names
    str,
    Kind(
        "letters, digits, '.', '_' and '-', not starting with '.'",
        str,
        lambda value: re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", value) is not None,
    ),
]
FilePath = Annotated[
    Path,
    Kind(
        "the name of a file (relative names start at the repository's root)",
        lambda text: REPOSITORY_ROOT / text,
        _names_file,
        _write_path,
    ),
]
LocalTime = Annotated[
    datetime,
    Kind(
        "a local time such as 2018-03-05 or 2018-03-05 00:05",
        datetime.fromisoformat,
        lambda value: value.tzinfo is None,
        lambda value: value.isoformat(sep=" "),
    ),
]


# -------------------------------------------------------------------------------------------------- the settings


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[Data]: the files, and how the series is cut into samples."""

    adj_filename: FilePath  # csv, one road link a row
    graph_signal_matrix_filename: FilePath  # npz with `data`, shape (T, N, F), or a table (`lib.tables`)
    id_filename: FilePath | None = None  # the i-th line is the id of sensor i; without it the csv speaks positions
    num_of_vertices: Count  # N, the number of sensors
    points_per_hour: StepsPerHour  # time steps in an hour
    num_for_predict: Horizon  # P, the number of steps to forecast
    dataset_name: FolderName
    start: LocalTime | None = None  # the time of the first step
    missing: Literal["error", "zero_is_missing", "interpolate"] = "error"  # NaN, and a flow of 0 by zero_is_missing

    @property
    def steps_per_day(self) -> int:
        """The number of time steps in a day."""
        return 24 * self.points_per_hour

    @property
    def folder(self) -> Path:
        """The folder of the series, where the files made from it are kept too."""
        return self.graph_signal_matrix_filename.parent


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """[Training]: the input's segments, the optimisation, and (as in the released code) the model's sizes."""

    batch_size: Count  # samples in a step of the optimiser
    num_of_weeks: Segments  # W, one-hour segments 1..W weeks before the forecast
    num_of_days: Segments  # D, one-hour segments 1..D days before the forecast
    num_of_hours: Segments  # H, the last H hours
    epochs: CountOrZero  # stage 1, teacher forcing
    fine_tune_epochs: CountOrZero  # stage 2, through the rollout at learning_rate / 10
    learning_rate: LearningRate
    dropout: DropoutRate
    kernel_size: OddCount  # tokens under the convolutions of attention and gate
    num_layers: Count  # of the encoder, and of the decoder
    d_model: Count  # C, channels
    nb_head: Count  # attention heads
    seed: Seed = 0
    patience: CountOrZero = 0  # epochs without a better validation loss that end a stage; 0 = never
    max_batches: CountOrZero = 0  # batches in an epoch; 0 = all
    clip_grad_norm: NumberOrZero = 0.0  # largest norm of the gradient; 0 = no limit
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate within a stage; cosine falls to 0
    weight_decay: NumberOrZero = 0.0  # decoupled from the gradient, as in AdamW
    early_samples: Switch = False  # also train on samples whose earlier weeks and days lie before the series

    @property
    def num_of_segments(self) -> int:
        """The number of one-hour segments of an input, W + D + H."""
        return self.num_of_weeks + self.num_of_days + self.num_of_hours


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """[Model]: which model, and which parts it has."""

    # The paper's, its code's, ours, ours without the encoder, the opponent.
    variant: Literal["described", "released", "enhanced", "perceptron", "stid"] = "described"
    patch_len: CountOrZero = 0  # steps in a patch; 0 = points_per_hour
    large_kernels: OddKernels = (15, 17, 21, 27, 35, 55)  # nominal sizes in tokens, one a block
    deformable_patches: Switch = True  # off: regular patches
    large_branch: Switch = True  # of the large-kernel blocks; off: the small branch only
    small_branch: Switch = True  # of the large-kernel blocks; off: the large branch only
    laplacian_encoding: Switch = True  # off: tokens do not know their sensor's place in the road network
    time_gate: Switch = True  # off: plain cross-attention to the memory
    deviation: Switch = True  # of enhanced and perceptron: forecast by how much the flow deviates from the usual
    autoregression: Switch = True  # of enhanced and perceptron: a linear forecast of that deviation, to be corrected
    level: Switch = True  # of enhanced and perceptron: half of the forecast is of the level itself
    identity: Switch = True  # of enhanced and perceptron: they know sensor, time of day and day of the week
    harmonics: Count = 48  # of enhanced and perceptron: those of the day, by which identity knows the time
    graph_means: Switch = True  # of enhanced and perceptron: sensors see the mean of all, of similar and of near ones
    past_days: Switch = True  # of enhanced and perceptron: they see the hour to forecast on past days and weeks
    history_steps: CountOrZero = 0  # of stid: how many of the last input steps it reads; 0 = points_per_hour

    @property
    def knows_usual(self) -> bool:
        """Whether the model is given what is usual at each step (`lib.usual_flow`)."""
        return self.deviation and self.variant in DEVIATION_VARIANTS

    @property
    def knows_autoregression(self) -> bool:
        """Whether the model corrects a linear autoregression (`lib.autoregression`), which is of the deviation."""
        return self.autoregression and self.knows_usual

    @property
    def knows_harmonics(self) -> bool:
        """Whether the model knows the time of day, by its harmonics."""
        return self.identity and self.variant in DEVIATION_VARIANTS

    @property
    def knows_past_days(self) -> bool:
        """Whether the model sees the hour to forecast on the days and weeks of the input."""
        return self.past_days and self.variant in DEVIATION_VARIANTS


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """[Graph]: which sensors may attend to which. `auto` is the rule of the variant (`VARIANT_RULES`)."""

    similarity: Literal["auto", "nearest", "gaussian", "released", "full"] = "auto"  # full: everywhere
    neighbours: Count = 10  # similar sensors of a sensor, for nearest
    gaussian_threshold: Threshold = 0.5  # smallest exp(-(d/sd)^2), for gaussian
    topology: Literal["hops", "full"] = "hops"  # full: everywhere
    hops: Count = 5  # attention where the road distance is below it
    laplacian: Literal["auto", "symmetric", "released"] = "auto"  # which Laplacian gives the encoding
    dtw_method: Literal["exact", "fastdtw"] = "exact"
    dtw_radius: Count = 1  # of fastdtw
    dtw_rows: Literal["auto", "train", "all"] = "auto"  # the rows of the series that make the mean days


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """[Runtime]: where and how to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Threads = 0  # CPU threads; 0 = PyTorch's choice
    precision: Literal["float32", "tf32", "bf16"] = "float32"  # of products; tf32 on CUDA only
    compile: Switch = False  # by torch.compile: minutes at the start, faster steps
    gradient_checkpointing: Switch = False  # layers are computed again for the backward pass (no steps of a rollout)
    micro_batch: CountOrZero = 0  # samples computed at once, their gradients summed over a batch; 0 = batch_size
    data: Literal["device", "host"] = "device"  # where the series is kept
    checkpoint_minutes: PositiveNumber = 10.0  # the longest time within an epoch without a checkpoint


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run, each section's name in the INI file being its name here with a capital.

    Two are equal when all their settings are, wherever they came from.
    """

    data: DataConfig
    training: TrainingConfig
    model: ModelConfig
    graph: GraphConfig
    runtime: RuntimeConfig
    source: Path = field(compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)  # lines for the script to print

    @property
    def input_steps(self) -> int:
        """The number of time steps of an input, (W + D + H) * points_per_hour."""
        return self.training.num_of_segments * self.data.points_per_hour

    @property
    def patch_len(self) -> int:
        """The number of time steps in a patch; it divides `input_steps`."""
        return self.model.patch_len or self.data.points_per_hour

    @property
    def prepared_path(self) -> Path:
        """The series and its samples, made by PrepareData.py."""
        training = self.training
        segments = f"w{training.num_of_weeks}d{training.num_of_days}h{training.num_of_hours}"
        return self.data.folder / f"{self.data.dataset_name}_{segments}p{self.data.num_for_predict}.npz"

    @property
    def dtw_path(self) -> Path:
        """The DTW distances, made by create_dtw.py."""
        return self.data.folder / f"{self.data.dataset_name}_dtw.npy"

    @property
    def dtw_record_path(self) -> Path:
        """What the DTW distances were made of."""
        return self.data.folder / f"{self.data.dataset_name}_dtw.json"

    def to_ini(self) -> str:
        """Return the text of an INI file with every setting; loading it gives an equal `Config`."""
        blocks = []
        for section, settings in SECTIONS.items():
            values = getattr(self, section.lower())
            written = {item.name: kind_of(item.type).write(getattr(values, item.name)) for item in fields(settings)}
            blocks.append("\n".join([f"[{section}]", *(f"{key} = {text}".rstrip() for key, text in written.items())]))
        return "\n\n".join(blocks) + "\n"


VARIANT_RULES = {
    "described": {"similarity": "nearest", "laplacian": "symmetric", "dtw_rows": "train"},
    "released": {"similarity": "released", "laplacian": "released", "dtw_rows": "all"},
    "enhanced": {"similarity": "nearest", "laplacian": "symmetric", "dtw_rows": "train"},
    "perceptron": {"similarity": "nearest", "laplacian": "symmetric", "dtw_rows": "train"},
    "stid": {"similarity": "nearest", "laplacian": "symmetric", "dtw_rows": "train"},
}

ENCODER_VARIANTS = ("described", "released", "enhanced")  # they have patches, large kernels and attention
DEVIATION_VARIANTS = ("enhanced", "perceptron")
TIMED_VARIANTS = (*DEVIATION_VARIANTS, "stid")  # their forecasts depend on the time of day and the day of the week

# Settings of [Model] that only some variants have.
OWN_SETTINGS = {
    "patch_len": ENCODER_VARIANTS,
    "large_kernels": ENCODER_VARIANTS,
    "deformable_patches": ENCODER_VARIANTS,
    "large_branch": ENCODER_VARIANTS,
    "small_branch": ENCODER_VARIANTS,
    "laplacian_encoding": ENCODER_VARIANTS,
    "deviation": DEVIATION_VARIANTS,
    "autoregression": DEVIATION_VARIANTS,
    "level": DEVIATION_VARIANTS,
    "identity": DEVIATION_VARIANTS,
    "harmonics": DEVIATION_VARIANTS,
    "graph_means": DEVIATION_VARIANTS,
    "past_days": DEVIATION_VARIANTS,
    "time_gate": ("described", "released"),
    "history_steps": ("stid",),
}

SECTIONS: dict[str, type[Any]] = {
    item.name.capitalize(): item.type
    for item in fields(Config)
    if isinstance(item.type, type) and is_dataclass(item.type)
}


# ------------------------------------------------------------------------------- settings that must fit together


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)


def _heads_split_channels(nb_head: int, d_model: int) -> str | None:
    if d_model % nb_head:
        return f"found {nb_head}, expected a divisor of d_model = {d_model}: {_divisors(d_model)}"
    return None


def _some_segment(hours: int, days: int, weeks: int) -> str | None:
    if hours + days + weeks == 0:
        return "found 0 like num_of_days and num_of_weeks, expected at least one segment in all"
    return None


def _some_epoch(epochs: int, fine_tune_epochs: int) -> str | None:
    if epochs + fine_tune_epochs == 0:
        return "found 0 like fine_tune_epochs, expected at least one epoch in all"
    return None


def _patches_fill_input(patch_len: int, points_per_hour: int, weeks: int, days: int, hours: int) -> str | None:
    input_steps = (weeks + days + hours) * points_per_hour
    if patch_len and input_steps % patch_len:
        return (
            f"found {patch_len}, expected 0 (points_per_hour) or a divisor of the {input_steps} input steps: "
            f"{_divisors(input_steps)}"
        )
    return None


def _some_branch(large: bool, small: bool) -> str | None:
    if not (large or small):
        return "found off like large_branch, expected at least one branch"
    return None


def _history_fits_input(history_steps: int, points_per_hour: int, weeks: int, days: int, hours: int) -> str | None:
    input_steps = (weeks + days + hours) * points_per_hour
    if history_steps > input_steps > 0:
        return f"found {history_steps}, expected 0 (points_per_hour) or at most the {input_steps} input steps"
    return None


def _computed_one_way(compiled: bool, gradient_checkpointing: bool) -> str | None:
    if compiled and gradient_checkpointing:  # PyTorch's compiler takes no checkpoint with contexts of its own
        return "found on like gradient_checkpointing, expected one of them at most"
    return None


def _usual_is_of_the_past(variant: str, deviation: bool, hours: int, horizon: int, points_per_hour: int) -> str | None:
    if variant not in DEVIATION_VARIANTS or not deviation:
        return None
    if not hours:
        return f"found {variant}, expected num_of_hours of at least 1, or deviation = off"
    if horizon > 23 * points_per_hour:  # the flow of the day before is not over yet at the last step
        return f"found {variant}, expected num_for_predict of at most {23 * points_per_hour} (23 h), or deviation = off"
    return None


def _time_is_known(start: datetime | None, variant: str) -> str | None:
    if start is None and variant in TIMED_VARIANTS:
        return f"found nothing, expected the time of the first step, for variant = {variant} knows time and weekday"
    return None


_Name = tuple[str, str]  # section and key

# The check takes the values of its settings, and answers what is wrong with the first of them.
_AGREEMENTS: tuple[tuple[tuple[_Name, ...], Callable[..., str | None]], ...] = (
    ((("Training", "nb_head"), ("Training", "d_model")), _heads_split_channels),
    ((("Training", "num_of_hours"), ("Training", "num_of_days"), ("Training", "num_of_weeks")), _some_segment),
    ((("Training", "epochs"), ("Training", "fine_tune_epochs")), _some_epoch),
    ((("Model", "small_branch"), ("Model", "large_branch")), _some_branch),
    ((("Data", "start"), ("Model", "variant")), _time_is_known),
    ((("Runtime", "compile"), ("Runtime", "gradient_checkpointing")), _computed_one_way),
    (
        (
            ("Model", "variant"),
            ("Model", "deviation"),
            ("Training", "num_of_hours"),
            ("Data", "num_for_predict"),
            ("Data", "points_per_hour"),
        ),
        _usual_is_of_the_past,
    ),
    (
        (
            ("Model", "history_steps"),
            ("Data", "points_per_hour"),
            ("Training", "num_of_weeks"),
            ("Training", "num_of_days"),
            ("Training", "num_of_hours"),
        ),
        _history_fits_input,
    ),
    (
        (
            ("Model", "patch_len"),
            ("Data", "points_per_hour"),
            ("Training", "num_of_weeks"),
            ("Training", "num_of_days"),
            ("Training", "num_of_hours"),
        ),
        _patches_fill_input,
    ),
)


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Entry:
    """A value as the user wrote it, and where: how a message about it begins."""

    text: str
    place: str


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a run from an INI file: its text is read as `parse_config` does.

    Raises:
        InputError: the file cannot be read, or settings are wrong; every wrong one has its line in the message.
    """
    return parse_config(_read_text(path), path, overrides)


def load_settings(path: Path) -> Config:
    """Read the settings that a run wrote: their text is read as `parse_settings` does.

    Raises:
        InputError: as `load_config`.
    """
    return parse_settings(_read_text(path), path)


def parse_settings(text: str, path: Path) -> Config:
    """Read the settings of a run. They name all keys: one that came later, the run did without.

    Raises:
        InputError: as `parse_config`.
    """
    config = parse_config(text, path)
    named = _read_sections(text, path, []).get("Model", {})
    without = [key for key in LATER_KEYS if key not in named and getattr(config.model, f"knows_{key}")]
    return parse_config(text, path, [f"Model.{key}={LATER_KEYS[key]}" for key in without]) if without else config


def parse_config(text: str, path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a run.

    Args:
        text: of an INI file. Comments start with `#` or `;`, on their own line or after a space; keys (not sections)
            may be written in any case; `%` and a section called DEFAULT mean nothing special.
        path: where the text is from, for messages.
        overrides: `Section.key=value`, each replacing what the text says.

    Raises:
        InputError: settings are wrong; every wrong one has its line in the message.
    """
    faults: list[str] = []
    sections = _read_sections(text, path, faults)
    entries = _known_entries(path, sections, faults)
    for override in overrides:
        _apply_override(override, entries, faults)

    unused = [key for section, key in entries if key in UNUSED_KEYS.get(section, ())]
    notices = [f"{path}: not used any more and ignored: {', '.join(unused)}"] if unused else []

    values = {}
    for section, settings in SECTIONS.items():
        given = section in sections or any(name[0] == section for name in entries)
        required = [item.name for item in fields(settings) if item.default is MISSING]
        if required and not given:
            faults.append(f"{path} [{section}]: found no such section, expected it with {', '.join(required)}")
            continue
        for item in fields(settings):
            try:
                values[section, item.name] = _value(item, entries.get((section, item.name)))
            except ValueError as error:
                faults.append(f"{_place(path, entries, (section, item.name))}: {error}")

    for names, check in _AGREEMENTS:
        if all(name in values for name in names) and (fault := check(*(values[name] for name in names))):
            faults.append(f"{_place(path, entries, names[0])}: {fault}")
    if faults:
        raise InputError("\n".join(map(printable, faults)))

    variant = values["Model", "variant"]
    for item in fields(ModelConfig):
        owners = OWN_SETTINGS.get(item.name, (variant,))
        if variant not in owners and values["Model", item.name] != item.default:
            notices.append(
                f"{path}: [Model] {item.name} is ignored with variant = {variant}, it is of {', '.join(owners)} alone"
            )
    for key, rule in VARIANT_RULES[variant].items():
        if values["Graph", key] == "auto":
            values["Graph", key] = rule
    built = {
        section.lower(): settings(**{item.name: values[section, item.name] for item in fields(settings)})
        for section, settings in SECTIONS.items()
    }
    return Config(**built, source=path, notices=tuple(notices))


def _value(setting: Field[Any], entry: _Entry | None) -> Any:
    """Return a setting's value, or raise a ValueError that says what was found and expected."""
    kind = kind_of(setting.type)
    if entry is None:
        if setting.default is MISSING:
            raise ValueError(f"found no such key, expected {kind.expected}")
        return setting.default
    try:
        return kind.parse(entry.text)
    except ValueError:
        hint = nearest(entry.text, get_args(setting.type)) if get_origin(setting.type) is Literal else ""
        raise ValueError(f"found {entry.text!r}, expected {kind.expected}{hint}") from None


def _place(path: Path, entries: dict[_Name, _Entry], name: _Name) -> str:
    section, key = name
    return entries[name].place if name in entries else f"{path} [{section}] {key}"


def _read_text(path: Path) -> str:
    # configparser passes over a file that it cannot open, so the text is read here.
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


def _read_sections(text: str, path: Path, faults: list[str]) -> dict[str, dict[str, str]]:
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


def _unknown_section(section: str) -> str | None:
    if section in SECTIONS:
        return None
    hint = nearest(section.strip().capitalize(), SECTIONS)
    return f"found unknown section {section!r}, expected one of {', '.join(SECTIONS)}{hint}"


def _unknown_key(section: str, key: str) -> str | None:
    valid = [item.name for item in fields(SECTIONS[section])]
    if key in valid or key in UNUSED_KEYS.get(section, ()):
        return None
    hint = nearest(key, valid) or f": {', '.join(valid)}"
    return f"found unknown key {key!r}, expected a key of [{section}]{hint}"


def _known_entries(path: Path, sections: dict[str, dict[str, str]], faults: list[str]) -> dict[_Name, _Entry]:
    entries = {}
    for section, texts in sections.items():
        if fault := _unknown_section(section):
            faults.append(f"{path} [{section}]: {fault}")
            continue
        for key, text in texts.items():
            place = f"{path} [{section}] {key}"
            if fault := _unknown_key(section, key):
                faults.append(f"{place}: {fault}")
            else:
                entries[section, key] = _Entry(text, place)
    return entries


def _apply_override(override: str, entries: dict[_Name, _Entry], faults: list[str]) -> None:
    place = f"--set {' '.join(override.split())}"
    name, equals, text = override.partition("=")
    section, dot, key = (part.strip() for part in name.partition("."))
    key = key.lower()
    if not (equals and dot):
        faults.append(f"{place}: found no section, key and value, expected Section.key=value")
    elif fault := _unknown_section(section) or _unknown_key(section, key):
        faults.append(f"{place}: {fault}")
    else:
        entries[section, key] = _Entry(text.strip(), place)
