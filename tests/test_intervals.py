"""Intervals: coverage where theory promises it, NumPy by hand, other units, groups, causality; a run keeps its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.calibration import calibrate_run
from lib.data.prepared import Prepared, prepare
from lib.data.windowing import Calendar, WindowShape
from lib.errors import InputError
from lib.intervals import (
    LEVELS,
    STEP_SIZE,
    Intervals,
    adapted_half_width,
    bounds,
    calibrate,
    conformal_quantiles,
    interval_scores,
    kept_level,
    score_intervals,
    spread_of_week,
)
from lib.run_folder import RunFolder
from lib.runs import intervals_for, resume_run, score_run, start_run
from model.variants import VARIANTS
from tests.conftest import Call, load, tiny_series, write_dataset

DAY = Calendar(48)


def simulated(samples: int, seed: int, sensors: int = 3, horizon: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return forecasts and targets (samples, N, P) whose errors grow with the hour, and steps of the week."""
    draw = np.random.default_rng(seed)
    week = draw.integers(0, DAY.steps_per_week, samples)
    size = 1 + (week[:, None] + np.arange(horizon)) % 48 / 4  # (samples, P)
    forecast = np.full((samples, sensors, horizon), 300, dtype=np.float32)
    error = draw.laplace(size=forecast.shape) * size[:, None] * (1 + np.arange(sensors))[:, None]
    return forecast, (forecast + error).astype(np.float32), week


def spread_known() -> np.ndarray:
    return np.tile((1 + np.arange(DAY.steps_per_week)[:, None] % 48 / 4), 3).astype(np.float32)


def test_coverage_is_as_promised_on_exchangeable_data() -> None:
    """Over many draws the mean coverage lies between the level and the level + 1 / (n + 1)."""
    n, level = 119, 0.8
    shares = []
    for seed in range(60):
        forecast, target, week = simulated(n + 100, seed)
        intervals = calibrate(forecast[:n], target[:n], target[:n], week[:n], spread_known(), None, {})
        lower, upper = bounds(forecast[n:], intervals.half_width(week[n:], level))
        shares.append(((target[n:] >= lower) & (target[n:] <= upper)).mean(axis=0))
    values = np.ravel(shares)
    # By sensor and horizon coverage varies from draw to draw as a beta variable does, of deviation 0.036.
    error = 4 * np.hypot((level * (1 - level) / n) ** 0.5, (level * (1 - level) / 100) ** 0.5) / len(values) ** 0.5
    assert level - error < values.mean() < level + 1 / (n + 1) + error


