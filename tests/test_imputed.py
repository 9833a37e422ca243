"""Imputed values: which count, what a network and its forecasts make of them, and that no flag looks ahead."""

from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.baselines import BASELINES
from lib.data.imputed import FLAG_SHARE, causal_flags, imputed_values
from lib.data.prepared import prepare
from lib.data.preparing import calendar_for, prepared_for
from lib.data.profile import HistoricalProfile
from lib.data.windowing import Calendar, WindowShape
from lib.data.windows import Windows
from lib.errors import InputError
from lib.interface import Inputs, Neighbours, Sizes
from lib.report.figures import imputed_days
from lib.report.results import load_results
from lib.runs import TrainingRun, imputed_for, profile_for, score_run, start_run, windows_for
from model.attention import SpatialAttention
from model.attention_blocks import AttentionBlocks
from tests.conftest import Call, dense_fit, dense_graphs, load, make_network, tiny_series, write_dataset
from tests.test_missing import scores_by_definition
from tests.test_predict import read_forecast

DAY = 24
WEEK = 7 * DAY
RUN, FLAG = 8, 12  # values; with steps of an hour these are longer than two and three hours
CPU = torch.device("cpu")


@st.composite
def repeating_series(draw: st.DrawFn) -> np.ndarray:
    """Draw a flow (T, 3) of few values, with repeats by chance and in runs, constant runs and gaps."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    flow = random.integers(0, draw(st.integers(2, 40)), (3 * WEEK, 3)).astype(np.float32)
    for _ in range(draw(st.integers(0, 8))):
        period, sensor = random.choice([DAY, WEEK]), random.integers(3)
        first, length = random.integers(period, len(flow)), random.integers(1, 60)
        for step in range(first, min(first + length, len(flow))):
            flow[step, sensor] = flow[step - period, sensor]
    for _ in range(draw(st.integers(0, 4))):
        first, sensor = random.integers(len(flow)), random.integers(3)
        for period in (0, DAY, WEEK):  # a run of one value that repeats
            flow[first + period : first + period + 12, sensor] = 7
    flow[random.random(flow.shape) < draw(st.sampled_from([0, 0.02]))] = np.nan
    return flow


def varies(values: np.ndarray) -> bool:
    return any(not np.isnan(pair).any() and pair[0] != pair[1] for pair in pairwise(values))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(repeating_series())
def test_imputed_values_are_runs_that_repeat_and_vary(flow: np.ndarray) -> None:
    expected = np.zeros(flow.shape, dtype=bool)
    for sensor in range(3):
        for period in (DAY, WEEK):
            run: list[int] = []
            for step in range(period, len(flow) + 1):
                if step < len(flow) and flow[step, sensor] == flow[step - period, sensor]:
                    run.append(step)
                    continue
                if len(run) >= RUN and len(set(flow[run, sensor])) > 1:
                    expected[run, sensor] = True
                run = []
    np.testing.assert_array_equal(imputed_values(flow, Calendar(DAY)), expected)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(repeating_series())
def test_flags_are_of_the_steps_before_alone(flow: np.ndarray) -> None:
    flags = causal_flags(flow, Calendar(DAY))
    assert flags.shape == (len(flow) + 1, 3)
    for t0 in range(len(flow) + 1):
        for sensor in range(3):
            last = flow[max(0, t0 - FLAG) : t0, sensor]
            before = flow[max(0, t0 - FLAG - WEEK) : max(0, t0 - WEEK), sensor]
            there = len(last) == len(before) == FLAG
            expected = there and (last == before).mean() >= FLAG_SHARE and varies(last)
            assert flags[t0, sensor] == expected
    for t0 in (1, FLAG, WEEK, WEEK + FLAG, 2 * WEEK + 50, len(flow) - 1):  # a file that ends there
        np.testing.assert_array_equal(causal_flags(flow[:t0], Calendar(DAY)), flags[: t0 + 1])


def test_counts_of_hours_that_repeat_by_chance_are_not_imputed() -> None:
    hour = np.arange(8 * WEEK) % DAY
    mean = 5 + 25 * np.exp(-(((hour - 8) / 2.5) ** 2)) + 30 * np.exp(-(((hour - 17) / 3) ** 2))
    counts = np.random.default_rng(0).poisson(np.repeat(mean[:, None], 40, axis=1)).astype(np.float32)
    assert not imputed_values(counts, Calendar(DAY)).any()
    assert not causal_flags(counts, Calendar(DAY)).any()


def test_a_gap_in_a_constant_run_does_not_make_it_vary() -> None:
    flow = np.full((3 * WEEK, 1), 5.0, dtype=np.float32)
    flow[::40] = np.nan
    assert not imputed_values(flow, Calendar(DAY)).any()
    assert not causal_flags(flow, Calendar(12 * DAY)).any()


# ------------------------------------------------------------------------------------------------ in the network

SENSORS, HORIZON, HOUR = 5, 3, 2
SIZES = Sizes(steps_per_hour=HOUR, weeks=0, days=1, hours=2, horizon=HORIZON, channels=8, layers=1, heads=2)
NEAR = np.abs(np.subtract.outer(np.arange(SENSORS), np.arange(SENSORS))) < 3
SETTINGS: dict[str, dict[str, Any]] = {"residual_mlp": {}, "residual": {"patch_len": 2, "large_kernels": (3,)}}


def network(variant: str, **changes: bool) -> torch.nn.Module:
    torch.manual_seed(1)
    near = torch.from_numpy(NEAR)
    graphs = dense_graphs(near, near, torch.randn(SENSORS, 3), 0.3 * torch.randn(1, SENSORS, SENSORS) * near)
    model = make_network(variant, graphs, SIZES, harmonics=4, **SETTINGS[variant], **changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs_with(imputed: list[list[int]]) -> Inputs:
    torch.manual_seed(2)
    samples = len(imputed)
    series = torch.randn(samples, SENSORS, SIZES.input_steps)
    flags = torch.zeros(samples, SENSORS, dtype=torch.bool)
    for sample, sensors in enumerate(imputed):
        flags[sample, sensors] = True
    profile = torch.randn(samples, SENSORS, SIZES.hours * HOUR + HORIZON)
    last_week = torch.randn(samples, SENSORS, HORIZON)
    return Inputs(series, series[:, :, -1], torch.arange(samples), profile, flags, last_week)


@torch.no_grad()
@pytest.mark.parametrize("variant", SETTINGS)
def test_an_imputed_sensor_is_forecast_by_last_week_in_training_and_evaluation(variant: str) -> None:
    inputs = inputs_with([[0, 3], [], [1, 2, 3, 4]])
    assert inputs.imputed is not None
    assert inputs.last_week is not None
    for training in (True, False):
        forecast = network(variant).train(training)(inputs)
        assert forecast.shape == ((2,) if training else ()) + inputs.last_week.shape
        same = (forecast == inputs.last_week).all(dim=-1)  # ([heads,] B, N)
        assert torch.equal(same, inputs.imputed.expand_as(same))
    assert not (network(variant, copy_imputed=False)(inputs) == inputs.last_week).any()


@torch.no_grad()
@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("mute", [True, False])
def test_muted_sensors_do_not_move_the_forecasts_of_others(variant: str, mute: bool) -> None:
    model, inputs = network(variant, mute_imputed=mute), inputs_with([[1], [0, 4]])
    assert inputs.imputed is not None
    assert inputs.profile is not None
    changed = inputs.imputed.unsqueeze(-1)
    other = inputs._replace(
        series=torch.where(changed, inputs.series + 3, inputs.series),
        profile=torch.where(changed, inputs.profile - 1, inputs.profile),
    )
    same = torch.isclose(model(other), model(inputs), atol=1e-5).all(dim=-1)  # attention divides by a sum over all
    assert same[~inputs.imputed].all() == mute


@torch.no_grad()
def test_attention_to_those_with_a_voice_is_attention_under_a_mask() -> None:
    torch.manual_seed(5)
    attention, x = SpatialAttention(4, 2, dropout=0.0).eval(), torch.randn(2, SENSORS, 3, 4)
    voice = torch.ones(2, SENSORS)
    voice[0, [1, 3]] = voice[1, 0] = 0
    for sample in range(2):
        near, this = torch.from_numpy(NEAR), slice(sample, sample + 1)
        allowed = near & (voice[sample] > 0)
        seeing = allowed.any(dim=1)  # the others see nobody
        heard = attention.attend(x[this], AttentionBlocks(Neighbours.of(near)), voice[this])
        masked = attention.attend(x[this], AttentionBlocks(Neighbours.of(allowed | ~seeing[:, None])))
        torch.testing.assert_close(heard[:, seeing], masked[:, seeing])
        assert not heard[:, ~seeing].any()


@torch.no_grad()
def test_no_flag_is_the_same_as_none() -> None:
    inputs = inputs_with([[], []])
    without = inputs._replace(imputed=None, last_week=None)
    torch.testing.assert_close(network("residual_mlp")(inputs), network("residual_mlp")(without))


def test_muted_steps_do_not_enter_the_fit_of_the_autoregression() -> None:
    random = np.random.default_rng(3)
    rows, calendar = 20 * DAY, Calendar(DAY)
    flow = (100 + random.normal(0, 9, (rows, SENSORS))).astype(np.float32)
    imputed = np.zeros((rows + 1, SENSORS), dtype=bool)
    imputed[200:300, 2] = imputed[150:, 4] = True
    profile = HistoricalProfile(np.full((WEEK, SENSORS), 100, np.float32), np.full(flow.shape, 100, np.float32))

    def fit(change: float, flags: np.ndarray | None) -> np.ndarray:
        changed = np.where(imputed[:-1], flow + change, flow)
        prepared = prepare(changed[:, :, None], WindowShape(0, 1, 2, HORIZON, 1), {})
        return dense_fit(prepared, profile, NEAR, calendar, flags)

    np.testing.assert_array_equal(fit(0, imputed), fit(30, imputed))
    assert (fit(0, None) != fit(30, None)).any()


def test_last_week_is_never_a_target_even_over_a_longer_horizon() -> None:
    rows, horizon = 6 * WEEK, WEEK + 10
    flow = np.random.default_rng(4).uniform(0, 9, (rows, 2)).astype(np.float32)
    flow[100 : 100 + 5 * WEEK, 1] = np.tile(flow[100 : 100 + WEEK, 1], 5)  # repeats from 100 + WEEK on
    prepared = prepare(flow[:, :, None], WindowShape(0, 0, 2, horizon, 1), {})
    flags, t0 = causal_flags(flow, Calendar(DAY)), 2 * WEEK + 30
    windows = Windows(prepared, horizon, Calendar(DAY), CPU, imputed=flags)
    inputs = windows.batch(torch.tensor([t0])).inputs
    assert inputs.imputed is not None
    assert inputs.last_week is not None
    assert inputs.imputed.tolist() == [[False, True]]
    expected = prepared.flow[t0 - WEEK + np.arange(horizon) % WEEK]
    np.testing.assert_allclose(windows.scaling.to_raw(inputs.last_week)[0].T, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- in a run

STEPS = 48  # a day, in half hours
ALWAYS, SOMETIMES = 1, 3  # sensors


def series_with_imputed(days: int = 23, gaps: bool = True) -> np.ndarray:
    """Return a series (T, 5, 1) of which one sensor is imputed from the ninth day on, and one on two single days."""
    data = tiny_series(days)
    for step in range(8 * STEPS, len(data)):
        data[step, ALWAYS] = data[step - 7 * STEPS, ALWAYS]
    for day in (16, days - 2):  # the last one as an average by time of day would
        data[day * STEPS : (day + 1) * STEPS, SOMETIMES] = data[(day - 1) * STEPS : day * STEPS, SOMETIMES]
    if not gaps:
        return data
    data[15 * STEPS + 45 : 15 * STEPS + 47, ALWAYS] = np.nan  # of what the last forecast takes from last week
    data[-STEPS - 20 : -STEPS - 18, 0] = np.nan
    return data


def trained(tmp_path: Path, data: np.ndarray, *changes: str) -> TrainingRun:
    path = write_dataset(tmp_path, data, fine_tune_epochs=0)
    small = ("Training.max_batches=3", "Training.learning_rate=0.03", "Model.variant=residual_mlp")
    run = start_run(load(path, [*small, "Data.missing=interpolate", *changes]), tmp_path / "out", "run")
    run.trainer.fit()
    return run


@pytest.mark.parametrize("rule", ["keep", "missing"])
def test_predict_forecasts_as_the_test_does(
    rule: str, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = series_with_imputed()
    run = trained(tmp_path, data, "Model.carry_profile=on", f"Data.imputed={rule}")
    tested = run.trainer.test()
    assert tested.forecast is not None
    known = data[:-HORIZON]
    last_week = np.interp(range(45, 48), [44, 47], data[[15 * STEPS + 44, 15 * STEPS + 47], ALWAYS, 0])

    def predict(rows: np.ndarray) -> tuple[np.ndarray, str]:
        np.savez(tmp_path / "now.npz", data=rows)
        capsys.readouterr()
        arguments = ("--run", run.folder, "--input", tmp_path / "now.npz", "--output", tmp_path / "out.csv")
        assert call("predict.py", *arguments, "--max-gap", 2000) == 0
        return read_forecast(tmp_path / "out.csv"), capsys.readouterr().out

    forecast, output = predict(known)
    np.testing.assert_allclose(forecast, tested.forecast[-1], atol=0.002)
    assert "historical profile of the 22 days before the forecast\n" in output
    assert "imputed sensors: 1 of 5 repeat last week and are forecast by it\n" in output
    assert (tested.measured is not None) == (rule == "keep")
    np.testing.assert_allclose(forecast[ALWAYS], last_week, atol=0.002)
    forecast, output = predict(known[14 * STEPS :])
    assert "historical profile of the run's training: the file has 8 whole days" in output
    assert "imputed sensors: 1 of 5" in output
    np.testing.assert_allclose(forecast[ALWAYS], last_week, atol=0.002)
    _, output = predict(known[21 * STEPS :])
    assert "imputed sensors: not looked for, 93 steps were read and 384 are needed" in output


def test_measured_errors_are_those_of_the_targets_that_are_not_imputed(tmp_path: Path) -> None:
    run = trained(tmp_path, series_with_imputed())
    metrics = score_run(run)
    prepared, starts = run.prepared, run.prepared.label_starts["test"]
    assert prepared.imputed is not None
    at = starts[:, None] + np.arange(HORIZON)
    imputed = imputed_values(prepared.truth, calendar_for(run.config))
    np.testing.assert_array_equal(prepared.imputed, imputed)
    truth = np.where(imputed, np.nan, prepared.truth)[at].transpose(0, 2, 1)
    assert np.isnan(truth).mean() > 0.2
    assert f"residual MLP (measured),{HORIZON},{metrics['test']['measured']['by_horizon'][-1]['mae']}" in (
        run.folder.metrics_table.read_text()
    )
    saved = run.folder.read_predictions()
    scored = [(metrics["test"], saved["forecast"])]
    for name in ("last value", "historical average"):
        forecast = BASELINES[name].forecast(prepared, starts, HORIZON, calendar_for(run.config))
        scored.append((metrics["baselines"][name], forecast))
    for content, forecast in scored:
        for targets, scores in ((truth, content["measured"]), (saved["target"], content)):
            assert scores["overall"] == pytest.approx(scores_by_definition(forecast, targets), rel=1e-5)
            assert scores["by_horizon"][1]["mae"] == pytest.approx(
                np.nanmean(np.abs(forecast - targets)[:, :, 1]), rel=1e-5
            )


def test_a_series_without_repeats_gives_the_numbers_of_a_network_without_the_switches(tmp_path: Path) -> None:
    forecasts = []
    for switch in ("on", "off"):
        root = tmp_path / switch
        root.mkdir()
        run = trained(root, tiny_series(10), f"Model.copy_imputed={switch}", f"Model.mute_imputed={switch}")
        assert run.prepared.imputed is None
        tested = run.trainer.test()
        assert tested.measured is None
        forecasts.append(tested.forecast)
    np.testing.assert_array_equal(*forecasts)


def test_imputed_values_may_count_as_missing(tmp_path: Path) -> None:
    data = series_with_imputed(gaps=False)
    run = trained(tmp_path, data, "Data.missing=error", "Data.imputed=missing")
    imputed = imputed_values(data[:, :, 0].astype(np.float32), calendar_for(run.config))
    assert imputed[16 * STEPS :, ALWAYS].all()
    np.testing.assert_array_equal(np.isnan(run.prepared.truth), imputed)
    assert run.prepared.measured is None
    metrics = score_run(run)
    assert "measured" not in metrics["test"]
    saved = load_results(run.folder, run.config)
    assert np.isnan(saved.target[:, ALWAYS]).all()
    assert metrics["test"]["overall"] == pytest.approx(scores_by_definition(saved.forecast, saved.target), rel=1e-5)
    kept = prepared_for(load(tmp_path / "TINY.conf"))
    assert kept.imputed is not None
    np.testing.assert_array_equal(kept.observed, run.prepared.observed)  # what is read knows no later values
    np.testing.assert_array_equal(kept.forward_filled, run.prepared.forward_filled)
    names = {file.name for file in (tmp_path / "TINY").glob("*_w*")}
    assert names == {"TINY_w0d1h2p3.npz", "TINY_w0d1h2p3_missing.npz"}


# ------------------------------------------------------------------------------------------------ marks of a file


def marked(tmp_path: Path, *changes: str, name: str = "residual_mlp") -> tuple[TrainingRun, np.ndarray, np.ndarray]:
    """Return a run on a series with gaps that marks its imputed values, the series (T, 5, 1), and the marks (T, 5)."""
    data = series_with_imputed()
    marks = np.zeros(data.shape[:2], dtype=bool)
    draw = np.random.default_rng(5)
    for sensor in (0, 2):  # others than those that repeat
        for first in draw.choice(len(data) - 9, 40, replace=False):
            marks[first : first + 9, sensor] = True
    marks[-HORIZON - 4 :, 2] = True
    path = write_dataset(tmp_path, data, fine_tune_epochs=0)
    np.savez(tmp_path / "TINY" / "TINY.npz", data=data, imputed=marks)
    small = ("Training.max_batches=3", "Training.learning_rate=0.03", f"Model.variant={name}")
    run = start_run(load(path, [*small, "Data.missing=interpolate", *changes]), tmp_path / "out", "run")
    run.trainer.fit()
    return run, data, marks


def test_marks_of_the_file_stand_in_for_repeats(tmp_path: Path) -> None:
    run, data, marks = marked(tmp_path, "Model.carry_profile=on")
    gaps = np.isnan(data[:, :, 0])
    assert run.prepared.imputed is not None
    np.testing.assert_array_equal(run.prepared.imputed, marks & ~gaps)
    flags = imputed_for(run.config, run.prepared)
    assert flags is not None
    np.testing.assert_array_equal(flags[1:], marks & ~gaps)  # known with the value, and not before
    assert not flags[0].any()
    inputs = windows_for(run.config, run.prepared, CPU, None).batch(torch.tensor([len(data) - HORIZON])).inputs
    assert inputs.last_week is None
    metrics = score_run(run)
    starts = run.prepared.label_starts["test"]
    at = starts[:, None] + np.arange(HORIZON)
    truth = np.where(marks, np.nan, data[:, :, 0])[at].transpose(0, 2, 1)
    forecast = run.folder.read_predictions()["forecast"]
    assert metrics["test"]["measured"]["overall"] == pytest.approx(scores_by_definition(forecast, truth), rel=1e-5)


def test_what_comes_after_changes_no_forecast_of_a_marked_series(tmp_path: Path) -> None:
    run, data, marks = marked(tmp_path, "Model.carry_profile=on")
    t0 = len(data) - 3 * HORIZON
    other, other_marks = data.copy(), ~marks
    other[t0:] = 5
    other_marks[:t0] = marks[:t0]
    kept = {"version": "any", "marks": "of the series"}
    forecasts = []
    for values, said in ((data, marks), (other, other_marks)):
        prepared = prepare(values, run.config.windows, kept, "interpolate", marks=said)
        prepared = replace(prepared, minimum=run.prepared.minimum, maximum=run.prepared.maximum)
        windows = windows_for(run.config, prepared, CPU, profile_for(run.config, prepared))
        with torch.no_grad():
            forecasts.append(run.trainer.model.eval()(windows.batch(torch.tensor([t0])).inputs))
    assert torch.equal(*forecasts)


def test_predict_takes_marks_as_the_test_does(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data, marks = marked(tmp_path, "Model.carry_profile=on")
    tested = run.trainer.test()
    assert tested.forecast is not None
    np.savez(tmp_path / "now.npz", data=data[:-HORIZON], imputed=marks[:-HORIZON], start=np.array("2018-03-05"))
    arguments = ("--run", run.folder, "--input", tmp_path / "now.npz", "--output", tmp_path / "out.csv")
    assert call("predict.py", *arguments, "--max-gap", 2000) == 0
    np.testing.assert_allclose(read_forecast(tmp_path / "out.csv"), tested.forecast[-1], atol=0.002)
    output = capsys.readouterr().out
    assert "imputed sensors: 1 of 5 by the marks of the file\n" in output
    assert "has no times" not in output


@pytest.mark.parametrize("marks", [np.zeros((3, 5), dtype=bool), np.zeros((23 * STEPS, 5), dtype=np.uint8)])
def test_marks_of_another_shape_or_type_are_refused(marks: np.ndarray, tmp_path: Path) -> None:
    path = write_dataset(tmp_path, series_with_imputed(gaps=False))
    np.savez(tmp_path / "TINY" / "TINY.npz", data=series_with_imputed(gaps=False), imputed=marks)
    with pytest.raises(
        InputError, match=r"TINY\.npz imputed: found type \w+ and shape \(.*\), expected booleans \(1104, 5\)"
    ):
        prepared_for(load(path))


def test_a_file_that_marks_nothing_has_nothing_imputed(tmp_path: Path) -> None:
    data = series_with_imputed(gaps=False)
    path = write_dataset(tmp_path, data)
    before = prepared_for(load(path))
    assert before.imputed is not None
    np.savez(tmp_path / "TINY" / "TINY.npz", data=data, imputed=np.zeros(data.shape[:2], dtype=bool))
    config = load(path, ["Model.variant=residual_mlp"])
    prepared = prepared_for(config)  # made anew: the file is another
    assert prepared.marked
    assert prepared.imputed is None
    assert imputed_for(config, prepared) is None


def test_the_figure_shows_the_share_of_each_day() -> None:
    share = np.array([[0, 0.25, 1], [0.5, 0, 0]])
    axes = imputed_days(share, datetime(2024, 3, 4)).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), share)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Mon 04 Mar", "Tue 05 Mar", "Wed 06 Mar"]
