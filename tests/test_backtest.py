"""A backtest forecasts as predict.py would have then, scores what it says it scores, and its page draws it."""

import csv
import json
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from lib.backtest import Backtest, backtest, hourly_scores
from lib.config import Config
from lib.errors import InputError
from lib.inference import (
    Forecaster,
    History,
    check_inputs,
    forecasts_from,
    load_forecaster,
    read_history,
    refused_starts,
)
from lib.report.backtest_page import backtest_page
from lib.report.explorer import EXPLORER_SCRIPT, packed
from lib.run_folder import RunFolder
from lib.runs import score_run, start_run
from model.variants import VARIANTS
from tests.conftest import Call, load, tiny_series, write_dataset
from tests.test_report_page import BROWSER, Elements, opened_in_browser, unpacked

HORIZON, DAY, WEEK = 3, 48, 336
DAYS = 19
NODE = shutil.which("node")


def series() -> np.ndarray:
    """Return 19 days with gaps, and a sensor that repeats its week for a day and a half; the last days differ."""
    flow = tiny_series(days=DAYS, seed=3)[:, :, 0].round(1)
    flow[-2 * DAY :] *= 1.2
    imputed = slice(16 * DAY + 20, 17 * DAY + 40)
    flow[imputed, 2] = flow[imputed.start - WEEK : imputed.stop - WEEK, 2]
    for sensor, step, length in ((0, 17 * DAY + 3, 1), (1, 18 * DAY - 2, 2), (3, 18 * DAY + 30, 2), (4, 16 * DAY, 1)):
        flow[step : step + length, sensor] = np.nan
    return flow


