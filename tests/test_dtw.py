"""DTW between mean days: against brute force and the fastdtw package, its invariances, and its file."""

import json
import sys
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version

import fastdtw
import numpy as np
import pytest
import torch

from lib.data.dtw import (
    CPU,
    DTWRecord,
    _batches_on_device,
    dtw_matrix,
    load_dtw,
    load_dtw_record,
    mean_days,
    save_dtw,
)
from lib.data.preparing import distance_for, dtw_paths, make_distance, prepared_for, wanted_record
from lib.errors import InputError
from lib.files import load_json, save_json
from lib.provenance import provenance
from tests.conftest import load

GPU = torch.device("meta")  # stands for one: PyTorch has it everywhere, and it computes nothing
RECORD = DTWRecord(method="exact", radius=0, rows="train", days=3, fingerprint="0a1b", version=1)


def random_profiles(num_nodes, length, seed=0):
    steps = np.random.default_rng(seed).normal(size=(num_nodes, length))
    return 200 + 20 * np.cumsum(steps, axis=1)


def brute_force(a, b):
    table = np.full((len(a) + 1, len(b) + 1), np.inf)
    table[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = abs(a[i] - b[j]) + min(table[i, j], table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 6])
@pytest.mark.parametrize("length", [1, 2, 3, 24])
def test_exact_equals_brute_force_and_the_package(num_nodes, length):
    profiles = random_profiles(num_nodes, length)
    brute = np.array([[brute_force(a, b) for b in profiles] for a in profiles])
    package = np.array([[fastdtw.dtw(a, b)[0] for b in profiles] for a in profiles])
    np.testing.assert_allclose(brute, package, rtol=1e-12)
    np.testing.assert_allclose(dtw_matrix(profiles), brute, rtol=1e-5)


def test_exact_is_accurate_on_a_whole_day_far_from_zero():
    profiles = 1e4 + random_profiles(3, 288)
    distance = dtw_matrix(profiles)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert distance[i, j] == pytest.approx(brute_force(profiles[i], profiles[j]), rel=1e-5)


def test_warping_absorbs_a_delay_that_a_pointwise_distance_would_not():
    bump = np.array([0, 0, 0, 5, 9, 5, 0, 0, 0, 0, 0, 0], dtype=float)
    assert dtw_matrix(np.stack([bump, np.roll(bump, 4)]))[0, 1] == 0


def test_matrix_is_a_symmetric_dissimilarity():
    profiles = random_profiles(9, 30)
    profiles[4] = profiles[7]
    distance = dtw_matrix(profiles)
    assert np.array_equal(distance, distance.T)
    assert np.array_equal(np.argwhere(distance == 0), sorted([*([i, i] for i in range(9)), [4, 7], [7, 4]]))
    assert (distance >= 0).all()


def test_scale_and_common_shift():
    profiles = random_profiles(6, 30)
    distance = dtw_matrix(profiles)
    np.testing.assert_allclose(dtw_matrix(profiles - 350.0), distance, rtol=1e-5)
    np.testing.assert_allclose(dtw_matrix(-2 * profiles), 2 * distance, rtol=1e-5)
    np.testing.assert_allclose(dtw_matrix(profiles[:, ::-1]), distance, rtol=1e-5)


def test_permuted_sensors_permute_the_matrix():
    profiles = random_profiles(11, 30)
    order = np.random.default_rng(1).permutation(11)
    assert np.array_equal(dtw_matrix(profiles[order]), dtw_matrix(profiles)[np.ix_(order, order)])


@pytest.mark.parametrize("pairs_per_batch", [1, 7, 66, 1000])
def test_batch_size_does_not_change_the_result(pairs_per_batch):
    profiles = random_profiles(12, 30)
    assert np.array_equal(dtw_matrix(profiles, pairs_per_batch=pairs_per_batch), dtw_matrix(profiles))


@pytest.fixture
def gpu(monkeypatch):
    """Let PyTorch compute on the CPU what `GPU` should, and give the sizes of the batches that it was asked for."""
    sizes = []

    def on_cpu(profiles, pairs_per_batch, device):
        assert device == GPU
        sizes.append(pairs_per_batch)
        return _batches_on_device(profiles, pairs_per_batch, CPU)

    monkeypatch.setattr("lib.data.dtw._batches_on_device", on_cpu)
    return sizes


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 7])  # 0, 1, 3 and 21 pairs
@pytest.mark.parametrize("length", [1, 2, 3, 24])
def test_numpy_and_pytorch_give_the_same_bits_and_those_of_brute_force(num_nodes, length, gpu):
    profiles = random_profiles(num_nodes, length, seed=num_nodes)
    distance = dtw_matrix(profiles, device=GPU)
    brute = np.array([[brute_force(a, b) for b in profiles] for a in profiles])
    np.testing.assert_allclose(distance, brute, rtol=1e-5)
    assert distance.dtype == np.float64
    assert np.array_equal(distance, dtw_matrix(profiles))
    assert len(gpu) == 1


