"""Settings: what loads, what comes back when written, and the line each wrong setting gets."""

import math
import re
from dataclasses import MISSING, Field, FrozenInstanceError, asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.config import (
    CONFIGURATIONS,
    FILE_SETTINGS,
    RECIPES,
    SECTION_NAMES,
    SECTIONS,
    UNUSED_KEYS,
    Config,
    TrainingConfig,
    parse_config,
    recipe_names,
    settings_table,
)
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT
from lib.ini import Kind, Switch, kind_of, meaning_of, one_of
from model.released import RELEASED as RELEASED_VARIANT
from model.variants import VARIANTS
from tests.conftest import load

SHIPPED = sorted(CONFIGURATIONS.glob("*.conf"))
PEMS04 = CONFIGURATIONS / "PEMS04.conf"
README = CONFIGURATIONS / "README.md"

# What the shipped settings must be: N, W, D, H, batch size, epochs, fine-tuning epochs, layers, start.
EXPECTED = {
    "PEMS03": (358, 0, 3, 9, 8, 60, 30, 3, "2018-09-01"),
    "PEMS04": (307, 1, 4, 7, 16, 50, 25, 4, "2018-01-01"),
    "PEMS07": (883, 1, 4, 7, 4, 200, 80, 3, "2017-05-01"),
    "PEMS08": (170, 1, 4, 7, 16, 50, 25, 4, "2016-07-01"),
}

