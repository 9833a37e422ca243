"""The nearest sensors by DTW without most distances, against all distances: always the same sensors and bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import lib.data.preparing
from benchmarks.simulated import simulated_days
from lib.data.dtw import Nearest, columns_of, dtw_matrix, wavefront
from lib.data.graphs import build_graphs
from lib.data.nearest import Search, nearest_sensors
from lib.data.preparing import distance_for, dtw_paths, graphs_for, links_for, prepared_for, wanted_record
from lib.errors import InputError
from tests.conftest import Call, load, tiny_series, write_dataset


def days(sensors: int, length: int = 24, seed: int = 0, spread: float = 5.0) -> NDArray[np.float64]:
    """Return days with two peaks of random height and time, (N, L)."""
    draw, hour = np.random.default_rng(seed), np.linspace(0, 24, length, endpoint=False)
    peaks = (
        draw.uniform(50, 500, (sensors, 1)) * np.exp(-(((hour - draw.normal(peak, 1, (sensors, 1))) / 2.5) ** 2))
        for peak in (8, 17)
    )
    return sum(peaks) + draw.normal(100, spread, (sensors, length))


def assert_same(found: Nearest, expected: Nearest) -> None:
    np.testing.assert_array_equal(found.sensors, expected.sensors)
    np.testing.assert_array_equal(found.distance, expected.distance)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 99), st.integers(1, 40), st.booleans()
)
def test_they_are_the_nearest_of_all(
    sensors: int, neighbours: int, length: int, seed: int, at_once: int, coarse: bool
) -> None:
    profiles = days(sensors, length, seed)
    if coarse:  # equal profiles and equal distances, and profiles whose ranges are apart
        profiles = (profiles / 100).round() + 50 * (np.arange(sensors) % 3 == 0)[:, None]
    found = nearest_sensors(profiles, neighbours, show_progress=False, pairs_per_batch=at_once)
    assert_same(found.nearest, Nearest.of(dtw_matrix(profiles, show_progress=False), neighbours))


def test_most_pairs_of_a_city_are_skipped() -> None:
    profiles = simulated_days(300, 24, seed=1)
    found = nearest_sensors(profiles, 10, show_progress=False, pairs_per_batch=64)
    assert_same(found.nearest, Nearest.of(dtw_matrix(profiles, show_progress=False), 10))
    assert found.pairs == 300 * 299 // 2
    assert 0 < found.computed < 0.3 * found.pairs
    assert found.abandoned > 0
    assert found.computed + found.abandoned < 0.4 * found.pairs


def test_pairs_are_given_up_beyond_their_limit_alone() -> None:
    profiles = days(20)
    columns, reversed_columns = columns_of(profiles)
    first, second = np.triu_indices(20, k=1)
    tables = columns[:, first], reversed_columns[:, second]
    every = wavefront(np, *tables)
    limit = np.random.default_rng(1).permutation(every)
    limit[:20] = every[:20]  # exactly at the limit
    expected = np.where(every <= limit, every, np.inf)
    np.testing.assert_array_equal(wavefront(np, *tables, limit), expected)
    there = [torch.from_numpy(np.ascontiguousarray(part)) for part in (*tables, limit)]
    np.testing.assert_array_equal(wavefront(torch, *there).numpy(), expected)
    assert np.isinf(wavefront(np, *tables, np.full_like(every, -1))).all()


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_search_that_was_killed_goes_on(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.data.nearest.BATCHES_PER_ROUND", 1)
    profiles, kept = days(80), []

    def keep(search: Search) -> None:
        kept.append(search)
        if len(kept) == rounds:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nearest_sensors(profiles, 5, show_progress=False, pairs_per_batch=50, keep=keep)
    whole = nearest_sensors(profiles, 5, show_progress=False, pairs_per_batch=50)
    rest = nearest_sensors(profiles, 5, show_progress=False, pairs_per_batch=50, begun=kept[-1])
    assert_same(rest.nearest, whole.nearest)
    assert rest.computed + rest.abandoned < whole.computed + whole.abandoned


def test_a_profile_that_is_not_finite_is_refused() -> None:
    profiles = days(4)
    profiles[2, 3] = np.nan
    with pytest.raises(InputError, match="mean day of sensor 2: found values that are not finite"):
        nearest_sensors(profiles, 2)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set whose number of sensors counts as large."""
    monkeypatch.setattr(lib.data.preparing, "MATRIX_SENSORS", 10)
    return write_dataset(tmp_path, tiny_series(sensors=20), extra="\n[Graph]\nneighbours = 3\n")


def test_many_sensors_have_a_file_of_the_nearest_and_the_same_graphs(
    many: Path, call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("create_dtw.py", "--config", many) == 0
    assert "of 190 pairs" in capsys.readouterr().out
    config = load(many)
    prepared, links = prepared_for(config), links_for(config)
    record = wanted_record(config, prepared)
    path, _ = dtw_paths(config, record)
    assert (record.neighbours, path.suffix) == (3, ".npz")
    few = distance_for(config, prepared)
    assert isinstance(few, Nearest)
    assert "missing" not in capsys.readouterr().out  # they are read
    graphs = graphs_for(config, prepared, links)
    with pytest.raises(ValueError, match="all distances for the rule gaussian"):
        build_graphs(links, few, 20, 4, similarity="gaussian")
    gaussian = load(many, ["Graph.similarity=gaussian"])
    assert isinstance(distance_for(gaussian, prepared), np.ndarray)  # the rule needs all

    monkeypatch.setattr(lib.data.preparing, "MATRIX_SENSORS", 1000)
    assert isinstance(distance_for(config, prepared), np.ndarray)
    expected = graphs_for(config, prepared, links)
    assert (graphs.similarity.dense() == expected.similarity.dense()).all()


def test_a_damaged_file_of_the_nearest_is_made_anew_or_refused(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(many)
    prepared = prepared_for(config)
    expected = distance_for(config, prepared)
    assert isinstance(expected, Nearest)
    path, _ = dtw_paths(config, wanted_record(config, prepared))
    np.savez(path, sensors=expected.sensors, distance=expected.distance + 1)
    found = distance_for(config, prepared)
    assert "found other distances" in capsys.readouterr().out
    assert isinstance(found, Nearest)
    assert_same(found, expected)
    np.savez(path, sensors=expected.sensors + 1, distance=expected.distance)
    with pytest.raises(InputError, match=r"npz row \d+, column \d: found sensor 20 at .*, expected a position"):
        distance_for(config, prepared)


def test_a_killed_script_goes_on(
    many: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(many)
    prepared = prepared_for(config)
    monkeypatch.setattr(lib.data.preparing, "SECONDS_KEPT", 0)
    monkeypatch.setattr("lib.data.preparing.save_dtw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        distance_for(config, prepared)
    monkeypatch.undo()
    monkeypatch.setattr(lib.data.preparing, "MATRIX_SENSORS", 10)
    found = distance_for(config, prepared)
    assert "going on with" in capsys.readouterr().out
    path, _ = dtw_paths(config, wanted_record(config, prepared))
    assert not list(path.parent.glob("*.begun.npz"))
    monkeypatch.setattr(lib.data.preparing, "MATRIX_SENSORS", 1000)
    every = distance_for(config, prepared)
    assert isinstance(every, np.ndarray)
    assert isinstance(found, Nearest)
    assert_same(found, Nearest.of(every, 3))
