"""Forecasts from a checkpoint alone: equal to the engine's, any order of columns, gaps filled by the stated rule."""

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.prepared import Prepared
from lib.data.series import fill_gaps, find_gaps
from lib.data.windowing import Calendar
from lib.data.windows import Windows
from lib.inference import Forecaster, Forecasts, load_forecaster, read_history
from lib.metrics import errors_of
from lib.run_folder import RunFolder
from lib.runs import start_run
from model.variants import VARIANTS
from tests.conftest import Call, load, tiny_series, write_dataset

HORIZON, NEEDED, SENSORS = 3, 48, 5  # of the tiny data set: an hour is 2 steps, the inputs begin a day back
IDS = ("40", "10", "30", "20", "50")
START = datetime(2018, 3, 5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train a run whose links speak positions, and one whose links speak ids; then delete the data of both."""
    folders = {}
    for name in ("positions", "ids"):
        root = tmp_path_factory.mktemp(name)
        path = write_dataset(root, fine_tune_epochs=0)
        if name == "ids":
            (root / "ids.txt").write_text("\n".join(IDS))
            (root / "TINY" / "TINY.csv").write_text("from,to,cost\n40,10,1\n30,20,1\n20,50,1\n")
        settings = [f"Data.id_filename={root / 'ids.txt'}"] if name == "ids" else []
        run = start_run(load(path, ["Training.max_batches=1", *settings]), root / "out", name)
        run.trainer.fit()
        folders[name] = run.folder.path
        shutil.rmtree(root / "TINY")
        path.unlink()
        run.folder.settings.unlink()
    return folders


@pytest.fixture
def flow() -> np.ndarray:
    """Another series than that of the training, (T, N)."""
    return tiny_series(days=3, seed=7)[:, :, 0].round(2)


def times_of(steps: int) -> list[datetime]:
    return [START + timedelta(minutes=30) * step for step in range(steps)]


def write_csv(path: Path, flow: np.ndarray, names: Sequence[str] = IDS) -> Path:
    pd.DataFrame(flow, columns=list(names), index=times_of(len(flow))).to_csv(path, index_label="time")
    return path


def read_forecast(path: Path) -> np.ndarray:
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return np.array([float(row["forecast"]) for row in rows]).reshape(HORIZON, SENSORS).T


def forecaster_of(folder: Path) -> Forecaster:
    return load_forecaster(RunFolder(folder), VARIANTS, "cpu")


def forecast_by_windows(folder: Path, flow: np.ndarray, label_start: int) -> np.ndarray:
    """Return the forecast (N, P) that testing the run on a series (T, N) gives for a label start."""
    forecaster = forecaster_of(folder)
    least, greatest = (np.array([limit]) for limit in (forecaster.scaling.minimum, forecaster.scaling.maximum))
    padded = np.concatenate([flow, np.zeros((HORIZON, SENSORS))]).astype(np.float32)  # targets are not looked at
    windows = Windows(
        Prepared(padded, forecaster.offsets, {}, least, greatest, {}), HORIZON, Calendar(48), torch.device("cpu")
    )
    batch = windows.batch(torch.tensor([label_start]))
    with torch.no_grad():
        return forecaster.scaling.to_raw(forecaster.model(batch.inputs))[0].numpy()


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_the_forecast_is_that_of_the_engine_on_the_same_rows(
    ending: str, runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"now{ending}"
    if ending == ".npz":
        np.savez(source, data=flow[:, :, None])
    elif ending == ".csv":
        write_csv(source, flow)
    else:
        pytest.importorskip("pyarrow")
        pd.DataFrame(flow, columns=list(IDS), index=pd.DatetimeIndex(times_of(len(flow)))).to_parquet(source)
    assert call("predict.py", "--run", runs["ids"], "--input", source, "--output", tmp_path / "out.csv") == 0
    expected = forecast_by_windows(runs["ids"], flow, len(flow))
    np.testing.assert_allclose(read_forecast(tmp_path / "out.csv"), expected, atol=0.00051)

    with (tmp_path / "out.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    labels = [str(times_of(147)[144 + step]) for step in range(HORIZON)]  # an archive begins when the run's did
    assert list(rows[0]) == ["time", "sensor", "minutes_ahead", "forecast"]
    assert [(row["time"], row["sensor"], row["minutes_ahead"]) for row in rows] == [
        (label, sensor, str(30 * (step + 1))) for step, label in enumerate(labels) for sensor in IDS
    ]
    read = "2018-03-07 00:00:00 .. 2018-03-07 23:30:00"
    output = capsys.readouterr().out
    assert f"the forecast needs {NEEDED} steps before it: read {read}\n" in output
    assert ("has no times: its step 0 is taken for 2018-03-05 00:00:00" in output) == (ending == ".npz")
    assert f"5 sensors, 3 steps, {labels[0]} .. {labels[-1]}, in vehicles a step" in output
    assert "filled" not in output


@pytest.mark.parametrize("variant", ["residual_mlp", "residual", "stid"])
def test_a_network_that_knows_time_and_profile_forecasts_as_in_its_test(
    variant: str, call: Call, tmp_path: Path
) -> None:
    path = write_dataset(tmp_path, fine_tune_epochs=0)
    config = load(path, ["Training.max_batches=3", f"Model.variant={variant}"])
    run = start_run(config, tmp_path / "out", "run")
    run.trainer.fit()
    tested = run.trainer.test().forecast
    assert tested is not None
    series = tiny_series()[:-HORIZON]  # what is known at the label start of the last test sample
    shutil.rmtree(tmp_path / "TINY")
    np.savez(tmp_path / "now.npz", data=series)
    arguments = ("--run", run.folder, "--input", tmp_path / "now.npz", "--output", tmp_path / "out.csv")
    assert call("predict.py", *arguments) == 0
    np.testing.assert_allclose(read_forecast(tmp_path / "out.csv"), tested[-1], atol=0.00051)


def test_a_forecast_is_the_same_whichever_row_a_file_begins_with_and_seconds_off(call: Call, tmp_path: Path) -> None:
    """Seven steps an hour are written rounded to seconds, and an hour's rows may be stamped 20 s early."""
    for points_per_hour, early in ((7, 0), (1, 20)):
        day = 24 * points_per_hour
        root = tmp_path / str(points_per_hour)
        root.mkdir()
        series = tiny_series(steps_per_day=day)
        path = write_dataset(root, series, points_per_hour=points_per_hour, fine_tune_epochs=0)
        run = start_run(load(path, ["Training.max_batches=1", "Model.variant=stid"]), root / "out", "run")
        run.trainer.fit()
        forecaster = forecaster_of(run.folder.path)
        seconds = np.arange(len(series) + HORIZON) * 3600 // points_per_hour - early
        times = [str(START + timedelta(seconds=int(second))) for second in seconds]
        forecasts = set()
        for begin in (0, 1, 4):
            table = pd.DataFrame(series[begin:, :, 0], index=times[begin : len(series)])
            table.to_csv(root / "now.csv", index_label="time")
            assert call("predict.py", "--run", run.folder, "--input", root / "now.csv") == 0
            forecasts.add((tmp_path / "forecast.csv").read_bytes())
            history = read_history(root / "now.csv", forecaster, None)
            assert history.calendar.step_of_week(len(history.flow)) == len(series) % (7 * day)  # START is a Monday
        assert len(forecasts) == 1
        with (tmp_path / "forecast.csv").open(newline="") as handle:
            labels = [row["time"] for row in csv.DictReader(handle)]
        assert list(dict.fromkeys(labels)) == times[len(series) :]  # as the table's own next rows will be


def test_only_the_last_rows_count_and_columns_may_be_in_any_order(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path
) -> None:
    start = ("predict.py", "--run", runs["ids"], "--input")
    assert call(*start, write_csv(tmp_path / "all.csv", flow), "--output", tmp_path / "all") == 0
    order = [3, 0, 4, 2, 1]
    shuffled = write_csv(tmp_path / "order.csv", flow[:, order], [IDS[position] for position in order])
    assert call(*start, shuffled, "--output", tmp_path / "order") == 0
    assert (tmp_path / "order").read_bytes() == (tmp_path / "all").read_bytes()
    np.savez(tmp_path / "short.npz", data=flow[-NEEDED:, :, None])
    assert call(*start, tmp_path / "short.npz", "--output", tmp_path / "short") == 0
    np.testing.assert_array_equal(read_forecast(tmp_path / "short"), read_forecast(tmp_path / "all"))


def test_a_run_without_names_knows_its_sensors_by_position(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "now.csv", tmp_path / "forecast.csv"
    start = ("predict.py", "--run", runs["positions"], "--input", source)
    expected = forecast_by_windows(runs["positions"], flow, len(flow))

    order = [3, 1, 4, 2, 0]
    write_csv(source, flow[:, order], list(map(str, order)))
    assert call(*start) == 0
    np.testing.assert_allclose(read_forecast(output), expected, atol=0.00051)
    assert [line.split(",")[1] for line in output.read_text().splitlines()[1:6]] == list("01234")
    output.unlink()

    write_csv(source, flow, list("vwxyz"))
    capsys.readouterr()
    assert call(*start) == 2
    assert capsys.readouterr().err == (
        f"error: {source}: found column 'v', expected 0 to 4, as {runs['positions'] / 'best.pt'} was trained without "
        "names; where the columns are in the order of its sensors, add --by-position\n"
    )
    assert not output.exists()
    assert call(*start, "--by-position") == 0
    assert f"the columns of {source} are taken by position: 'v' for '0', ..., 'z' for '4'" in capsys.readouterr().out
    np.testing.assert_allclose(read_forecast(output), expected, atol=0.00051)
    assert [line.split(",")[1] for line in output.read_text().splitlines()[1:6]] == list("vwxyz")

    write_csv(source, flow[:, :4], list("0123"))
    for flags in ((), ("--by-position",)):
        assert call(*start, *flags) == 2
        expected_error = "found 4 sensor columns beside the time, expected num_of_vertices = 5"
        assert capsys.readouterr().err == f"error: {source}: {expected_error}\n"


def test_steps_have_numbers_where_no_time_is_known(runs: dict[str, Path], flow: np.ndarray, tmp_path: Path) -> None:
    forecaster = forecaster_of(runs["positions"])
    config = replace(forecaster.config, data=replace(forecaster.config.data, start=None))
    np.savez(tmp_path / "now.npz", data=flow[:, :, None])
    history = read_history(tmp_path / "now.npz", replace(forecaster, config=config), 60)
    assert (history.start, history.label(0), history.label(60)) == (None, "84", "144")


def test_forecasts_below_0_are_written_as_0_and_scored_as_they_are(
    runs: dict[str, Path],
    flow: np.ndarray,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forecast = np.random.default_rng(2).normal(5, 20, (SENSORS, HORIZON)).astype(np.float32)
    forecast[0, 0] = -0.0
    monkeypatch.setattr("predict.forecast_next", lambda *_: Forecasts(forecast[None], None, 0))
    source = write_csv(tmp_path / "now.csv", flow)
    assert call("predict.py", "--run", runs["ids"], "--input", source, "--evaluate") == 0
    np.testing.assert_allclose(read_forecast(tmp_path / "forecast.csv"), forecast.clip(0), atol=0.00051)
    assert "-0" not in (tmp_path / "forecast.csv").read_text().replace("2018-03-0", "")
    output = capsys.readouterr().out
    below = np.sum(forecast < 0)
    assert below > 3
    assert f"{below} of 15 forecasts were below 0, which no flow is, and are written as 0; scored as they" in output
    error = np.abs(forecast - flow[-HORIZON:].T).mean()
    assert printed_scores(output)["all"][0] == pytest.approx(error, abs=0.00051)


@pytest.mark.parametrize("ending", [".csv", ".npz"])
def test_negative_flows_are_refused(
    ending: str, runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow[-4, 2], flow[-2:, 3] = -1, -999
    source = tmp_path / f"now{ending}"
    write_csv(source, flow) if ending == ".csv" else np.savez(source, data=flow[:, :, None])
    assert call("predict.py", "--run", runs["ids"], "--input", source) == 2
    assert capsys.readouterr().err == (
        f"error: {source}: found 3 negative values, the first -1 at step 2018-03-07 22:00:00, sensor 30, expected "
        "flows of at least 0; where they mark gaps, leave the cells empty, or NaN in an archive\n"
    )
    assert not (tmp_path / "forecast.csv").exists()


def test_gaps_are_filled_linearly_up_to_a_length() -> None:
    hole = np.nan
    flow = np.array(
        [
            [hole, 1.0, hole, 5.0],
            [hole, hole, hole, hole],
            [2.0, hole, hole, 7.0],
            [hole, 7.0, hole, hole],
            [6.0, hole, hole, hole],
            [hole, 9.0, hole, hole],
        ]
    )
    assert find_gaps(flow)[:3] == [(0, 0, 2), (0, 3, 4), (0, 5, 6)]
    filled = fill_gaps(flow, 2)
    np.testing.assert_allclose(filled[:, 0], [2, 2, 2, 4, 6, 6])  # at the ends the nearest value is repeated
    np.testing.assert_allclose(filled[:, 1], [1, 3, 5, 7, 8, 9])
    np.testing.assert_allclose(filled[:, 2], [hole] * 6)
    np.testing.assert_allclose(filled[:, 3], [5, 6, 7, hole, hole, hole])
    np.testing.assert_allclose(fill_gaps(flow, 1)[:, 1], [1, hole, hole, 7, 8, 9])
    np.testing.assert_array_equal(fill_gaps(flow, 0), flow)
    assert np.isnan(fill_gaps(flow, 100)[:, 2]).all()  # there is nothing to fill from
    assert fill_gaps(flow, 3)[:, 3].tolist() == [5, 6, 7, 7, 7, 7]


@pytest.mark.parametrize("kind", ["empty cells", "absent rows", "archive"])
def test_a_gap_of_the_longest_length_is_filled_and_a_longer_one_is_named(
    kind: str, runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / ("now.npz" if kind == "archive" else "now.csv"), tmp_path / "out.csv"
    sensors = slice(None) if kind == "absent rows" else 2

    def predict(first: int, end: int, *flags: object) -> int:
        with_gap = flow.copy()
        with_gap[first:end, sensors] = np.nan
        if kind == "archive":
            np.savez(source, data=with_gap[:, :, None])
        else:
            write_csv(source, with_gap)
        if kind == "absent rows":
            lines = source.read_text().splitlines(keepends=True)
            source.write_text("".join(lines[: first + 1] + lines[end + 1 :]))
        return call("predict.py", "--run", runs["ids"], "--input", source, "--output", output, *flags)

    def filled(first: int, end: int) -> np.ndarray:
        by_hand = flow.copy()
        share = (np.arange(first, end)[:, None] - first + 1) / (end - first + 1)
        straight = (1 - share) * flow[first - 1] + share * flow[end]
        by_hand[first:end, sensors] = straight[:, sensors]
        return by_hand

    assert predict(141, 143) == 0  # 2 steps, an hour
    np.testing.assert_allclose(
        read_forecast(output), forecast_by_windows(runs["ids"], filled(141, 143), 144), atol=0.00051
    )
    count = 2 * SENSORS if kind == "absent rows" else 2
    assert f"filled {count} of 30 input values, in gaps of at most 2 steps" in capsys.readouterr().out

    assert predict(140, 143) == 2
    error = capsys.readouterr().err
    span = "2018-03-07 22:00:00 to 2018-03-07 23:00:00"
    expected = f"sensor '30': found no value from {span} (3 steps), expected gaps of at most 2 steps (--max-gap)\n"
    assert f"error: {source}: {expected}" in error
    assert len(error.splitlines()) == (SENSORS if kind == "absent rows" else 1)

    assert predict(140, 143, "--max-gap", 3) == 0
    np.testing.assert_allclose(
        read_forecast(output), forecast_by_windows(runs["ids"], filled(140, 143), 144), atol=0.00051
    )
    # A gap that begins before the rows that are needed is as long as it is, and filled from where it begins.
    capsys.readouterr()
    assert predict(92, 97) == 2
    assert "found no value from" in capsys.readouterr().err
    assert predict(95, 97) == 0
    np.testing.assert_allclose(
        read_forecast(output), forecast_by_windows(runs["ids"], filled(95, 97), 144), atol=0.00051
    )
    # What no input reads may be missing: the inputs are an hour a day back, and the last two hours.
    assert predict(99, 139) == 0
    np.testing.assert_allclose(read_forecast(output), forecast_by_windows(runs["ids"], flow, 144), atol=0.00051)


def test_a_gap_at_the_end_repeats_the_last_value(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path
) -> None:
    with_gap, by_hand = flow.copy(), flow.copy()
    with_gap[-2:, 1], by_hand[-2:, 1] = np.nan, flow[-3, 1]
    assert call("predict.py", "--run", runs["ids"], "--input", write_csv(tmp_path / "now.csv", with_gap)) == 0
    expected = forecast_by_windows(runs["ids"], by_hand, len(flow))
    np.testing.assert_allclose(read_forecast(tmp_path / "forecast.csv"), expected, atol=0.00051)


def printed_scores(text: str) -> dict[str, list[float]]:
    rows = re.findall(r"^\| (\d+ min|all) +\|(.*)\|$", text, flags=re.MULTILINE)
    return {name: [float(cell) if cell.strip() != "-" else np.nan for cell in cells.split("|")] for name, cells in rows}


def test_evaluation_equals_numpy(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = flow[-HORIZON:].T.copy()  # (N, P)
    truth[0, 1], truth[3, 2], truth[4, 2] = np.nan, 0, np.nan
    flow[-HORIZON:] = truth.T
    source = write_csv(tmp_path / "now.csv", flow)
    assert call("predict.py", "--run", runs["ids"], "--input", source, "--evaluate") == 0
    output = capsys.readouterr().out
    assert f"Scored on 13 values of {source}" in output
    assert "wrote forecast.csv: 5 sensors, 3 steps, 2018-03-07 22:30:00 .. 2018-03-07 23:30:00" in output

    forecast = forecast_by_windows(runs["ids"], flow[:-HORIZON], len(flow) - HORIZON)
    np.testing.assert_allclose(read_forecast(tmp_path / "forecast.csv"), forecast, atol=0.00051)
    printed = printed_scores(output)
    assert list(printed) == ["30 min", "60 min", "90 min", "all"]
    for name, steps in zip(printed, ([0], [1], [2], [0, 1, 2]), strict=True):
        error, target = np.abs(forecast - truth)[:, steps], truth[:, steps]
        nonzero = error[target != 0]
        expected = [
            np.nanmean(error),
            np.nanmean(error**2) ** 0.5,
            100 * np.nanmean(nonzero / target[target != 0]),
            np.nanmean(nonzero),
            np.nanmean(nonzero**2) ** 0.5,
        ]
        np.testing.assert_allclose(printed[name], expected, atol=0.00051)


def test_values_that_a_file_marks_as_imputed_are_not_scored(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = np.zeros(flow.shape, dtype=np.bool_)
    marks[-HORIZON:, :2] = True
    source = tmp_path / "now.npz"
    np.savez(source, data=flow[:, :, None], imputed=marks)
    assert call("predict.py", "--run", runs["positions"], "--input", source, "--evaluate") == 0
    output = capsys.readouterr().out
    assert f"Scored on 9 values of {source}, in vehicles a step; 6 imputed values are left out" in output
    error = np.abs(read_forecast(tmp_path / "forecast.csv") - flow[-HORIZON:].T)[2:]
    np.testing.assert_allclose(printed_scores(output)["all"][0], error.mean(), atol=0.001)


def test_values_that_repeat_last_week_are_not_scored(
    runs: dict[str, Path], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The inputs of this run reach back for a day, so a week earlier has to be read for the score alone."""
    flow, week = tiny_series(days=15, seed=7), 7 * 48
    flow[-week:, :2] = flow[-2 * week : -week, :2]
    source = tmp_path / "now.npz"
    np.savez(source, data=flow)
    assert call("predict.py", "--run", runs["positions"], "--input", source, "--evaluate") == 0
    assert "Scored on 9 values" in (output := capsys.readouterr().out)
    assert "; 6 imputed values are left out" in output


def test_the_truth_has_no_influence_on_the_forecast_it_scores(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path
) -> None:
    flow[-HORIZON - 1, 2] = np.nan  # filled without a look at what comes after
    forecasts = []
    for shift in (0, 100):
        flow[-HORIZON:] += shift
        source = write_csv(tmp_path / "now.csv", flow)
        assert call("predict.py", "--run", runs["ids"], "--input", source, "--evaluate") == 0
        forecasts.append((tmp_path / "forecast.csv").read_bytes())
    assert forecasts[0] == forecasts[1]


def test_a_horizon_without_truth_has_no_score() -> None:
    truth = np.array([[1.0, np.nan], [3.0, np.nan]])
    errors = errors_of(np.array([[2.0, 5.0], [5.0, 5.0]], dtype=np.float32), truth)
    first, second = errors.by_horizon()
    assert first["mae"] == errors.overall()["mae"] == 1.5
    assert set(second.values()) == {None}


@pytest.mark.parametrize(
    ("names", "messages"),
    [
        (
            ["40", "10", "30", "200", "50"],
            [
                "found column '200', expected a sensor of {run}/best.pt (did you mean '20'?)",
                "found no column '20', a sensor of {run}/best.pt (did you mean '200'?)",
            ],
        ),
        (["40", "10", "30", "20"], ["found no column '50', a sensor of {run}/best.pt"]),
        ([*IDS, "total"], ["found column 'total', expected a sensor of {run}/best.pt"]),
        (
            list("uvwxy"),
            [*(f"found column '{name}', expected a sensor of {{run}}/best.pt" for name in "uvwxy"), "and 5 more"],
        ),
    ],
)
def test_columns_that_are_not_the_sensors_of_the_run(
    names: list[str],
    messages: list[str],
    runs: dict[str, Path],
    flow: np.ndarray,
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_csv(tmp_path / "now.csv", np.resize(flow, (100, len(names))), names)
    assert call("predict.py", "--run", runs["ids"], "--input", source) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"error: {source}: {message.format(run=runs['ids'])}")
    assert not (tmp_path / "forecast.csv").exists()


def test_wrong_input_is_said_and_nothing_is_written(
    runs: dict[str, Path], flow: np.ndarray, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "now.csv", flow[:50])
    before = source.read_bytes()

    def error(*arguments: object, run: Path = runs["ids"]) -> str:
        assert call("predict.py", "--run", run, "--input", *arguments) == 2
        return capsys.readouterr().err

    missing = runs["ids"].parent / "idz"
    expected = f"error: {missing}: found no best.pt, expected the folder of a run (did you mean 'ids'?)\n"
    assert error(source, run=missing) == expected
    expected = "now.csv: found 47 steps before the forecast, expected at least 48\n"
    assert error(source, "--evaluate").endswith(expected)
    assert error(source, "--output", source).endswith(f"found {source}, which is in use, expected a file of its own\n")
    assert error(source, "--max-gap", "-1").endswith("--max-gap: found -1, expected an integer of at least 0\n")
    np.savez(tmp_path / "now.npz", data=np.full((60, SENSORS, 1), np.inf))
    assert "found 300 infinite values, the first at step 0, sensor 0" in error(tmp_path / "now.npz")
    source.write_bytes(before.replace(b"2018-03-05 00:30", b"2018-03-05 00:40"))
    assert "row 3: found the time 2018-03-05 00:40:00, expected 2018-03-05 00:30:00" in error(source)
    source.write_bytes(before.replace(b"2018-03-06 00:30", b"2918-03-06 00:30"))  # its gap would fill the memory
    assert "row 51: found the time 2918-03-06 00:30:00 after 2018-03-06 00:00:00, expected a row for" in error(source)
    assert not (tmp_path / "forecast.csv").exists()


def test_help_shows_examples(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict.py", "--help") == 0
    assert "python predict.py --" in capsys.readouterr().out
