"""Windows, splits and scaling against the released code's arrays, and against windows materialised in the test."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.data.prepared import Prepared, load_prepared, materialize, padded_label_starts, prepare, save_prepared
from lib.data.series import read_series, read_start
from lib.data.windowing import SPLITS, Calendar, WindowShape
from lib.data.windows import Batch, Windows
from lib.errors import InputError
from tests.conftest import REFERENCE


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "windows_w0d2h3.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def shape_of(reference: dict[str, np.ndarray]) -> WindowShape:
    names = ("num_of_weeks", "num_of_days", "num_of_hours", "num_for_predict", "points_per_hour")
    return WindowShape(*(int(reference[name]) for name in names))


def test_splits_and_scaling_of_the_released_code(reference: dict[str, np.ndarray]) -> None:
    prepared = prepare(reference["data"], shape_of(reference), {})
    assert [len(prepared.label_starts[split]) for split in SPLITS] == reference["split_sizes"].tolist()
    for split in SPLITS:
        np.testing.assert_array_equal(prepared.label_starts[split], reference[f"label_starts_{split}"])
    np.testing.assert_allclose(prepared.minimum, reference["min"].ravel(), rtol=1e-6)
    np.testing.assert_allclose(prepared.maximum, reference["max"].ravel(), rtol=1e-6)


def test_windows_of_the_released_code(reference: dict[str, np.ndarray]) -> None:
    prepared = prepare(reference["data"], shape_of(reference), {})
    windows = Windows(prepared, horizon=12, calendar=Calendar(288), device=torch.device("cpu"))
    for split in SPLITS:
        expected = reference[f"{split}_x"][:, :, 0]
        picked = reference["train_pick"] if split == "train" else [0, -1]
        batch = windows.batch(torch.from_numpy(prepared.label_starts[split][picked]))
        np.testing.assert_allclose(batch.inputs.series, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(batch.flow, reference[f"{split}_target"], rtol=1e-6)
        np.testing.assert_allclose(windows.scaling.to_raw(batch.target), batch.flow, rtol=1e-5)
        assert torch.equal(batch.inputs.start, batch.inputs.series[:, :, -1])
        assert batch.inputs.teacher is None
        teacher = batch.with_teacher.teacher
        assert teacher is not None
        assert torch.equal(teacher[:, :, 1:], batch.target[:, :, :-1])
        assert torch.equal(teacher[:, :, 0], batch.inputs.start)


def test_materialized_file_of_the_released_code(reference: dict[str, np.ndarray], tmp_path: Path) -> None:
    prepared = prepare(reference["data"], shape_of(reference), {})
    materialize(tmp_path / "windows.npz", reference["data"], prepared, horizon=12, steps_per_day=288)
    with np.load(tmp_path / "windows.npz", allow_pickle=False) as archive:
        names = {f"{split}_{part}" for split in SPLITS for part in ("x", "target", "timestamp")}
        assert set(archive.files) == {*names, "mean", "std"}
        for split in SPLITS:
            picked = reference["train_pick"] if split == "train" else [0, -1]
            for part in ("x", "target"):
                expected = reference[f"{split}_{part}"]
                np.testing.assert_allclose(archive[f"{split}_{part}"][picked], expected, rtol=1e-6)
            np.testing.assert_array_equal(archive[f"{split}_timestamp"], reference[f"label_starts_{split}"][:, None])
        np.testing.assert_array_equal(archive["mean"], reference["max"])
        np.testing.assert_array_equal(archive["std"], reference["min"])


@pytest.mark.parametrize(
    ("weeks", "days", "hours", "horizon"), [(1, 0, 0, 1), (0, 1, 0, 3), (0, 0, 2, 24), (1, 2, 3, 12), (2, 0, 1, 6)]
)
def test_windows_equal_a_loop_over_the_definition(weeks: int, days: int, hours: int, horizon: int) -> None:
    points_per_hour, rows = 1, 400
    flow = np.random.default_rng(1).uniform(0, 9, (rows, 2, 1)).astype(np.float32)
    shape = WindowShape(weeks, days, hours, horizon, points_per_hour)
    prepared = prepare(flow, shape, {})
    windows = Windows(prepared, horizon, Calendar(288), torch.device("cpu"))
    starts = np.concatenate([prepared.label_starts[split] for split in SPLITS])

    expected_starts = []
    for t0 in range(rows + 1):
        segments = [t0 - i * 7 * 24 for i in range(weeks, 0, -1)]
        segments += [t0 - i * 24 for i in range(days, 0, -1)]
        segments += [t0 - i for i in range(hours, 0, -1)]
        if min(segments) < 0 or t0 + horizon > rows:
            continue
        batch = windows.batch(torch.tensor([t0]))
        steps = [start + step for start in segments for step in range(points_per_hour)]
        assert max(steps) < t0
        np.testing.assert_allclose(windows.scaling.to_raw(batch.inputs.series)[0].T, flow[steps, :, 0], atol=1e-5)
        np.testing.assert_array_equal(batch.flow[0].T, flow[t0 : t0 + horizon, :, 0])
        expected_starts.append(t0)
    assert starts.tolist() == expected_starts


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("weeks", "days", "hours"), [(1, 0, 0), (0, 2, 1), (1, 2, 3), (0, 0, 30), (0, 0, 60)])
def test_windows_with_padded_history_are_those_of_a_series_that_repeats_its_first_day(
    weeks: int, days: int, hours: int, gaps: bool
) -> None:
    day, before = 24, 24 * 7
    shape, calendar, device = WindowShape(weeks, days, hours, 3, 1), Calendar(day), torch.device("cpu")
    generator = np.random.default_rng(7)
    flow = generator.uniform(0, 9, (500, 2, 1)).astype(np.float32)
    if gaps:
        flow[generator.random(flow.shape) < 0.2] = np.nan
        flow[[0, day - 1]] = 5.0  # a gap at either end of the first day has other neighbours where it is repeated
    repeated = np.concatenate([np.tile(flow[:day], (7, 1, 1)), flow])
    prepared, whole = (prepare(series, shape, {}, "interpolate") for series in (flow, repeated))
    whole = replace(whole, minimum=prepared.minimum, maximum=prepared.maximum)
    windows, expected = (
        Windows(one, 3, calendar, device, profile=series[:, :, 0], hours=hours)  # any profile will do
        for one, series in ((prepared, flow), (whole, repeated))
    )
    starts = padded_label_starts(prepared, day)
    assert starts.tolist() == list(range(2 * day, prepared.label_starts["train"][0]))
    assert shape.offsets.max() < 0
    batches = windows.batch(torch.from_numpy(starts)), expected.batch(torch.from_numpy(starts + before))
    for padded, there in zip(*map(tensors_of, batches), strict=True):
        assert (padded is None) == (there is None)
        if padded is not None and there is not None:
            torch.testing.assert_close(padded, there, rtol=0, atol=1e-6, equal_nan=True)


def tensors_of(batch: Batch) -> tuple[torch.Tensor | None, ...]:
    return (*batch.inputs, batch.target, batch.flow, batch.observed)


@pytest.mark.parametrize("rows", [100, 500])
@pytest.mark.parametrize("split_windows", [False, True])
@pytest.mark.parametrize(("weeks", "days", "hours"), [(1, 0, 0), (0, 2, 1), (1, 2, 3), (0, 0, 30)])
def test_no_window_with_padded_history_reads_its_targets(
    weeks: int, days: int, hours: int, split_windows: bool, rows: int
) -> None:
    day, shape = 24, WindowShape(weeks, days, hours, 3, 1, split_windows)
    flow = np.random.default_rng(8).uniform(0, 9, (rows, 2, 1)).astype(np.float32)
    if rows < 500 and not split_windows:
        return
    prepared = prepare(flow, shape, {})
    starts = [padded_label_starts(prepared, day), *(prepared.label_starts.values() if split_windows else ())]
    for t0 in np.concatenate(starts):
        start = torch.tensor([t0])
        after = flow[..., 0].copy()
        after[t0:] += 1
        changed = replace(prepared, flow=after)
        batches = [Windows(one, 3, Calendar(day), torch.device("cpu")).batch(start) for one in (prepared, changed)]
        assert torch.equal(*(batch.inputs.series for batch in batches))
        assert not torch.equal(*(batch.target for batch in batches))


def test_the_splits_of_the_benchmarks_papers() -> None:
    rows, weeks_days_hours = 17856, (1, 4, 7)  # of PEMS08
    samples, windows = (
        WindowShape(*weeks_days_hours, 12, 12, split_windows).split(rows) for split_windows in (False, True)
    )
    assert (samples["test"][0], len(samples["test"])) == (14679, 3166)
    assert (windows["test"][0], windows["test"][-1]) == (14278, rows - 12)
    one_hour = WindowShape(0, 0, 1, 12, 12).split(rows)
    for split in ("val", "test"):
        np.testing.assert_array_equal(windows[split], one_hour[split])
    np.testing.assert_array_equal(windows["train"], np.arange(2 * 288, one_hour["train"][-1] + 1))


@pytest.mark.parametrize("split_windows", [False, True])
@pytest.mark.parametrize(("weeks", "days", "hours"), [(1, 0, 0), (0, 1, 2), (0, 2, 1), (0, 0, 1)])
def test_the_fewest_rows_are_those_of_the_message(weeks: int, days: int, hours: int, split_windows: bool) -> None:
    shape = WindowShape(weeks, days, hours, 3, 1, split_windows)
    with pytest.raises(InputError, match="found 2 rows, expected at least") as fault:
        shape.split(2)
    needed = int(str(fault.value).split("at least ")[1].split()[0])
    assert all(len(starts) for starts in shape.split(needed).values())
    with pytest.raises(InputError, match=f"found {needed - 1} rows, expected at least {needed}"):
        shape.split(needed - 1)


def test_padded_windows_are_materialised_padded(tmp_path: Path) -> None:
    flow, shape = np.random.default_rng(9).uniform(0, 9, (400, 2, 1)), WindowShape(1, 1, 1, 3, 1, True)
    prepared = prepare(flow, shape, {})
    materialize(tmp_path / "windows.npz", flow, prepared, horizon=3, steps_per_day=24)
    windows = Windows(prepared, 3, Calendar(24), torch.device("cpu"))
    with np.load(tmp_path / "windows.npz") as archive:
        for split, starts in prepared.label_starts.items():
            inputs = windows.batch(torch.from_numpy(starts)).inputs
            np.testing.assert_allclose(archive[f"{split}_x"][:, :, 0], inputs.series, atol=1e-6)


def test_scaling_knows_only_rows_of_training_inputs() -> None:
    flow = np.random.default_rng(2).uniform(1, 2, (200, 3, 2))
    shape = WindowShape(0, 1, 1, 2, 1)
    before = prepare(flow, shape, {})
    flow[before.training_rows :] = 1e6
    after = prepare(flow, shape, {})
    np.testing.assert_array_equal(before.maximum, after.maximum)
    flow[before.training_rows - 1, 1, 0] = 7
    assert prepare(flow, shape, {}).maximum[0] == 7


def test_prepared_file_round_trip(tmp_path: Path, reference: dict[str, np.ndarray]) -> None:
    prepared = prepare(reference["data"], shape_of(reference), {"series": "abc"})
    save_prepared(tmp_path / "prepared.npz", prepared)
    read = load_prepared(tmp_path / "prepared.npz")
    assert read.made_from == {"series": "abc"}
    for name in ("flow", "offsets", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(read, name), getattr(prepared, name))
    for split in SPLITS:
        np.testing.assert_array_equal(read.label_starts[split], prepared.label_starts[split])
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.npz"]


def test_prepared_file_holds_the_flow_once(reference: dict[str, np.ndarray]) -> None:
    prepared: Prepared = prepare(reference["data"], shape_of(reference), {})
    assert prepared.flow.shape == reference["data"].shape[:2]
    assert prepared.flow.dtype == np.float32


def wrong_value(kind: float) -> np.ndarray:
    data = np.ones((50, 3, 2))
    data[7, 2, 1] = kind
    data[8:10, 0, 0] = kind
    return data


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"flow": np.ones((9, 3, 1))}, "found arrays flow, expected 'data' or 'x'"),
        ({"Data": np.ones((9, 3, 1))}, "found arrays Data, expected 'data' or 'x' (did you mean 'Data'?)"),
        ({"data": np.ones((9, 3))}, "data: found shape (9, 3), expected three axes (time steps, sensors, features)"),
        ({"x": np.ones((9, 4, 1))}, "x: found 4 sensors, expected num_of_vertices = 3"),
        ({"data": np.ones((9, 4, 1))}, "data: found 4 sensors, expected num_of_vertices = 3"),
        ({"data": np.ones((0, 3, 1))}, "data: found shape (0, 3, 1), expected at least one step, sensor and feature"),
        ({"data": np.full((9, 3, 1), "x")}, "data: found values of type <U1, expected numbers"),
        ({"data": np.full((9, 3, 1), 1j)}, "data: found values of type complex128, expected numbers"),
        *(
            (
                {"data": wrong_value(kind)},
                "found 3 NaN or infinite values, the first at step 7, sensor 2, feature 1, expected finite numbers"
                + hint,
            )
            for kind, hint in ((np.nan, ", or [Data] missing = interpolate"), (np.inf, ""), (-np.inf, ""))
        ),
        (
            {"data": np.full((9, 3, 1), None)},
            "found a pickled object, expected plain numeric arrays in npz format",
        ),
    ],
)
def test_wrong_series(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as fault:
        read_series(path, num_nodes=3)
    assert str(fault.value).split(": ", 1)[0].split()[0] == str(path)
    assert str(fault.value).endswith(message)


@pytest.mark.parametrize("start", ["yesterday", "2018-03-05 00:00+01:00", "9999-12-31"])
def test_the_start_of_an_archive_is_a_local_time(tmp_path: Path, start: str) -> None:
    np.savez(tmp_path / "a.npz", start=np.array(start))
    with pytest.raises(InputError, match=rf"a\.npz start: found '{re.escape(start)}', expected a local time such as"):
        read_start(tmp_path / "a.npz")


def test_the_array_may_be_called_x(tmp_path: Path) -> None:
    series = np.arange(24.0).reshape(4, 3, 2)
    path = tmp_path / "series.npz"
    np.savez(path, x=series, y=-series)
    np.testing.assert_array_equal(read_series(path, 3), series)
    np.savez(path, x=-series, data=series)
    np.testing.assert_array_equal(read_series(path, 3), series)


def test_series_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "series.npz"
    with pytest.raises(InputError, match=r"series\.npz: no such file, expected an npz archive with data"):
        read_series(path, 3)
    path.write_bytes(b"from,to,cost\n")
    with pytest.raises(InputError, match=r"series\.npz: found"):
        read_series(path, 3)
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(InputError, match="found a single array, expected an npz archive with data"):
        read_series(path.with_suffix(".npy"), 3)
    np.savez(path, data=np.ones((100, 3, 1)))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="found a damaged archive"):
        read_series(path, 3)


def test_too_few_rows_and_a_constant_flow() -> None:
    shape = WindowShape(weeks=0, days=1, hours=1, horizon=12, points_per_hour=12)
    with pytest.raises(InputError, match="found 301 rows, expected at least 302 for windows of 0 weeks, 1 days"):
        prepare(np.random.default_rng(0).random((301, 2, 1)), shape, {})
    prepare(np.random.default_rng(0).random((302, 2, 1)), shape, {})
    with pytest.raises(InputError, match="found a flow of 3 at all training steps, expected values that vary"):
        prepare(np.full((400, 2, 1), 3), shape, {})