# A file as users of the released code have it.
RELEASED = """\
[Data]
adj_filename = ./data/PEMS04/PEMS04.csv
graph_signal_matrix_filename = ./data/PEMS04/PEMS04.npz
num_of_vertices = 307
points_per_hour = 12
num_for_predict = 12
len_input = 12
dataset_name = PEMS04

[Training]
use_nni = 0
batch_size = 16
model_name = DTG_LKNet
num_of_weeks = 1
num_of_days = 4
num_of_hours = 7
start_epoch = 0
epochs = 50
fine_tune_epochs = 25
learning_rate = 0.001
encoder_input_size = 1
decoder_input_size = 1
dropout = .0
kernel_size = 3
num_layers = 4
d_model = 64
nb_head = 8
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into an empty working folder, and give its name there."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> Path:
        path = Path("mine.conf")
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def faults_of(path: Path, *overrides: str, recipe: str | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(path, overrides, recipe)
    return str(caught.value).splitlines()


def of_variant(name: str, *overrides: str) -> Config:
    return load(PEMS04, [f"Model.variant={name}", *overrides])


def all_settings() -> dict[str, tuple[Field[Any], str]]:
    """Return every setting by `Section.key`: its field, and the first variant that has it."""
    found = {f"{section}.{item.name}": (item, "paper") for section in SECTIONS for item in fields(SECTIONS[section])}
    for name, variant in VARIANTS.items():
        for item in fields(variant.settings):
            found.setdefault(f"Model.{item.name}", (item, name))
    return found


SETTINGS = all_settings()


def with_line(key: str, line: str) -> str:
    """Return the released file with the line of one key replaced."""
    text, count = re.subn(rf"(?m)^{key} = .*$", lambda _: line, RELEASED)
    assert count == 1
    return text


# ------------------------------------------------------------------------------------------------ what loads


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_come_back(path):
    config = load(path)
    assert config.source == path
    assert config.notices == ()
    assert config.data.dataset_name == path.stem
    assert config.sizes.input_steps == 144
    assert config.model.steps_of_patch(config.sizes) == 12
    assert config.data.steps_per_day == 288

    assert_comes_back(config)
    assert str(REPOSITORY_ROOT) not in config.to_ini()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_explain_every_key(path):
    keys = [line for line in path.read_text(encoding="utf-8").splitlines() if "=" in line]
    assert keys
    assert all(re.search(r"  # \w", line) for line in keys)


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_files_are_the_settings_of_the_paper(name):
    config = load(CONFIGURATIONS / f"{name}.conf")
    data, training = config.data, config.training
    assert (
        data.num_of_vertices,
        training.num_of_weeks,
        training.num_of_days,
        training.num_of_hours,
        training.batch_size,
        training.epochs,
        training.fine_tune_epochs,
        training.num_layers,
        f"{data.start:%Y-%m-%d}",
    ) == EXPECTED[name]
    assert (data.points_per_hour, data.num_for_predict) == (12, 12)
    assert (training.learning_rate, training.dropout, training.kernel_size) == (0.001, 0.0, 3)
    assert (training.d_model, training.nb_head) == (64, 8)
    assert (data.id_filename is not None) == (name == "PEMS03")


def test_a_file_of_the_released_code_loads_with_one_notice(write):
    config = load(write(RELEASED))
    assert config == replace(load(PEMS04), data=replace(load(PEMS04).data, start=None))
    assert config.notices == (
        "mine.conf: not used any more and ignored: len_input, use_nni, model_name, start_epoch, "
        "encoder_input_size, decoder_input_size",
    )


def test_names_start_at_the_repository(write):
    config = load(write(RELEASED))
    folder = REPOSITORY_ROOT / "data" / "PEMS04"
    assert config.data.adj_filename == folder / "PEMS04.csv"
    assert config.data.folder == folder
    assert config.prepared_path == folder / "PEMS04_w1d4h7p12.npz"

    elsewhere = load(PEMS04, ["Data.graph_signal_matrix_filename=/elsewhere/PEMS04.npz"])
    assert elsewhere.data.folder == Path("/elsewhere")
    assert load(PEMS04, ["Data.cache="]) == load(PEMS04)
    assert load(PEMS04, ["Data.cache=made"]).prepared_path == REPOSITORY_ROOT / "made" / "PEMS04_w1d4h7p12.npz"
    assert "graph_signal_matrix_filename = /elsewhere/PEMS04.npz\n" in elsewhere.to_ini()


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        load(PEMS04).training.seed = 1


def assert_comes_back(config: Config) -> None:
    assert parse_config(config.to_ini(), Path("run.conf"), VARIANTS) == config


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_a_variant_is_written_and_comes_back(name):
    config = of_variant(name)
    assert config.variant is VARIANTS[name]
    assert config.model == VARIANTS[name].settings()
    assert_comes_back(config)
    text = config.to_ini()
    assert re.findall(r"(?m)^\[(\w+)\]$", text) == list(SECTION_NAMES)
    written = ["variant"]
    for section, settings_ in {**SECTIONS, "Model": VARIANTS[name].settings}.items():
        written += [item.name for item in fields(settings_)]
        assert not {item.name for item in fields(settings_)} & set(UNUSED_KEYS.get(section, ()))
    assert sorted(re.findall(r"(?m)^(\w+) =", text)) == sorted(written)
    assert config.texts() == {
        f"{section}.{key}": value
        for section, lines in re.findall(r"(?ms)^\[(\w+)\]\n(.*?)(?=^\[|\Z)", text)
        for key, value in re.findall(r"(?m)^(\w+) = ?(.*)$", lines)
    }


@given(
    learning_rate=st.floats(min_value=0, max_value=1000, exclude_min=True),
    dropout=st.floats(min_value=0, max_value=1, exclude_max=True),
    kernels=st.lists(st.integers(1, 499_999).map(lambda half: 2 * half + 1), min_size=1).map(tuple),
    start=st.none() | st.datetimes(max_value=datetime(8999, 12, 31)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_written_values_come_back(learning_rate, dropout, kernels, start, seed):
    config = load(PEMS04)
    assert_comes_back(
        replace(
            config,
            data=replace(config.data, start=start),
            training=replace(config.training, learning_rate=learning_rate, dropout=dropout, seed=seed),
            model=replace(config.model, large_kernels=kernels),
        )
    )


@given(st.text(alphabet=" #;%=:[]()./~\\'\"aä\n\0\x85\u2028", max_size=8))
@example("./#a")
@example("a /")
@example("=a")
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_whatever_is_accepted_as_the_name_of_a_file_comes_back(name):
    override = f"Data.adj_filename={name}"
    try:
        config = load(PEMS04, [override])
    except InputError:
        assert len(faults_of(PEMS04, override)) == 1
        assert not re.fullmatch(r"[a=%:~]+", name)
    else:
        assert_comes_back(config)


# ---------------------------------------------------------------------------------------- the traps of the format


def test_comments_percents_and_a_section_called_default(write):
    text = RELEASED.replace("d_model = 64", "d_model = 64 ; channels").replace("nb_head = 8", "NB_Head: 8\t# heads")
    text = text.replace("./data/PEMS04/PEMS04.csv", "data/100%(d)s/a#b;c.csv # links")
    config = load(write(f"\ufeff# mine\r\n{text}"))
    assert config.training.d_model == 64
    assert config.training.nb_head == 8
    assert config.data.adj_filename == REPOSITORY_ROOT / "data/100%(d)s/a#b;c.csv"

    assert faults_of(write(f"[DEFAULT]\nseed = 3\n{RELEASED}")) == [
        "mine.conf [DEFAULT]: found unknown section 'DEFAULT', expected one of Data, Training, Model, Graph, Runtime"
    ]


def test_an_indented_key_is_a_key(write):
    assert load(write(with_line("dropout", "  dropout = 0.25"))).training.dropout == 0.25
    assert faults_of(write(with_line("dropout", "dropout = 0\n  1"))) == [
        f"mine.conf: found '1' in line {RELEASED.count(chr(10), 0, RELEASED.index('dropout')) + 2}, "
        "expected key = value"
    ]


def test_empty_means_none_where_none_is_valid(write):
    config = load(write(RELEASED.replace("[Training]", "id_filename =\nstart = # unknown\n[Training]")))
    assert config.data.id_filename is None
    assert config.data.start is None


def test_files_that_are_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("PEMS04.conf").write_text(RELEASED, encoding="utf-8")
    Path("folder").mkdir()
    Path("latin.conf").write_bytes("[Data]\n# Größe\n".encode("latin-1"))
    Path("links.csv").write_text("from,to,cost\n1,2,3\n", encoding="utf-8")
    Path("empty.conf").write_text("", encoding="utf-8")
    assert faults_of(Path("PEMS4.conf")) == [
        "PEMS4.conf: found no such file, expected an INI file (did you mean 'PEMS04.conf'?)"
    ]
    assert faults_of(Path("nowhere/PEMS04.conf")) == ["nowhere/PEMS04.conf: found no such file, expected an INI file"]
    assert faults_of(Path("folder")) == ["folder: found a folder, expected an INI file"]
    assert faults_of(Path("PEMS04.conf/x")) == ["PEMS04.conf/x: cannot be read: Not a directory"]
    assert faults_of(Path("latin.conf")) == [
        "latin.conf: found bytes in line 2 that are not UTF-8, expected UTF-8 text"
    ]
    assert faults_of(Path("links.csv")) == [
        "links.csv: found 'from,to,cost' in line 1, expected a section such as [Data]"
    ]
    assert faults_of(Path("empty.conf")) == [
        "empty.conf [Data]: found no such section, expected it with adj_filename, graph_signal_matrix_filename, "
        "num_of_vertices, points_per_hour, num_for_predict, dataset_name",
        "empty.conf [Training]: found no such section, expected it with batch_size, num_of_weeks, num_of_days, "
        "num_of_hours, epochs, fine_tune_epochs, learning_rate, dropout, kernel_size, num_layers, d_model, nb_head",
    ]


# ---------------------------------------------------------------------------------------------- wrong settings


def test_all_faults_are_listed_at_once(write):
    text = """\
