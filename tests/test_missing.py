"""Missing values, end to end: filled without a look at the future, and counted in no loss and no error."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch.nn import functional as F

from lib.checkpoints import load_checkpoint
from lib.config import Config
from lib.data.prepared import Prepared, load_prepared, prepare, save_prepared
from lib.data.preparing import make_prepared, prepared_for
from lib.data.sensor_tables import read_table, regular_series
from lib.data.series import fill_gaps, last_observed, missing_rule, next_observed
from lib.data.windowing import Calendar, WindowShape
from lib.data.windows import Batch, Windows
from lib.errors import InputError
from lib.files import fingerprint_arrays, save_npz
from lib.losses import mean_loss
from lib.metrics import ForecastErrors, Scores
from lib.report.comparison import FinishedRuns, check_same_targets, read_runs
from lib.report.page import page_of
from lib.report.results import load_results, mae_by_time_of_day, make_figures
from lib.run_folder import RunFolder
from lib.runs import finish_run, open_run, resume_run, start_run
from lib.training import evaluate
from model.variants import VARIANTS
from tests.conftest import Call, DatasetMaker, load, tiny_series, write_dataset
from tests.test_report_page import BROWSER, Elements, opened_in_browser, unpacked
from tests.test_training import assert_same_runs, kill_in_step

HORIZON, SENSORS, ROWS = 3, 5, 384
SILENT = 4  # the sensor without a value in the test split
CPU = torch.device("cpu")


def gappy_series(gap: float = np.nan) -> np.ndarray:
    """Return the tiny series with single values, long gaps, and whole times of a sensor missing."""
    data = tiny_series()
    data[np.random.default_rng(1).random(data.shape) < 0.05] = gap
    data[120:170, 1] = gap
    data[240:260] = gap  # of all sensors, between training and validation
    data[:70, 2] = gap  # the first training samples have nothing to fill from
    data[376:382, 0] = gap  # beyond the last label start, 381
    data[300:, SILENT] = gap
    return data


def windows_of(prepared: Prepared, horizon: int = HORIZON) -> Windows:
    return Windows(prepared, horizon, Calendar(48), CPU)


def scores_by_definition(forecast: np.ndarray, target: np.ndarray) -> Scores:
    """Return the scores by their definitions, over the targets that are not NaN."""
    observed = ~np.isnan(target)
    truth = target[observed].astype(np.float64)
    error = np.abs(forecast[observed].astype(np.float64) - truth)
    nonzero = truth != 0
    return {
        "mae": error.mean(),
        "rmse": np.sqrt((error**2).mean()),
        "mape": 100 * (error[nonzero] / truth[nonzero]).mean(),
        "mae_nonzero": error[nonzero].mean(),
        "rmse_nonzero": np.sqrt((error[nonzero] ** 2).mean()),
    }


# --------------------------------------------------------------------------------------------- filling and gathering


@st.composite
def series_with_gaps(draw: st.DrawFn) -> np.ndarray:
    """Draw a series (90, 3, 1) with gaps of any length anywhere, such that it can be prepared."""
    seed, share, longest = draw(st.tuples(st.integers(0, 999), st.floats(0.01, 0.9), st.integers(1, 60)))
    random = np.random.default_rng(seed)
    data = random.uniform(0, 100, (90, 3, 1))
    while np.isnan(data).mean() < share:
        first, sensor = random.integers(90), random.integers(3)
        data[first : first + random.integers(1, longest + 1), sensor] = np.nan
    for row in (*random.integers(0, 40, 3), 64, 77, 89):  # something to train on, and to score
        data[row] = np.where(np.isnan(data[row]), random.uniform(0, 100, (3, 1)), data[row])
    return data


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(series_with_gaps(), st.sampled_from([(0, 1, 2), (0, 1, 0), (0, 0, 5)]))
def test_inputs_are_those_of_a_filling_of_the_rows_before_the_label_start(
    data: np.ndarray, segments: tuple[int, int, int]
) -> None:
    prepared = prepare(data, WindowShape(*segments, HORIZON, 1), {}, "interpolate")
    windows, truth = windows_of(prepared), data[:, :, 0]
    mean = np.nanmean(truth[: prepared.training_rows].astype(np.float32), axis=0, dtype=np.float64)
    for starts in prepared.label_starts.values():
        batch = windows.batch(torch.from_numpy(starts))
        for sample, t0 in enumerate(starts):
            filled = fill_gaps(truth[:t0], longest=len(truth))
            filled = np.where(np.isnan(filled), mean, filled).astype(np.float32)  # where there is nothing before t0
            expected = prepared.scaling.to_scaled(filled[t0 + prepared.offsets].astype(np.float64)).astype(np.float32)
            np.testing.assert_array_equal(batch.inputs.series[sample].T, expected)
            np.testing.assert_array_equal(batch.inputs.start[sample], expected[-1])
            np.testing.assert_array_equal(batch.flow[sample].T, truth[t0 : t0 + HORIZON].astype(np.float32))
        assert batch.observed is not None
        assert torch.equal(batch.observed, ~batch.flow.isnan())
        observed = windows.scaling.to_raw(batch.target)[batch.observed]
        torch.testing.assert_close(observed, batch.flow[batch.observed], rtol=1e-5, atol=1e-4)
        assert batch.target.isfinite().all()
        assert int(batch.observed.sum()) == windows.observed_targets(starts)
        assert float(batch.weight) == pytest.approx(batch.observed.double().mean() * len(starts))


def test_what_the_decoder_is_fed_sees_nothing_of_later_targets() -> None:
    data = gappy_series()
    shape = WindowShape(0, 1, 2, 12, 2)
    before = prepare(data, shape, {}, "interpolate")
    later = 200
    data[later:] += 50  # what is missing stays so
    after = replace(prepare(data, shape, {}, "interpolate"), minimum=before.minimum, maximum=before.maximum)
    starts = torch.arange(later - 12, later + 1)
    one, other = (windows_of(prepared, 12).batch(starts) for prepared in (before, after))
    assert torch.equal(one.inputs.series, other.inputs.series)
    before_it = (starts[:, None] + torch.arange(12) < later)[:, None].expand_as(one.target)
    assert torch.equal(one.target[before_it], other.target[before_it])
    assert not torch.equal(one.target[~before_it], other.target[~before_it])
    teachers = one.with_teacher.teacher, other.with_teacher.teacher
    assert teachers[0] is not None
    assert teachers[1] is not None
    fed_before = (starts[:, None] + torch.arange(12) <= later)[:, None].expand_as(one.target)
    assert torch.equal(teachers[0][fed_before], teachers[1][fed_before])


def test_the_nearest_observed_steps_are_those_of_a_plain_search() -> None:
    missing = np.random.default_rng(0).random((40, 6)) < np.linspace(0, 1, 6)
    for step in range(40):
        for sensor in range(6):
            observed = np.flatnonzero(~missing[:, sensor])
            assert last_observed(missing)[step, sensor] == max(observed[observed <= step], default=-1)
            assert next_observed(missing)[step, sensor] == min(observed[observed >= step], default=40)


@pytest.mark.parametrize(
    ("gap", "rule"),
    [
        (np.nan, "interpolate"),
        (0.0, "zero_is_missing"),
        (-1.0, "-1"),
        (-9.99, "interpolate, -9.99, -1"),
        (-999.0, "negative_is_missing"),
    ],
)
def test_preparing_fills_the_flow_and_scales_by_what_is_observed(gap: float, rule: str) -> None:
    data, by_nan = gappy_series(gap), gappy_series()[:, :, 0]
    data = np.concatenate([data, np.where(data > 100, np.nan, 1.0)], axis=2)  # of another feature, some missing too
    shape = WindowShape(0, 1, 2, HORIZON, 2)
    prepared = prepare(data, shape, {}, rule)
    np.testing.assert_array_equal(prepared.truth, by_nan.astype(np.float32))
    np.testing.assert_array_equal(prepared.flow, fill_gaps(by_nan, ROWS).astype(np.float32))
    np.testing.assert_array_equal(prepared.missing, np.isnan(by_nan))
    touched = by_nan[: prepared.training_rows]  # with hours among the inputs, all rows before the last label start
    assert prepared.minimum.tolist() == [np.nanmin(touched), 1]
    assert prepared.maximum.tolist() == [np.nanmax(touched), 1]
    if gap < 0:
        count, (step, sensor) = np.count_nonzero(data[:, :, 0] == gap), np.argwhere(data[:, :, 0] == gap)[0]
        expected = f"found {count:,} negative values, the first {gap:g} at step {step}, sensor {sensor}, expected "
        with pytest.raises(InputError) as refused:
            prepare(data, shape, {}, "zero_is_missing")
        assert str(refused.value).startswith(expected)
        assert str(refused.value).endswith(f"set [Data] missing = interpolate, {gap:g}, 0")
    else:
        assert (prepare(data, shape, {}, "interpolate").minimum[0] == 0) == (gap == 0)
    counts = prepared.missing_targets(np.arange(48, 382), HORIZON)
    assert counts.tolist() == [np.isnan(by_nan[t0 : t0 + HORIZON]).sum() for t0 in range(48, 382)]


def test_a_rule_has_one_text_and_many_negative_values_one_word() -> None:
    for text in ("zero_is_missing", "0", "interpolate,0.0", " -0 , interpolate "):
        assert missing_rule(text) == "interpolate, 0"
    assert missing_rule("0.25, -1,negative_is_missing") == "interpolate, negative_is_missing, -1, 0.25"
    assert [missing_rule(word) for word in ("error", "interpolate")] == ["error", "interpolate"]
    for text in ("error, -1", "nan", "-inf", "", "-1,", "interpolate -1", "negative"):
        with pytest.raises(ValueError, match=r"convert|finite"):
            missing_rule(text)
    data = tiny_series()
    data[5:9, 1, 0] = [-1, -2, -3, -4]
    with pytest.raises(InputError, match=r"found 4 negative .* sensor b, .* = interpolate, negative_is_missing$"):
        prepare(data, WindowShape(0, 1, 2, HORIZON, 2), {}, sensors="abcde")


def test_a_series_without_gaps_is_the_same_by_any_rule() -> None:
    shape = WindowShape(0, 1, 2, HORIZON, 2)
    first, *others = (prepare(tiny_series(), shape, {}, rule) for rule in ("error", "interpolate", "zero_is_missing"))
    starts = torch.from_numpy(first.label_starts["train"])
    for other in others:
        assert other.missing is None
        assert other.truth is other.flow
        one, same = (windows_of(prepared).batch(starts) for prepared in (first, other))
        assert one.observed is None
        assert same.observed is None
        for name in ("series", "start", "step_of_week"):
            assert torch.equal(getattr(one.inputs, name), getattr(same.inputs, name))
        assert torch.equal(one.target, same.target)
        assert torch.equal(one.flow, same.flow)
        assert (first.minimum, first.maximum) == (other.minimum, other.maximum)


# -------------------------------------------------------------------------------------------------- loss and metrics


def loss_of(forecast: torch.Tensor, batch: Batch) -> torch.Tensor:
    return mean_loss("mae", forecast, batch.target, batch.observed)


def test_the_loss_is_the_mean_over_observed_targets() -> None:
    prepared = prepare(gappy_series(), WindowShape(0, 1, 2, HORIZON, 2), {}, "interpolate")
    batch = windows_of(prepared).batch(torch.arange(100, 140))
    assert batch.observed is not None
    forecast = torch.randn_like(batch.target).requires_grad_()
    loss = loss_of(forecast, batch)
    expected = F.l1_loss(forecast[batch.observed], batch.target[batch.observed])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, forecast)[0] for each in (loss, expected)))
    with torch.no_grad():
        spoilt = forecast.where(batch.observed, torch.nan)  # no forecast of a missing target counts
        assert torch.equal(loss_of(spoilt, batch), loss)

    missing = windows_of(prepared).batch(torch.arange(245, 255))  # nothing is observed at all
    nothing = loss_of(forecast[:10], missing)
    assert nothing == 0
    assert not torch.autograd.grad(nothing, forecast)[0].any()
    assert float(missing.weight) == 0

    complete = windows_of(prepare(tiny_series(), WindowShape(0, 1, 2, HORIZON, 2), {})).batch(torch.arange(100, 140))
    assert torch.equal(loss_of(forecast, complete), F.l1_loss(forecast, complete.target))


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_metrics_are_over_observed_targets(batch_size: int) -> None:
    draw = np.random.default_rng(0)
    target = draw.poisson(1.5, (11, 6, 4)).astype(np.float32)
    target[draw.random(target.shape) < 0.4] = np.nan
    target[:, :, 3] = np.nan
    forecast = draw.normal(2, 2, target.shape).astype(np.float32)
    forecast[np.isnan(target)] = draw.choice([np.inf, np.nan, 1e30], np.isnan(target).sum())
    errors = ForecastErrors.zero(4)
    for part in range(0, 11, batch_size):
        rows = slice(part, part + batch_size)
        errors.update(torch.from_numpy(forecast[rows]), torch.from_numpy(target[rows]))
    assert errors.overall() == pytest.approx(scores_by_definition(forecast, target), rel=1e-9)
    *first, last = errors.by_horizon()
    for step, scores in enumerate(first):
        assert scores == pytest.approx(scores_by_definition(forecast[..., step], target[..., step]), rel=1e-9)
    assert set(last.values()) == {None}
    assert errors.count.tolist() == (~np.isnan(target)).sum((0, 1)).tolist()


def test_the_error_by_time_of_day_is_over_observed_targets() -> None:
    draw = np.random.default_rng(3)
    forecast, target = draw.normal(size=(2, 70, 4, 5)).astype(np.float32)
    target[draw.random(target.shape) < 0.3] = np.nan
    errors: list[list[float]] = [[] for _ in range(24)]
    for (sample, _, ahead), error in np.ndenumerate(np.abs(forecast - target)):
        errors[(130 + sample + ahead) % 24].append(error)
    found = mae_by_time_of_day(forecast, target, np.arange(130, 200), 24)
    np.testing.assert_allclose(found, [np.nanmean(of_step) for of_step in errors], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Train on the same series with its gaps as NaN, as zeros that are missing, and as zeros that are data."""
    folders = {}
    for name, gap, rule in (
        ("gaps", np.nan, "interpolate"),
        ("zero", 0.0, "zero_is_missing"),
        ("data", 0.0, "error"),
    ):
        root = tmp_path_factory.mktemp(name)
        changes = [f"Data.missing={rule}", "Training.max_batches=3"]
        run = start_run(load(write_dataset(root, gappy_series(gap)), changes), root / "out", name)
        finish_run(run)
        folders[name] = run.folder
    return folders