def test_a_known_spread_makes_hours_alike_and_narrows_the_score() -> None:
    forecast, target, week = simulated(6000, 1)
    flat = np.ones_like(spread_known())
    hours = np.repeat(week[:, None] % 48 // 2, 2, axis=1)
    half = 3000
    found = {}
    for name, spread in (("scaled", spread_known()), ("flat", flat)):
        intervals = calibrate(forecast[:half], target[:half], target[:half], week[:half], spread, None, {})
        width = intervals.half_width(week[half:], 0.9)
        found[name] = score_intervals(forecast[half:], width, target[half:], 0.9, hours[half:])
    by_hour = {name: [hour["coverage"] for hour in scores["by_hour"]] for name, scores in found.items()}
    assert np.ptp(by_hour["scaled"]) < 0.1 < np.ptp(by_hour["flat"])
    assert found["scaled"]["overall"]["score"] < 0.95 * found["flat"]["overall"]["score"]
    assert abs(found["scaled"]["overall"]["coverage"] - 0.9) < 0.015


def test_quantiles_are_order_statistics_by_hand() -> None:
    draw = np.random.default_rng(0)
    residuals = draw.exponential(size=(150, 3, 2)).astype(np.float32)
    residuals[:60, 1, 0] = np.nan  # 90 are left: too few for quantiles of their own
    residuals[10:20, 2, 1] = np.nan
    quantiles = conformal_quantiles(residuals)
    pooled = np.sort(residuals[:, :, 0][~np.isnan(residuals[:, :, 0])])
    for level in (0.01, 0.5, 0.8, 0.95):
        place = kept_level(level)
        own = np.sort(residuals[:, 2, 1][~np.isnan(residuals[:, 2, 1])])
        assert len(own) == 140
        assert quantiles[place, 2, 1] == own[int(np.ceil(141 * level - 1e-9)) - 1]
        assert quantiles[place, 1, 0] == pooled[int(np.ceil((len(pooled) + 1) * level - 1e-9)) - 1]
    assert (np.diff(quantiles[:-2], axis=0) >= 0).all()
    # 150 values cannot tell the 99.5th percent; all of three sensors can, and neither can the 99.9th.
    assert np.isfinite(quantiles[-2]).all()
    assert np.isinf(quantiles[-1]).all()
    intervals = Intervals(np.ones((DAY.steps_per_week, 3), np.float32), quantiles, {})
    with pytest.raises(InputError, match=r"--interval: found 0\.999, expected at most 0\.995: the validation"):
        intervals.half_width(np.array([0]), 0.999)


def test_a_level_between_two_that_are_kept_takes_the_higher() -> None:
    assert LEVELS[kept_level(0.8)] == 0.8
    assert LEVELS[kept_level(0.801)] == 0.81
    assert LEVELS[kept_level(0.992)] == 0.995
    assert LEVELS[kept_level(1.5)] == LEVELS[-1]
    assert LEVELS[kept_level(np.array([0.3, 0.07]))].tolist() == [0.3, 0.07]


def test_the_spread_is_the_mean_deviation_from_neighbours_at_that_time() -> None:
    """Of an hour with noise among hours without, only it is wide; and other units change nothing but the unit."""
    rows = 21 * 48
    flow = np.tile(100 + 10 * (np.arange(48) // 24), 21)[:, None] * np.ones((1, 2))
    noisy = np.arange(rows) % 48 == 30
    flow[noisy, 0] += np.where(np.arange(21) % 2, 12, -12)
    spread = spread_of_week(flow.astype(np.float32), DAY)
    assert spread.shape == (DAY.steps_per_week, 2)
    day = spread[:48, 0]
    assert day.argmax() == 30
    assert day[30] == pytest.approx(12, rel=1e-3)
    # Neighbours of the hour, by half of its deviation; and the step at noon, whose mean is between both halves.
    np.testing.assert_allclose(day[[29, 31]], 6, rtol=1e-3)
    np.testing.assert_allclose(day[[23, 24]], 5, rtol=1e-3)
    assert day.min() == pytest.approx(0.05 * spread[:, 0].mean(), rel=0.5)
    assert day.min() > 0
    np.testing.assert_allclose(spread_of_week((8 * flow).astype(np.float32), DAY), 8 * spread, rtol=1e-6)
    with_gap = flow.astype(np.float32)
    with_gap[5 * 48 : 6 * 48] = np.nan
    np.testing.assert_allclose(spread_of_week(with_gap, DAY)[48:96, 0].max(), 12, rtol=0.05)


def test_intervals_scale_with_the_unit() -> None:
    forecast, target, week = simulated(400, 3)
    widths = []
    for unit in (1, 4):
        of_unit = [np.float32(unit) * part for part in (forecast, target)]
        intervals = calibrate(of_unit[0], of_unit[1], of_unit[1], week, unit * spread_known(), None, {})
        widths.append(intervals.half_width(week, 0.9))
    np.testing.assert_allclose(widths[1], 4 * widths[0], rtol=1e-6)


def test_no_bound_is_below_0_and_the_forecast_is_within() -> None:
    forecast = np.array([-5.0, 0.0, 3.0, 50.0])
    lower, upper = bounds(forecast, np.full(4, 10.0))
    assert lower.tolist() == [0, 0, 0, 40]
    assert upper.tolist() == [10, 10, 13, 60]
    written = forecast.clip(0)
    assert ((lower <= written) & (written <= upper)).all()


def test_the_interval_score_is_that_of_winkler() -> None:
    covered, width, score = interval_scores(
        np.array([10.0, 10, 10, 10]), np.array([20.0, 20, 20, 20]), np.array([15.0, 8, 23, np.nan]), 0.8
    )
    assert covered.tolist() == [True, False, False, False]
    assert width.tolist() == [10] * 4
    np.testing.assert_allclose(score[:3], [10, 10 + 10 * 2, 10 + 10 * 3])


def test_scores_by_group_are_means_by_hand() -> None:
    forecast, target, week = simulated(300, 5)
    target[::7, 1] = np.nan
    target[:260, 2] = np.nan  # too few to be the worst sensor
    width = np.full(forecast.shape, 6, dtype=np.float32)
    hours = np.repeat(week[:, None] % 48 // 2, 2, axis=1)
    scores = score_intervals(forecast, width, target, 0.8, hours)
    known, inside = ~np.isnan(target), np.abs(target - forecast) <= 6
    assert scores["overall"]["targets"] == known.sum()
    assert scores["overall"]["coverage"] == pytest.approx(inside[known].mean())
    assert scores["overall"]["width"] == pytest.approx(12)
    assert scores["by_horizon"][1]["coverage"] == pytest.approx(inside[:, :, 1][known[:, :, 1]].mean())
    at_nine = (hours == 9)[:, None] & known
    assert scores["by_hour"][9]["coverage"] == pytest.approx(inside[at_nine].mean())
    assert scores["worst_sensor"]["sensor"] == 1
    assert scores["worst_sensor"]["coverage"] == pytest.approx(inside[:, 1][known[:, 1]].mean())
    nothing = score_intervals(forecast, width, np.full_like(target, np.nan), 0.8, hours)
    assert nothing["overall"] == {"targets": 0, "coverage": None, "width": None, "score": None}
    assert nothing["worst_sensor"] is None


def test_imputed_sensors_do_not_narrow_the_intervals_of_what_is_measured() -> None:
    forecast, target, week = simulated(900, 7)
    imputed = np.random.default_rng(1).random(forecast.shape[:2]) < 0.4
    copied = np.where(imputed[:, :, None], forecast, target)
    of_copies = np.where(imputed[:, :, None], np.float32(np.nan), target)  # what a series knows to be imputed
    with_copies = calibrate(forecast, copied, of_copies, week, spread_known(), imputed, {})
    without = calibrate(forecast, of_copies, of_copies, week, spread_known(), None, {})
    np.testing.assert_array_equal(with_copies.quantiles, without.quantiles)
    assert without.imputed_quantiles is None
    width = with_copies.half_width(week, 0.8, imputed)
    assert (width[imputed] == 0).all()
    np.testing.assert_array_equal(width[~imputed], without.half_width(week, 0.8)[~imputed])


@pytest.mark.parametrize("flags", [0, 1, 12, 150])
def test_few_imputed_samples_take_no_level_away(flags: int) -> None:
    forecast, target, week = simulated(900, 7)
    imputed = np.zeros(forecast.shape[:2], dtype=np.bool_)
    imputed[:flags, 0] = True
    for known in (target, np.where(imputed[:, :, None], np.float32(np.nan), target)):  # kept, and missing
        intervals = calibrate(forecast, known, known, week, spread_known(), imputed, {})
        assert intervals.highest_level == 0.999
        width = intervals.half_width(week, 0.95, imputed)
        assert np.isfinite(width).all()
        if flags < 19:  # too few for 0.95: as if measured
            np.testing.assert_array_equal(width, intervals.half_width(week, 0.95))


def test_adaptation_follows_gibbs_and_candes_by_hand() -> None:
    forecast, target, week = simulated(260, 11)
    intervals = calibrate(forecast[:200], target[:200], target[:200], week[:200], spread_known(), None, {})
    forecast, target, week = forecast[200:], target[200:], week[200:]
    target[5, 0] = np.nan
    starts = np.arange(500, 560)
    width = adapted_half_width(intervals, 0.8, forecast, target, starts, week)
    alpha = np.full((3, 2), 0.2)
    for now in range(60):
        for ahead in range(2):
            past = now - 1 - ahead  # whose target at this horizon came just before
            if past >= 0:
                for sensor in range(3):
                    error = abs(target[past, sensor, ahead] - forecast[past, sensor, ahead])
                    if np.isfinite(error):
                        alpha[sensor, ahead] += STEP_SIZE * (0.2 - (error > width[past, sensor, ahead]))
        expected = intervals.half_width(week[now : now + 1], 1 - alpha)[0]
        np.testing.assert_allclose(width[now], expected, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 5])
def test_adapted_intervals_know_only_what_came_before(every: int) -> None:
    forecast, target, week = simulated(700, 13)
    intervals = calibrate(forecast[:200], target[:200], target[:200], week[:200], spread_known(), None, {})
    starts = np.arange(200, 700)[::every]
    part = (forecast[200:][::every], target[200:][::every])
    now = len(starts) // 2
    whole = adapted_half_width(intervals, 0.9, *part, starts, week[200:][::every])
    later = part[1].copy()
    # From the label start on: the first of the two targets of the forecast just before is known, the second is not.
    known = starts[:, None] + np.arange(2) < starts[now]
    later[:] = np.where(known[:, None], later, 1e6)
    changed = adapted_half_width(intervals, 0.9, part[0], later, starts, week[200:][::every])
    np.testing.assert_array_equal(changed[: now + 1], whole[: now + 1])
    assert (changed[now + 40 // every :] != whole[now + 40 // every :]).any()


def test_adaptation_mends_the_coverage_where_errors_have_grown() -> None:
    forecast, target, week = simulated(4000, 17)
    intervals = calibrate(forecast[:500], target[:500], target[:500], week[:500], spread_known(), None, {})
    grown = forecast + 2 * (target - forecast)
    hours = np.zeros((3500, 2), dtype=np.int64)
    widths = {
        "static": intervals.half_width(week[500:], 0.8),
        "adapted": adapted_half_width(intervals, 0.8, forecast[500:], grown[500:], np.arange(3500), week[500:]),
    }
    coverage = {
        name: score_intervals(forecast[500:], width, grown[500:], 0.8, hours)["overall"]["coverage"]
        for name, width in widths.items()
    }
    assert coverage["static"] < 0.65
    assert abs(coverage["adapted"] - 0.8) < 0.02


# ------------------------------------------------------------------------------------------------------------ a run


def tiny_prepared(series: np.ndarray) -> Prepared:
    return prepare(series, WindowShape(0, 1, 2, 3, 2), {})


def test_the_test_split_decides_nothing_of_the_intervals() -> None:
    series = tiny_series(days=12)
    prepared = tiny_prepared(series)
    draw = np.random.default_rng(0)
    forecasts = {
        split: draw.normal(100, 20, (len(prepared.label_starts[split]), 5, 3)).astype(np.float32)
        for split in ("val", "test")
    }
    made, scores = calibrate_run(prepared, forecasts, DAY, None, "x")
    first = int(prepared.label_starts["test"][0])
    other = replace(prepared, flow=np.concatenate([prepared.flow[:first], 3 * prepared.flow[first:]]))
    # The last validation targets reach into the test split by less than a horizon: they come before its first target.
    assert int(prepared.label_starts["val"][-1]) == first - 1
    forecasts["val"], starts = forecasts["val"][:-2], prepared.label_starts["val"][:-2]
    splits = {**prepared.label_starts, "val": starts}
    made, scores = calibrate_run(replace(prepared, label_starts=splits), forecasts, DAY, None, "x")
    again, other_scores = calibrate_run(replace(other, label_starts=splits), forecasts, DAY, None, "x")
    np.testing.assert_array_equal(made.quantiles, again.quantiles)
    np.testing.assert_array_equal(made.spread, again.spread)
    assert scores["0.8"]["scaled"]["overall"] != other_scores["0.8"]["scaled"]["overall"]
    assert list(scores["0.95"]) == ["scaled", "adapted", "unscaled", "historical_average"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = write_dataset(tmp_path_factory.mktemp("run"), fine_tune_epochs=0)
    run = start_run(load(path, ["Training.max_batches=2"]), path.parent / "out", "run")
    run.trainer.fit()
    score_run(run)
    return run.folder


def test_an_old_run_gets_the_intervals_that_a_new_one_has(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [path.read_bytes() for path in (finished.intervals, finished.interval_scores)]
    kept = intervals_for(finished, VARIANTS)
    assert capsys.readouterr().out == ""
    finished.intervals.unlink()
    finished.interval_scores.unlink()
    made = intervals_for(finished, VARIANTS)
    assert f"{finished.intervals} is missing: making it" in capsys.readouterr().out
    np.testing.assert_allclose(made.quantiles, kept.quantiles, rtol=1e-5)
    assert json.loads(before[1]).keys() == json.loads(finished.interval_scores.read_bytes()).keys()

    stale = replace(made, made_from={**made.made_from, "checkpoint": "of other weights"})
    finished.save_intervals(stale, {})
    assert intervals_for(finished, VARIANTS).made_from == made.made_from
    assert "is stale: other weights" in capsys.readouterr().out


def test_resuming_a_finished_run_writes_the_same_intervals(finished: RunFolder) -> None:
    before = finished.read_intervals()
    finished.intervals.unlink()
    score_run(resume_run(finished, VARIANTS, None))
    np.testing.assert_array_equal(finished.read_intervals().quantiles, before.quantiles)


def test_a_damaged_file_of_intervals_is_named(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    kept = finished.read_intervals()
    for name, wrong in (
        ("quantiles", kept.quantiles[:5]),
        ("quantiles", kept.quantiles.astype(np.float64)),
        ("spread", kept.spread[:, :3]),
    ):
        folder.save_intervals(replace(kept, **{name: wrong}), {})
        with pytest.raises(InputError, match=r"intervals\.npz (quantiles|spread): found type"):
            folder.read_intervals()
    folder.intervals.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"intervals\.npz: found a damaged archive"):
        folder.read_intervals()


def test_a_run_without_intervals_and_data_is_one_line(
    finished: RunFolder, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "best.pt").write_bytes(finished.best.read_bytes())
    np.savez(tmp_path / "now.npz", data=tiny_series(days=3))
    arguments = ("predict.py", "--run", alone, "--input", tmp_path / "now.npz")
    assert call(*arguments, "--interval", 0.8) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {alone / 'intervals.npz'} is missing, and cannot be made without the data of the ")
    assert shown.count("\n") == 1
    assert not (tmp_path / "forecast.csv").exists()
    (alone / "intervals.npz").write_bytes(finished.intervals.read_bytes())
    assert call(*arguments, "--interval", 0.8, 0.5) == 0  # best.pt and intervals.npz are all that it takes
    header = (tmp_path / "forecast.csv").read_text().splitlines()[0]
    assert header == "time,sensor,minutes_ahead,forecast,lower_0.5,upper_0.5,lower_0.8,upper_0.8"