@pytest.mark.parametrize("pairs_per_batch", [1, 7, 33, 65, 66, 67])  # of 66 pairs
def test_batches_on_a_device_are_each_pair_once(pairs_per_batch):
    profiles = random_profiles(12, 30)
    batches = list(_batches_on_device(profiles, pairs_per_batch, CPU))
    first, second, distances = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert max(len(batch[0]) for batch in batches) == min(pairs_per_batch, 66)
    assert np.array_equal((first, second), np.triu_indices(12, k=1))
    assert np.array_equal(distances, dtw_matrix(profiles)[first, second])


def test_memory_of_a_device_is_bounded_however_long_the_day(gpu):
    for length in (24, 288, 1440):
        dtw_matrix(random_profiles(3, length), device=GPU)
    assert [length * pairs <= 2**24 < length * (pairs + 1) for length, pairs in zip((24, 288, 1440), gpu, strict=True)]
    dtw_matrix(random_profiles(3, 24), device=GPU, pairs_per_batch=2)
    assert gpu[-1] == 2


@pytest.mark.parametrize("method", ["exact", "fastdtw"])
def test_the_device_changes_neither_distances_nor_record(method, make_dataset, gpu, monkeypatch, capsys):
    config = load(make_dataset(), [f"Graph.dtw_method={method}", "Runtime.device=cpu"])
    prepared = prepared_for(config)
    paths = dtw_paths(config, wanted_record(config, prepared))
    make_distance(config, prepared, method, 1, "train")
    on_cpu = [path.read_bytes() for path in paths]
    paths[0].unlink()

    monkeypatch.setattr("lib.data.preparing.choose_device", lambda name: {"cpu": GPU}[name])
    distance_for(config, prepared)
    assert [path.read_bytes() for path in paths] == on_cpu
    assert len(gpu) == (method == "exact")  # fastdtw knows no device
    capsys.readouterr()
    monkeypatch.undo()
    distance_for(config, prepared)
    assert capsys.readouterr().out == ""


def test_a_device_that_is_not_there_stops_before_anything_is_written(make_dataset, call, tmp_path, capsys):
    config = make_dataset()
    before = sorted(tmp_path.rglob("*"))
    absent = "mps" if torch.cuda.is_available() else "cuda"
    for method in ("exact", "fastdtw"):
        assert call("create_dtw.py", "--config", config, "--method", method, "--device", absent) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: [Runtime] device: found '{absent}', expected what PyTorch")
        assert error.count("\n") == 1
    assert call("create_dtw.py", "--config", config, "--device", "gpu") == 2
    assert "--set Runtime.device=gpu: found 'gpu', expected one of auto, cpu, cuda, mps" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_changes_the_graph_is_named_for_the_run(make_dataset, call, capsys):
    start = "create_dtw.py", "--config", make_dataset(), "--device", "cpu"
    assert call(*start) == 0
    assert "run.py" not in capsys.readouterr().out
    assert call(*start, "--rows", "all") == 0
    assert capsys.readouterr().out.endswith("to use it in run.py, set [Graph] dtw_rows=all\n")


@pytest.mark.parametrize("radius", [1, 4])
def test_fastdtw_is_the_package_and_an_upper_bound(radius):
    profiles = random_profiles(6, 40)
    exact, approximate = dtw_matrix(profiles), dtw_matrix(profiles, "fastdtw", radius)
    assert np.array_equal(approximate, approximate.T)
    assert (approximate >= exact * (1 - 1e-5)).all()
    assert approximate[1, 4] == fastdtw.fastdtw(profiles[1], profiles[4], radius=radius)[0]


