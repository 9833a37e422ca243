"""From a configuration to graphs: what may shape them, and what may not."""

from pathlib import Path

import numpy as np

from lib.config import Config
from lib.data.graphs import SensorGraphs
from lib.data.preparing import graphs_for, links_for, prepared_for
from tests.conftest import DatasetMaker, load, tiny_series


def graphs_of(config: Config) -> SensorGraphs:
    return graphs_for(config, prepared_for(config), links_for(config))


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
    np.testing.assert_array_equal(before.similarity, after.similarity)
    np.testing.assert_array_equal(before.topology, after.topology)
    np.testing.assert_array_equal(before.laplacian_encoding, after.laplacian_encoding)


def test_dtw_over_all_days_sees_the_test_rows(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(tiny_series(sensors=8)), ["Graph.dtw_rows=all", "Graph.neighbours=2"])
    graphs_of(config)
    before = np.load(config.dtw_path, allow_pickle=False)
    changed_after_training_rows(config)
    graphs_of(config)
    assert not np.allclose(before, np.load(config.dtw_path, allow_pickle=False))


def test_graphs_come_from_the_files_the_second_time(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    config = load(make_dataset())
    first = graphs_of(config)
    again = graphs_of(config)  # from the files
    np.testing.assert_array_equal(first.similarity, again.similarity)
    assert {path.name for path in (tmp_path / "TINY").iterdir()} == {
        "TINY.npz", "TINY.csv", "TINY_w0d1h2p3.npz", "TINY_dtw.npy", "TINY_dtw.json",
    }  # fmt: skip