@pytest.fixture(scope="module", params=["residual_mlp", "stid"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Config]:
    root = tmp_path_factory.mktemp("run")
    path = write_dataset(root, series()[: 16 * DAY, :, None], fine_tune_epochs=0)
    settings = ["Data.missing=interpolate", "Training.max_batches=3", f"Model.variant={request.param}"]
    if request.param == "residual_mlp":
        settings += ["Model.carry_profile=on", "Training.bias_correction=on"]
    config = load(path, settings)
    run = start_run(config, root / "out", "run")
    run.trainer.fit()
    score_run(run)
    shutil.rmtree(root / "TINY")
    return run.folder, config


def forecaster_of(run: tuple[RunFolder, Config]) -> Forecaster:
    return load_forecaster(run[0], VARIANTS, "cpu")


def write(path: Path, flow: np.ndarray) -> Path:
    np.savez(path, data=flow[:, :, None])
    return path


def backtest_of(
    run: tuple[RunFolder, Config], source: Path, days: int = 4, adapt: bool = False, every: int = 1
) -> Backtest:
    forecaster, intervals = forecaster_of(run), run[0].read_intervals()
    history = read_history(source, forecaster, None)
    return backtest(forecaster, history, days, every, 2, (0.5, 0.8), intervals, adapt)


def test_each_forecast_is_that_of_a_file_that_ends_there(
    run: tuple[RunFolder, Config], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With gaps, one of them open, a sensor being imputed, and a profile of the run's own or of 14 days of the file."""
    flow = series()
    source = write(tmp_path / "all.npz", flow)
    test = backtest_of(run, source, days=6)
    assert test.refused == 0
    widths = {level: test.half_widths[level] for level in (0.5, 0.8)}
    starts = [14 * DAY - 1, 14 * DAY, 16 * DAY + 1, 17 * DAY + 4, 17 * DAY + 10, 18 * DAY - 1, 18 * DAY, 18 * DAY + 31]
    places = [int(np.flatnonzero(test.label_starts == start)[0]) for start in starts]
    for start, place in zip(starts, places, strict=True):
        cut = write(tmp_path / "cut.npz", flow[:start])
        outputs = []
        for arguments in ((cut,), (source, "--until", str(np.datetime64("2018-03-05T00:00") + 30 * start))):
            command = ("predict.py", "--run", run[0], "--interval", 0.5, 0.8, "--output", tmp_path / "out.csv")
            assert call(*command, "--input", *arguments) == 0
            outputs.append((tmp_path / "out.csv").read_text())
        assert outputs[0] == outputs[1]
        rows = list(csv.DictReader(outputs[0].splitlines()))

        def column(name: str, rows: list[dict[str, str]] = rows) -> np.ndarray:
            return np.array([float(row[name]) for row in rows]).reshape(HORIZON, 5).T

        forecast = test.forecast[place].clip(0)
        np.testing.assert_allclose(column("forecast"), forecast, atol=2e-3)
        shown = capsys.readouterr().out
        if run[1].variant.name == "residual_mlp":  # the ways there are to forecast are all among the starts
            assert ("profile of the run's training" in shown) == (start < 14 * DAY)
            earlier = re.search(r"bias correction by the errors of (\d+) earlier forecasts", shown)
            assert earlier
            assert (earlier[1] == "0") == (start == 14 * DAY)  # the first with a profile of the file
            assert ("imputed sensors: 1 of 5" in shown) == (start in (17 * DAY + 4, 17 * DAY + 10))
        for level, width in widths.items():
            np.testing.assert_allclose(column(f"upper_{level}"), forecast + width[place], atol=2e-3)
            np.testing.assert_allclose(column(f"lower_{level}"), (forecast - width[place]).clip(0), atol=2e-3)


def test_errors_made_with_the_profile_of_training_correct_no_forecast_with_one_of_the_file(
    run: tuple[RunFolder, Config],
) -> None:
    forecaster = forecaster_of(run)
    if forecaster.profile_week is None:
        pytest.skip("a variant without a profile")
    history = History(Path("file"), series(), forecaster.sensors, 0, datetime(2018, 3, 5), True, 2)
    starts = np.arange(14 * DAY - 20, 15 * DAY)
    other = replace(forecaster, profile_week=1.5 * forecaster.profile_week)
    forecasts = [forecasts_from(one, history, starts, 2).flow for one in (forecaster, other)]
    equal = np.array([np.array_equal(*pair) for pair in zip(*forecasts, strict=True)])
    np.testing.assert_array_equal(equal, starts >= 14 * DAY)


def test_what_comes_later_changes_nothing_of_an_adapted_backtest(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    flow = series()
    whole = backtest_of(run, write(tmp_path / "all.npz", flow), days=3, adapt=True)
    end = 18 * DAY + 7
    changed = flow.copy()
    changed[end:] = np.random.default_rng(0).uniform(0, 300, changed[end:].shape)
    other = backtest_of(run, write(tmp_path / "other.npz", changed), days=3, adapt=True)
    known = whole.label_starts <= end
    assert 100 < known.sum() < len(known)
    np.testing.assert_array_equal(whole.forecast[known], other.forecast[known])
    for level, width in whole.adapted.items():
        np.testing.assert_array_equal(width[known], other.adapted[level][known])
        assert (width[-1] != other.adapted[level][-1]).any()
    np.testing.assert_array_equal(whole.profile[: end + DAY - 1], other.profile[: end + DAY - 1])
    assert (whole.forecast[~known] != other.forecast[~known]).any()


def test_forecasts_that_predict_would_refuse_are_left_out(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    flow = series()
    flow[17 * DAY : 17 * DAY + 5, 1] = np.nan
    flow[: 16 * DAY + 9, 4] = np.nan  # before its first value there is nothing to fill it with
    forecaster = forecaster_of(run)
    history = read_history(write(tmp_path / "gap.npz", flow), forecaster, None)
    starts = np.arange(16 * DAY, 19 * DAY - HORIZON)

    def fails(start: int, max_gap: int) -> bool:
        try:
            check_inputs(history.until(start), forecaster.offsets, max_gap)
        except InputError:
            return True
        return False

    for max_gap in (2, 2000):
        refused = refused_starts(history, forecaster.offsets, starts, max_gap)
        assert refused.tolist() == [fails(start, max_gap) for start in starts]
        assert 0 < refused.sum() < 70
    test = backtest_of(run, history.path, days=3)
    assert test.refused == refused_starts(history, forecaster.offsets, np.arange(16 * DAY, 19 * DAY - 2), 2).sum()
    assert len(test.label_starts) == 3 * DAY - 2 - test.refused
    assert "were left out, for a gap" in backtest_page("t", test, hourly_scores(test), list("abcde"))


def test_hourly_scores_are_means_by_hand(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    test = backtest_of(run, write(tmp_path / "all.npz", series()), days=4)
    test = replace(test, history=replace(test.history, start=datetime(2018, 3, 5, 6, 30)))
    scores = hourly_scores(test)
    error = np.abs(test.forecast - test.measured)
    minutes = 6 * 60 + 30 + 30 * (test.label_starts[:, None] + np.arange(HORIZON))
    for row in (0, 17, 40, len(scores.worst) - 1):
        for sensor in (0, 2):
            of_hour = (minutes // 60 == scores.first + row)[:, None] & ~np.isnan(test.measured)
            of_hour[:, [other for other in range(5) if other != sensor]] = False
            assert scores.targets[row, sensor] == of_hour.sum()
            if of_hour.any():
                assert scores.mae[row, sensor] == pytest.approx(error[of_hour].mean(), rel=1e-5)
                covered = error <= test.half_widths[0.8]
                assert scores.coverage[0.8][row, sensor] == pytest.approx(covered[of_hour].mean())
    assert np.isnan(test.measured).sum() > np.isnan(test.truth).sum()  # what was imputed is not scored
    of_hours = scores.of_all(scores.mae, 1)
    assert scores.worst.sum() == max(1, round(2 * len(of_hours) / 24))
    assert of_hours[scores.worst].min() >= np.nanmax(of_hours[~scores.worst])
    assert test.day_name(18) == "2018-03-23"


def test_only_hours_with_a_measured_target_are_scored(
    run: tuple[RunFolder, Config], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = series()
    flow[-DAY + 2 :] = np.nan
    arguments = ("predict.py", "--run", run[0], "--evaluate", "--days", 1, "--max-gap", DAY, "--interval", 0.8)
    assert call(*arguments, "--input", write(tmp_path / "gap.npz", flow)) == 0
    with (tmp_path / "backtest.csv").open(newline="") as handle:
        assert {(row["hour"], row["worst"]) for row in csv.DictReader(handle)} == {("0", "1")}
    (tmp_path / "backtest.csv").unlink()
    flow[-DAY:] = np.nan
    assert call(*arguments, "--input", write(tmp_path / "gap.npz", flow)) == 2
    assert "found no measured value from 2018-03-23 00:00:00 to 2018-03-23 23:30:00" in capsys.readouterr().err
    assert not (tmp_path / "backtest.csv").exists()


def test_a_clock_that_is_seconds_early_changes_no_hour(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    test = backtest_of(run, write(tmp_path / "all.npz", series()), days=1)
    start = test.history.start
    assert start is not None
    early = replace(test, history=replace(test.history, start=start - timedelta(seconds=2)))
    np.testing.assert_array_equal(early.hours, test.hours)
    assert early.day_name(1) == test.day_name(1) == "2018-03-06"


def test_the_days_are_no_shorter_than_a_forecast(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    forecaster = forecaster_of(run)
    config = replace(forecaster.config, data=replace(forecaster.config.data, num_for_predict=DAY + 1))
    history = read_history(write(tmp_path / "all.npz", series()), forecaster, None)
    with pytest.raises(InputError, match="--days: found 1, expected at least 2: a forecast is of 49 steps"):
        backtest(replace(forecaster, config=config), history, 1, 1, 2)


def test_the_script_writes_a_table_and_a_page(
    run: tuple[RunFolder, Config], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "all.npz", series())
    command = ("predict.py", "--run", run[0], "--input", source, "--evaluate", "--days", 4, "--every", 2)
    assert call(*command, "--interval", 0.8, "--interval-update") == 0
    output = capsys.readouterr().out
    assert "95 forecasts from 2018-03-20 00:00:00 .. 2018-03-23 22:00:00, each from the steps before it alone" in output
    assert "| 0.8, the same, adapted step by step |" in output
    with (tmp_path / "backtest.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["day", "hour", "sensor", "targets", "mae", "profile_mae", "coverage_0.8", "worst"]
    test = backtest_of(run, source, days=4, every=2)
    assert sum(int(row["targets"]) for row in rows) == np.isfinite(test.measured).sum()
    weighted = sum(int(row["targets"]) * float(row["mae"]) for row in rows)
    error = np.nansum(np.abs(test.forecast - test.measured).astype(np.float64))
    assert weighted == pytest.approx(error, rel=1e-3)
    assert {row["day"] for row in rows} == {"2018-03-20", "2018-03-21", "2018-03-22", "2018-03-23"}
    assert len((tmp_path / "backtest.html").read_text()) < 2**20


def page_with_data(run: tuple[RunFolder, Config], tmp_path: Path, names: list[str]) -> tuple[str, Backtest]:
    test = backtest_of(run, write(tmp_path / "all.npz", series()), days=4, every=2)
    return backtest_page("A <b>test</b>", test, hourly_scores(test), names), test


def test_the_page_holds_forecasts_truth_band_and_profile(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    poison = "<script>alert(1)</script>"
    page, test = page_with_data(run, tmp_path, [poison, *"bcde"])
    parsed = Elements(page)
    assert poison not in page
    assert len(parsed.scripts) == 2
    assert len(parsed.named("select")) == 2  # sensor, day
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert not {"style", "onclick"} & {name for _, attributes in parsed.elements for name in attributes}
    data = json.loads(parsed.scripts[0])
    names = ["truth", "30 min ahead", "historical profile"]  # of a horizon of three steps
    assert [entry["name"] for entry in data["series"]] == names
    assert data["band"] == "50% interval"
    first, values = int(test.label_starts[0]), unpacked(data)
    tolerance = 0.5 / data["scale"] + 1e-3
    for sensor in (0, 4):
        truth, ahead, profile, band = (np.array(numbers, dtype=float) / data["scale"] for numbers in values[sensor])
        end = first + data["steps"]
        np.testing.assert_allclose(truth, test.history.flow[first:end, sensor], atol=tolerance)
        np.testing.assert_allclose(profile, test.profile[first:end, sensor], atol=tolerance)
        np.testing.assert_allclose(ahead, test.forecast[:, sensor, 0], atol=tolerance)
        np.testing.assert_allclose(band, test.half_widths[0.5][:, sensor, 0], atol=tolerance)
    assert data["series"][1] == {"name": "30 min ahead", "offset": 0, "every": 2, "shown": True, "band": 3}
    assert data["marks"]
    assert all(0 <= begin < end <= data["steps"] for begin, end in data["marks"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_draws_the_backtest(run: tuple[RunFolder, Config], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page_with_data(run, tmp_path, list("abcde"))[0])
    dom = Elements(opened_in_browser(tmp_path / "page.html", tmp_path / "profile"))
    assert dom.named("html") == [{"lang": "en", "data-explorer": "drawn"}]
    drawn = [str(path["class"]) for path in dom.named("path")]
    assert drawn == ["band series1", "series0", "series1", "series2"]
    assert dom.named("rect")


def test_numbers_are_packed_as_said() -> None:
    assert packed([0, 1, None, 0, 64]) == bytes([1, 3, 0, 2, 129, 1])
    draw = np.random.default_rng(0)
    numbers = [
        None if draw.random() < 0.1 else int(number)
        for number in draw.normal(0, 10.0 ** np.arange(1, 7), (50, 6)).ravel()
    ]
    data = {"packed": [b64encode(packed(numbers)).decode()], "lengths": [len(numbers)]}
    assert unpacked(data)[0][0] == numbers
    if NODE is not None:
        begin = EXPLORER_SCRIPT.index("function unpack(")
        function = EXPLORER_SCRIPT[begin : EXPLORER_SCRIPT.index("\n}\n", begin) + 3]
        code = f"const data = {json.dumps(data)};{function}console.log(JSON.stringify(unpack(data.packed[0])))"
        shown = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True).stdout
        assert json.loads(shown) == [numbers]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--interval", 0),
            "--interval: found 0, expected a share of the values, above 0 and at most 0.999, such as 0.8",
        ),
        (("--interval", 0.8, 1.2), "--interval: found 1.2, expected a share of the values"),
        (("--interval", "nan"), "--interval: found nan, expected a share of the values"),
        (("--days", 3), "--days: found no --evaluate, expected both"),
        (("--evaluate", "--every", 3), "--every: found no --days, expected both"),
        (("--evaluate", "--days", 3, "--interval-update"), "--interval-update: found no --interval, expected both"),
        (("--evaluate", "--days", 0), "--days: found 0, expected an integer of at least 1"),
        (("--evaluate", "--days", 3, "--every", -1), "--every: found -1, expected an integer of at least 1"),
        (("--evaluate", "--days", 19), "--days: found 19, expected at most 18: "),
        (
            ("--until", "2019-01-01"),
            "--until: found '2019-01-01', expected a time from 2018-03-05 00:30:00 to 2018-03-24",
        ),
        (("--until", "2018-03-05"), "--until: found '2018-03-05', expected a time from"),
        (("--until", "soon"), "--until: found 'soon', expected a local time such as"),
        (("--evaluate", "--days", 2, "--output", "all.html"), "--output: found all.html, which is in use"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    arguments: tuple[object, ...],
    message: str,
    run: tuple[RunFolder, Config],
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write(tmp_path / "all.npz", series())
    assert call("predict.py", "--run", run[0], "--input", source, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz"]


def test_a_level_that_the_run_lacks_is_refused_before_the_backtest(
    run: tuple[RunFolder, Config],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("predict.backtest", lambda *_: pytest.fail("it was made"))
    source = write(tmp_path / "all.npz", series())
    levels = ("--interval", 0.8, 0.999)
    assert call("predict.py", "--run", run[0], "--input", source, "--evaluate", "--days", 3, *levels) == 2
    assert capsys.readouterr().err.startswith("error: --interval: found 0.999, expected at most 0.99")
