"""Settings: what loads, what comes back when written, and the line each wrong setting gets."""

import math
import re
import tempfile
from collections.abc import Iterable
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.config import (
    LATER_KEYS,
    SECTIONS,
    UNUSED_KEYS,
    Config,
    ModelConfig,
    Switch,
    TrainingConfig,
    kind_of,
    load_config,
    load_settings,
    parse_config,
)
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT

SHIPPED = sorted((REPOSITORY_ROOT / "configurations").glob("*.conf"))
PEMS04 = REPOSITORY_ROOT / "configurations" / "PEMS04.conf"

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


def faults_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def with_line(key: str, line: str) -> str:
    """Return the released file with the line of one key replaced."""
    text, count = re.subn(rf"(?m)^{key} = .*$", lambda _: line, RELEASED)
    assert count == 1
    return text


# ------------------------------------------------------------------------------------------------ what loads


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_come_back(path, tmp_path):
    config = load_config(path)
    assert config.source == path
    assert config.notices == ()
    assert config.data.dataset_name == path.stem
    assert config.input_steps == 144
    assert config.patch_len == 12
    assert config.data.steps_per_day == 288

    copy = tmp_path / "copy.conf"
    copy.write_text(config.to_ini(), encoding="utf-8")
    assert load_config(copy) == config
    assert str(REPOSITORY_ROOT) not in config.to_ini()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_explain_every_key(path):
    keys = [line for line in path.read_text(encoding="utf-8").splitlines() if "=" in line]
    assert keys
    assert all(re.search(r"  # \w", line) for line in keys)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_name_every_part_that_can_be_left_out(path):
    text = path.read_text(encoding="utf-8")
    switches = [item.name for item in fields(ModelConfig) if item.default is True]
    assert re.findall(r"(?m)^(\w+) = on ", text.partition("[Model]\n")[2]) == switches
    assert load_config(path).model == ModelConfig()
    for switch in switches:
        changed = re.sub(rf"(?m)^{switch} = on ", f"{switch} = off ", text)
        assert parse_config(changed, path).model == ModelConfig(**{switch: False})


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_files_are_the_settings_of_the_paper(name):
    config = load_config(REPOSITORY_ROOT / "configurations" / f"{name}.conf")
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
    config = load_config(write(RELEASED))
    assert config == replace(load_config(PEMS04), data=replace(load_config(PEMS04).data, start=None))
    assert config.notices == (
        "mine.conf: not used any more and ignored: len_input, use_nni, model_name, start_epoch, "
        "encoder_input_size, decoder_input_size",
    )


def test_names_start_at_the_repository(write):
    config = load_config(write(RELEASED))
    folder = REPOSITORY_ROOT / "data" / "PEMS04"
    assert config.data.adj_filename == folder / "PEMS04.csv"
    assert config.data.folder == folder
    assert config.prepared_path == folder / "PEMS04_w1d4h7p12.npz"
    assert config.dtw_path == folder / "PEMS04_dtw.npy"
    assert config.dtw_record_path == folder / "PEMS04_dtw.json"

    elsewhere = load_config(PEMS04, ["Data.graph_signal_matrix_filename=/elsewhere/PEMS04.npz"])
    assert elsewhere.data.folder == Path("/elsewhere")
    assert "graph_signal_matrix_filename = /elsewhere/PEMS04.npz\n" in elsewhere.to_ini()


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        load_config(PEMS04).training.seed = 1


def test_every_setting_is_written_and_every_default_is_valid():
    text = load_config(PEMS04).to_ini()
    for section, section_class in SECTIONS.items():
        assert f"[{section}]\n" in text
        for item in fields(section_class):
            assert len(re.findall(rf"(?m)^{item.name} =", text)) == 1
            assert item.name not in UNUSED_KEYS.get(section, ())
            if item.default is not MISSING:
                kind = kind_of(item.type)
                assert kind.parse(kind.write(item.default)) == item.default


