"""Published runs are whole, small and from no machine, and forecast what they forecast when they were published."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.checkpoints import load_checkpoint, save_checkpoint
from lib.data.series import Scaling
from lib.errors import InputError
from lib.files import REPOSITORY_ROOT
from lib.inference import load_forecaster
from lib.publishing import forecast_of, publish
from lib.run_folder import RunFolder
from lib.runs import finish_run, forecast_test_split, start_run
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, load

PUBLISHED = sorted(REPOSITORY_ROOT.glob("results/*/runs/*"))
LARGEST = 5 * 2**20  # bytes, of a run


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_a_published_run_forecasts_what_it_did(path: Path, call: Call, tmp_path: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (path / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sums}
    assert {"best.pt", "settings.ini", "environment.json", "metrics.json", "example.npz"} < set(sums)
    assert sum((path / name).stat().st_size for name in sums) < LARGEST

    texts = [(path / name).read_text() for name in sums if not name.endswith((".pt", ".npz"))]
    texts.append(load_checkpoint(path / "best.pt")["settings"])
    assert not [text for text in texts for folder in ("/root", "/home", "/tmp", "/work") if folder in text]

    forecaster = load_forecaster(RunFolder(path), VARIANTS, "cpu")
    with np.load(path / "example.npz") as example:
        expected = example["forecast"]
    assert np.isfinite(expected).all()
    tolerance = 1e-4 * np.abs(expected).max()  # another machine adds up in another order
    np.testing.assert_allclose(forecast_of(path / "example.npz", forecaster), expected, atol=tolerance)
    assert call("predict.py", "--run", path, "--input", path / "example.npz") == 0
    with (tmp_path / "forecast.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    written = np.array([float(row["forecast"]) for row in rows]).reshape(expected.shape[::-1]).T
    np.testing.assert_allclose(written, expected.clip(0), atol=tolerance + 1e-3)


def test_there_is_a_published_run_of_pems08() -> None:
    assert [path.name for path in PUBLISHED if path.parent.parent.name == "PEMS08"]


def test_a_run_is_published_without_its_machine_and_its_data(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["Model.variant=residual_mlp", "Training.max_batches=2", f"Data.cache={tmp_path / 'cache'}"]
    changes += ["Data.missing=zero_is_missing"]  # of which the made-up series has none
    run = start_run(load(make_dataset(), changes), tmp_path / "out", "one")
    finish_run(run)
    target = tmp_path / "results" / "TINY"
    assert call("report.py", "--run", run.folder, "--publish", target) == 0
    names = {path.name for path in target.iterdir()}
    assert names == {
        *("settings.ini", "environment.json", "log.jsonl", "best.pt", "metrics.json", "metrics.csv"),
        *("example.npz", "SHA256SUMS", "intervals.npz", "intervals.json"),
    }
    assert np.load(target / "example.npz")["data"].min() > 0
    published, before = RunFolder(target), load_checkpoint(run.folder.best)
    kept = load_checkpoint(published.best)
    assert published.settings.read_text() == kept["settings"]
    assert str(tmp_path) not in "".join(path.read_text("latin-1") for path in target.iterdir())
    assert "graph_signal_matrix_filename = data/TINY/TINY.npz\n" in kept["settings"]
    assert all(torch.equal(weight, before["weights"][name]) for name, weight in kept["weights"].items())
    assert published.read_metrics() == run.folder.read_metrics()
    assert published.read_log() == run.folder.read_log()
    assert Scaling(**kept["scaling"]) == Scaling(**before["scaling"])

    # Whoever has the data set forecasts the test split again, by any file of the same flow.
    series = tmp_path / "TINY" / "TINY.npz"
    data = np.load(series)["data"]
    np.savez(series, data=np.concatenate([data, data], axis=2))
    published.settings.write_text(run.folder.settings.read_text())
    forecast_test_split(published, VARIANTS)
    again, was = published.read_predictions(), run.folder.read_predictions()
    for name in was:
        np.testing.assert_allclose(again[name], was[name], rtol=1e-5, atol=1e-3)
    data[-1, 0] += 1
    np.savez(series, data=data)
    with pytest.raises(InputError, match=r"TINY\.npz: found other targets than those of .*metrics\.json, expected"):
        forecast_test_split(published, VARIANTS)

    save_checkpoint(run.folder.best, {**before, "later": True})  # whose intervals are not those of the run
    publish(run.folder, RunFolder(tmp_path / "later"), VARIANTS)
    assert not RunFolder(tmp_path / "later").intervals.exists()

    capsys.readouterr()
    assert call("report.py", "--run", run.folder, "--publish", target) == 2
    assert capsys.readouterr().err == f"error: --publish: found {target}, expected the name of a new folder\n"
    with pytest.raises(InputError, match=r"none: found no metrics\.json, expected a finished run"):
        publish(RunFolder(tmp_path / "none"), RunFolder(tmp_path / "other"), VARIANTS)