def settings_of(folder: RunFolder) -> Config:
    return folder.read_config(VARIANTS)


def test_metrics_of_a_run_are_those_over_its_observed_targets(runs: dict[str, RunFolder]) -> None:
    saved, metrics = runs["gaps"].read_predictions(), runs["gaps"].read_metrics()
    series = gappy_series()[:, :, 0].astype(np.float32)
    for sample, t0 in enumerate(saved["label_starts"]):
        np.testing.assert_array_equal(saved["target"][sample].T, series[t0 : t0 + HORIZON])
    assert np.isnan(saved["target"]).sum() > 200
    assert np.isfinite(saved["forecast"]).all()
    assert metrics["test"]["overall"] == pytest.approx(
        scores_by_definition(saved["forecast"], saved["target"]), rel=1e-6
    )
    for step, scores in enumerate(metrics["test"]["by_horizon"]):
        expected = scores_by_definition(saved["forecast"][..., step], saved["target"][..., step])
        assert scores == pytest.approx(expected, rel=1e-6)
    forward_filled = series.astype(np.float64)
    for row in range(1, ROWS):
        missing = np.isnan(forward_filled[row])
        forward_filled[row, missing] = forward_filled[row - 1, missing]
    last = np.repeat(forward_filled[saved["label_starts"] - 1][:, :, None], HORIZON, axis=2)
    scored = metrics["baselines"]["last value"]["overall"]
    assert scored == pytest.approx(scores_by_definition(last, saved["target"]), rel=1e-6)