def assert_comes_back(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.conf"
        path.write_text(config.to_ini(), encoding="utf-8")
        assert load_config(path) == config


@given(
    learning_rate=st.floats(min_value=0, max_value=1000, exclude_min=True),
    dropout=st.floats(min_value=0, max_value=1, exclude_max=True),
    kernels=st.lists(st.integers(1, 10**9).map(lambda half: 2 * half + 1), min_size=1).map(tuple),
    start=st.none() | st.datetimes(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_written_values_come_back(learning_rate, dropout, kernels, start, seed):
    config = load_config(PEMS04)
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
        config = load_config(PEMS04, [override])
    except InputError:
        assert len(faults_of(PEMS04, override)) == 1
        assert not re.fullmatch(r"[a=%:~]+", name)
    else:
        assert_comes_back(config)


# ---------------------------------------------------------------------------------------- the traps of the format


def test_comments_percents_and_a_section_called_default(write):
    text = RELEASED.replace("d_model = 64", "d_model = 64 ; channels").replace("nb_head = 8", "NB_Head: 8\t# heads")
    text = text.replace("./data/PEMS04/PEMS04.csv", "data/100%(d)s/a#b;c.csv # links")
    config = load_config(write(f"\ufeff# mine\r\n{text}"))
    assert config.training.d_model == 64
    assert config.training.nb_head == 8
    assert config.data.adj_filename == REPOSITORY_ROOT / "data/100%(d)s/a#b;c.csv"

    assert faults_of(write(f"[DEFAULT]\nseed = 3\n{RELEASED}")) == [
        "mine.conf [DEFAULT]: found unknown section 'DEFAULT', expected one of Data, Training, Model, Graph, Runtime"
    ]


def test_an_indented_key_is_a_key(write):
    assert load_config(write(with_line("dropout", "  dropout = 0.25"))).training.dropout == 0.25
    assert faults_of(write(with_line("dropout", "dropout = 0\n  1"))) == [
        f"mine.conf: found '1' in line {RELEASED.count(chr(10), 0, RELEASED.index('dropout')) + 2}, "
        "expected key = value"
    ]


def test_empty_means_none_where_none_is_valid(write):
    config = load_config(write(RELEASED.replace("[Training]", "id_filename =\nstart = # unknown\n[Training]")))
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
        "mine.conf [Data] num_of_vertices: found 'many', expected an integer of at least 1",
        "mine.conf [Data] points_per_hour: found '61', expected an integer from 1 to 60",
        "mine.conf [Data] dataset_name: found '../PEMS04', expected letters, digits, '.', '_' and '-', "
        "not starting with '.'",
        "mine.conf [Data] start: found 'yesterday', expected a local time such as 2018-03-05 or 2018-03-05 00:05, "
        "or nothing",
        "mine.conf [Training] batch_size: found '0', expected an integer of at least 1",
        "mine.conf [Training] learning_rate: found 'nan', expected a number above 0 and at most 1000",
        "mine.conf [Training] dropout: found no such key, expected a number of at least 0 and below 1",
        "mine.conf [Training] kernel_size: found '4', expected an odd integer of at least 1",
        "mine.conf [Training] num_layers: found '1.5', expected an integer of at least 1",
        "mine.conf [Graph] similarity: found 'nearst', "
        "expected one of auto, nearest, gaussian, released, full (did you mean 'nearest'?)",
        "mine.conf [Training] nb_head: found 7, expected a divisor of d_model = 64: 1, 2, 4, 8, 16, 32, 64",
        "mine.conf [Training] num_of_hours: found 0 like num_of_days and num_of_weeks, "
        "expected at least one segment in all",
        "mine.conf [Training] epochs: found 0 like fine_tune_epochs, expected at least one epoch in all",
    ]


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("Data.num_of_vertices", ["0", "-1", "3.0", ""], ["1", "10000"]),
        ("Data.points_per_hour", ["0", "61"], ["1", "60"]),
        ("Data.num_for_predict", ["0"], ["1"]),
        ("Data.dataset_name", ["", ".", ".git", "a/b", "a b", "ä"], ["PEMS04", "a.b_c-D1"]),
        ("Data.start", ["2018-13-01", "2018", "2018-01-01T00:00Z"], ["", "2018-01-01", "2018-01-01T08:15"]),
        ("Data.id_filename", ["# no", "a ;b", "a\0b", ".", "./#a", "a /"], ["", "ids.txt", "a#b.txt"]),
        ("Training.batch_size", ["0"], ["1"]),
        ("Training.num_of_weeks", ["-1"], ["0", "3"]),
        ("Training.learning_rate", ["0", "-1", "inf", "nan", "1e-400"], ["1e-9", "1"]),
        ("Training.dropout", ["1", "-0.1", "nan"], ["0", "0.999"]),
        ("Training.kernel_size", ["0", "2", "-1"], ["1", "5"]),
        ("Training.num_layers", ["0"], ["1"]),
        ("Training.seed", ["-1", "4294967296"], ["0", "4294967295"]),
        ("Training.patience", ["-1", "never"], ["0", "5"]),
        ("Training.max_batches", ["-1"], ["0", "1"]),
        ("Training.clip_grad_norm", ["-1", "inf"], ["0", "5"]),
        ("Model.variant", ["", "Described"], ["described"]),
        ("Model.patch_len", ["-1"], ["0", "6"]),
        ("Model.large_kernels", ["", "15 16", "1", "15;17"], ["3", "15, 17", "15,17 21"]),
        ("Graph.neighbours", ["0"], ["1"]),
        ("Graph.gaussian_threshold", ["0", "1.1", "nan"], ["0.5", "1"]),
        ("Graph.hops", ["0"], ["1"]),
        ("Graph.dtw_method", ["fast"], ["exact", "fastdtw"]),
        ("Graph.dtw_radius", ["0"], ["1"]),
        ("Graph.dtw_rows", ["test"], ["train", "all"]),
        ("Runtime.device", ["gpu", "cuda:0"], ["auto", "cpu", "cuda", "mps"]),
        ("Runtime.threads", ["-1"], ["0", "2"]),
    ],
)
def test_range_of_each_setting(name, wrong, right):
    section, key = name.split(".")
    kind = kind_of(next(item.type for item in fields(SECTIONS[section]) if item.name == key))
    for text in wrong:
        (line,) = faults_of(PEMS04, f"{name}={text}")
        assert f": found {text!r}, expected {kind.expected}" in line
    for text in right:
        config = load_config(PEMS04, [f"{name}={text}"])
        assert getattr(getattr(config, section.lower()), key) == kind.parse(text)


