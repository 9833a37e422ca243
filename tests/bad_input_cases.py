"""The catalogue of wrong inputs: what is spoilt, which script meets it, and the whole message that it must end with.

Every case starts from the same good data set with a finished run; tests/test_bad_input.py runs them.
"""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.checkpoints import CHECKPOINT_FORMAT
from lib.data.dtw import DTW_VERSION, DTWRecord, mean_days
from lib.files import fingerprint_arrays, load_json
from tests.conftest import tiny_series

KINDS = ("file", "section", "key", "type", "range", "row", "shape", "race", "permission", "disk")

# Scripts run in the folder of the data set, <tmp> in the messages.
PREPARE = "PrepareData.py --config TINY.conf"
DTW = "create_dtw.py --config TINY.conf"
RUN = "run.py --config TINY.conf --output out --name two"
RESUME = "run.py --resume out/TINY/one"
FIELD = "erf_conv.py --run out/TINY/one --samples 1"
ABLATION = "ablation.py --config TINY.conf --output out --results results --seeds 1 --only paper"
SEVERAL = "run.py --config TINY.conf --output out --name two --seed"
WITH_IDS = f"{RUN} --set Data.id_filename=<tmp>/ids.txt"
WEIGHTS = f"{RUN} --test-only --weights weights"
PREDICT = "predict.py --run out/TINY/one --input TINY/TINY.npz"
TABLES = "paper_tables.py --config TINY.conf --experiments out"

# The files to spoil.
CONFIG, SERIES, LINKS = "TINY.conf", "TINY/TINY.npz", "TINY/TINY.csv"
PREPARED = "TINY/TINY_w0d1h2p3.npz"
# The training rows of the good data set, 247 of 384, make 5 whole days.
MEAN_DAYS = mean_days(tiny_series()[:, :, 0].astype(np.float32), 48, 247)
KEY = DTWRecord("exact", 0, "train", 5, fingerprint_arrays(MEAN_DAYS), DTW_VERSION).key
MATRIX, RECORD = f"TINY/TINY_dtw_{KEY}.npy", f"TINY/TINY_dtw_{KEY}.json"  # in the messages <key>
SETTINGS, LAST, BEST = "out/TINY/one/settings.ini", "out/TINY/one/last.pt", "out/TINY/one/best.pt"
ABLATED = "out/TINY/ablation-paper-seed1"

LONG = "a" * 300  # no file system takes such a name
FILE_NAME = "the name of a file (relative names start at the repository's root)"
A_FOLDER = "which cannot be written (Is a directory), expected a file that can"
NOT_A_FOLDER = "which cannot be written (Not a directory), expected a file that can"
IN_USE = "which is in use, expected a file of its own"
UNREADABLE_LAST = re.compile(
    r"<tmp>/out/TINY/one/last\.pt: cannot be read as a checkpoint of tensors and plain values \(.+\)"
)
HEADER = "expected the header from,to,cost or from,to,distance"
SECTIONS = "expected one of Data, Training, Model, Graph, Runtime"


# ------------------------------------------------------------------------------------------------ how to spoil

Spoil = Callable[[Path], object]


def nothing(_: Path) -> None:
    """The command line alone is wrong."""