def test_fastdtw_with_a_radius_of_the_whole_length_is_exact():
    profiles = random_profiles(5, 20)
    np.testing.assert_allclose(dtw_matrix(profiles, "fastdtw", radius=20), dtw_matrix(profiles), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "exakt"}, "DTW method: found 'exakt', expected exact or fastdtw (did you mean 'exact'?)"),
        ({"method": "fastdtw", "radius": 0}, "DTW radius: found 0, expected 1 or more"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as caught:
        dtw_matrix(random_profiles(2, 4), **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_profile_that_is_not_finite(value):
    profiles = random_profiles(4, 5)
    profiles[2, 3] = value
    with pytest.raises(InputError, match="mean day of sensor 2: found values that are not finite"):
        dtw_matrix(profiles)


def test_mean_days_averages_whole_days_of_the_given_rows_only():
    flow = np.random.default_rng(0).uniform(0, 500, (40, 3)).astype(np.float32)
    profiles = mean_days(flow, steps_per_day=8, rows=31)
    assert profiles.shape == (3, 8)
    for sensor in range(3):
        for step in range(8):
            days = [float(flow[8 * day + step, sensor]) for day in range(3)]
            assert profiles[sensor, step] == pytest.approx(sum(days) / 3, rel=1e-12)
    later = flow.copy()
    later[24:] = -1
    assert np.array_equal(mean_days(later, steps_per_day=8, rows=31), profiles)


def test_mean_days_are_of_what_was_observed():
    flow = np.random.default_rng(0).uniform(0, 500, (40, 3)).astype(np.float32)
    flow[4:13, 0] = np.nan
    flow[[2, 10, 18, 26, 34], 1] = np.nan  # a time of day that no day has
    flow[:, 2] = np.nan
    profiles = mean_days(flow, steps_per_day=8, rows=40)
    by_day = flow[:, :2].reshape(5, 8, 2).astype(np.float64)
    expected = np.stack([np.nanmean(by_day[:, [step]], axis=(0, 1)) if step != 2 else [0, 0] for step in range(8)])
    expected[2] = np.nanmean(by_day[:, 2, 0]), np.nanmean(by_day[:, :, 1])
    np.testing.assert_allclose(profiles[:2], expected.T, rtol=1e-12)
    np.testing.assert_array_equal(profiles[2], 0)


def test_mean_days_needs_one_whole_day():
    flow = np.ones((40, 3), dtype=np.float32)
    assert mean_days(flow, steps_per_day=8, rows=8).shape == (3, 8)
    for series, rows in ((flow, 7), (flow[:7], 40)):
        with pytest.raises(InputError, match="found 7 rows to average, expected at least one whole day of 8 rows"):
            mean_days(series, steps_per_day=8, rows=rows)


def saved(folder, matrix=None, record=RECORD):
    paths = folder / "X_dtw.npy", folder / "X_dtw.json"
    save_dtw(*paths, dtw_matrix(random_profiles(5, 12)) if matrix is None else matrix, record)
    return paths


def test_saved_matrix_and_record_come_back(tmp_path):
    matrix = dtw_matrix(random_profiles(5, 12))
    record = DTWRecord(method="fastdtw", radius=2, rows="all", days=8, fingerprint="ff", version=1)
    loaded, loaded_record = load_dtw(*saved(tmp_path, matrix, record), num_nodes=5)
    assert np.array_equal(loaded, matrix)
    assert loaded_record == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["X_dtw.json", "X_dtw.npy"]


def test_a_matrix_beside_the_record_of_a_call_that_was_broken_off_is_refused(tmp_path, monkeypatch):
    paths = saved(tmp_path)
    monkeypatch.setattr("lib.data.dtw.save_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, dtw_matrix(random_profiles(5, 12, seed=1)))
    with pytest.raises(InputError, match=r"X_dtw\.npy: found other distances than those of X_dtw\.json"):
        load_dtw(*paths, num_nodes=5)


def test_a_record_of_an_earlier_version_is_read_and_vouches_for_no_matrix(tmp_path):
    paths = saved(tmp_path)
    content = load_json(paths[1])
    assert len(content.pop("matrix_fingerprint")) == 64
    save_json(paths[1], content)
    assert load_dtw_record(paths[1]) == RECORD
    with pytest.raises(InputError, match="found other distances"):
        load_dtw(*paths, num_nodes=5)


def test_runs_that_ask_for_other_distances_leave_each_others_alone(make_dataset, capsys):
    path = make_dataset()
    other_series = ["Data.split=windows", "Data.missing=interpolate"]
    changes = ([], ["Graph.dtw_rows=all"], ["Graph.dtw_method=fastdtw"], other_series)
    configs = [load(path, change) for change in changes]
    first = [distance_for(config, prepared_for(config)) for config in configs]
    files = {path: path.stat().st_mtime_ns for path in path.parent.glob("TINY/*_dtw_*")}
    assert len(files) == 2 * len(changes)
    capsys.readouterr()
    for config, distance in zip(configs, first, strict=True):
        assert np.array_equal(distance_for(config, prepared_for(config)), distance)
    assert "_dtw_" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_every_part_of_a_record_is_in_its_key():
    others = {
        "method": "fastdtw",
        "radius": 1,
        "rows": "all",
        "days": 4,
        "fingerprint": "0a1c",
        "version": 2,
        "neighbours": 10,
    }
    compared = [item.name for item in fields(DTWRecord) if item.compare]
    assert list(others) == compared
    keys = {RECORD.key, *(replace(RECORD, **{name: other}).key for name, other in others.items())}
    assert len(keys) == 1 + len(others)
    assert replace(RECORD, matrix_fingerprint="ff").key == RECORD.key


def test_without_the_package_of_fastdtw_only_its_method_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastdtw", None)
    with pytest.raises(InputError, match="DTW method: found no package for fastdtw, expected it: pip install fastdtw"):
        dtw_matrix(random_profiles(3, 12), "fastdtw")

    def installed(name):
        if name == "fastdtw":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("lib.provenance.version", installed)
    packages = provenance(torch.device("cpu"))["packages"]
    assert "fastdtw" not in packages
    assert packages["numpy"] == np.__version__


def changed(row, column, value, both=False):
    matrix = dtw_matrix(random_profiles(5, 12))
    matrix[row, column] = value
    if both:
        matrix[column, row] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((4, 4)), r"found a matrix of shape \(4, 4\), expected \(5, 5\) for 5 sensors"),
        (np.zeros((5, 4)), r"found a matrix of shape \(5, 4\), expected \(5, 5\)"),
        (np.zeros(5), r"found a matrix of shape \(5,\), expected \(5, 5\)"),
        (np.zeros((5, 5), dtype=np.int64), "found values of type int64, expected floating point"),
        (changed(1, 3, np.nan), "not finite, the first is nan at row 1, column 3; expected finite"),
        (changed(1, 3, np.inf, both=True), "not finite, the first is inf at row 1, column 3"),
        (changed(1, 3, -2.0, both=True), "negative, the first is -2 at row 1, column 3"),
        (changed(2, 2, 0.5), "not zero on the diagonal, the first is 0.5 at row 2, column 2"),
        (
            changed(4, 1, 0.25),
            "not symmetric, the first is .* at row 1, column 4; expected the same distance both ways",
        ),
    ],
)
def test_matrix_that_is_not_one_of_distances(tmp_path, matrix, message):
    paths = saved(tmp_path, matrix)
    with pytest.raises(InputError, match=rf"X_dtw\.npy: .*{message}") as caught:
        load_dtw(*paths, num_nodes=5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an array", b"PK\x03\x04 an archive"])
def test_damaged_matrix_file(tmp_path, content):
    paths = saved(tmp_path)
    paths[0].write_bytes(content)
    with pytest.raises(InputError, match=r"X_dtw\.npy: found a damaged file \(.*expected a matrix in npy format"):
        load_dtw(*paths, num_nodes=5)


def test_truncated_pickled_or_missing_matrix_file(tmp_path):
    paths = saved(tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged file"):
        load_dtw(*paths, num_nodes=5)
    np.save(paths[0], np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        load_dtw(*paths, num_nodes=5)
    paths[0].unlink()
    with pytest.raises(
        InputError, match=r"X_dtw\.npy: no such file, expected the DTW matrix that create_dtw\.py writes"
    ):
        load_dtw(*paths, num_nodes=5)
    paths[0].mkdir()
    with pytest.raises(InputError, match=r"X_dtw\.npy: cannot be read"):
        load_dtw(*paths, num_nodes=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "found list, expected the keys method, radius, rows, days, fingerprint"),
        ({}, "found nothing, expected the keys method"),
        ({"method": "exact"}, "found method, expected the keys method, radius"),
        ({**asdict(RECORD), "method": "exat"}, r"key 'method': found 'exat', expected exact or fastdtw \(did you mean"),
        ({**asdict(RECORD), "rows": "test"}, "key 'rows': found 'test', expected train or all"),
        ({**asdict(RECORD), "radius": -1}, "key 'radius': found -1, expected a whole number from 0"),
        ({**asdict(RECORD), "method": "fastdtw"}, "key 'radius': found 0, expected a whole number from 1"),
        ({**asdict(RECORD), "days": 1.5}, "key 'days': found 1.5, expected a whole number from 1"),
        ({**asdict(RECORD), "days": True}, "key 'days': found True, expected a whole number"),
        ({**asdict(RECORD), "fingerprint": 7}, "key 'fingerprint': found 7, expected hexadecimal digits"),
        ({**asdict(RECORD), "matrix_fingerprint": 7}, "key 'matrix_fingerprint': found 7, expected hexadecimal digits"),
        ({**asdict(RECORD), "matrix": ""}, "found method, .*, matrix, expected the keys method, radius, rows, days"),
    ],
)
def test_wrong_record(tmp_path, content, message):
    paths = saved(tmp_path)
    paths[1].write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=rf"X_dtw\.json: {message}"):
        load_dtw(*paths, num_nodes=5)