def test_patches_must_fill_the_input():
    assert faults_of(PEMS04, "Model.patch_len=7", "Training.num_of_hours=6") == [
        "--set Model.patch_len=7: found 7, expected 0 (points_per_hour) or a divisor of the 132 input steps: "
        "1, 2, 3, 4, 6, 11, 12, 22, 33, 44, 66, 132"
    ]
    assert load_config(PEMS04, ["Model.patch_len=44", "Training.num_of_hours=6"]).patch_len == 44


def test_the_history_is_part_of_the_input():
    assert faults_of(PEMS04, "Model.history_steps=145") == [
        "--set Model.history_steps=145: found 145, expected 0 (points_per_hour) or at most the 144 input steps"
    ]
    assert load_config(PEMS04, ["Model.variant=stid", "Model.history_steps=144"]).model.history_steps == 144


def test_a_compiled_model_is_not_computed_again():
    assert faults_of(PEMS04, "Runtime.compile=on", "Runtime.gradient_checkpointing=on") == [
        "--set Runtime.compile=on: found on like gradient_checkpointing, expected one of them at most"
    ]


def test_what_a_variant_ignores_is_said():
    off = ["Model.large_branch=off", "Model.time_gate=off", "Model.identity=off", "Model.history_steps=6"]
    said = "[Model] {} is ignored with variant = {}, it is of {} alone".format
    assert load_config(PEMS04, off).notices == (
        f"{PEMS04}: {said('identity', 'described', 'enhanced, perceptron')}",
        f"{PEMS04}: {said('history_steps', 'described', 'stid')}",
    )
    enhanced = load_config(PEMS04, [*off, "Data.start=2018-01-01", "Model.variant=enhanced"])
    assert enhanced.notices == (
        f"{PEMS04}: {said('time_gate', 'enhanced', 'described, released')}",
        f"{PEMS04}: {said('history_steps', 'enhanced', 'stid')}",
    )
    perceptron = load_config(PEMS04, [*off, "Model.variant=perceptron"])
    assert perceptron.notices[0] == f"{PEMS04}: {said('large_branch', 'perceptron', 'described, released, enhanced')}"