[Data]
adj_filename = data/PEMS04/PEMS04.csv
graph_signal_matrix_filename =
num_of_vertices = many
num_of_vertices = 307
num_of_vertices = 308
points_per_hour = 61
num_for_predict = 12
dataset_name = ../PEMS04
start = yesterday
[training]
epochs = 3
[Training]
batch_size = 0
num_of_weeks = 0
num_of_days = 0
num_of_hours = 0
epochs = 0
fine_tune_epochs = 0
no value
learning_rate = nan
[Modell]
[Training]
batchsize = 16
kernel_size = 4
num_layers = 1.5
d_model = 64
nb_head = 7
epochs = 0
[Graph]
similarity = nearst
"""
    assert faults_of(write(text)) == [
        "mine.conf [Data] num_of_vertices: found it again in line 5, expected it once",
        "mine.conf [Data] num_of_vertices: found it again in line 6, expected it once",
        "mine.conf [Training]: found it again in line 23, expected it once",
        "mine.conf: found 'no value' in line 20, expected key = value",
        "mine.conf [training]: found unknown section 'training', expected one of Data, Training, Model, Graph, Runtime "
        "(did you mean 'Training'?)",
        "mine.conf [Training] batchsize: found unknown key 'batchsize', expected a key of [Training] "
        "(did you mean 'batch_size'?)",
        "mine.conf [Modell]: found unknown section 'Modell', expected one of Data, Training, Model, Graph, Runtime "
        "(did you mean 'Model'?)",
        "mine.conf [Data] graph_signal_matrix_filename: found '', expected the name of a file "
        "(relative names start at the repository's root)",
        "mine.conf [Data] num_of_vertices: found 'many', expected an integer from 1 to 1000000",
        "mine.conf [Data] points_per_hour: found '61', expected an integer from 1 to 60",
        "mine.conf [Data] dataset_name: found '../PEMS04', expected letters, digits, '.', '_' and '-', "
        "not starting with '.'",
        "mine.conf [Data] start: found 'yesterday', expected a local time such as 2018-03-05 or 2018-03-05 00:05, "
        "or nothing",
        "mine.conf [Training] batch_size: found '0', expected an integer of at least 1",
        "mine.conf [Training] learning_rate: found 'nan', expected a number above 0 and at most 1000",
        "mine.conf [Training] dropout: found no such key, expected a number of at least 0 and below 1",
        "mine.conf [Training] kernel_size: found '4', expected an odd integer from 1 to 999999",
        "mine.conf [Training] num_layers: found '1.5', expected an integer from 1 to 1000",
        "mine.conf [Graph] similarity: found 'nearst', "
        "expected one of auto, nearest, gaussian, released, full (did you mean 'nearest'?)",
        "mine.conf [Training] nb_head: found 7, expected a divisor of d_model = 64: 1, 2, 4, 8, 16, 32, 64",
        "mine.conf [Training] num_of_hours: found 0 like num_of_days and num_of_weeks, "
        "expected at least one segment in all",
        "mine.conf [Training] epochs: found 0 like fine_tune_epochs, expected at least one epoch in all",
    ]


COUNT, COUNT_OR_ZERO = (["0", "-1", "3.0", ""], ["1", "10000"]), (["-1", "2.0", ""], ["0", "5"])
SIZE, FEW = ([*COUNT[0], "1000001"], ["1", "1000000"]), ([*COUNT[0], "1001"], ["1", "1000"])
FILE = (["", "# no", "a ;b", "a\0b", ".", "./#a", "a /"], ["ids.txt", "a#b.txt"])
SEGMENTS = (["-1", "1001"], ["0", "3", "1000"])
RANGES = {  # what is wrong and what is right of each setting but those of a few words
    "Data.adj_filename": FILE,
    "Data.graph_signal_matrix_filename": FILE,
    "Data.id_filename": (FILE[0][1:], ["", *FILE[1]]),
    "Data.positions_filename": (FILE[0][1:], ["", *FILE[1]]),
    "Data.cache": (FILE[0][1:], ["", *FILE[1]]),
    "Data.num_of_vertices": SIZE,
    "Data.points_per_hour": (["0", "61"], ["1", "60"]),
    "Data.num_for_predict": (["0", "10001"], ["1", "10000"]),
    "Data.dataset_name": (["", ".", ".git", "a/b", "a b", "ä"], ["PEMS04", "a.b_c-D1"]),
    "Data.start": (
        ["2018-13-01", "2018", "2018-01-01T00:00Z", "# no"],
        ["", "2018-01-02", "2018-01-01T08:15", "2018-01-01 08:15"],
    ),
    "Training.batch_size": COUNT,
    "Training.num_of_weeks": SEGMENTS,
    "Training.num_of_days": SEGMENTS,
    "Training.num_of_hours": SEGMENTS,
    "Training.epochs": COUNT_OR_ZERO,
    "Training.fine_tune_epochs": COUNT_OR_ZERO,
    "Training.learning_rate": (["0", "-1", "inf", "nan", "1e-400", "1001"], ["1e-9", "1"]),
    "Training.dropout": (["1", "-0.1", "nan"], ["0", "0.999"]),
    "Training.kernel_size": (["0", "2", "-1", "1000001"], ["1", "5", "999999"]),
    "Training.num_layers": FEW,
    "Training.d_model": (SIZE[0], ["8", "128"]),
    "Training.nb_head": (SIZE[0], ["1", "64"]),
    "Training.seed": (["-1", "4294967296"], ["0", "4294967295"]),
    "Training.weights": (FILE[0][1:], ["", *FILE[1]]),
    "Training.patience": (["-1", "never"], ["0", "5"]),
    "Training.max_batches": COUNT_OR_ZERO,
    "Training.clip_grad_norm": (["-1", "inf"], ["0", "5"]),
    "Training.weight_decay": (["-1", "inf", "nan"], ["0", "0.01"]),
    "Model.patch_len": (COUNT_OR_ZERO[0], ["0", "6"]),
    "Model.large_kernels": (["", "15 16", "1", "15;17", "1000001"], ["3", "15, 17", "15,17 21"]),
    "Model.direct_share": (["0", "1.1", "nan"], ["0.3", "1"]),
    "Model.harmonics": FEW,
    "Model.members": FEW,
    "Model.history_steps": (COUNT_OR_ZERO[0], ["0", "144"]),
    "Graph.neighbours": COUNT,
    "Graph.gaussian_threshold": (["0", "1.1", "nan"], ["0.7", "1"]),
    "Graph.hops": COUNT,
    "Graph.dtw_radius": COUNT,
    "Runtime.threads": (["-1", "1025"], ["0", "2"]),
    "Runtime.micro_batch": COUNT_OR_ZERO,
    "Runtime.checkpoint_minutes": (["0", "-1", "inf", "nan"], ["0.5", "60"]),
}


def range_of(name: str, kind: Kind) -> tuple[list[str], list[str]]:
    """Return texts that are wrong and right for a setting."""
    if kind.choices:
        return ["", "Nearst", kind.choices[0].upper()], list(kind.choices)
    if kind == kind_of(Switch):
        return ["", "yes", "On"], ["on", "off"]
    return RANGES[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_range_of_each_setting(name):
    item, variant = SETTINGS[name]
    section, key = name.split(".")
    kind = kind_of(item.type)
    wrong, right = range_of(name, kind)
    for text in wrong:
        (line,) = faults_of(PEMS04, f"Model.variant={variant}", f"{name}={text}")
        assert f": found {text!r}, expected {kind.expected}" in line
    for text in right:
        config = of_variant(variant, f"{name}={text}")
        value = getattr(config.variant.graph_rules, key) if text == "auto" and section == "Graph" else kind.parse(text)
        assert getattr(getattr(config, section.lower()), key) == value
        assert config.texts()[name] == kind.write(value)
        assert_comes_back(config)


def test_the_variant_is_one_of_their_names():
    for text in ("", "Paper", "papper"):
        (line,) = faults_of(PEMS04, f"Model.variant={text}")
        assert f": found {text!r}, expected {one_of(VARIANTS).expected}" in line
    assert load(PEMS04).variant is next(iter(VARIANTS.values()))


def test_auto_is_the_rule_of_the_variant():
    keys = ("similarity", "laplacian", "dtw_rows")
    for variant, expected in (
        ("paper", ("nearest", "symmetric", "train")),
        ("released", ("released", "released", "all")),
        ("residual_mlp", ("nearest", "symmetric", "train")),
    ):
        graph = of_variant(variant).graph
        assert tuple(getattr(graph, key) for key in keys) == expected
    assert set(asdict(RELEASED_VARIANT.graph_rules)) == set(keys)
    assert of_variant("released", "Graph.similarity=full").graph.similarity == "full"


def test_patches_must_fill_the_input():
    assert faults_of(PEMS04, "Model.patch_len=7", "Training.num_of_hours=6") == [
        "--set Model.patch_len=7: found 7, expected 0 (points_per_hour) or a divisor of the 132 input steps: "
        "1, 2, 3, 4, 6, 11, 12, 22, 33, 44, 66, 132"
    ]
    assert load(PEMS04, ["Model.patch_len=44", "Training.num_of_hours=6"]).model.patch_len == 44


def test_a_block_has_at_least_one_branch():
    off = ["Model.large_branch=off", "Model.small_branch=off"]
    for variant in ("paper", "released", "residual"):
        assert faults_of(PEMS04, f"Model.variant={variant}", *off) == [
            "--set Model.small_branch=off: found off like large_branch, expected at least one branch"
        ]


def test_the_history_is_part_of_the_input():
    assert faults_of(PEMS04, "Model.variant=stid", "Model.history_steps=145") == [
        "--set Model.history_steps=145: found 145, expected 0 (points_per_hour) or at most the 144 input steps"
    ]
    assert of_variant("stid", "Model.history_steps=144").model.history_steps == 144


def test_a_compiled_model_is_not_computed_again():
    assert faults_of(PEMS04, "Runtime.compile=on", "Runtime.gradient_checkpointing=on") == [
        "--set Runtime.compile=on: found on like gradient_checkpointing, expected one of them at most"
    ]


def test_a_key_of_another_variant_is_an_error_that_names_its_variants(write):
    own = "variant, patch_len, large_kernels, deformable_patches, large_branch, small_branch, laplacian_encoding"
    assert faults_of(PEMS04, "Model.history_steps=6", "Model.identity=off", "Model.large_branch=off") == [
        "--set Model.history_steps=6: found a setting of variant stid, expected one of variant paper: "
        f"{own}, time_gate",
        "--set Model.identity=off: found a setting of variant residual, residual_mlp, expected one of variant paper: "
        f"{own}, time_gate",
    ]
    path = write(
        f"{RELEASED}\n[Model]\nvariant = stid\ntime_gate = on\n".replace("[Training]", "start=2018\n[Training]")
    )
    assert faults_of(path, "Data.start=2018-01-01") == [
        "mine.conf [Model] time_gate: found a setting of variant paper, released, expected one of variant stid: "
        "variant, history_steps"
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_time_is_known_where_a_variant_needs_it(name):
    changes = [f"Model.variant={name}", "Data.start="]
    if VARIANTS[name].needs(VARIANTS[name].settings()).calendar:
        assert faults_of(PEMS04, *changes) == [
            "--set Data.start=: found nothing, expected the time of the first step, for variant = "
            f"{name} knows time and weekday"
        ]
    else:
        assert load(PEMS04, changes).data.start is None


@pytest.mark.parametrize("name", ["residual", "residual_mlp"])
def test_the_historical_profile_comes_from_the_past(name):
    variant = f"Model.variant={name}"
    beyond_a_day = [variant, "Data.num_for_predict=277"]
    assert faults_of(PEMS04, *beyond_a_day) == [
        f"{PEMS04} [Model] residual: found on, expected num_for_predict of at most 276 (23 h), or off"
    ]
    no_hour = [variant, "Training.num_of_hours=0", "Model.residual=on"]
    no_encoder = (
        "--set Model.variant=residual: found residual, expected num_of_hours of at least 1: its encoder reads them"
    )
    no_profile = "--set Model.residual=on: found on, expected num_of_hours of at least 1, or off"
    assert faults_of(PEMS04, *no_hour) == [no_encoder if name == "residual" else no_profile]
    for changes in (beyond_a_day, *([no_hour] if name == "residual_mlp" else [])):
        config = load(PEMS04, [*changes, "Model.residual=off"])
        assert not config.needs.profile
    config = load(PEMS04, [variant, "Data.num_for_predict=276"])
    assert config.needs.profile


def test_settings_are_compared_even_when_others_are_wrong():
    assert faults_of(PEMS04, "Training.nb_head=6", "Training.epochs=x") == [
        "--set Training.epochs=x: found 'x', expected an integer of at least 0",
        "--set Training.nb_head=6: found 6, expected a divisor of d_model = 64: 1, 2, 4, 8, 16, 32, 64",
    ]


# ------------------------------------------------------------------------------------------------- overrides


def test_overrides_replace_the_file_before_the_checks(write):
    path = write(with_line("epochs", "epochs = wrong"))
    config = load(path, ["Training.epochs=2", "Training.EPOCHS = 3", "Graph.hops=4", "Training.dropout=0.1"])
    assert config.training.epochs == 3
    assert config.graph.hops == 4
    assert math.isclose(config.training.dropout, 0.1)


def test_wrong_overrides_are_reported_like_the_file():
    assert faults_of(
        PEMS04,
        "Model.varient=paper",
        "MODEL.variant=paper",
        "Training.zzz=1",
        "epochs=3",
        "Training.epochs",
        "Runtime.device=cudda",
    ) == [
        "--set Model.varient=paper: found unknown key 'varient', expected a key of [Model] (did you mean 'variant'?)",
        "--set MODEL.variant=paper: found unknown section 'MODEL', expected one of Data, Training, Model, Graph, "
        "Runtime (did you mean 'Model'?)",
        "--set Training.zzz=1: found unknown key 'zzz', expected a key of [Training]: "
        + ", ".join(item.name for item in fields(TrainingConfig)),
        "--set epochs=3: found no section, key and value, expected Section.key=value",
        "--set Training.epochs: found no section, key and value, expected Section.key=value",
        "--set Runtime.device=cudda: found 'cudda', expected one of auto, cpu, cuda, mps (did you mean 'cuda'?)",
    ]


# --------------------------------------------------------------------------------------------------- recipes


def test_an_unknown_recipe_gets_one_line():
    names = ", ".join(sorted(path.stem for path in RECIPES.iterdir()))
    assert faults_of(PEMS04, "Training.epochs=x", recipe="residual_mpl") == [
        f"--recipe: found 'residual_mpl', expected one of {names} (did you mean 'residual_mlp'?)"
    ]
    for name in ("", "../PEMS04", "recipes/stid", "stid.conf"):
        (line,) = faults_of(PEMS04, recipe=name)
        assert line.startswith(f"--recipe: found {name!r}, expected one of {names}")


def test_a_recipe_goes_over_the_file_and_set_over_both(write):
    text = with_line("dropout", "dropout = wrong").replace("[Training]", "start = 2018-01-01\n[Training]")
    path = write(f"{text}\n[Model]\nvariant = paper\n[Graph]\nhops = 3\n")
    config = load(path, ["Training.epochs=7", "Model.harmonics=8"], "residual_mlp_small")
    own, training = config.model, config.training
    assert config.variant.name == "residual_mlp"  # of the recipe
    assert (own.identity, own.direct_head, training.num_layers, training.dropout) == (False, False, 1, 0.5)
    assert (config.graph.hops, training.kernel_size) == (3, 3)  # of the file
    assert (training.epochs, own.harmonics) == (7, 8)  # of --set
    assert config.source == path
    assert load(path, ["Training.dropout=0.1", "Training.dropout=0.2"], "residual_mlp_small").training.dropout == 0.2


def test_a_message_names_the_file_where_the_wrong_value_stands():
    text = RELEASED.replace("[Training]", "start = 2018-01-01\n[Training]\nseed = -1\npatience = -1\nloss = hubr")
    recipe = """\