def test_zeros_that_are_missing_are_as_good_as_no_values(runs: dict[str, RunFolder]) -> None:
    gaps, zero = runs["gaps"], runs["zero"]
    for one, other in ((gaps.metrics, zero.metrics), (gaps.predictions, zero.predictions)):
        assert one.read_bytes() == other.read_bytes()
    weights = [load_checkpoint(folder.best)["weights"] for folder in (gaps, zero)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_results_of_another_rule_are_not_compared(runs: dict[str, RunFolder]) -> None:
    gaps, zero, data = runs.values()
    check_same_targets([gaps, zero])
    with pytest.raises(InputError, match=f"{zero} and {data}: found runs tested on different targets"):
        check_same_targets([zero, data])
    test_set = runs["data"].read_metrics()["test_set"]  # nothing is missing: as without the setting
    flow, starts = gappy_series(0.0)[:, :, 0].astype(np.float32), runs["data"].read_predictions()["label_starts"]
    assert test_set["fingerprint"] == fingerprint_arrays(flow, starts, np.array(HORIZON))


def test_sample_errors_add_up_to_the_mae_of_the_run(runs: dict[str, RunFolder]) -> None:
    for name in ("gaps", "data"):
        group: FinishedRuns = read_runs(name, [runs[name]])
        assert group.sample_errors.mean() == pytest.approx(group.metrics[0]["test"]["overall"]["mae"], rel=1e-6)
    saved = runs["data"].read_predictions()
    np.testing.assert_array_equal(
        group.sample_errors[0], np.abs(saved["forecast"] - saved["target"]).mean(axis=(1, 2), dtype=np.float64)
    )


def test_losses_are_weighted_by_observed_targets(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    opened = open_run(runs["gaps"], VARIANTS, "cpu")
    starts = opened.prepared.label_starts["test"]
    by_size = [evaluate(opened.model, opened.windows, starts, size, "", keep_forecast=True) for size in (1, 7, 1000)]
    scaled, truth = (
        opened.windows.scaling.to_scaled(array.astype(np.float64))
        for array in (by_size[0].forecast, runs["gaps"].read_predictions()["target"])
    )
    for evaluation in by_size:
        assert evaluation.loss == pytest.approx(np.nanmean(np.abs(scaled - truth)), rel=1e-4)

    config = settings_of(runs["gaps"])
    trainer = start_run(replace(config, training=replace(config.training, max_batches=0)), tmp_path, "again").trainer
    losses, counts, step = [], [], trainer._step

    def recorded(stage: Any, batch: Batch) -> torch.Tensor:
        loss = step(stage, batch)
        losses.append(loss.item())
        assert batch.observed is not None
        counts.append(int(batch.observed.sum()))
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_step", recorded)
        mean = trainer._train_epoch(trainer.stages[0], 1)
    assert len(set(counts)) > 5
    assert mean == pytest.approx(np.average(losses, weights=counts), rel=1e-5)


@pytest.mark.parametrize("at_once", [0, 2])
def test_a_batch_without_any_target_teaches_nothing(runs: dict[str, RunFolder], tmp_path: Path, at_once: int) -> None:
    config = settings_of(runs["gaps"])
    config = replace(config, runtime=replace(config.runtime, micro_batch=at_once))
    trainer = start_run(config, tmp_path, "again").trainer
    loss = trainer._step(trainer.stages[0], trainer.windows.batch(torch.arange(245, 250)))  # see gappy_series
    assert loss == 0
    assert not any(weight.grad.any() for weight in trainer.model.parameters() if weight.grad is not None)


def test_a_run_with_gaps_is_resumed_exactly(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    config = settings_of(runs["gaps"])
    config = replace(config, runtime=replace(config.runtime, checkpoint_minutes=1e-9))
    killed = start_run(config, tmp_path, "killed")
    kill_in_step(killed, 2)
    finish_run(resume_run(killed.folder, VARIANTS, None))
    assert_same_runs(runs["gaps"], killed.folder)


# ------------------------------------------------------------------------------------------------ what it tells


def test_figures_and_page_of_a_run_with_a_silent_sensor(
    runs: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = runs["gaps"], settings_of(runs["gaps"])
    results = load_results(folder, config)
    errors = results.sensor_errors()
    expected = np.nanmean(np.abs(results.forecast - results.target)[:, :SILENT], axis=(0, 2))
    np.testing.assert_allclose(errors[:SILENT], expected, rtol=1e-6)
    assert np.isnan(errors[SILENT])
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("lib.report.figures.save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    make_figures(folder, config)
    assert f"forecast_sensor{np.argsort(errors[:SILENT])[2]}" in drawn
    make_figures(folder, config, sensors=[SILENT])
    for name in ("error_map", "error_by_time_of_day", f"forecast_sensor{SILENT}"):
        drawn[name].draw_without_rendering()  # warnings are errors
    (dots,) = [item for item in drawn["error_map"].axes[0].collections if isinstance(item, PathCollection)]
    assert np.ma.getmaskarray(dots.get_array()).tolist() == [sensor == SILENT for sensor in range(SENSORS)]

    parsed = Elements(page_of(results, [], 1, 0))
    assert "sensor 4, no truth" in parsed.text
    assert "nan" not in parsed.text.lower()

    def refused(word: str) -> None:
        raise ValueError(word)

    data = json.loads(parsed.scripts[0], parse_constant=refused)  # JSON has neither NaN nor Infinity
    steps = data["steps"]
    for sensor, (truth, *ahead) in enumerate(unpacked(data)):
        missing = np.isnan(results.target[:steps, sensor, 0])
        assert [value is None for value in truth] == missing.tolist()
        assert not any(None in series for series in ahead)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_breaks_the_curve_where_the_truth_is_missing(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    results = load_results(runs["gaps"], settings_of(runs["gaps"]))
    results.target[:, 0, 0] = 1 + np.arange(len(results.target)) % 2
    results.target[[0, 5, 7, *range(20, 31)], 0, 0] = np.nan  # step 6 stands alone
    path = tmp_path / "page.html"
    path.write_text(page_of(results, [], 1, 0))
    dom = opened_in_browser(path, tmp_path / "profile")
    curve = next(str(path["d"]) for path in Elements(dom).named("path") if path["class"] == "series0")
    pieces = [piece.split("L") for piece in curve.removeprefix("M").split("M")]
    assert [len(piece) for piece in pieces] == [4, 2, 12, 48 - 31]
    assert pieces[1][0] == pieces[1][1]
    assert "truth -, 30 min ahead -" not in Elements(dom).text
    assert "truth -, 30 min ahead" in Elements(dom).text  # the time is at the first step


def test_targets_that_are_not_numbers_are_taken_where_they_may_be_missing(
    runs: dict[str, RunFolder], tmp_path: Path
) -> None:
    saved = runs["data"].read_predictions()
    folder = RunFolder(tmp_path)
    for kept in (runs["data"].metrics, runs["data"].best, runs["data"].log):
        (tmp_path / kept.name).write_bytes(kept.read_bytes())
    gaps, config = settings_of(runs["gaps"]), settings_of(runs["data"])
    for value, taken in ((np.nan, [gaps]), (np.inf, [])):
        saved["target"][0, 0, 0] = value
        save_npz(folder.predictions, saved)
        for each in (gaps, config):
            if each in taken:
                load_results(folder, each)
                continue
            with pytest.raises(InputError, match=r"predictions\.npz target: found values that are not finite"):
                load_results(folder, each)


def prepared_output(call: Call, capsys: pytest.CaptureFixture[str], path: Path, *changes: str) -> list[str]:
    flags = [flag for change in changes for flag in ("--set", change)]
    capsys.readouterr()
    assert call("PrepareData.py", "--config", path, *flags) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("missing:", "zero:", "marked:"))]


def test_prepare_data_reports_the_counts(
    make_dataset: DatasetMaker, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = gappy_series()[:, :, 0]
    missing = np.isnan(flow)
    missing[:, 3] = False
    flow[:, 3] = tiny_series()[:, 3, 0]
    missing_count = missing.sum()
    flow[100:110, 3] = 0
    path = make_dataset(np.where(missing, np.nan, flow)[:, :, None])
    left_out = [
        sum(missing[t0 : t0 + HORIZON].sum() for t0 in starts) for starts in load(path).windows.split(ROWS).values()
    ]
    parts = f"{left_out[0]} of training, {left_out[1]} of validation, {left_out[2]} of test"
    expected = [
        f"missing: {missing_count} values ({100 * missing_count / missing.size:.2f} %) at 4 sensors, longest gap "
        f"84 steps (sensor 4); left out as targets: {parts}",
        "zero: 10 values (0.52 %) are taken for empty roads; where they are gaps, set [Data] missing = zero_is_missing",
    ]
    assert prepared_output(call, capsys, path, "Data.missing=interpolate") == expected
    line, marked = prepared_output(call, capsys, path, "Data.missing=zero_is_missing")
    assert line.startswith(f"missing: {missing_count + 10} values (")
    assert marked == "marked: 10 of 0; they are among the missing values"
    flow[200:203, 3], flow[203, 3] = -1, -999
    np.savez(load(path).data.graph_signal_matrix_filename, data=np.where(missing, np.nan, flow)[:, :, None])
    line, zero, marked = prepared_output(call, capsys, path, "Data.missing=interpolate, -1, -999")
    assert line.startswith(f"missing: {missing_count + 4} values (")
    assert zero == expected[1]
    assert marked == "marked: 1 of -999, 3 of -1, 4 negative; they are among the missing values"
    assert "at 5 sensors" in line

    np.savez(load(path).data.graph_signal_matrix_filename, data=tiny_series())
    for rule in ("error", "interpolate", "zero_is_missing"):
        assert prepared_output(call, capsys, path, f"Data.missing={rule}") == []


# ----------------------------------------------------------------------------------------------------------- files


def test_a_prepared_file_keeps_what_is_missing_and_what_it_was_made_from(tmp_path: Path) -> None:
    path, shape = tmp_path / "prepared.npz", WindowShape(0, 1, 2, HORIZON, 2)
    for data, rule in ((gappy_series(), "interpolate"), (tiny_series(), "zero_is_missing"), (tiny_series(), "error")):
        prepared = prepare(data, shape, {"missing": rule}, rule)
        save_prepared(path, prepared)
        read = load_prepared(path)
        assert read.made_from == {"missing": rule}
        np.testing.assert_array_equal(read.truth, prepared.truth)
        with np.load(path) as archive:
            arrays = dict(archive)
        assert ("missing" in arrays) == (rule == "interpolate")
    for name in ("missing", "imputed"):
        for wrong in (np.zeros((ROWS, 4), dtype=bool), np.zeros((ROWS, SENSORS))):
            np.savez(path, **arrays, **{name: wrong})
            message = rf"prepared\.npz {name}: found type .*, expected a file of PrepareData"
            with pytest.raises(InputError, match=message):
                load_prepared(path)
    for text in ("ff", '["series"]'):
        np.savez(path, **{**arrays, "made_from": np.array(text)})
        with pytest.raises(InputError, match=r"prepared\.npz made_from: found a damaged text"):
            load_prepared(path)


def test_a_prepared_file_of_another_rule_is_stale(
    make_dataset: DatasetMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_dataset(gappy_series(0.0))
    prepared_for(load(path))
    for rule, missing in (("zero_is_missing", True), ("interpolate", False), ("error", False)):
        config = load(path, [f"Data.missing={rule}"])
        capsys.readouterr()
        assert (prepared_for(config).missing is not None) == missing
        assert "is stale" in capsys.readouterr().out
        prepared_for(config)
        assert capsys.readouterr().out == ""


Lines = Callable[[list[str]], list[str]]


def test_a_table_with_gaps_is_an_archive_with_nan(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    series = gappy_series().round(3)
    series[240:260] = np.nan
    path = make_dataset(series)
    archive = make_prepared(load(path, ["Data.missing=interpolate"]))
    times = np.datetime64("2018-03-05T00:00") + np.arange(ROWS) * np.timedelta64(30, "m")
    cells = [",".join("" if np.isnan(value) else f"{value:.3f}" for value in row) for row in series[:, :, 0]]
    lines = [f"{time},{row}" for time, row in zip(times, cells, strict=True) if row != ",,,,"]  # steps are absent
    assert len(lines) < ROWS - 19
    table = tmp_path / "TINY" / "t.csv"
    table.write_text("\n".join(["time,a,b,c,d,e", *lines]) + "\n")
    change = f"Data.graph_signal_matrix_filename={table}"
    prepared = make_prepared(load(path, [change, "Data.missing=interpolate"]))
    np.testing.assert_array_equal(prepared.truth, archive.truth)
    np.testing.assert_array_equal(prepared.flow, archive.flow)
    with pytest.raises(InputError, match=r"expected .* a step\), or \[Data\] missing = interpolate$"):
        regular_series(read_table(table), SENSORS, 2, None)
    table.write_text("\n".join(["time,a,b,c,d,e", *(re.sub(",[^,]*,", ",,", line, count=1) for line in lines)]) + "\n")
    with pytest.raises(
        InputError, match=r"t\.csv data: sensor a: found no value in the training inputs \(steps 0 \(.*\) \.\."
    ):
        make_prepared(load(path, [change, "Data.missing=interpolate"]))


def test_a_slip_in_the_date_of_a_table_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,a\n" + "".join(f"{2018 + 90 * (hour == 9)}-03-01 {hour:02d}:00,1\n" for hour in range(1, 10)))
    with pytest.raises(
        InputError, match=r"t\.csv row 10: found the time 2108-03-01 09:00:00 after 2018-03-01 08:00:00"
    ):
        regular_series(read_table(path), 1, 1, None, gaps=True)


# -------------------------------------------------------------------------------------------------------- forecasts


@pytest.mark.parametrize("name", ["gaps", "zero"])
def test_a_forecast_from_the_file_is_that_of_the_test(
    name: str, runs: dict[str, RunFolder], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = runs[name].read_predictions()
    observed = np.isfinite(saved["target"][-1]).sum()
    source = tmp_path / "now.npz"
    data = gappy_series(0.0 if name == "zero" else np.nan)
    np.savez(source, data=data)
    arguments = ("--run", runs[name], "--input", source, "--evaluate", "--output", tmp_path / "out.csv")
    assert call("predict.py", *arguments) == 2
    assert "sensor '4': found no value from " in capsys.readouterr().err
    assert call("predict.py", *arguments, "--max-gap", 100) == 0
    assert f"Scored on {observed} values" in capsys.readouterr().out
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    forecast = np.array([float(line.split(",")[3]) for line in lines]).reshape(HORIZON, SENSORS).T
    np.testing.assert_allclose(forecast, saved["forecast"][-1], atol=0.002)