def test_what_is_usual_comes_from_the_past():
    own_day = ["Model.variant=perceptron", "Data.start=2018-01-01", "Data.num_for_predict=277"]
    assert faults_of(PEMS04, *own_day) == [
        "--set Model.variant=perceptron: found perceptron, expected num_for_predict of at most 276 (23 h), "
        "or deviation = off"
    ]
    no_hour = ["Model.variant=enhanced", "Data.start=2018-01-01", "Training.num_of_hours=0"]
    assert faults_of(PEMS04, *no_hour) == [
        "--set Model.variant=enhanced: found enhanced, expected num_of_hours of at least 1, or deviation = off"
    ]
    for changes in (own_day, no_hour):
        assert not load_config(PEMS04, [*changes, "Model.deviation=off"]).model.knows_usual


def test_settings_are_compared_even_when_others_are_wrong():
    assert faults_of(PEMS04, "Training.nb_head=6", "Training.epochs=x") == [
        "--set Training.epochs=x: found 'x', expected an integer of at least 0",
        "--set Training.nb_head=6: found 6, expected a divisor of d_model = 64: 1, 2, 4, 8, 16, 32, 64",
    ]


# ------------------------------------------------------------------------------------------------- overrides


def test_overrides_replace_the_file_before_the_checks(write):
    path = write(with_line("epochs", "epochs = wrong"))
    config = load_config(path, ["Training.epochs=2", "Training.EPOCHS = 3", "Graph.hops=4", "Training.dropout=0.1"])
    assert config.training.epochs == 3
    assert config.graph.hops == 4
    assert math.isclose(config.training.dropout, 0.1)


def test_wrong_overrides_are_reported_like_the_file():
    assert faults_of(
        PEMS04,
        "Model.varient=described",
        "MODEL.variant=described",
        "Training.zzz=1",
        "epochs=3",
        "Training.epochs",
        "Runtime.device=cudda",
    ) == [
        "--set Model.varient=described: found unknown key 'varient', expected a key of [Model] "
        "(did you mean 'variant'?)",
        "--set MODEL.variant=described: found unknown section 'MODEL', expected one of Data, Training, Model, Graph, "
        "Runtime (did you mean 'Model'?)",
        "--set Training.zzz=1: found unknown key 'zzz', expected a key of [Training]: "
        + ", ".join(item.name for item in fields(TrainingConfig)),
        "--set epochs=3: found no section, key and value, expected Section.key=value",
        "--set Training.epochs: found no section, key and value, expected Section.key=value",
        "--set Runtime.device=cudda: found 'cudda', expected one of auto, cpu, cuda, mps (did you mean 'cuda'?)",
    ]


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


def lines_without(text: str, keys: Iterable[str]) -> str:
    return "".join(line for line in text.splitlines(True) if line.split(" = ")[0] not in keys)


@pytest.mark.parametrize("key", LATER_KEYS)
def test_settings_of_a_run_are_those_of_before_a_key_that_came_later(tmp_path: Path, key: str) -> None:
    perceptron = ["Model.variant=perceptron", "Data.start=2018-01-01"]
    path = tmp_path / "settings.ini"
    # Only where the key has a say today is a run of before another one than that.
    cases = (
        (perceptron, False),
        ([*perceptron, "Model.deviation=off"], key == "autoregression"),
        ([*perceptron, "Model.identity=off"], key == "harmonics"),
        ([], True),
    )
    before = kind_of(get_type_hints(ModelConfig, include_extras=True)[key]).parse(LATER_KEYS[key])
    for changes, alike in cases:
        config = load_config(PEMS04, changes)
        path.write_text(config.to_ini())
        assert load_settings(path) == config
        path.write_text(lines_without(config.to_ini(), [key]))
        now = getattr(load_config(path).model, key)
        assert now != before
        assert getattr(load_settings(path).model, key) == (now if alike else before)
        assert (load_settings(path) == config) == alike


def test_settings_of_a_run_may_be_without_several_keys(tmp_path: Path) -> None:
    config = load_config(PEMS04, ["Model.variant=perceptron", "Data.start=2018-01-01"])
    path = tmp_path / "settings.ini"
    text = lines_without(config.to_ini(), LATER_KEYS)
    path.write_text(text)
    model = load_settings(path).model
    assert (model.autoregression, model.past_days, model.harmonics) == (False, False, 8)
    path.write_text(text.replace("[Model]", "[Model]\nPAST_DAYS: on"))
    assert load_settings(path).model.past_days
    assert not load_settings(path).model.autoregression
