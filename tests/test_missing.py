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

from lib.comparison import FinishedRuns, check_same_targets, read_runs
from lib.config import Config, load_config
from lib.data import (
    Calendar,
    Prepared,
    Windows,
    WindowShape,
    last_known,
    load_prepared,
    next_known,
    prepare,
    save_prepared,
)
from lib.errors import InputError
from lib.experiments import finish_experiment, open_run, resume_experiment, start_experiment
from lib.files import fingerprint_arrays, load_json, load_npz, save_npz
from lib.forecasting import fill_gaps
from lib.metrics import ForecastErrors, Scores
from lib.preparation import make_prepared, prepared_for, window_shape
from lib.report_page import page_of
from lib.reporting import load_results, mae_by_time_of_day, make_figures
from lib.tables import read_table, regular_series
from lib.training import evaluate, mean_loss
from model.build import build_model, restore_model
from tests.conftest import Call, DatasetMaker, tiny_series, write_dataset
from tests.test_report_page import BROWSER, Elements, opened_in_browser
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


def known_scores(forecast: np.ndarray, target: np.ndarray) -> Scores:
    """Return the scores by their definitions, over the targets that are not NaN."""
    known = ~np.isnan(target)
    truth = target[known].astype(np.float64)
    error = np.abs(forecast[known].astype(np.float64) - truth)
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
    prepared = prepare(data, WindowShape(*segments, HORIZON, 1), "", "interpolate")
    windows, truth = windows_of(prepared), data[:, :, 0]
    mean = np.nanmean(truth[: prepared.training_rows].astype(np.float32), axis=0, dtype=np.float64)
    for starts in prepared.label_starts.values():
        batch = windows.batch(torch.from_numpy(starts))
        for sample, t0 in enumerate(starts):
            filled = fill_gaps(truth[:t0], max_gap=len(truth))
            filled = np.where(np.isnan(filled), mean, filled).astype(np.float32)  # where there is nothing before t0
            expected = prepared.scaling.to_scaled(filled[t0 + prepared.offsets].astype(np.float64)).astype(np.float32)
            np.testing.assert_array_equal(batch.series[sample].T, expected)
            np.testing.assert_array_equal(batch.start[sample], expected[-1])
            np.testing.assert_array_equal(batch.flow[sample].T, truth[t0 : t0 + HORIZON].astype(np.float32))
        assert batch.known is not None
        assert torch.equal(batch.known, ~batch.flow.isnan())
        known = windows.scaling.to_raw(batch.target)[batch.known]
        torch.testing.assert_close(known, batch.flow[batch.known], rtol=1e-5, atol=1e-4)
        assert batch.target.isfinite().all()
        assert int(batch.known.sum()) == windows.known_targets(starts)
        assert float(batch.weight) == pytest.approx(batch.known.double().mean() * len(starts))


def test_what_the_decoder_is_fed_knows_nothing_of_later_targets() -> None:
    data = gappy_series()
    shape = WindowShape(0, 1, 2, 12, 2)
    before = prepare(data, shape, "", "interpolate")
    later = 200
    data[later:] += 50  # what is missing stays so
    after = replace(prepare(data, shape, "", "interpolate"), minimum=before.minimum, maximum=before.maximum)
    starts = torch.arange(later - 12, later + 1)
    one, other = (windows_of(prepared, 12).batch(starts) for prepared in (before, after))
    assert torch.equal(one.series, other.series)
    early = (starts[:, None] + torch.arange(12) < later)[:, None].expand_as(one.target)
    assert torch.equal(one.target[early], other.target[early])
    assert not torch.equal(one.target[~early], other.target[~early])


def test_the_nearest_known_steps_are_those_of_a_plain_search() -> None:
    missing = np.random.default_rng(0).random((40, 6)) < np.linspace(0, 1, 6)
    for step in range(40):
        for sensor in range(6):
            known = np.flatnonzero(~missing[:, sensor])
            assert last_known(missing)[step, sensor] == max(known[known <= step], default=-1)
            assert next_known(missing)[step, sensor] == min(known[known >= step], default=40)


