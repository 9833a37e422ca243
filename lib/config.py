"""The settings of a run: an INI file, perhaps under a recipe, read into frozen dataclasses and checked as a whole.

The dataclasses below, and those of the variants ([Model]), are the only list of settings: a new one is one more field.
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lib.data.series import MISSING_WORDS, missing_rule
from lib.data.windowing import WindowShape
from lib.errors import InputError, nearest
from lib.files import REPOSITORY_ROOT, printable
from lib.ini import (
    Count,
    CountOrZero,
    DropoutRate,
    Entry,
    FilePath,
    FolderName,
    FolderPath,
    Fraction,
    Horizon,
    Kind,
    LearningRate,
    LocalTime,
    Name,
    NumberOrZero,
    OddSize,
    PositiveNumber,
    Seed,
    Segments,
    Size,
    SmallCount,
    StepsPerHour,
    Switch,
    Threads,
    divisors,
    kind_of,
    meaning_of,
    one_of,
    parse_value,
    read_sections,
    read_text,
    read_value,
    section_text,
)
from lib.interface import Needs, Sizes, Variant, Variants
from lib.losses import LOSSES

CONFIGURATIONS = REPOSITORY_ROOT / "configurations"
RECIPES = CONFIGURATIONS / "recipes"
# Keys that files of the released code have and nothing needs: the input length follows from the segments, the model's
# input and output have one channel, and interrupted runs need no start epoch.
UNUSED_KEYS = {
    "Data": ("len_input",),
    "Training": ("use_nni", "model_name", "start_epoch", "encoder_input_size", "decoder_input_size"),
}
MissingRule = Annotated[
    str,
    Kind(
        f"error, or a list of {', '.join(MISSING_WORDS)} and numbers, separated by commas",
        missing_rule,
        choices=("error", *MISSING_WORDS),
    ),
]
VARIANT = ("Model", "variant")
FILE_SETTINGS = ("adj_filename", "graph_signal_matrix_filename", "id_filename")  # of [Data]
SECTION_NAMES = ("Data", "Training", "Model", "Graph", "Runtime")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[Data]: the files, and how the series is cut into samples."""

    adj_filename: Annotated[FilePath, "road links: csv, one link a row"]
    graph_signal_matrix_filename: Annotated[FilePath, "the series: npz with `data` (T, N, F), or a table"]
    id_filename: Annotated[
        FilePath | None, "its i-th line is the id of sensor i; without it the csv speaks positions"
    ] = None
    positions_filename: Annotated[
        FilePath | None, "for maps: csv, sensor, latitude and longitude, one sensor a row"
    ] = None
    num_of_vertices: Annotated[Size, "N, the number of sensors"]
    points_per_hour: Annotated[StepsPerHour, "time steps in an hour"]
    num_for_predict: Annotated[Horizon, "P, the number of steps to forecast"]
    dataset_name: Annotated[FolderName, "begins the names of the files made"]
    cache: Annotated[
        FolderPath | None, "the folder of the files made from the series; without it, beside the series"
    ] = None
    start: Annotated[LocalTime | None, "local time of the first step; variants that know the time need it"] = None
    missing: Annotated[
        MissingRule,
        "error: no value may be missing; interpolate: NaN, empty cells and absent rows are; zero_is_missing: 0 is too; "
        "a number, or negative_is_missing: these are too",
    ] = "error"
    imputed: Annotated[
        Literal["keep", "missing"],
        "targets that PeMS filled in: keep them, as papers do, or count them as missing in loss and scores",
    ] = "keep"
    split: Annotated[
        Literal["samples", "windows"],
        "samples: split the samples whose whole input exists; windows: all windows of one hour, as most papers do",
    ] = "samples"

    @property
    def steps_per_day(self) -> int:
        """The number of time steps in a day."""
        return 24 * self.points_per_hour

    @property
    def folder(self) -> Path:
        """The folder of the files made from the series."""
        return self.graph_signal_matrix_filename.parent if self.cache is None else self.cache

    @property
    def anywhere(self) -> "DataConfig":
        """The same settings wherever the files lie: of their paths the names alone; no cache, and nothing for maps."""
        paths = {name: getattr(self, name) for name in FILE_SETTINGS}
        names: dict[str, Any] = {name: path and Path(path.name) for name, path in paths.items()}
        return replace(self, cache=None, positions_filename=None, **names)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """[Training]: the input's segments, the optimisation, and (as in the released code) the model's sizes."""

    batch_size: Annotated[Count, "samples in a step of the optimiser, of all processes together"]
    num_of_weeks: Annotated[Segments, "W, input: an hour from each of the last weeks, at the time of the forecast"]
    num_of_days: Annotated[Segments, "D, input: an hour from each of the last days, at the time of the forecast"]
    num_of_hours: Annotated[Segments, "H, input: the last hours"]
    epochs: Annotated[CountOrZero, "stage 1: the decoder is given the true values"]
    fine_tune_epochs: Annotated[CountOrZero, "stage 2: the decoder is given its own forecasts"]
    learning_rate: Annotated[LearningRate, "of Adam in stage 1; a tenth of it in stage 2"]
    dropout: Annotated[DropoutRate, "share of values dropped in training"]
    kernel_size: Annotated[OddSize, "tokens under the convolutions of attention and gate"]
    num_layers: Annotated[SmallCount, "of the encoder, and of the decoder"]
    d_model: Annotated[Size, "C, channels"]
    nb_head: Annotated[Size, "attention heads; divides d_model"]
    seed: Annotated[Seed, "of weights, order and dropout"] = 0
    weights: Annotated[
        FilePath | None, "a checkpoint to start from, with its graphs and scaling, or one of the released code"
    ] = None
    loss: Annotated[
        str, one_of(LOSSES), "on scaled values; of training, validation and the choice of the best epoch"
    ] = "mae"
    patience: Annotated[CountOrZero, "epochs without a better validation loss that end a stage; 0: never"] = 0
    max_batches: Annotated[CountOrZero, "batches in an epoch; 0: all"] = 0
    clip_grad_norm: Annotated[NumberOrZero, "largest norm of the gradient; 0: no limit"] = 0.0
    schedule: Annotated[Literal["constant", "cosine"], "of the learning rate within a stage; cosine falls to 0"] = (
        "constant"
    )
    weight_decay: Annotated[NumberOrZero, "decoupled from the gradient, as in AdamW"] = 0.0
    padded_history: Annotated[
        Switch, "also train on windows that start before the data; the missing days repeat the first day"
    ] = False
    bias_correction: Annotated[
        Switch, "after training, forecasts are corrected by the run's own errors of the last hours and days"
    ] = False


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """[Graph]: which sensors may attend to which."""

    similarity: Annotated[
        Literal["auto", "nearest", "gaussian", "released", "full"],
        "rule of the similarity graph; auto: the variant's; full: attention everywhere",
    ] = "auto"
    neighbours: Annotated[Count, "k, the nearest neighbours of a sensor by DTW, for nearest"] = 10
    gaussian_threshold: Annotated[Fraction, "smallest exp(-(d/sd)^2), for gaussian"] = 0.5
    topology: Annotated[Literal["hops", "full"], "rule of the topology graph; full: attention everywhere"] = "hops"
    hops: Annotated[Count, "attention where the road distance is below this many links"] = 5
    laplacian: Annotated[
        Literal["auto", "symmetric", "released"], "which Laplacian gives the encoding; auto: the variant's"
    ] = "auto"
    dtw_method: Annotated[Literal["exact", "fastdtw"], "of the distances between mean days"] = "exact"
    dtw_radius: Annotated[Count, "of fastdtw"] = 1
    dtw_rows: Annotated[
        Literal["auto", "train", "all"], "the rows of the series that make the mean days; auto: the variant's"
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """[Runtime]: where and how to compute."""

    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], "auto: the first that is there of cuda, mps, cpu"] = "auto"
    threads: Annotated[Threads, "CPU threads of each process; 0: PyTorch's choice"] = 0
    precision: Annotated[
        Literal["auto", "float32", "tf32", "bf16"],
        "of matrix products; tf32 on CUDA only; auto: tf32 on CUDA, else float32",
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"], "by torch.compile: minutes at the start, then faster steps; auto: off"
    ] = "auto"
    cuda_graphs: Annotated[
        Literal["auto", "off"],
        "auto: on CUDA, steps are captured once and replayed, where they can be; off: each is started from Python",
    ] = "auto"
    gradient_checkpointing: Annotated[Switch, "less memory: layers are computed again for the backward pass"] = False
    micro_batch: Annotated[CountOrZero, "samples computed at once, their gradients summed; 0: the whole batch"] = 0
    data: Annotated[
        Literal["device", "host", "disk"],
        "where the series is kept; host where a GPU is too small for it, disk where memory is too",
    ] = "device"
    checkpoint_minutes: Annotated[PositiveNumber, "the longest time within an epoch without a checkpoint"] = 10.0
    tensorboard: Annotated[Switch, "losses, validation errors and learning rate by epoch, for TensorBoard"] = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run, each section's name in the INI file being its name here with a capital.

    Two are equal when all their settings are, wherever they came from.

    Attributes:
        model: the variant's own settings, of its dataclass.
        variant: its record.
        source: the INI file, for messages.
        notices: lines for the script to print.
    """

    data: DataConfig
    training: TrainingConfig
    model: Any
    graph: GraphConfig
    runtime: RuntimeConfig
    variant: Variant
    source: Path = field(compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def windows(self) -> WindowShape:
        """The shape of the windows."""
        training, data = self.training, self.data
        return WindowShape(
            training.num_of_weeks,
            training.num_of_days,
            training.num_of_hours,
            data.num_for_predict,
            data.points_per_hour,
            data.split == "windows",
        )

    @property
    def sizes(self) -> Sizes:
        """What networks are built from, beside graphs and their own settings."""
        return _sizes(self.data, self.training)

    @property
    def needs(self) -> Needs:
        """What the network asks for beside the series."""
        return self.variant.needs(self.model)

    @property
    def experiment(self) -> "Config":
        """What makes two runs the same experiment: all settings but the seed, where files lie, and most of [Runtime].

        Of [Runtime] only a precision that was asked for counts; `auto` is float32 but for the rounding of a GPU's
        products. The rest says where and how fast a run is computed; at most it changes rounding and which values
        dropout draws. Of a file the name counts, not the folder. Two runs of one experiment differ by their seeds;
        resuming, comparing and tabulating all go by this.
        """
        precision, weights = self.runtime.precision, self.training.weights
        return replace(
            self,
            data=self.data.anywhere,
            training=replace(self.training, seed=0, weights=weights and Path(weights.name)),
            runtime=RuntimeConfig(precision="float32" if precision == "auto" else precision),
        )

    def differences(self, other: "Config") -> list[str]:
        """Return the settings in which two runs are not the same experiment, each as `Section.key value`."""
        own, others = (config.experiment.texts() for config in (self, other))
        return [f"{name} {text or 'none'}" for name, text in own.items() if others.get(name) != text]

    def texts(self) -> dict[str, str]:
        """Return the text of every setting, by `Section.key`."""
        written = {"Model.variant": self.variant.name}
        for section in SECTION_NAMES:
            values = getattr(self, section.lower())
            for item in fields(values):
                written[f"{section}.{item.name}"] = kind_of(item.type).write(getattr(values, item.name))
        return written

    @property
    def prepared_path(self) -> Path:
        """The series and its samples, made by PrepareData.py."""
        training = self.training
        segments = f"w{training.num_of_weeks}d{training.num_of_days}h{training.num_of_hours}"
        rules = "".join(f"_{rule}" for rule in (self.data.split, self.data.imputed) if rule in ("windows", "missing"))
        return self.data.folder / f"{self.data.dataset_name}_{segments}p{self.data.num_for_predict}{rules}.npz"

    def to_ini(self) -> str:
        """Return the text of an INI file with every setting; loading it gives an equal `Config`."""
        return (
            "\n\n".join(
                section_text(
                    section,
                    getattr(self, section.lower()),
                    f"variant = {self.variant.name}" if section == "Model" else "",
                )
                for section in SECTION_NAMES
            )
            + "\n"
        )


SECTIONS: dict[str, type[Any]] = {
    item.name.capitalize(): item.type
    for item in fields(Config)
    if isinstance(item.type, type) and is_dataclass(item.type) and item.type is not Variant
}


def _sizes(data: DataConfig, training: TrainingConfig) -> Sizes:
    return Sizes(
        steps_per_hour=data.points_per_hour,
        weeks=training.num_of_weeks,
        days=training.num_of_days,
        hours=training.num_of_hours,
        horizon=data.num_for_predict,
        channels=training.d_model,
        layers=training.num_layers,
        heads=training.nb_head,
        kernel_size=training.kernel_size,
        dropout=training.dropout,
    )


# ------------------------------------------------------------------------------- settings that must fit together


def _heads_split_channels(nb_head: int, d_model: int) -> str | None:
    if d_model % nb_head:
        return f"found {nb_head}, expected a divisor of d_model = {d_model}: {divisors(d_model)}"
    return None


def _some_segment(hours: int, days: int, weeks: int) -> str | None:
    if hours + days + weeks == 0:
        return "found 0 like num_of_days and num_of_weeks, expected at least one segment in all"
    return None


def _some_epoch(epochs: int, fine_tune_epochs: int) -> str | None:
    if epochs + fine_tune_epochs == 0:
        return "found 0 like fine_tune_epochs, expected at least one epoch in all"
    return None


def _computed_one_way(compiled: str, gradient_checkpointing: bool) -> str | None:
    if compiled == "on" and gradient_checkpointing:  # PyTorch's compiler takes no checkpoint with contexts of its own
        return "found on like gradient_checkpointing, expected one of them at most"
    return None


# The check takes the values of its settings, and answers what is wrong with the first of them.
_AGREEMENTS: tuple[tuple[tuple[Name, ...], Callable[..., str | None]], ...] = (
    ((("Training", "nb_head"), ("Training", "d_model")), _heads_split_channels),
    ((("Training", "num_of_hours"), ("Training", "num_of_days"), ("Training", "num_of_weeks")), _some_segment),
    ((("Training", "epochs"), ("Training", "fine_tune_epochs")), _some_epoch),
    ((("Runtime", "compile"), ("Runtime", "gradient_checkpointing")), _computed_one_way),
)


# ------------------------------------------------------------------------------------------------------- reading


def load_config(path: Path, variants: Variants, overrides: Sequence[str] = (), recipe: str | None = None) -> Config:
    """Read the settings of a run from an INI file, as `parse_config` does its text.

    Args:
        path: of the INI file.
        variants: the records of all variants.
        overrides: `Section.key=value`, each replacing what the files say.
        recipe: the name of an INI file in configurations/recipes/ whose settings replace those of the file.

    Raises:
        InputError: a file cannot be read, or settings are wrong; every wrong one has its line in the message.
    """
    if recipe is None:
        return parse_config(read_text(path), path, variants, overrides)
    recipe_path = RECIPES / f"{recipe}.conf"
    if recipe not in recipe_names():
        names = recipe_names()
        raise InputError(f"--recipe: found {recipe!r}, expected one of {', '.join(names)}{nearest(recipe, names)}")
    return parse_config(read_text(path), path, variants, overrides, (read_text(recipe_path), recipe_path))


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.conf"))


def parse_config(
    text: str,
    path: Path,
    variants: Variants,
    overrides: Sequence[str] = (),
    recipe: tuple[str, Path] | None = None,
) -> Config:
    """Read the settings of a run.

    Args:
        text: of an INI file. Comments start with `#` or `;`, on their own line or after a space; keys (not sections)
            may be written in any case; `%` and a section called DEFAULT mean nothing special.
        path: where the text is from, for messages.
        variants: the records of all variants.
        overrides: `Section.key=value`, each replacing what the texts say.
        recipe: text and path of an INI file whose settings replace those of the first.

    Raises:
        InputError: settings are wrong; every wrong one has its line in the message.
    """
    faults: list[str] = []
    reader = _Reader(variants, faults)
    for layer_text, layer_path in [(text, path), *([recipe] if recipe else [])]:
        reader.add_file(layer_text, layer_path)
    for override in overrides:
        reader.add_override(override)
    entries = reader.entries

    unused = [key for section, key in entries if key in UNUSED_KEYS.get(section, ())]
    notices = (f"{path}: not used any more and ignored: {', '.join(unused)}",) if unused else ()

    variant = reader.variant(path)
    values: dict[Name, Any] = {}
    sections: dict[str, type[Any]] = {**SECTIONS, **({"Model": variant.settings} if variant else {})}
    for section, settings in sections.items():
        required = [item.name for item in fields(settings) if item.default is MISSING]
        if required and section not in reader.sections:
            faults.append(f"{path} [{section}]: found no such section, expected it with {', '.join(required)}")
            continue
        for item in fields(settings):
            try:
                values[section, item.name] = read_value(item, entries.get((section, item.name)))
            except ValueError as error:
                faults.append(f"{_place(path, entries, (section, item.name))}: {error}")

    def built(section: str) -> Any:
        return sections[section](**{item.name: values[section, item.name] for item in fields(sections[section])})

    def complete(*names: str) -> bool:
        return all((name, item.name) in values for name in names for item in fields(sections[name]))

    for names, check in _AGREEMENTS:
        if all(name in values for name in names) and (fault := check(*(values[name] for name in names))):
            faults.append(f"{_place(path, entries, names[0])}: {fault}")
    timed = variant is not None and complete("Model") and variant.needs(built("Model")).calendar
    if variant and timed and values.get(("Data", "start"), True) is None:
        place = _place(path, entries, ("Data", "start"))
        expected = f"expected the time of the first step, for variant = {variant.name} knows time and weekday"
        faults.append(f"{place}: found nothing, {expected}")
    if variant and complete("Data", "Training", "Model"):
        own_faults = variant.faults(built("Model"), _sizes(built("Data"), built("Training")))
        faults += [f"{_place(path, entries, ('Model', key))}: {fault}" for key, fault in own_faults.items()]
    if faults:
        raise InputError("\n".join(map(printable, faults)))
    assert variant is not None

    for key, rule in asdict(variant.graph_rules).items():
        if values["Graph", key] == "auto":
            values["Graph", key] = rule
    return Config(
        **{section.lower(): built(section) for section in sections}, variant=variant, source=path, notices=notices
    )


class _Reader:
    """Collects the entries of several layers, each replacing those before it, and what is wrong with their names."""

    def __init__(self, variants: Variants, faults: list[str]) -> None:
        self.variants, self.faults = variants, faults
        self.entries: dict[Name, Entry] = {}
        self.sections: set[str] = set()

    def add_file(self, text: str, path: Path) -> None:
        """Take in the settings of an INI file."""
        for section, texts in read_sections(text, path, self.faults).items():
            if fault := self._unknown_section(section):
                self.faults.append(f"{path} [{section}]: {fault}")
                continue
            self.sections.add(section)
            for key, value in texts.items():
                place = f"{path} [{section}] {key}"
                if fault := self._unknown_key(section, key):
                    self.faults.append(f"{place}: {fault}")
                else:
                    self.entries[section, key] = Entry(value, place)

    def add_override(self, override: str) -> None:
        """Take in `Section.key=value`."""
        place = f"--set {' '.join(override.split())}"
        name, equals, text = override.partition("=")
        section, dot, key = (part.strip() for part in name.partition("."))
        key = key.lower()
        if not (equals and dot):
            self.faults.append(f"{place}: found no section, key and value, expected Section.key=value")
        elif fault := self._unknown_section(section) or self._unknown_key(section, key):
            self.faults.append(f"{place}: {fault}")
        else:
            self.sections.add(section)
            self.entries[section, key] = Entry(text.strip(), place)

    def variant(self, path: Path) -> Variant | None:
        """Return the variant that is asked for, or else the first; None, with a fault, where there is no such one."""
        entry = self.entries.get(VARIANT, Entry(next(iter(self.variants)), f"{path} [Model] variant"))
        try:
            variant = self.variants[parse_value(one_of(self.variants), entry.text)]
        except ValueError as error:
            self.faults.append(f"{entry.place}: {error}")
            return None
        own = _keys(variant)
        for (section, key), foreign in self.entries.items():
            if section == "Model" and key not in own:
                owners = ", ".join(name for name, other in self.variants.items() if key in _keys(other))
                self.faults.append(
                    f"{foreign.place}: found a setting of variant {owners}, expected one of variant {variant.name}: "
                    f"{', '.join(own)}"
                )
        return variant

    def _unknown_section(self, section: str) -> str | None:
        if section in SECTION_NAMES:
            return None
        hint = nearest(section.strip().capitalize(), SECTION_NAMES)
        return f"found unknown section {section!r}, expected one of {', '.join(SECTION_NAMES)}{hint}"

    def _unknown_key(self, section: str, key: str) -> str | None:
        if section == "Model":
            valid = list(dict.fromkeys(name for variant in self.variants.values() for name in _keys(variant)))
        else:
            valid = [item.name for item in fields(SECTIONS[section])]
        if key in valid or key in UNUSED_KEYS.get(section, ()):
            return None
        hint = nearest(key, valid) or f": {', '.join(valid)}"
        return f"found unknown key {key!r}, expected a key of [{section}]{hint}"


def _keys(variant: Variant) -> list[str]:
    """Return the keys of [Model] under a variant."""
    return ["variant", *(item.name for item in fields(variant.settings))]


def _place(path: Path, entries: dict[Name, Entry], name: Name) -> str:
    section, key = name
    return entries[name].place if name in entries else f"{path} [{section}] {key}"


# --------------------------------------------------------------------------------------------- a new data set


def dataset_ini(about: str, data: DataConfig) -> str:
    """Return the text of an INI file for a new data set: its [Data], and [Training] as PEMS08 has it.

    Args:
        about: what it is, for the comment at the top, one or more lines.
        data: of which only what is not by default is written.
    """
    rows = []
    for item in fields(data):
        if (value := getattr(data, item.name)) != item.default:
            text, clauses = kind_of(item.type).write(value), meaning_of(item.type).split("; ")
            rows.append((f"{item.name} = {text}", next((c for c in clauses if c.startswith(f"{text}:")), clauses[0])))
    width = max(len(row) for row, _ in rows)
    shown = [f"{row:{width}}  # {meaning}" for row, meaning in rows]
    training = (CONFIGURATIONS / "PEMS08.conf").read_text(encoding="utf-8").partition("[Training]")
    comment = "\n".join(f"# {line}" for line in about.splitlines())
    return "\n".join([comment, "", "[Data]", *shown, "", "".join(training[1:])])


# ----------------------------------------------------------------------------------------------- documentation


def settings_table(variants: Variants) -> str:
    """Return a Markdown table of every setting, for configurations/README.md."""
    owners: dict[str, tuple[Field[Any], list[str]]] = {}  # of each key of [Model]
    for variant in variants.values():
        for item in fields(variant.settings):
            owners.setdefault(item.name, (item, []))[1].append(variant.name)
    lines = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for section in SECTION_NAMES:
        if section == "Model":
            first, kind = next(iter(variants)), one_of(variants)
            lines.append(f"| Model.variant | {first} | {kind.expected} | the network |")
            lines += [_table_row("Model", item, f" (of {', '.join(names)})") for item, names in owners.values()]
        else:
            lines += [_table_row(section, item) for item in fields(SECTIONS[section])]
    return "\n".join(lines) + "\n"


def _table_row(section: str, item: Field[Any], owners: str = "") -> str:
    kind = kind_of(item.type)
    default = "required" if item.default is MISSING else kind.write(item.default) or "none"
    return f"| {section}.{item.name} | {default} | {kind.expected} | {meaning_of(item.type)}{owners} |"