def both(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


def content(name: str, text: str | bytes) -> Spoil:
    return lambda root: (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def copied(name: str, target: str) -> Spoil:
    return lambda root: (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, root / target)


def gone(name: str) -> Spoil:
    return lambda root: (root / name).unlink()


def folder_instead(name: str) -> Spoil:
    return lambda root: ((root / name).unlink(missing_ok=True), (root / name).mkdir())


def file_instead(name: str) -> Spoil:
    return lambda root: (shutil.rmtree(root / name), (root / name).write_text(""))


def cut(name: str) -> Spoil:
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


def flipped(name: str) -> Spoil:
    """Flip a bit of the largest tensor: elsewhere it may hit the padding that aligns the tensors."""

    def spoil(root: Path) -> None:
        spoilt = bytearray((root / name).read_bytes())
        with zipfile.ZipFile(root / name) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            content = archive.read(largest)
        spoilt[spoilt.index(content, largest.header_offset) + len(content) // 2] ^= 1
        (root / name).write_bytes(spoilt)

    return spoil


def replaced(name: str, old: str, new: str) -> Spoil:
    def spoil(root: Path) -> None:
        text = (root / name).read_text()
        assert text.count(old) == 1
        (root / name).write_text(text.replace(old, new))

    return spoil


def setting(old: str, new: str) -> Spoil:
    """Replace a line of the configuration."""
    return replaced(CONFIG, f"\n{old}\n", f"\n{new}\n")


def with_line(line: str) -> Spoil:
    """Add a line at the end of the configuration."""
    return setting("max_batches = 1", f"max_batches = 1\n{line}")


def rows(*lines: str) -> Spoil:
    """Replace the road links; the header is row 1."""
    return content(LINKS, "\n".join(("from,to,cost", *lines)))


def series(data: np.ndarray, name: str = "data") -> Spoil:
    return lambda root: np.savez(root / SERIES, **{name: data})


def with_value(value: Any, dtype: str = "f8") -> np.ndarray:
    """Return the series with one other value, at step 3, sensor 2."""
    data = tiny_series().astype(dtype)
    data[3, 2, 0] = value
    return data


def with_gap(steps: slice, sensors: slice) -> np.ndarray:
    """Return the series with a gap."""
    data = tiny_series()
    data[steps, sensors] = np.nan
    return data


def member(name: str, payload: bytes) -> Spoil:
    """Put one file of that name into the archive of the series."""

    def spoil(root: Path) -> None:
        with zipfile.ZipFile(root / SERIES, "w") as archive:
            archive.writestr(name, payload)

    return spoil


def npy(header: str) -> bytes:
    """Return an array file that is all header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def prepared(**changed: np.ndarray) -> Spoil:
    def spoil(root: Path) -> None:
        with np.load(root / PREPARED) as archive:
            arrays = {**archive, **changed}
        np.savez(root / PREPARED, **arrays)

    return spoil


def matrix(row: int, column: int, value: float) -> Spoil:
    def spoil(root: Path) -> None:
        distance = np.load(root / MATRIX)
        distance[row, column] = value
        np.save(root / MATRIX, distance)

    return spoil


def record(**changed: object) -> Spoil:
    return lambda root: (root / RECORD).write_text(json.dumps({**load_json(root / RECORD), **changed}))


def checkpoint(name: str, edit: Callable[[dict[str, Any]], object], target: str | None = None) -> Spoil:
    """Change a checkpoint in place, or into another file."""

    def spoil(root: Path) -> None:
        values = torch.load(root / name, weights_only=True)
        edit(values)
        torch.save(values, root / (target or name))

    return spoil


def with_settings(name: str, old: str, new: str) -> Spoil:
    """Replace a line of the settings in a checkpoint."""

    def edit(values: dict[str, Any]) -> None:
        assert values["settings"].count(f"\n{old}\n") == 1
        values["settings"] = values["settings"].replace(f"\n{old}\n", f"\n{new}\n")

    return checkpoint(name, edit)


class Trap:
    """An object that leaves a folder behind when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


TRAPS = np.array([Trap()], dtype=object)


def trapped(name: str) -> Spoil:
    return lambda root: torch.save({"format": CHECKPOINT_FORMAT, "weights": Trap()}, root / name)


def finished(root: Path) -> None:
    """Give the ablation a run that it need neither train nor draw."""
    copied("out/TINY/one", ABLATED)(root)
    replaced(f"{ABLATED}/settings.ini", "seed = 0", "seed = 1")(root)
    (root / ABLATED / "report.html").write_text("")


# ----------------------------------------------------------------------------------------------- the catalogue


@dataclass(frozen=True)
class Case:
    """A wrong input.

    Attributes:
        kind: one of `KINDS`.
        name: the rest of the test's name.
        command: script and arguments, `<tmp>` being the data set's folder.
        spoil: what is done to the good data set.
        expected: the lines without `error: `; a pattern where a library or the system words a part.
        quota: bytes that a file may grow to: to the script, the disk is full there.
        leaves: whole files and folders that were finished before the fault was met, and stay.
        possible: False where the system cannot have the fault; the case is skipped.
    """

    kind: str
    name: str
    command: str
    spoil: Spoil
    expected: str | re.Pattern[str]
    quota: int | None = None
    leaves: tuple[str, ...] = ()
    possible: bool = True


LINUX = Path("/proc/self/mem").exists()
USER = os.geteuid() != 0  # root may read and write everything

# A line or three a case; the formatter would make it one line an argument.
# fmt: off
CASES = [
    # ---- file: missing, damaged, or of another kind
    Case("file", "ini-missing", "run.py --config TINI.conf", nothing,
         "TINI.conf: found no such file, expected an INI file (did you mean 'TINY.conf'?)"),
    Case("file", "ini-folder", "run.py --config TINY", nothing,
         "TINY: found a folder, expected an INI file"),
    Case("file", "ini-not-text", RUN, content(CONFIG, b"[Data]\n# Gr\xf6\xdfe\n"),
         "TINY.conf: found bytes in line 2 that are not UTF-8, expected UTF-8 text"),
    Case("file", "ini-is-a-csv", RUN, content(CONFIG, "from,to,cost\n"),
         "TINY.conf: found 'from,to,cost' in line 1, expected a section such as [Data]"),
    Case("file", "npz-missing", PREPARE, gone(SERIES),
         "<tmp>/TINY/TINY.npz: no such file, expected an npz archive with data or x"),
    Case("file", "npz-is-a-text", PREPARE, content(SERIES, "from,to,cost\n"),
         "<tmp>/TINY/TINY.npz: found a damaged archive (File is not a zip file), expected npz format"),
    Case("file", "npz-empty", PREPARE, content(SERIES, ""),
         "<tmp>/TINY/TINY.npz: found a damaged archive (File is not a zip file), expected npz format"),
    Case("file", "npz-cut-off", PREPARE, cut(SERIES),
         "<tmp>/TINY/TINY.npz: found a damaged archive (File is not a zip file), expected npz format"),
    Case("file", "npz-is-an-npy", PREPARE, content(SERIES, npy("")),
         "<tmp>/TINY/TINY.npz: found a single array, expected an npz archive with data or x"),
    Case("file", "npz-of-objects", PREPARE, series(TRAPS),
         "<tmp>/TINY/TINY.npz: found a pickled object, expected plain numeric arrays in npz format"),
    Case("file", "npz-is-a-pickle", PREPARE, content(SERIES, pickle.dumps(Trap())),
         "<tmp>/TINY/TINY.npz: found a damaged archive (File is not a zip file), expected npz format"),
    Case("file", "npz-without-data", PREPARE, series(tiny_series(), "dta"),
         "<tmp>/TINY/TINY.npz: found arrays dta, expected 'data' or 'x' (did you mean 'dta'?)"),
    Case("file", "npz-member-no-array", PREPARE, member("data.npy", b"from,to,cost"),
         re.compile(r"<tmp>/TINY/TINY\.npz: found a damaged archive \(.*magic string.*\), expected npz format")),
    Case("file", "npz-member-without-npy", PREPARE, member("data", b"from,to,cost"),
         "<tmp>/TINY/TINY.npz: found arrays nothing, expected 'data' or 'x'"),
    Case("file", "npz-header-unclosed", PREPARE, member("data.npy", npy("((((")),
         re.compile(r"<tmp>/TINY/TINY\.npz: found a damaged archive \(.+\), expected npz format")),
    Case("file", "csv-missing", PREPARE, gone(LINKS),
         "<tmp>/TINY/TINY.csv: no such file"),
    Case("file", "csv-empty", PREPARE, content(LINKS, "\n"),
         f"<tmp>/TINY/TINY.csv: found an empty file, {HEADER}"),
    Case("file", "csv-is-an-npz", PREPARE, copied(SERIES, LINKS),
         re.compile(r"<tmp>/TINY/TINY\.csv: found bytes that are not text \(.+\), expected UTF-8")),
    Case("file", "ids-missing", WITH_IDS, nothing,
         "<tmp>/ids.txt: no such file"),
    Case("file", "prepared-cut-off", RUN, cut(PREPARED),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: found a damaged archive (File is not a zip file), expected npz format"),
    Case("file", "prepared-lacks-an-array", RUN, copied(SERIES, PREPARED),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: found arrays data, expected 'flow'"),
    Case("file", "prepared-of-objects", RUN, prepared(flow=TRAPS),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: found a pickled object, expected plain numeric arrays in npz format"),
    Case("file", "dtw-cut-off", RUN, cut(MATRIX),
         re.compile(r"<tmp>/TINY/TINY_dtw_<key>\.npy: found a damaged file \(.+\), expected a matrix in npy format")),
    Case("file", "dtw-of-objects", RUN, lambda root: np.save(root / MATRIX, TRAPS),
         re.compile(r"<tmp>/TINY/TINY_dtw_<key>\.npy: found a damaged file \(Object arrays .+")),
    Case("file", "dtw-record-is-no-json", RUN, content(RECORD, "{"),
         re.compile(r"<tmp>/TINY/TINY_dtw_<key>\.json: found a damaged file \(.+\), expected JSON")),
    Case("file", "dtw-record-is-nested-without-end", RUN, content(RECORD, "[" * 100_000),
         re.compile(r"<tmp>/TINY/TINY_dtw_<key>\.json: found a damaged file \(.+\), expected JSON")),
    Case("file", "run-missing", "run.py --resume out/TINY/on", nothing,
         "<tmp>/out/TINY/on: found no run here (settings.ini is missing) (did you mean 'one'?)"),
    Case("file", "run-without-settings", FIELD, gone(SETTINGS),
         "<tmp>/out/TINY/one: found no run here (settings.ini is missing)"),
    Case("file", "run-with-other-settings-file", RESUME, content(SETTINGS, "{\n"),
         "<tmp>/out/TINY/one/settings.ini: found '{' in line 1, expected a section such as [Data]"),
    Case("file", "last-missing", RESUME, gone(LAST),
         "<tmp>/out/TINY/one/last.pt: no such file, expected a checkpoint"),
    Case("file", "best-missing", FIELD, gone(BEST),
         "<tmp>/out/TINY/one/best.pt: no such file, expected a checkpoint"),
    Case("file", "last-cut-off", RESUME, cut(LAST), UNREADABLE_LAST),
    Case("file", "last-with-a-wrong-byte", RESUME, flipped(LAST),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: cannot be read .* \(a wrong checksum of \S+\)")),
    Case("file", "best-with-a-wrong-byte", FIELD, flipped(BEST),
         re.compile(r"<tmp>/out/TINY/one/best\.pt: cannot be read .* \(a wrong checksum of \S+\)")),
    Case("file", "weights-with-a-wrong-byte", WEIGHTS,
         both(copied(BEST, "weights"), flipped("weights")),
         re.compile(r"<tmp>/weights: cannot be read .* \(a wrong checksum of \S+\)")),
    Case("file", "last-empty", RESUME, content(LAST, ""), UNREADABLE_LAST),
    Case("file", "last-is-a-text", RESUME, content(LAST, "from,to,cost\n"), UNREADABLE_LAST),
    Case("file", "last-pickled", RESUME, trapped(LAST), UNREADABLE_LAST),
    Case("file", "last-of-paths", RESUME, lambda root: torch.save({"weights": Path("x")}, root / LAST),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: (?!.*can still be loaded)[ -~]+")),
    Case("file", "best-pickled", FIELD, trapped(BEST),
         re.compile(r"<tmp>/out/TINY/one/best\.pt: cannot be read as a checkpoint of tensors and plain values \(.+\)")),
    Case("file", "last-is-a-tensor", RESUME, lambda root: torch.save(torch.ones(3), root / LAST),
         "<tmp>/out/TINY/one/last.pt: found a Tensor, expected a dictionary of tensors"),
    Case("file", "last-of-another-format", RESUME, checkpoint(LAST, lambda values: values.update(format=99)),
         f"<tmp>/out/TINY/one/last.pt: found checkpoint format 99, expected {CHECKPOINT_FORMAT}"),
    Case("file", "last-of-another-series", RESUME, series(tiny_series(seed=1)),
         "<tmp>/TINY/TINY.npz: found another series than <tmp>/out/TINY/one/last.pt was trained on, expected the "
         "same file"),
    Case("file", "weights-missing", WEIGHTS, nothing,
         "<tmp>/weights: no such file, expected a checkpoint"),
    Case("file", "weights-of-objects", WEIGHTS, trapped("weights"),
         re.compile(r"<tmp>/weights: cannot be read as a checkpoint of tensors and plain values \(.+\)")),
    Case("file", "ablation-metrics-damaged", ABLATION, both(finished, content(f"{ABLATED}/metrics.json", "{")),
         re.compile(rf"{ABLATED}/metrics\.json: found a damaged file \(.+\), expected JSON")),
    Case("file", "ablation-predictions-missing", ABLATION, both(finished, gone(f"{ABLATED}/predictions.npz")),
         f"{ABLATED}/predictions.npz: no such file, expected an npz archive with forecast, target, label_starts"),
    Case("file", "materialized-over-the-series", f"{PREPARE} --materialize TINY/TINY.npz", nothing,
         "--materialize: found TINY/TINY.npz, which is in use, expected a file of its own"),
    Case("file", "materialized-over-the-prepared-file", f"{PREPARE} --materialize TINY/../TINY/TINY_w0d1h2p3.npz",
         nothing,
         "--materialize: found TINY/../TINY/TINY_w0d1h2p3.npz, which is in use, expected a file of its own"),
    Case("file", "materialized-over-the-ids", f"{PREPARE} --set Data.id_filename=<tmp>/ids.txt --materialize ids.txt",
         both(content("ids.txt", "400\n517\n629\n733\n888\n"), rows("517,400,1.0")),
         f"--materialize: found ids.txt, {IN_USE}"),
    Case("file", "prepared-over-the-series",
         f"{PREPARE} --set Data.graph_signal_matrix_filename=<tmp>/TINY/TINY_w0d1h2p3.npz",
         copied(SERIES, PREPARED),
         f"TINY.conf [Data] dataset_name: found <tmp>/TINY/TINY_w0d1h2p3.npz, {IN_USE}"),
    Case("file", "dtw-over-the-links", f"{DTW} --set Data.adj_filename=<tmp>/{RECORD}",
         copied(LINKS, RECORD),
         f"TINY.conf [Data] dataset_name: found <tmp>/TINY/TINY_dtw_<key>.json, {IN_USE}"),
    Case("file", "export-over-the-configuration", f"{RUN} --export TINY/../TINY.conf", nothing,
         f"--export: found TINY/../TINY.conf, {IN_USE}"),
    Case("file", "export-over-the-links", f"{RUN} --export {LINKS}", nothing,
         f"--export: found {LINKS}, {IN_USE}"),
    Case("file", "export-over-the-series-of-a-run", f"{RESUME} --export {SERIES}", nothing,
         f"--export: found {SERIES}, {IN_USE}"),
    Case("file", "export-over-the-weights", f"{WEIGHTS} --export link",
         lambda root: (shutil.copy(root / BEST, root / "weights"), (root / "link").symlink_to("weights")),
         f"--export: found link, {IN_USE}"),
    Case("file", "export-over-the-run", f"{RESUME} --export out/TINY/one/best.pt", nothing,
         f"--export: found out/TINY/one/best.pt, {IN_USE}"),
    Case("file", "forecast-over-the-series", f"{PREDICT} --output TINY/TINY.npz", nothing,
         f"--output: found TINY/TINY.npz, {IN_USE}"),
    Case("file", "forecast-over-the-run", f"{PREDICT} --output out/TINY/one/best.pt", nothing,
         f"--output: found out/TINY/one/best.pt, {IN_USE}"),
    Case("file", "paper-tables-over-the-configuration", f"{TABLES} --output TINY.conf", nothing,
         f"--output: found TINY.conf, {IN_USE}"),
    # ---- section
    Case("section", "missing", PREPARE,
         lambda root: (root / CONFIG).write_text((root / CONFIG).read_text().partition("[Training]")[0]),
         "TINY.conf [Training]: found no such section, expected it with batch_size, num_of_weeks, num_of_days, "
         "num_of_hours, epochs, fine_tune_epochs, learning_rate, dropout, kernel_size, num_layers, d_model, nb_head"),
    Case("section", "unknown", PREPARE, with_line("[Modell]"),
         f"TINY.conf [Modell]: found unknown section 'Modell', {SECTIONS} (did you mean 'Model'?)"),
    Case("section", "twice", PREPARE, with_line("[Training]"),
         "TINY.conf [Training]: found it again in line 24, expected it once"),
    Case("section", "default", PREPARE, with_line("[DEFAULT]"),
         f"TINY.conf [DEFAULT]: found unknown section 'DEFAULT', {SECTIONS}"),
    Case("section", "unknown-on-the-command-line", f"{RUN} --set Trainin.epochs=3", nothing,
         f"--set Trainin.epochs=3: found unknown section 'Trainin', {SECTIONS} (did you mean 'Training'?)"),
    # ---- key
    Case("key", "unknown", PREPARE, setting("epochs = 1", "epoch = 1"),
         "TINY.conf [Training] epoch: found unknown key 'epoch', expected a key of [Training] "
         "(did you mean 'epochs'?)\n"
         "TINY.conf [Training] epochs: found no such key, expected an integer of at least 0"),
    Case("key", "missing", DTW, setting("dataset_name = TINY", ""),
         "TINY.conf [Data] dataset_name: found no such key, expected letters, digits, '.', '_' and '-', not starting "
         "with '.'"),
    Case("key", "twice", RUN, setting("nb_head = 2", "d_model = 4\nnb_head = 2"),
         "TINY.conf [Training] d_model: found it again in line 22, expected it once"),
    Case("key", "without-value", RUN, setting("dropout = 0.0", "dropout"),
         "TINY.conf: found 'dropout' in line 18, expected key = value\n"
         "TINY.conf [Training] dropout: found no such key, expected a number of at least 0 and below 1"),
    Case("key", "no-section-on-the-command-line", f"{RUN} --set epochs=3", nothing,
         "--set epochs=3: found no section, key and value, expected Section.key=value"),
    Case("key", "no-value-on-the-command-line", f"{RUN} --set Training.epochs", nothing,
         "--set Training.epochs: found no section, key and value, expected Section.key=value"),
    Case("key", "dtw-record-lacks-one", RUN, content(RECORD, '{"method": "exact"}'),
         "<tmp>/TINY/TINY_dtw_<key>.json: found method, expected the keys method, radius, rows, days, "
         "fingerprint, version, neighbours, matrix_fingerprint"),
    Case("key", "last-lacks-progress", RESUME, checkpoint(LAST, lambda values: values.pop("progress")),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: .*progress.*")),
    Case("key", "last-is-a-best", RESUME, copied(BEST, LAST),
         "<tmp>/out/TINY/one/last.pt: does not fit its run: 'optimizer'"),
    Case("key", "last-lacks-graphs", RESUME, checkpoint(LAST, lambda values: values.pop("graphs")),
         "<tmp>/out/TINY/one/last.pt: found no 'graphs', expected a checkpoint of this project"),
    Case("key", "last-lacks-weights", RESUME, checkpoint(LAST, lambda values: values.pop("weights")),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: .*weights.*")),
    Case("key", "best-lacks-a-weight", FIELD,
         checkpoint(BEST, lambda values: values["weights"].pop("prediction.weight")),
         re.compile(r"<tmp>/out/TINY/one/best\.pt: .*prediction\.weight.*")),
    Case("key", "best-lacks-its-series", FIELD, checkpoint(BEST, lambda values: values.pop("made_from")),
         re.compile(r"<tmp>/out/TINY/one/best\.pt: .*made_from.*")),
    Case("key", "ablation-metrics-without-test-set", ABLATION, both(finished, content(f"{ABLATED}/metrics.json", "{}")),
         re.compile(rf"{ABLATED}/metrics\.json: .*test_set.*")),
    Case("key", "command-without-config", "run.py", nothing,
         "one of the arguments --config --resume --settings is required"),
    Case("key", "of-another-variant", f"{RUN} --set Model.history_steps=2", nothing,
         "--set Model.history_steps=2: found a setting of variant stid, expected one of variant paper: variant, "
         "patch_len, large_kernels, deformable_patches, large_branch, small_branch, laplacian_encoding, time_gate"),
    Case("key", "of-another-variant-than-the-recipe", f"{RUN} --recipe stid", with_line("[Model]\npatch_len = 3"),
         "TINY.conf [Model] patch_len: found a setting of variant paper, released, residual, expected one of variant "
         "stid: variant, history_steps"),
    Case("key", "start-missing-for-a-recipe", f"{RUN} --recipe stid", setting("start = 2018-03-05", ""),
         "TINY.conf [Data] start: found nothing, expected the time of the first step, for variant = stid knows time "
         "and weekday"),
    Case("key", "resume-with-a-recipe", f"{RESUME} --recipe stid", nothing,
         "--resume: found --recipe too, expected the run's own settings alone"),
    Case("key", "resume-with-a-setting", f"{RESUME} --epochs 3", nothing,
         "--resume: found --epochs too, expected the run's own settings alone"),
    Case("key", "resume-with-an-output", f"{RESUME} --output elsewhere", nothing,
         "--resume: found --output too, expected the run's own settings alone"),
    Case("key", "resume-with-an-empty-name", f"{RESUME} --name ''", nothing,
         "--resume: found --name too, expected the run's own settings alone"),
    Case("key", "test-without-weights", f"{RUN} --test-only", nothing,
         "--test-only: found no --weights, expected the weights to test"),
    # ---- type
    Case("type", "integer-in-words", PREPARE, setting("epochs = 1", "epochs = many"),
         "TINY.conf [Training] epochs: found 'many', expected an integer of at least 0"),
    Case("type", "fraction-for-an-integer", DTW, setting("num_of_vertices = 5", "num_of_vertices = 5.0"),
         "TINY.conf [Data] num_of_vertices: found '5.0', expected an integer from 1 to 1000000"),
    Case("type", "number-in-words", f"{RUN} --set Training.learning_rate=fast", nothing,
         "--set Training.learning_rate=fast: found 'fast', expected a number above 0 and at most 1000"),
    Case("type", "switch", f"{RUN} --set Model.time_gate=yes", nothing,
         "--set Model.time_gate=yes: found 'yes', expected on or off"),
    Case("type", "choice", f"{RUN} --set Model.variant=relased", nothing,
         "--set Model.variant=relased: found 'relased', expected one of paper, released, stid, residual, "
         "residual_mlp (did you mean 'released'?)"),
    Case("type", "recipe", f"{RUN} --recipe residual_mpl", nothing,
         re.compile(r"--recipe: found 'residual_mpl', expected one of paper, .* \(did you mean 'residual_mlp'\?\)")),
    Case("type", "recipe-is-a-path", f"{RUN} --recipe ../PEMS04", nothing,
         re.compile(r"--recipe: found '\.\./PEMS04', expected one of paper, .*")),
    Case("type", "recipe-of-an-ablation", f"{ABLATION} --recipe papr", nothing,
         re.compile(r"--recipe: found 'papr', expected one of paper, .* \(did you mean 'paper'\?\)")),
    Case("type", "time", f"{RUN} --set Data.start=yesterday", nothing,
         "--set Data.start=yesterday: found 'yesterday', expected a local time such as 2018-03-05 or 2018-03-05 "
         "00:05, or nothing"),
    Case("type", "time-without-times-after", f"{PREPARE} --set Data.start=9999-12-31", nothing,
         "--set Data.start=9999-12-31: found '9999-12-31', expected a local time such as 2018-03-05 or 2018-03-05 "
         "00:05, or nothing"),
    Case("type", "empty-file-name", f"{RUN} --set Data.adj_filename=", nothing,
         f"--set Data.adj_filename=: found '', expected {FILE_NAME}"),
    Case("type", "kernels", f"{RUN} --set 'Model.large_kernels=15 wide'", nothing,
         "--set Model.large_kernels=15 wide: found '15 wide', expected odd integers from 3 to 999999, separated by "
         "spaces"),
    Case("type", "epochs-empty", f"{RUN} --epochs ''", nothing,
         "--set Training.epochs=: found '', expected an integer of at least 0"),
    Case("type", "device-empty-for-a-resumed-run", f"{RESUME} --device ''", nothing,
         re.compile(r"\[Runtime\] device: found '', expected .*")),
    Case("type", "device", f"{RUN} --device gpu", nothing,
         "--set Runtime.device=gpu: found 'gpu', expected one of auto, cpu, cuda, mps (did you mean 'cpu'?)"),
    Case("type", "npz-of-words", PREPARE, series(np.full((9, 5, 1), "x")),
         "<tmp>/TINY/TINY.npz data: found values of type <U1, expected numbers"),
    Case("type", "npz-of-switches", PREPARE, series(tiny_series() > 50),
         "<tmp>/TINY/TINY.npz data: found values of type bool, expected numbers"),
    Case("type", "npz-of-durations", PREPARE, series(tiny_series().astype("m8[s]")),
         "<tmp>/TINY/TINY.npz data: found values of type timedelta64[s], expected numbers"),
    Case("type", "npz-of-complex-numbers", PREPARE, series(tiny_series() * 1j),
         "<tmp>/TINY/TINY.npz data: found values of type complex128, expected numbers"),
    Case("type", "prepared-label-starts", RUN, prepared(label_starts_test=np.array(["x"])),
         "<tmp>/TINY/TINY_w0d1h2p3.npz label_starts_test: found type <U1 and shape (1,), expected a file of "
         "PrepareData.py"),
    Case("type", "dtw-of-integers", RUN, lambda root: np.save(root / MATRIX, np.zeros((5, 5), dtype=np.int64)),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found values of type int64, expected floating point distances"),
    Case("type", "dtw-record-is-a-list", RUN, content(RECORD, "[]"),
         "<tmp>/TINY/TINY_dtw_<key>.json: found list, expected the keys method, radius, rows, days, "
         "fingerprint, version, neighbours, matrix_fingerprint"),
    Case("type", "dtw-record-days", RUN, record(days="4"),
         "<tmp>/TINY/TINY_dtw_<key>.json: key 'days': found '4', expected a whole number from 1"),
    Case("type", "last-weights", RESUME, checkpoint(LAST, lambda values: values.update(weights=[1])),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: .*")),
    Case("type", "last-progress", RESUME, checkpoint(LAST, lambda values: values.update(progress=[1])),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: does not fit its run: .*")),
    Case("type", "last-graphs", RESUME, checkpoint(LAST, lambda values: values.update(graphs={"topology": 1})),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: found weights that do not fit its model: .*")),
    Case("type", "last-settings", RESUME, checkpoint(LAST, lambda values: values.update(settings=[1])),
         "<tmp>/out/TINY/one/last.pt: found settings of type list, expected a text"),
    Case("type", "last-format", RESUME, checkpoint(LAST, lambda values: values.update(format=torch.ones(2))),
         re.compile(rf"<tmp>/out/TINY/one/last\.pt: found checkpoint format .*, expected {CHECKPOINT_FORMAT}")),
    Case("type", "released-weights", WEIGHTS,
         lambda root: torch.save({"prediction_generator.weight": "text"}, root / "weights"),
         re.compile(r"<tmp>/weights: .*prediction_generator\.weight.*")),
    Case("type", "weights-of-another-project", WEIGHTS,
         lambda root: torch.save({"weights": {"prediction.weight": torch.ones(1, 8)}}, root / "weights"),
         "<tmp>/weights: found weights without graphs, expected a checkpoint of this project or the released code"),
    Case("type", "samples-in-words", f"{FIELD} --samples few", nothing,
         "--samples: found few, expected an integer of at least 1"),
    Case("type", "dtw-method", f"{DTW} --method fast", nothing,
         re.compile(r"--method: invalid choice: 'fast' \(choose from .*\)")),
    # ---- range
    Case("range", "learning-rate-0", f"{RUN} --set Training.learning_rate=0", nothing,
         "--set Training.learning_rate=0: found '0', expected a number above 0 and at most 1000"),
    Case("range", "learning-rate-nan", f"{RUN} --set Training.learning_rate=nan", nothing,
         "--set Training.learning_rate=nan: found 'nan', expected a number above 0 and at most 1000"),
    Case("range", "learning-rate-beyond-float32", f"{RUN} --set Training.learning_rate=1e300", nothing,
         re.compile(r"--set Training\.learning_rate=1e300: found '1e300', expected .*")),
    Case("range", "dropout-1", f"{RUN} --set Training.dropout=1", nothing,
         "--set Training.dropout=1: found '1', expected a number of at least 0 and below 1"),
    Case("range", "batch-size-0", f"{RUN} --set Training.batch_size=0", nothing,
         "--set Training.batch_size=0: found '0', expected an integer of at least 1"),
    Case("range", "kernel-even", f"{RUN} --set Training.kernel_size=4", nothing,
         "--set Training.kernel_size=4: found '4', expected an odd integer from 1 to 999999"),
    Case("range", "heads-do-not-divide", f"{RUN} --set Training.nb_head=3", nothing,
         "--set Training.nb_head=3: found 3, expected a divisor of d_model = 8: 1, 2, 4, 8"),
    Case("range", "heads-do-not-divide-a-large-number",
         f"{RUN} --set Training.d_model=999983 --set Training.nb_head=3", nothing,
         re.compile(r".*found 3, expected a divisor of d_model = 999983: 1, 999983")),
    Case("range", "patches-do-not-fill", f"{RUN} --set Model.patch_len=4", nothing,
         "--set Model.patch_len=4: found 4, expected 0 (points_per_hour) or a divisor of the 6 input steps: 1, 2, 3, "
         "6"),
    Case("range", "no-segment", f"{RUN} --set Training.num_of_hours=0 --set Training.num_of_days=0", nothing,
         "--set Training.num_of_hours=0: found 0 like num_of_days and num_of_weeks, expected at least one segment in "
         "all"),
    Case("range", "no-epoch", f"{RUN} --epochs 0 --fine-tune-epochs 0", nothing,
         "--set Training.epochs=0: found 0 like fine_tune_epochs, expected at least one epoch in all"),
    Case("range", "residual-without-an-hour", f"{RUN} --recipe residual_mlp --set Training.num_of_hours=0", nothing,
         "TINY.conf [Model] residual: found on, expected num_of_hours of at least 1, or off"),
    Case("range", "residual-beyond-a-day",
         f"{RUN} --recipe residual_mlp --set Model.residual=on --set Data.num_for_predict=47", nothing,
         "--set Model.residual=on: found on, expected num_for_predict of at most 46 (23 h), or off"),
    Case("range", "history-beyond-the-input", f"{RUN} --recipe stid --set Model.history_steps=7", nothing,
         "--set Model.history_steps=7: found 7, expected 0 (points_per_hour) or at most the 6 input steps"),
    Case("range", "compiled-and-checkpointed",
         f"{RUN} --set Runtime.compile=on --set Runtime.gradient_checkpointing=on", nothing,
         "--set Runtime.compile=on: found on like gradient_checkpointing, expected one of them at most"),
    Case("range", "several-seeds-with-weights", f"{SEVERAL} 1 2 --weights weights", copied(BEST, "weights"),
         "--seed: found several with --weights, expected one"),
    Case("range", "several-recipes-of-a-dry-run", f"{RUN} --dry-run --recipe paper stid", nothing,
         "--recipe: found several with --dry-run, expected one"),
    Case("range", "second-of-several-recipes", f"{SEVERAL} 1 --recipe paper stid --set Model.history_steps=7", nothing,
         re.compile(r"--set Model\.history_steps=7: found a setting of variant stid, expected one of variant paper.*")),
    Case("range", "no-branch", f"{RUN} --set Model.small_branch=off --set Model.large_branch=off", nothing,
         "--set Model.small_branch=off: found off like large_branch, expected at least one branch"),
    Case("range", "segments-without-end", f"{RUN} --set Training.num_of_hours=1000000000000", nothing,
         "--set Training.num_of_hours=1000000000000: found '1000000000000', expected an integer from 0 to 1000"),
    Case("range", "horizon-without-end", f"{RUN} --set Data.num_for_predict=1{'0' * 30}", nothing,
         f"--set Data.num_for_predict=1{'0' * 30}: found '1{'0' * 30}', expected an integer from 1 to 10000"),
    Case("range", "threads", f"{RUN} --set Runtime.threads=100000000", nothing,
         "--set Runtime.threads=100000000: found '100000000', expected an integer from 0 to 1024"),
    Case("range", "seed", f"{RUN} --seed -1", nothing,
         "--set Training.seed=-1: found '-1', expected an integer from 0 to 4294967295"),
    Case("range", "seed-of-several", f"{SEVERAL} 1 two -3", nothing,
         "--set Training.seed=two: found 'two', expected an integer from 0 to 4294967295"),
    Case("range", "dataset-name", f"{PREPARE} --set Data.dataset_name=../TINY", nothing,
         "--set Data.dataset_name=../TINY: found '../TINY', expected letters, digits, '.', '_' and '-', not starting "
         "with '.'"),
    Case("range", "run-name-empty", "run.py --config TINY.conf --output out --name ''", nothing,
         "--name: found '', expected a name without '/' that does not start with '.'"),
    Case("range", "run-name-above-with-several-seeds",
         "run.py --config TINY.conf --output out --name ../one --seed 1 2", nothing,
         "--name: found '../one', expected a name without '/' that does not start with '.'"),
    Case("range", "run-name-empty-with-several-seeds",
         "run.py --config TINY.conf --output out --name '' --seed 1 2", nothing,
         "--name: found '', expected a name without '/' that does not start with '.'"),
    Case("range", "export-of-another-variant", f"{RUN} --set Model.variant=stid --export epoch50", nothing,
         "--export: found variant stid, expected paper or released, whose code the file is for"),
    Case("range", "export-of-a-dry-run", f"{RUN} --dry-run --export epoch50", nothing,
         "--dry-run: found --export too, expected one of them: a dry run trains and keeps nothing"),
    Case("range", "run-name", f"{RUN}/three", nothing,
         "--name: found 'two/three', expected a name without '/' that does not start with '.'"),
    Case("range", "radius-0", f"{DTW} --method fastdtw --radius 0", nothing,
         "--set Graph.dtw_radius=0: found '0', expected an integer of at least 1"),
    Case("range", "samples-0", f"{FIELD} --samples 0", nothing,
         "--samples: found 0, expected an integer of at least 1"),
    Case("range", "node", f"{FIELD} --node 5", nothing,
         "--node: found '5', expected center, all or a position 0..4"),
    Case("range", "layer", f"{FIELD} --layer encoder.9", nothing,
         re.compile(r"--layer: found no module 'encoder\.9', expected the dotted name of one, the nearest: "
                    r"encoder\.0, .*")),
    Case("range", "row-of-an-ablation", f"{ABLATION} papr", nothing,
         re.compile(r"--only: found 'papr', expected one of paper, .* \(did you mean 'paper'\?\)")),
    Case("range", "seeds-0", f"{ABLATION} --seeds 0", nothing,
         "--seeds: found 0, expected an integer of at least 1"),
    Case("range", "npz-nan", PREPARE, series(with_value(np.nan)),
         "<tmp>/TINY/TINY.npz data: found 1 NaN or infinite values, the first at step 3, sensor 2, feature 0, "
         "expected finite numbers, or [Data] missing = interpolate"),
    Case("range", "missing-rule", f"{PREPARE} --set Data.missing=interpolated", nothing,
         "--set Data.missing=interpolated: found 'interpolated', expected error, or a list of interpolate, "
         "zero_is_missing, negative_is_missing and numbers, separated by commas "
         "(did you mean 'interpolate'?)"),
    Case("range", "npz-negative", PREPARE, series(with_value(-1)),
         "<tmp>/TINY/TINY.npz data: found 1 negative values, the first -1 at step 3 (2018-03-05 01:30:00), "
         "sensor 2, expected flows of at least 0; where they mark gaps, set [Data] missing = interpolate, -1"),
    Case("range", "npz-infinite-beside-gaps", f"{PREPARE} --set Data.missing=interpolate", series(with_value(np.inf)),
         "<tmp>/TINY/TINY.npz data: found 1 infinite values, the first at step 3, sensor 2, feature 0, "
         "expected finite numbers"),
    Case("range", "npz-silent-sensor", f"{RUN} --set Data.missing=interpolate",
         series(with_gap(slice(None), slice(3, 4))),
         "<tmp>/TINY/TINY.npz data: sensor 3: found no value in the training inputs (steps 0 (2018-03-05 00:00:00) "
         ".. 246 (2018-03-10 03:00:00)), expected some"),
    Case("range", "npz-no-target", f"{PREPARE} --set Data.missing=interpolate",
         series(with_gap(slice(310, None), slice(None))),
         "<tmp>/TINY/TINY.npz data: found no value in the targets of the test split (steps 315 (2018-03-11 "
         "13:30:00) .. 383 (2018-03-12 23:30:00)), expected some"),
    Case("range", "materialized-with-gaps", f"{PREPARE} --set Data.missing=interpolate --materialize <tmp>/out.npz",
         series(with_value(np.nan)),
         "--materialize: found missing values in <tmp>/TINY/TINY.npz, expected none, as its format knows none"),
    Case("range", "npz-infinite", RUN, series(with_value(-np.inf)),
         "<tmp>/TINY/TINY.npz data: found 1 NaN or infinite values, the first at step 3, sensor 2, feature 0, "
         "expected finite numbers"),
    Case("range", "npz-beyond-float32", PREPARE, series(with_value(1e300)),
         "<tmp>/TINY/TINY.npz data: found 1 NaN or infinite values, the first at step 3, sensor 2, feature 0, "
         "expected finite numbers"),
    Case("range", "npz-constant", PREPARE, series(np.full((384, 5, 1), 7)),
         "<tmp>/TINY/TINY.npz data: found a flow of 7 at all training steps, expected values that vary"),
    Case("range", "npz-size-beyond-memory", PREPARE,
         member("data.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 5, 1), }")),
         re.compile(r"<tmp>/TINY/TINY\.npz: (cannot be read: Unable to allocate|found a damaged archive \().*")),
    Case("range", "npz-size-beyond-integers", PREPARE,
         member("data.npy", npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (1{'0' * 30}, 5, 1), }}")),
         re.compile(r"<tmp>/TINY/TINY\.npz: found a damaged archive \(.+\), expected npz format")),
    Case("range", "prepared-label-starts", RUN, prepared(label_starts_test=np.array([384])),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: found label starts outside of the series, expected a file of PrepareData.py"),
    Case("range", "dtw-nan", RUN, matrix(1, 3, np.nan),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found entries that are not finite, the first is nan at row 1, column 3; "
         "expected finite distances"),
    Case("range", "dtw-negative", RUN, matrix(1, 3, -2),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found entries that are negative, the first is -2 at row 1, column 3; expected "
         "distances of 0 or more"),
    Case("range", "dtw-diagonal", RUN, matrix(2, 2, 3),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found entries that are not zero on the diagonal, the first is 3 at row 2, "
         "column 2; expected a distance of 0 from a sensor to itself"),
    Case("range", "dtw-record-method", RUN, record(method="exat"),
         "<tmp>/TINY/TINY_dtw_<key>.json: key 'method': found 'exat', expected exact or fastdtw (did you mean "
         "'exact'?)"),
    Case("range", "last-stage", RESUME, checkpoint(LAST, lambda values: values["progress"].update(stage=7)),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: .*")),
    Case("range", "last-variant", RESUME, with_settings(LAST, "variant = paper", "variant = other"),
         "<tmp>/out/TINY/one/last.pt [Model] variant: found 'other', expected one of paper, released, stid, residual, "
         "residual_mlp"),
    Case("range", "last-dropout", RESUME, with_settings(LAST, "dropout = 0.0", "dropout = 0.1"),
         "<tmp>/out/TINY/one/last.pt: found Training.dropout 0.1, expected the settings in settings.ini beside it"),
    Case("range", "best-variant", FIELD, with_settings(BEST, "variant = paper", "variant = released"),
         "<tmp>/out/TINY/one/best.pt: found Model.variant released, expected the settings in settings.ini beside it"),
    # ---- row
    Case("row", "csv-header", PREPARE, content(LINKS, "0,1,1.0\n1,2,1.0\n"),
         f"<tmp>/TINY/TINY.csv row 1: found '0,1,1.0', {HEADER}"),
    Case("row", "csv-lines-of-old-macs", PREPARE, content(LINKS, "from,to,cost\r0,1,1.0\r"),
         f"<tmp>/TINY/TINY.csv row 1: found 'from,to,cost\\r0,1,1.0', {HEADER}"),
    Case("row", "csv-columns", PREPARE, rows("0,1,1.0", "1,2"),
         "<tmp>/TINY/TINY.csv row 3: found 2 columns, expected 3"),
    Case("row", "csv-unknown-position", PREPARE, rows("0,5,1.0"),
         "<tmp>/TINY/TINY.csv row 2: column 'to': found sensor 5, expected a position 0..4 (ids need an id_filename)"),
    Case("row", "csv-negative-position", RUN, rows("-1,2,1.0"),
         "<tmp>/TINY/TINY.csv row 2: column 'from': found sensor -1, expected a position 0..4 (ids need an "
         "id_filename)"),
    Case("row", "csv-name-for-a-position", RUN, rows("north,2,1.0"),
         "<tmp>/TINY/TINY.csv row 2: column 'from': found 'north', expected an integer"),
    Case("row", "csv-endless-digits", RUN, rows(f"{'9' * 5000},2,1.0"),
         f"<tmp>/TINY/TINY.csv row 2: column 'from': found '{'9' * 60}...', expected an integer"),
    Case("row", "csv-terminal-codes", RUN, rows("0,\x1b[2J\x0c1,1.0"),
         r"<tmp>/TINY/TINY.csv row 2: column 'to': found '\x1b[2J\x0c1', expected an integer"),
    Case("row", "csv-cost", RUN, rows("0,1,nan"),
         "<tmp>/TINY/TINY.csv row 2: column 3: found 'nan', expected a number"),
    Case("row", "csv-many", RUN, rows(*("x" * 8)),
         "".join(f"<tmp>/TINY/TINY.csv row {row}: found 1 columns, expected 3\n" for row in range(2, 7))
         + "<tmp>/TINY/TINY.csv: and 3 more wrong rows"),
    Case("row", "csv-unknown-id", WITH_IDS, both(content("ids.txt", "400\n517\n629\n733\n888\n"), rows("517,4002,1.0")),
         "<tmp>/TINY/TINY.csv row 2: column 'to': found sensor 4002, expected an id listed in ids.txt (did you mean "
         "'400'?)"),
    Case("row", "ids-too-few", WITH_IDS, content("ids.txt", "400\n517\n"),
         "<tmp>/ids.txt: found 2 sensor ids, expected 5, one a line for each sensor"),
    Case("row", "ids-twice", WITH_IDS, content("ids.txt", "400\n517\n400\n733\n888\n"),
         "<tmp>/ids.txt row 3: found id 400 again (first in row 1), expected it once"),
    Case("row", "ids-with-a-header", WITH_IDS, content("ids.txt", "id\n400\n517\n629\n733\n888\n"),
         "<tmp>/ids.txt row 1: found 'id', expected an integer"),
    # ---- shape
    Case("shape", "npz-two-axes", PREPARE, series(tiny_series()[:, :, 0]),
         "<tmp>/TINY/TINY.npz data: found shape (384, 5), expected three axes (time steps, sensors, features)"),
    Case("shape", "npz-sensors", PREPARE, setting("num_of_vertices = 5", "num_of_vertices = 6"),
         "<tmp>/TINY/TINY.npz data: found 5 sensors, expected num_of_vertices = 6"),
    Case("shape", "npz-sensors-after-preparation", RUN,
         setting("num_of_vertices = 5", "num_of_vertices = 1000000"),
         "<tmp>/TINY/TINY.npz data: found 5 sensors, expected num_of_vertices = 1000000"),
    Case("shape", "npz-without-steps", PREPARE, series(tiny_series()[:0]),
         "<tmp>/TINY/TINY.npz data: found shape (0, 5, 1), expected at least one step, sensor and feature"),
    Case("shape", "npz-too-short", PREPARE, series(tiny_series()[:52]),
         "<tmp>/TINY/TINY.npz data: found 52 rows, expected at least 53 for windows of 0 weeks, 1 days, 2 hours and "
         "3 target steps"),
    Case("shape", "npz-no-whole-day", f"{DTW} --set Training.num_of_days=0", series(tiny_series()[:47]),
         "<tmp>/TINY/TINY.npz data: mean day of the sensors: found 27 rows to average, expected at least one whole "
         "day of 48 rows", leaves=("TINY/TINY_w0d0h2p3.npz",)),
    Case("shape", "prepared-flow", RUN, prepared(flow=np.ones(3)),
         "<tmp>/TINY/TINY_w0d1h2p3.npz flow: found type float64 and shape (3,), expected a file of PrepareData.py"),
    Case("shape", "dtw-sensors", RUN, lambda root: np.save(root / MATRIX, np.zeros((4, 4))),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found a matrix of shape (4, 4), expected (5, 5) for 5 sensors"),
    Case("shape", "dtw-asymmetric", RUN, matrix(1, 3, 9),
         "<tmp>/TINY/TINY_dtw_<key>.npy: found entries that are not symmetric, the first is 9 at row 1, column 3; "
         "expected the same distance both ways"),
    Case("shape", "weights-of-another-model", WEIGHTS,
         checkpoint(BEST, lambda values: values["weights"].update({"prediction.weight": torch.ones(1, 9)}), "weights"),
         re.compile(r"<tmp>/weights: size mismatch for prediction\.weight: .*")),
    Case("shape", "weights-of-another-width", f"{WEIGHTS} --set Training.d_model=16",
         copied(BEST, "weights"),
         re.compile(r"<tmp>/weights: .*size mismatch .*; its network has Training.d_model 8, this one 16")),
    Case("shape", "last-of-another-model", RESUME,
         checkpoint(LAST, lambda values: values["weights"].update({"prediction.weight": torch.ones(1, 9)})),
         re.compile(r"<tmp>/out/TINY/one/last\.pt: .*prediction\.weight.*")),
    Case("shape", "last-of-another-horizon", RESUME, replaced(SETTINGS, "num_for_predict = 3", "num_for_predict = 4"),
         re.compile(r"<tmp>/out/TINY/one/(settings\.ini|last\.pt): .*"),
         leaves=("TINY/TINY_w0d1h2p4.npz",)),
    # ---- race: who comes second (all at once: below)
    Case("race", "name-taken", "run.py --config TINY.conf --output out --name one", nothing,
         "--name: found a run in out/TINY/one, expected a new name, or --resume"),
    Case("race", "ablation-of-other-settings", f"{ABLATION} --set Training.dropout=0.5", finished,
         f"{ABLATED}/settings.ini: found Training.dropout 0.0, expected the settings asked for, or a new name for the "
         "run"),
    Case("race", "one-of-several-of-other-settings", f"{SEVERAL} 1 2 --set Training.loss=mse",
         copied("out/TINY/one", "out/TINY/two-seed1"),
         "out/TINY/two-seed1/settings.ini: found Training.loss mae, expected the settings asked for, or a new name "
         "for the run"),
    Case("race", "one-of-several-of-another-seed", f"{SEVERAL} 1 2", copied("out/TINY/one", "out/TINY/two-seed1"),
         "out/TINY/two-seed1/settings.ini: found Training.seed 0, expected the settings asked for, or a new name for "
         "the run"),
    # ---- permission; root may do everything, so a file or a folder stands where the other is needed
    Case("permission", "ini-below-a-file", "run.py --config TINY.conf/x", nothing,
         "TINY.conf/x: cannot be read: Not a directory"),
    Case("permission", "ini-name-too-long", f"run.py --config {LONG}", nothing,
         f"{LONG}: cannot be read: File name too long"),
    Case("permission", "ini-unreadable", "run.py --config /proc/self/mem", nothing,
         "/proc/self/mem: cannot be read: Input/output error", possible=LINUX),
    Case("permission", "npz-unreadable", f"{RUN} --set Data.graph_signal_matrix_filename=/proc/self/mem", nothing,
         "/proc/self/mem: cannot be read: Input/output error", possible=LINUX),
    Case("permission", "csv-unreadable", f"{RUN} --set Data.adj_filename=/proc/self/mem", nothing,
         "/proc/self/mem: cannot be read: Input/output error", possible=LINUX),
    Case("permission", "npz-is-a-folder", PREPARE, folder_instead(SERIES),
         "<tmp>/TINY/TINY.npz: cannot be read: Is a directory"),
    Case("permission", "data-folder-mode", PREPARE, lambda root: (root / "TINY").chmod(0o500),
         "<tmp>/TINY: cannot be written to, expected a folder for TINY_w0d1h2p3.npz: name one in [Data] cache "
         "(--set Data.cache=FOLDER)", possible=USER),
    Case("permission", "csv-is-a-folder", PREPARE, folder_instead(LINKS),
         "<tmp>/TINY/TINY.csv: cannot be read: Is a directory"),
    Case("permission", "prepared-is-a-folder", PREPARE, folder_instead(PREPARED),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: cannot be written: Is a directory"),
    Case("permission", "prepared-unreadable", RUN, folder_instead(PREPARED),
         "<tmp>/TINY/TINY_w0d1h2p3.npz: cannot be read: Is a directory"),
    Case("permission", "prepared-name-too-long", f"{RUN} --set Data.dataset_name={LONG}", nothing,
         f"<tmp>/TINY/{LONG}_w0d1h2p3.npz: cannot be written: File name too long"),
    Case("permission", "dtw-is-a-folder", RUN, folder_instead(MATRIX),
         "<tmp>/TINY/TINY_dtw_<key>.npy: cannot be read: Is a directory"),
    Case("permission", "dtw-record-is-a-folder", RUN, folder_instead(RECORD),
         "<tmp>/TINY/TINY_dtw_<key>.json: cannot be read: Is a directory"),
    Case("permission", "dtw-record-in-the-way", DTW, folder_instead(RECORD),
         "<tmp>/TINY/TINY_dtw_<key>.json: cannot be written: Is a directory"),
    Case("permission", "output-is-a-file", RUN, file_instead("out"),
         "out/TINY/two: cannot be made: Not a directory"),
    Case("permission", "output-in-proc", f"{RUN} --output /proc/nowhere", nothing,
         "/proc/nowhere/TINY/two: cannot be made: No such file or directory", possible=LINUX),
    Case("permission", "run-name-too-long", f"run.py --config TINY.conf --output out --name {LONG}", nothing,
         f"out/TINY/{LONG}: cannot be made: File name too long"),
    Case("permission", "run-to-resume-name-too-long", f"run.py --resume {LONG}", nothing,
         f"<tmp>/{LONG}: found no run here (settings.ini is missing)"),
    Case("permission", "settings-are-a-folder", RESUME, folder_instead(SETTINGS),
         "<tmp>/out/TINY/one/settings.ini: found a folder, expected an INI file"),
    Case("permission", "weights-are-a-folder", WEIGHTS, folder_instead("weights"),
         re.compile(r"<tmp>/weights: cannot be read.*Is a directory.*")),
    Case("permission", "materialized-below-a-file", f"{PREPARE} --materialize TINY.conf/windows.npz", nothing,
         f"--materialize: found TINY.conf/windows.npz, {NOT_A_FOLDER}"),
    Case("permission", "materialized-onto-a-folder", f"{PREPARE} --materialize out", nothing,
         f"--materialize: found out, {A_FOLDER}"),
    Case("permission", "export-onto-a-folder", f"{RUN} --export out", nothing,
         f"--export: found out, {A_FOLDER}"),
    Case("permission", "export-below-a-file", f"{RUN} --export TINY.conf/new/epoch50", nothing,
         f"--export: found TINY.conf/new/epoch50, {NOT_A_FOLDER}"),
    Case("permission", "export-of-a-resumed-run", f"{RESUME} --export TINY.conf/epoch50", nothing,
         f"--export: found TINY.conf/epoch50, {NOT_A_FOLDER}"),
    Case("permission", "export-name-too-long", f"{RUN} --export {LONG}", nothing,
         f"--export: found {LONG}, which cannot be written (File name too long), expected a file that can"),
    Case("permission", "export-folder-mode", f"{RUN} --export locked/epoch50",
         lambda root: (root / "locked").mkdir(0o500),
         "--export: found locked/epoch50, which cannot be written (Permission denied), expected a file that can",
         possible=USER),
    Case("permission", "forecast-onto-a-folder", f"{PREDICT} --output TINY", nothing,
         f"--output: found TINY, {A_FOLDER}"),
    Case("permission", "forecast-below-a-file", f"{PREDICT} --output TINY.conf/forecast.csv", nothing,
         f"--output: found TINY.conf/forecast.csv, {NOT_A_FOLDER}"),
    Case("permission", "paper-tables-onto-a-folder", f"{TABLES} --output out", nothing,
         f"--output: found out, {A_FOLDER}"),
    Case("permission", "figures-are-a-file", FIELD, content("out/TINY/one/figures", ""),
         "<tmp>/out/TINY/one/figures/erf_front_end.png: cannot be written: <tmp>/out/TINY/one/figures is not a folder",
         leaves=("out/TINY/one/erf_front_end.npz",)),
    Case("permission", "results-below-a-file", f"{ABLATION} --results TINY.conf", nothing,
         f"--results: found TINY.conf/TINY/ablation_paper.csv, {NOT_A_FOLDER}"),
    Case("permission", "results-onto-a-folder", ABLATION,
         lambda root: (root / "results/TINY/ablation_paper.md").mkdir(parents=True),
         f"--results: found results/TINY/ablation_paper.md, {A_FOLDER}"),
    # ---- disk
    Case("disk", "prepared", PREPARE, nothing,
         "<tmp>/TINY/TINY_w0d1h2p3.npz: cannot be written: File too large", quota=4000),
    Case("disk", "materialized", f"{PREPARE} --materialize windows.npz", nothing,
         "windows.npz: cannot be written: File too large", quota=15000),
    Case("disk", "dtw", DTW, nothing,
         "<tmp>/TINY/TINY_dtw_<key>.npy: cannot be written: File too large", quota=250),
    Case("disk", "settings", RUN, nothing,
         re.compile(r"out/TINY/\.two\.\d+\.partial/settings\.ini: cannot be written: File too large"), quota=100),
    Case("disk", "first-checkpoint", RUN, nothing,
         re.compile(r"out/TINY/\.two\.\d+\.partial/last\.pt: cannot be written: File too large"),
         quota=3000),
    Case("disk", "next-checkpoint", RUN, nothing,
         re.compile(r"out/TINY/two/(best|last)\.pt: cannot be written: File too large"),
         quota=150_000, leaves=("out/TINY/two",)),
    Case("disk", "predictions", RESUME, nothing,
         "<tmp>/out/TINY/one/predictions.npz: cannot be written: File too large", quota=3000),
    Case("disk", "figure", FIELD, nothing,
         "<tmp>/out/TINY/one/figures/erf_front_end.png: cannot be written: File too large", quota=5000,
         leaves=("out/TINY/one/figures", "out/TINY/one/erf_front_end.npz")),
    Case("disk", "receptive-field", FIELD, nothing,
         "<tmp>/out/TINY/one/erf_front_end.npz: cannot be written: File too large", quota=500),
    Case("disk", "forecast", f"{PREDICT} --output forecast.csv", nothing,
         "forecast.csv: cannot be written: File too large", quota=100),
    Case("disk", "ablation-table", ABLATION, finished,
         "results/TINY/ablation_paper.csv: cannot be written: File too large", quota=100, leaves=("results",)),
]
# fmt: on