@pytest.mark.parametrize("gap", [np.nan, 0.0])
def test_preparing_fills_the_flow_and_scales_by_what_is_known(gap: float) -> None:
    data, by_nan = gappy_series(gap), gappy_series()[:, :, 0]
    data = np.concatenate([data, np.where(data > 100, np.nan, 1.0)], axis=2)  # of another feature, some missing too
    shape = WindowShape(0, 1, 2, HORIZON, 2)
    prepared = prepare(data, shape, "", "interpolate" if np.isnan(gap) else "zero_is_missing")
    np.testing.assert_array_equal(prepared.truth, by_nan.astype(np.float32))
    np.testing.assert_array_equal(prepared.flow, fill_gaps(by_nan, ROWS).astype(np.float32))
    np.testing.assert_array_equal(prepared.missing, np.isnan(by_nan))
    touched = by_nan[: prepared.training_rows]  # with hours among the inputs, all rows before the last label start
    assert prepared.minimum.tolist() == [np.nanmin(touched), 1]
    assert prepared.maximum.tolist() == [np.nanmax(touched), 1]
    with_zeros = prepare(data, shape, "", "interpolate")
    assert (with_zeros.minimum[0] == 0) == (gap == 0)
    counts = prepared.missing_targets(np.arange(48, 382), HORIZON)
    assert counts.tolist() == [np.isnan(by_nan[t0 : t0 + HORIZON]).sum() for t0 in range(48, 382)]


def test_a_series_without_gaps_is_the_same_by_any_rule() -> None:
    shape = WindowShape(0, 1, 2, HORIZON, 2)
    first, *others = (prepare(tiny_series(), shape, "", rule) for rule in ("error", "interpolate", "zero_is_missing"))
    starts = torch.from_numpy(first.label_starts["train"])
    for other in others:
        assert other.missing is None
        assert other.truth is other.flow
        for one, same in zip(windows_of(first).batch(starts), windows_of(other).batch(starts), strict=True):
            assert (one is None and same is None) or torch.equal(one, same)
        assert (first.minimum, first.maximum) == (other.minimum, other.maximum)


# -------------------------------------------------------------------------------------------------- loss and metrics


def test_the_loss_is_the_mean_over_known_targets() -> None:
    prepared = prepare(gappy_series(), WindowShape(0, 1, 2, HORIZON, 2), "", "interpolate")
    batch = windows_of(prepared).batch(torch.arange(100, 140))
    assert batch.known is not None
    forecast = torch.randn_like(batch.target).requires_grad_()
    loss = mean_loss(forecast, batch)
    expected = F.l1_loss(forecast[batch.known], batch.target[batch.known])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, forecast)[0] for each in (loss, expected)))
    with torch.no_grad():
        spoilt = forecast.where(batch.known, torch.nan)  # no forecast of a missing target counts
        assert torch.equal(mean_loss(spoilt, batch), loss)

    unknown = windows_of(prepared).batch(torch.arange(245, 255))  # nothing is known at all
    nothing = mean_loss(forecast[:10], unknown)
    assert nothing == 0
    assert not torch.autograd.grad(nothing, forecast)[0].any()
    assert float(unknown.weight) == 0

    complete = windows_of(prepare(tiny_series(), WindowShape(0, 1, 2, HORIZON, 2), "")).batch(torch.arange(100, 140))
    assert torch.equal(mean_loss(forecast, complete), F.l1_loss(forecast, complete.target))


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_metrics_are_over_known_targets(batch_size: int) -> None:
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
    assert errors.overall() == pytest.approx(known_scores(forecast, target), rel=1e-9)
    *first, last = errors.by_horizon()
    for step, scores in enumerate(first):
        assert scores == pytest.approx(known_scores(forecast[..., step], target[..., step]), rel=1e-9)
    assert set(last.values()) == {None}
    assert errors.count.tolist() == (~np.isnan(target)).sum((0, 1)).tolist()