[Model]
variant = residual_mlp
direct_heads = off
time_gate = off
residual = on
[Training]
seed = -2
nb_head = 7
d_model = 32
dropout = 1
dropout = 2
[Train]
num_of_hours = 0
"""
    overrides = ["Training.patience=-3", "Data.num_for_predict=300"]
    with pytest.raises(InputError) as caught:
        parse_config(text, Path("mine.conf"), VARIANTS, overrides, (recipe, Path("its.conf")))
    assert str(caught.value).splitlines() == [
        "its.conf [Training] dropout: found it again in line 11, expected it once",
        "its.conf [Model] direct_heads: found unknown key 'direct_heads', expected a key of [Model] "
        "(did you mean 'direct_head'?)",
        f"its.conf [Train]: found unknown section 'Train', expected one of {', '.join(SECTION_NAMES)} "
        "(did you mean 'Training'?)",
        "its.conf [Model] time_gate: found a setting of variant paper, released, expected one of variant residual_mlp: "
        "variant, residual, autoregression, direct_head, direct_share, identity, harmonics, graph_means, past_days, "
        "carry_profile, copy_imputed, mute_imputed, members",
        "its.conf [Training] dropout: found '1', expected a number of at least 0 and below 1",
        "its.conf [Training] seed: found '-2', expected an integer from 0 to 4294967295",
        "mine.conf [Training] loss: found 'hubr', expected one of mae, huber, mse (did you mean 'huber'?)",
        "--set Training.patience=-3: found '-3', expected an integer of at least 0",
        "its.conf [Training] nb_head: found 7, expected a divisor of d_model = 32: 1, 2, 4, 8, 16, 32",
    ]


def test_settings_that_do_not_fit_are_told_where_the_first_stands():
    def told(recipe: str, *overrides: str) -> str:
        with pytest.raises(InputError) as caught:
            parse_config(RELEASED, Path("mine.conf"), VARIANTS, overrides, (recipe, Path("its.conf")))
        return str(caught.value)

    divisors = "1, 2, 3, 4, 6, 12"
    expected = f"found 8, expected a divisor of d_model = 12: {divisors}"
    assert told("[Training]\nd_model = 12\n") == f"mine.conf [Training] nb_head: {expected}"
    assert told("[Training]\nd_model = 12\nnb_head = 8\n") == f"its.conf [Training] nb_head: {expected}"
    assert told("[Model]\npatch_len = 7\n").startswith("its.conf [Model] patch_len: found 7, expected 0 ")
    found = "found on, expected num_for_predict of at most 276 (23 h), or off"
    beyond = ["Data.start=2018-01-01", "Data.num_for_predict=277"]
    assert told("[Model]\nvariant = residual_mlp\n", *beyond) == f"mine.conf [Model] residual: {found}"
    assert told("[Model]\nvariant = residual_mlp\nresidual=on\n", *beyond) == f"its.conf [Model] residual: {found}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_over_every_shipped_file(name, path):
    config = load(path, recipe=name)
    assert config.notices == ()
    assert config.data == load(path).data  # a recipe is for any data set and machine
    assert config.runtime == load(path).runtime
    assert_comes_back(config)


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_says_what_it_is_and_of_which_variant(name):
    text = (RECIPES / f"{name}.conf").read_text(encoding="utf-8")
    assert re.match(r"# [A-Z].*\.\n", text)
    (variant,) = re.findall(r"(?m)^variant = (\w+)$", text)
    assert name.startswith(variant)
    assert set(re.findall(r"(?m)^\[(\w+)\]$", text)) <= {"Model", "Training"}


def test_every_variant_has_a_recipe_of_its_name():
    assert set(VARIANTS) <= set(recipe_names())


# ------------------------------------------------------------------------------------------- the same experiment


@pytest.mark.parametrize("name", SETTINGS)
def test_which_settings_make_another_experiment(name):
    item, variant = SETTINGS[name]
    first = of_variant(variant)
    texts = [text for text in range_of(name, kind_of(item.type))[1] if text not in ("", "auto")]
    # A precision of float32 is that of auto.
    same = [kind_of(item.type).parse(text) for text in (first.texts()[name], first.experiment.texts()[name])]
    text = next(text for text in texts if kind_of(item.type).parse(text) not in same)
    second = of_variant(variant, f"{name}={text}")
    assert second != first
    alike = name in ("Training.seed", "Data.cache", "Data.positions_filename") or (
        name.startswith("Runtime.") and name != "Runtime.precision"
    )
    assert (first.experiment == second.experiment) == alike
    for one, other in ((first, second), (second, first)):
        assert one.differences(other) == ([] if alike else [f"{name} {one.experiment.texts()[name] or 'none'}"])


def test_another_variant_is_another_experiment():
    for first in VARIANTS:
        for second in VARIANTS:
            differing = of_variant(first).differences(of_variant(second))
            assert (differing[:1] == [f"Model.variant {first}"]) == (first != second)
            assert not differing or first != second
    # Its own settings and the rules of its graphs differ with it.
    assert of_variant("stid").differences(of_variant("paper")) == ["Model.variant stid", "Model.history_steps 0"]
    assert of_variant("released").differences(of_variant("paper")) == [
        "Model.variant released",
        "Graph.similarity released",
        "Graph.laplacian released",
        "Graph.dtw_rows all",
    ]


def test_an_experiment_has_no_seed_and_no_machine():
    base = load(PEMS04)
    assert load(PEMS04, ["Runtime.precision=float32"]).experiment == base.experiment
    machine = ["Runtime.device=cpu", "Runtime.compile=on", "Runtime.precision=bf16", "Data.cache=/scratch"]
    places = [f"Data.{key}=/shared/{getattr(base.data, key).name}" for key in FILE_SETTINGS if getattr(base.data, key)]
    config = load(PEMS04, ["Training.seed=7", *machine, *places])
    assert config.experiment == replace(base.experiment, runtime=replace(base.runtime, precision="bf16"))
    assert config.experiment.experiment == config.experiment


# ---------------------------------------------------------------------------------------------- documentation


def test_every_setting_has_a_meaning_and_a_valid_default():
    for name, (item, _) in SETTINGS.items():
        meaning, kind = meaning_of(item.type), kind_of(item.type)
        assert re.fullmatch(r"[^|\n]*\w[^|\n]*[^.\s]", meaning), name
        assert "|" not in kind.expected, name
        if item.default is not MISSING:
            assert kind.parse(kind.write(item.default)) == item.default, name


def test_a_setting_of_several_variants_is_the_same_in_all():
    for variant in VARIANTS.values():
        for item in fields(variant.settings):
            first = SETTINGS[f"Model.{item.name}"][0]
            assert (item.type, item.default) == (first.type, first.default), f"{variant.name} {item.name}"


def test_the_recipe_that_the_readme_gives_as_an_example_loads():
    text = README.read_text(encoding="utf-8").partition("## A new recipe\n")[2].partition("\n## ")[0]
    recipe = "".join(line.removeprefix("    ") for line in text.splitlines(True) if line.startswith("    "))
    config = parse_config(PEMS04.read_text(encoding="utf-8"), PEMS04, VARIANTS, recipe=(recipe, Path("stid_long.conf")))
    assert (config.variant.name, config.training.epochs) == ("stid", 80)


def test_the_readme_has_the_table_of_all_settings():
    table = settings_table(VARIANTS)
    names = re.findall(r"(?m)^\| (\w+\.\w+) \| [^|\n]+ \| [^|\n]+ \| [^|\n]+ \|$", table)
    assert sorted(names) == sorted([*SETTINGS, "Model.variant"])
    assert table.count("\n") == len(names) + 2
    begin, end = "<!-- settings -->", "<!-- end of settings -->"
    command = f"python run.py --settings | sed -i -e '/{begin}/r /dev/stdin' -e '/{begin}/,/{end}/{{//!d}}'"
    shown = README.read_text(encoding="utf-8").partition(f"\n{begin}\n")[2].partition(f"{end}\n")[0]
    path = README.relative_to(REPOSITORY_ROOT)
    assert shown == table, f"{path} is not what the code says; remake its table with:\n  {command} {path}"


# ---------------------------------------------------------------------------------------------------- kinds


def test_switches_are_on_or_off():
    kind = kind_of(Switch)
    assert kind.parse("on") is True
    assert kind.parse("off") is False
    assert [kind.write(value) for value in (True, False)] == ["on", "off"]
    for text in ("", "yes", "On", "o"):
        with pytest.raises(ValueError, match=r"tuple\.index"):
            kind.parse(text)
    assert kind_of(Switch | None).parse("") is None
    assert kind_of(Switch | None).write(None) == ""
    assert kind_of(Switch | None).parse("on") is True
