"""From a configuration to graphs: what may shape them, what makes a file stale, and where the files lie."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.config import Config
from lib.data.graphs import SensorGraphs
from lib.data.preparing import dtw_paths, graphs_for, links_for, prepared_for, wanted_record
from lib.errors import InputError
from lib.runs import start_run
from tests.conftest import Call, DatasetMaker, load, tiny_series
from tests.test_predict import read_forecast


def graphs_of(config: Config) -> SensorGraphs:
    return graphs_for(config, prepared_for(config), links_for(config))


def distance_files(config: Config) -> tuple[Path, Path]:
    return dtw_paths(config, wanted_record(config, prepared_for(config)))


def changed_after_training_rows(config: Config) -> None:
    """Replace the series by one that differs after the training rows alone."""
    rows = prepared_for(config).training_rows
    data = tiny_series(sensors=8)
    data[rows:] = np.random.default_rng(1).uniform(0, 200, data[rows:].shape)
    np.savez(config.data.graph_signal_matrix_filename, data=data)


def test_graphs_do_not_change_when_test_rows_change(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(tiny_series(sensors=8)), ["Graph.neighbours=2"])
    before = graphs_of(config)
    changed_after_training_rows(config)
    after = graphs_of(config)
    np.testing.assert_array_equal(before.similarity.dense(), after.similarity.dense())
    np.testing.assert_array_equal(before.topology.dense(), after.topology.dense())
    np.testing.assert_array_equal(before.laplacian_encoding, after.laplacian_encoding)


def test_dtw_over_all_days_sees_the_test_rows(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(tiny_series(sensors=8)), ["Graph.dtw_rows=all", "Graph.neighbours=2"])
    graphs_of(config)
    before = np.load(distance_files(config)[0], allow_pickle=False)
    changed_after_training_rows(config)
    graphs_of(config)
    assert not np.allclose(before, np.load(distance_files(config)[0], allow_pickle=False))


def test_graphs_come_from_the_files_the_second_time(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset())
    first = graphs_of(config)
    again = graphs_of(config)  # from the files
    np.testing.assert_array_equal(first.similarity.dense(), again.similarity.dense())
    assert {path.name for path in (tmp_path / "TINY").iterdir()} == {
        "TINY.npz", "TINY.csv", "TINY_w0d1h2p3.npz", *(path.name for path in distance_files(config)),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- what makes them stale


@pytest.mark.parametrize(
    "change",
    [
        *("Data.start=2018-03-06", "Data.missing=interpolate", "Training.num_of_hours=1", "Data.num_for_predict=2"),
        *("Data.split=windows", "Data.imputed=missing", "Data.points_per_hour=1"),
    ],
)
def test_whatever_a_prepared_file_was_made_from_makes_it_stale(
    change: str, make_dataset: DatasetMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_dataset()
    first, second = load(path), load(path, [change])
    prepared_for(first)
    if not second.prepared_path.exists():  # the name of the file says it too
        first.prepared_path.rename(second.prepared_path)
    capsys.readouterr()
    prepared_for(second)
    assert f"{second.prepared_path} is stale: {change.split('=')[0]} was " in capsys.readouterr().out
    prepared_for(second)
    assert capsys.readouterr().out == ""


WEEKDAY_LEVELS = 20 + 10 * (np.arange(28 * 24) // 24 % 7)[:, None] + (np.arange(28 * 24) % 24)[:, None] + np.arange(5)


def test_a_wrong_start_is_refused_whether_or_not_there_is_a_prepared_file(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path
) -> None:
    """With the right one the level of weekday and hour is forecast; two days off it would be far from it."""
    table = tmp_path / "flow.csv"

    def write(first: str) -> None:
        times = pd.date_range(first, periods=len(WEEKDAY_LEVELS), freq="h")
        pd.DataFrame(WEEKDAY_LEVELS, index=times).to_csv(table, index_label="time")

    write("2024-03-04")  # a Monday
    path = make_dataset(points_per_hour=1, fine_tune_epochs=0)
    own = [f"Data.graph_signal_matrix_filename={table}", "Model.variant=residual_mlp"]
    monday, saturday = [*own, "Data.start=2024-03-04"], [*own, "Data.start=2024-03-02"]
    expected = f"{table} row 2: found the time 2024-03-04 00:00:00, expected [Data] start = 2024-03-02 00:00:00"
    with pytest.raises(InputError) as without:
        prepared_for(load(path, saturday))
    run = start_run(load(path, monday), tmp_path / "out", "run")
    with pytest.raises(InputError) as beside:
        start_run(load(path, saturday), tmp_path / "out", "other")
    assert [str(error.value) for error in (without, beside)] == [expected] * 2

    run.trainer.fit()
    assert call("predict.py", "--run", run.folder, "--input", table, "--evaluate") == 0
    wrong_by = np.abs(WEEKDAY_LEVELS - np.roll(WEEKDAY_LEVELS, 48, axis=0))[-3:].mean()
    error = np.abs(read_forecast(tmp_path / "forecast.csv") - WEEKDAY_LEVELS[-3:].T).mean()
    assert error < 0.01 < 5 < wrong_by

    write("2024-03-02")  # the table has changed since: its weekdays are others
    with pytest.raises(InputError, match="found the time 2024-03-02 00:00:00, expected"):
        prepared_for(load(path, monday))


# ------------------------------------------------------------------------------------------------ where the files lie


def test_a_folder_that_cannot_be_written_to_has_a_way_out(
    make_dataset: DatasetMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_dataset()
    config, cache = load(path), tmp_path / "new" / "cache"
    inputs = sorted(config.data.folder.iterdir())
    locked = config.data.folder
    monkeypatch.setattr(os, "access", lambda name, _mode: Path(name) != locked)  # root may write everywhere
    fault = r"TINY: cannot be written to, expected a folder for {}: name one in \[Data\] cache"
    with pytest.raises(InputError, match=fault.format("TINY_w0d1h2p3.npz")):
        prepared_for(config)
    elsewhere = load(path, [f"Data.cache={cache}"])
    graphs_of(elsewhere)
    assert sorted(locked.iterdir()) == inputs
    made = sorted(cache.iterdir())
    assert [path.suffix for path in made] == [".json", ".npy", ".npz"]

    made[2].rename(config.prepared_path)  # as if the owner of the folder had made it: it is read
    with pytest.raises(InputError, match=fault.format(made[1].name)):
        graphs_of(config)
    for file in made[:2]:
        file.rename(locked / file.name)
    graphs_of(config)