def test_the_error_by_time_of_day_is_over_known_targets() -> None:
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
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train on the same series with its gaps as NaN, as zeros that are missing, and as zeros that are data."""
    folders = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lib.experiments.make_report", lambda *_: [])
        for name, gap, rule in (
            ("gaps", np.nan, "interpolate"),
            ("zero", 0.0, "zero_is_missing"),
            ("data", 0.0, "error"),
        ):
            root = tmp_path_factory.mktemp(name)
            changes = [f"Data.missing={rule}", "Training.max_batches=3"]
            config = load_config(write_dataset(root, gappy_series(gap)), changes)
            experiment = start_experiment(config, root / "out", name, build_model)
            finish_experiment(experiment)
            folders[name] = experiment.folder
    return folders


def settings_of(folder: Path) -> Config:
    return load_config(folder / "settings.ini")


def predictions_of(folder: Path) -> dict[str, Any]:
    return load_npz(folder / "predictions.npz", ("forecast", "target", "label_starts"))


def test_metrics_of_a_run_are_those_over_its_known_targets(runs: dict[str, Path]) -> None:
    saved, metrics = predictions_of(runs["gaps"]), load_json(runs["gaps"] / "metrics.json")
    series = gappy_series()[:, :, 0].astype(np.float32)
    for sample, t0 in enumerate(saved["label_starts"]):
        np.testing.assert_array_equal(saved["target"][sample].T, series[t0 : t0 + HORIZON])
    assert np.isnan(saved["target"]).sum() > 200
    assert np.isfinite(saved["forecast"]).all()
    assert metrics["test"]["overall"] == pytest.approx(known_scores(saved["forecast"], saved["target"]), rel=1e-6)
    for step, scores in enumerate(metrics["test"]["by_horizon"]):
        expected = known_scores(saved["forecast"][..., step], saved["target"][..., step])
        assert scores == pytest.approx(expected, rel=1e-6)
    held = fill_gaps(series.astype(np.float64), 0)  # the last value by hand, forward
    for row in range(1, ROWS):
        held[row] = np.where(np.isnan(held[row]), held[row - 1], held[row])
    last = np.repeat(held[saved["label_starts"] - 1][:, :, None], HORIZON, axis=2)
    scored = metrics["baselines"]["last value"]["overall"]
    assert scored == pytest.approx(known_scores(last, saved["target"]), rel=1e-6)


def test_zeros_that_are_missing_are_as_good_as_no_values(runs: dict[str, Path]) -> None:
    for name in ("metrics.json", "predictions.npz"):
        assert (runs["gaps"] / name).read_bytes() == (runs["zero"] / name).read_bytes()
    weights = [torch.load(runs[name] / "best.pt", weights_only=True)["weights"] for name in ("gaps", "zero")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_results_of_another_rule_are_not_compared(runs: dict[str, Path]) -> None:
    groups = [read_runs(name, [runs[name]]) for name in runs]
    check_same_targets(groups[:2])
    with pytest.raises(InputError, match="'zero' and 'data': found runs tested on different targets"):
        check_same_targets(groups[1:])
    test_set = load_json(runs["data"] / "metrics.json")["test_set"]  # nothing is missing: as without the setting
    flow, starts = gappy_series(0.0)[:, :, 0].astype(np.float32), predictions_of(runs["data"])["label_starts"]
    assert test_set["fingerprint"] == fingerprint_arrays(flow, starts, np.array(HORIZON))


def test_sample_errors_add_up_to_the_mae_of_the_run(runs: dict[str, Path]) -> None:
    for name in ("gaps", "data"):
        group: FinishedRuns = read_runs(name, [runs[name]])
        assert group.sample_errors.mean() == pytest.approx(group.spread("mae"), rel=1e-6)
    saved = predictions_of(runs["data"])
    np.testing.assert_array_equal(
        group.sample_errors[0], np.abs(saved["forecast"] - saved["target"]).mean(axis=(1, 2), dtype=np.float64)
    )


def test_losses_are_weighted_by_known_targets(runs: dict[str, Path], tmp_path: Path) -> None:
    opened = open_run(runs["gaps"], restore_model, "cpu")
    starts = opened.prepared.label_starts["test"]
    by_size = [evaluate(opened.model, opened.windows, starts, size, "", keep_forecast=True) for size in (1, 7, 1000)]
    scaled, truth = (
        opened.windows.scaling.to_scaled(array.astype(np.float64))
        for array in (by_size[0].forecast, predictions_of(runs["gaps"])["target"])
    )
    for evaluation in by_size:
        assert evaluation.loss == pytest.approx(np.nanmean(np.abs(scaled - truth)), rel=1e-4)

    config = settings_of(runs["gaps"])
    trainer = start_experiment(
        replace(config, training=replace(config.training, max_batches=0)), tmp_path, "again", build_model
    ).trainer
    losses, counts, step = [], [], trainer._step

    def recorded(stage: Any, batch: Any) -> torch.Tensor:
        loss = step(stage, batch)
        losses.append(loss.item())
        counts.append(int(batch.known.sum()))
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer, "_step", recorded)
        mean = trainer._train_epoch(trainer.stages[0], 1)
    assert len(set(counts)) > 5
    assert mean == pytest.approx(np.average(losses, weights=counts), rel=1e-5)


@pytest.mark.parametrize("at_once", [0, 2])
def test_a_batch_without_any_target_teaches_nothing(runs: dict[str, Path], tmp_path: Path, at_once: int) -> None:
    config = settings_of(runs["gaps"])
    config = replace(config, runtime=replace(config.runtime, micro_batch=at_once))
    trainer = start_experiment(config, tmp_path, "again", build_model).trainer
    loss = trainer._step(trainer.stages[0], trainer.windows.batch(torch.arange(245, 250)))  # see gappy_series
    assert loss == 0
    assert not any(weight.grad.any() for weight in trainer.model.parameters() if weight.grad is not None)


@pytest.mark.usefixtures("no_figures")
def test_a_run_with_gaps_is_resumed_exactly(runs: dict[str, Path], tmp_path: Path) -> None:
    config = settings_of(runs["gaps"])
    config = replace(config, runtime=replace(config.runtime, checkpoint_minutes=1e-9))
    killed = start_experiment(config, tmp_path, "killed", build_model)
    kill_in_step(killed, 2)
    finish_experiment(resume_experiment(killed.folder, restore_model, None))
    assert_same_runs(runs["gaps"], killed.folder)


# ------------------------------------------------------------------------------------------------ what it tells


def test_figures_and_page_of_a_run_with_a_silent_sensor(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = runs["gaps"], settings_of(runs["gaps"])
    results = load_results(folder, config)
    errors = results.sensor_errors()
    expected = np.nanmean(np.abs(results.forecast - results.target)[:, :SILENT], axis=(0, 2))
    np.testing.assert_allclose(errors[:SILENT], expected, rtol=1e-6)
    assert np.isnan(errors[SILENT])
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("lib.reporting.save_figure", lambda figure, path: drawn.update({path.stem: figure}))
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
    for sensor, (truth, *ahead) in enumerate(data["values"]):
        missing = np.isnan(results.target[:steps, sensor, 0])
        assert [value is None for value in truth] == missing.tolist()
        assert not any(None in series for series in ahead)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_breaks_the_curve_where_the_truth_is_missing(runs: dict[str, Path], tmp_path: Path) -> None:
    results = load_results(runs["gaps"], settings_of(runs["gaps"]))
    results.target[:, 0, 0] = 1 + np.arange(len(results.target)) % 2
    results.target[[0, 5, 7, *range(20, 31)], 0, 0] = np.nan  # step 6 stands alone
    path = tmp_path / "page.html"
    path.write_text(page_of(results, [], 1, 0))
    dom = opened_in_browser(path, tmp_path / "profile")
    curve = str(Elements(dom).named("path")[0]["d"])
    pieces = [piece.split("L") for piece in curve.removeprefix("M").split("M")]
    assert [len(piece) for piece in pieces] == [4, 2, 12, 48 - 31]
    assert pieces[1][0] == pieces[1][1]
    assert "truth -, 30 min ahead -" not in Elements(dom).text
    assert "truth -, 30 min ahead" in Elements(dom).text  # the time is at the first step


def test_targets_that_are_not_numbers_are_taken_where_they_may_be_missing(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    saved = predictions_of(runs["data"])
    for name in ("metrics.json", "best.pt", "log.jsonl"):
        (tmp_path / name).write_bytes((runs["data"] / name).read_bytes())
    gaps, config = settings_of(runs["gaps"]), settings_of(runs["data"])
    for value, taken in ((np.nan, [gaps]), (np.inf, [])):
        saved["target"][0, 0, 0] = value
        save_npz(tmp_path / "predictions.npz", saved)
        for each in (gaps, config):
            if each in taken:
                load_results(tmp_path, each)
                continue
            with pytest.raises(InputError, match=r"predictions\.npz target: found values that are not finite"):
                load_results(tmp_path, each)


def prepared_output(call: Call, capsys: pytest.CaptureFixture[str], path: Path, *changes: str) -> list[str]:
    flags = [flag for change in changes for flag in ("--set", change)]
    capsys.readouterr()
    assert call("PrepareData.py", "--config", path, *flags) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("missing:", "zero:"))]


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
        sum(missing[t0 : t0 + HORIZON].sum() for t0 in starts)
        for starts in window_shape(load_config(path)).split(ROWS).values()
    ]
    parts = f"{left_out[0]} of training, {left_out[1]} of validation, {left_out[2]} of test"
    expected = [
        f"missing: {missing_count} values ({100 * missing_count / missing.size:.2f} %) at 4 sensors, longest gap "
        f"84 steps (sensor 4); left out as targets: {parts}",
        "zero: 10 values (0.52 %) are taken for empty roads; where they are gaps, set [Data] missing = zero_is_missing",
    ]
    assert prepared_output(call, capsys, path, "Data.missing=interpolate") == expected
    (line,) = prepared_output(call, capsys, path, "Data.missing=zero_is_missing")
    assert line.startswith(f"missing: {missing_count + 10} values (")
    assert "at 5 sensors" in line

    np.savez(load_config(path).data.graph_signal_matrix_filename, data=tiny_series())
    for rule in ("error", "interpolate", "zero_is_missing"):
        assert prepared_output(call, capsys, path, f"Data.missing={rule}") == []


# ----------------------------------------------------------------------------------------------------------- files


def test_a_prepared_file_keeps_what_is_missing_and_by_which_rule(tmp_path: Path) -> None:
    path, shape = tmp_path / "prepared.npz", WindowShape(0, 1, 2, HORIZON, 2)
    for data, rule in ((gappy_series(), "interpolate"), (tiny_series(), "zero_is_missing"), (tiny_series(), "error")):
        prepared = prepare(data, shape, "", rule)
        save_prepared(path, prepared)
        read = load_prepared(path)
        assert read.missing_rule == rule
        np.testing.assert_array_equal(read.truth, prepared.truth)
        with np.load(path) as archive:
            arrays = dict(archive)
        assert ("missing" in arrays) == (rule == "interpolate")
    del arrays["missing_rule"]  # a file that is older than the setting
    np.savez(path, **arrays)
    assert load_prepared(path).missing_rule == "error"
    for wrong in (np.zeros((ROWS, 4), dtype=bool), np.zeros((ROWS, SENSORS))):
        np.savez(path, **arrays, missing=wrong)
        with pytest.raises(InputError, match=r"prepared\.npz missing: found type .*, expected a file of PrepareData"):
            load_prepared(path)


def test_a_prepared_file_of_another_rule_is_stale(
    make_dataset: DatasetMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_dataset(gappy_series(0.0))
    prepared_for(load_config(path))
    for rule, missing in (("zero_is_missing", True), ("interpolate", False), ("error", False)):
        config = load_config(path, [f"Data.missing={rule}"])
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
    archive = make_prepared(load_config(path, ["Data.missing=interpolate"]))
    times = np.datetime64("2018-03-05T00:00") + np.arange(ROWS) * np.timedelta64(30, "m")
    cells = [",".join("" if np.isnan(value) else f"{value:.3f}" for value in row) for row in series[:, :, 0]]
    lines = [f"{time},{row}" for time, row in zip(times, cells, strict=True) if row != ",,,,"]  # steps are absent
    assert len(lines) < ROWS - 19
    table = tmp_path / "TINY" / "t.csv"
    table.write_text("\n".join(["time,a,b,c,d,e", *lines]) + "\n")
    change = f"Data.graph_signal_matrix_filename={table}"
    prepared = make_prepared(load_config(path, [change, "Data.missing=interpolate"]))
    np.testing.assert_array_equal(prepared.truth, archive.truth)
    np.testing.assert_array_equal(prepared.flow, archive.flow)
    with pytest.raises(InputError, match=r"expected .* a step\), or \[Data\] missing = interpolate$"):
        regular_series(read_table(table), SENSORS, 2, None)
    table.write_text("\n".join(["time,a,b,c,d,e", *(re.sub(",[^,]*,", ",,", line, count=1) for line in lines)]) + "\n")
    with pytest.raises(
        InputError, match=r"t\.csv data: sensor a: found no value in the training inputs \(steps 0 \.\."
    ):
        make_prepared(load_config(path, [change, "Data.missing=interpolate"]))


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
    name: str, runs: dict[str, Path], call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = predictions_of(runs[name])
    known = np.isfinite(saved["target"][-1]).sum()
    source = tmp_path / "now.npz"
    data = gappy_series(0.0 if name == "zero" else np.nan)
    np.savez(source, data=data)
    arguments = ("--run", runs[name], "--input", source, "--evaluate", "--output", tmp_path / "out.csv")
    assert call("predict.py", *arguments) == 2
    assert "sensor '4': found no value from " in capsys.readouterr().err
    assert call("predict.py", *arguments, "--max-gap", 100) == 0
    assert f"Scored on {known} values" in capsys.readouterr().out
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    forecast = np.array([float(line.split(",")[3]) for line in lines]).reshape(HORIZON, SENSORS).T
    np.testing.assert_allclose(forecast, saved["forecast"][-1], atol=0.002)
