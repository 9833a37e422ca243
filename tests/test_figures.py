"""Figures show what the files hold: labelled, in units, the same numbers; what is missing is left out and said."""

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.dates import num2date
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.sparse import csr_array

import lib.runs
from lib.baselines import targets
from lib.checkpoints import load_checkpoint
from lib.config import Config
from lib.data.graphs import Links, adjacency_matrix, hop_distances
from lib.data.preparing import dtw_paths, prepared_for, wanted_record
from lib.errors import InputError
from lib.metrics import ForecastErrors, metrics_content
from lib.report.figures import (
    HORIZONS,
    clustered_order,
    error_against_time,
    error_by_horizon,
    error_by_time_of_day,
    error_map,
    forecast_against_truth,
    graph_matrices,
    horizons_compared,
    kernel_profiles,
    patch_displacement,
    road_layout,
    save_figure,
    training_curve,
)
from lib.report.results import load_results, mae_by_time_of_day, make_figures
from lib.run_folder import RunFolder
from lib.runs import resume_run, start_run
from model.variants import VARIANTS
from tests.conftest import load, write_dataset

UNIT = "vehicles / 30 min"
HISTORY = [
    {"epoch": 1, "stage": "teacher forcing", "learning_rate": 0.003, "train_loss": 0.4, "val_loss": 0.5},
    {"epoch": 2, "stage": "teacher forcing", "learning_rate": 0.003, "train_loss": 0.3, "val_loss": 0.35},
    {"epoch": 3, "stage": "fine-tuning", "learning_rate": 0.0003, "train_loss": 0.25, "val_loss": 0.36},
]
HISTORY = [
    {**entry, "val_mae": 40 * entry["val_loss"], "best": entry["epoch"] < 3, "seconds": 1.0} for entry in HISTORY
]


def write_run(root: Path) -> RunFolder:
    """Write all files of a finished run with weights as drawn and made-up forecasts, and return its folder."""
    path = write_dataset(root, horizon=6)
    changes = ["Data.start=2018-03-05 06:30", "Training.num_of_hours=3", "Model.large_kernels=15 21"]
    config = load(path, changes)
    run = start_run(config, root / "out", "run")
    folder = run.folder
    run.trainer.save_best()
    metrics = lib.runs.score_run(run)  # imported by its name it would count as a test
    starts = run.prepared.label_starts["test"]
    target = targets(run.prepared, starts, config.data.num_for_predict)
    noise = np.random.default_rng(0).normal(0, 5, target.shape)
    forecast = (target + noise * np.linspace(1, 2, target.shape[1])[:, None]).astype(np.float32)
    errors = ForecastErrors.zero(target.shape[2])
    errors.update(torch.from_numpy(forecast), torch.from_numpy(target))
    scores = metrics_content(errors)
    folder.save_predictions(forecast, target, starts)
    folder.save_log(HISTORY)
    made_up = {"parameters": 12345, "epochs": 3, "best_epoch": 2, "best_val_mae": 14.0}
    folder.save_metrics({**metrics, **made_up, "test": scores, "baselines": {"last value": scores}})
    return folder


def settings_of(folder: RunFolder) -> Config:
    return folder.read_config(VARIANTS)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def untouched_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("untouched"))


def lines_of(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {str(line.get_label()): line.get_data() for line in axes.get_lines()}


def shown_axes(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_visible() and axes.axison]


def scores(mae: list[float]) -> list[dict[str, float | None]]:
    return [{"mae": value} for value in mae]


def masks(number: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {"similarity mask": draw.random((number, number)) < 0.5, "topology mask": np.eye(number, dtype=bool)}


def distances(number: int) -> np.ndarray:
    place = np.random.default_rng(2).uniform(0, 100, number)
    return np.abs(place[:, None] - place)


GRID = np.arange(12.0).reshape(4, 3)
FIGURES: dict[str, tuple[Callable[[], Figure], list[str]]] = {
    "training curve": (lambda: training_curve(HISTORY, UNIT), ["epoch", "(scaled flow)", f"MAE ({UNIT})"]),
    "error by horizon": (
        lambda: error_by_horizon({"model": scores([1, 2])}, 30, UNIT),
        ["forecast horizon (min)", f"MAE ({UNIT})"],
    ),
    "horizons compared": (
        lambda: horizons_compared({"model": np.ones((2, 3))}, {"last value": np.ones(3)}, 30, UNIT),
        ["forecast horizon (min)", f"MAE ({UNIT})"],
    ),
    "error against time": (
        lambda: error_against_time({"model": [(np.ones(1), np.ones(1), 1.0)]}, UNIT),
        ["training time, with validation (min)", f"({UNIT})"],
    ),
    "error by time of day": (
        lambda: error_by_time_of_day(np.ones(48), 30, UNIT, datetime(2018, 1, 1)),
        ["local time of day of the target", f"MAE ({UNIT})"],
    ),
    "forecast": (
        lambda: forecast_against_truth(np.ones((9, 6)), np.ones((9, 6)), np.arange(9), "sensor 3", UNIT, 30, None),
        ["time since the first step (h)", f"flow ({UNIT})"],
    ),
    "error map": (
        lambda: error_map(np.arange(6.0).reshape(3, 2), np.array([[0, 1], [1, 2]]), np.arange(3.0), UNIT),
        [f"MAE ({UNIT})"],
    ),
    "graphs": (
        lambda: graph_matrices(distances(6), masks(6), {"position": np.arange(6)}, UNIT),
        ["sensor, ordered by position", "sensor attended to, in the same order", UNIT],
    ),
    "patch positions": (
        lambda: patch_displacement(GRID, GRID - 1, GRID + 1, 0, ["day -1", "hour -1"]),
        ["regular position in the input of 12 steps", "(steps)"],
    ),
    "kernels": (
        lambda: kernel_profiles([np.ones((2, 5), np.float32)] * 4, 3),
        ["offset (tokens)", "mean |weight| over channels", "(no unit)"],
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_with_units(name: str) -> None:
    draw, expected = FIGURES[name]
    figure = draw()
    shared = [figure.get_supxlabel(), figure.get_supylabel()]
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in shown_axes(figure)]
    text = "\n".join(label for pair in [shared, *labels] for label in pair)
    for label in expected:
        assert label in text
    if not any(shared):
        assert all(any(pair) for pair in labels)


def test_a_figure_gives_the_same_bytes_again_in_both_formats(tmp_path: Path) -> None:
    draw, _ = FIGURES["error by time of day"]
    written = []
    for name in ("one", "two"):
        save_figure(draw(), tmp_path / f"{name}.png")
        written.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".png", ".pdf")])
    assert written[0] == written[1]
    assert [content[:4] for content in written[0]] == [b"\x89PNG", b"%PDF"]


def test_curves_are_the_log_and_the_scores() -> None:
    curve = training_curve(HISTORY, UNIT)
    left, right = curve.axes
    epochs = [1, 2, 3]
    drawn = {**lines_of(left), **lines_of(right)}
    for label, key in (
        ("training loss", "train_loss"),
        ("validation loss", "val_loss"),
        ("validation MAE (right)", "val_mae"),
    ):
        np.testing.assert_array_equal(drawn[label], [epochs, [entry[key] for entry in HISTORY]])
    np.testing.assert_array_equal(np.ravel(drawn["best weights"]), [2, 0.35])

    axes = error_by_horizon({"model": scores([3, 5, 8]), "last value": scores([4, 5, 6])}, 5, UNIT).axes[0]
    np.testing.assert_array_equal(lines_of(axes)["model"], [[5, 10, 15], [3, 5, 8]])
    np.testing.assert_array_equal(lines_of(axes)["last value"], [[5, 10, 15], [4, 5, 6]])
    axes = error_by_horizon({"model": [{"mae": 3.0}, {"mae": None}, {"mae": 0.0}]}, 5, UNIT).axes[0]
    np.testing.assert_array_equal(lines_of(axes)["model"], [[5, 10, 15], [3, np.nan, 0]])  # nothing known is no 0


def test_groups_are_drawn_as_mean_and_standard_deviation() -> None:
    several, alone, baseline = np.array([[1, 2, 4.0], [3, 4, 8]]), np.array([[5, 6, 7.0]]), np.array([8, 8, 8.0])
    axes = horizons_compared({"several": several, "alone": alone}, {"last value": baseline}, 5, UNIT).axes[0]
    drawn = lines_of(axes)
    for name, mae in (("several", several.mean(axis=0)), ("alone", alone[0]), ("last value", baseline)):
        np.testing.assert_array_equal(drawn[name], [[5, 10, 15], mae])
    (band,) = axes.collections
    deviation = several.std(axis=0, ddof=1)
    low, high = band.get_datalim(axes.transData).intervaly
    np.testing.assert_allclose([low, high], [(several.mean(0) - deviation).min(), (several.mean(0) + deviation).max()])


def test_first_epochs_do_not_squash_the_rest() -> None:
    minutes = np.array([1, 2, 30.0])
    groups = {
        "small": [(minutes, np.array([900, 6, 5.0]), 5.5), (minutes, np.array([7, 5.2, 5.4]), 5.6)],
        "large": [(minutes, np.array([60, 12, 8.0]), 9.0)],
    }
    axes = error_against_time(groups, UNIT).axes[0]
    lines = [line.get_data() for line in axes.get_lines()]
    curves, stars = lines[:-1:2], lines[1:-1:2]
    for (drawn, star), (minutes, mae, test) in zip(
        zip(curves, stars, strict=True), [run for runs in groups.values() for run in runs], strict=True
    ):
        np.testing.assert_array_equal(drawn, [minutes, mae])
        np.testing.assert_array_equal(np.ravel(star), [30, test])
    bottom, top = axes.get_ylim()
    assert 4 < bottom < 5
    assert top == 9 + 4
    stars = "test MAE at the end, bias-corrected where a run is"
    assert axes.get_legend_handles_labels()[1] == ["small", "large", stars]


@pytest.mark.parametrize("number", [1, 9])
def test_long_names_stay_inside_the_figure(number: int) -> None:
    groups = {f"{index} of a variant that differs {'from the others ' * 8}": np.ones((1, 3)) for index in range(number)}
    figure = horizons_compared(groups, {"last value": np.ones(3)}, 5, UNIT)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert figure.axes[0].get_window_extent().height > 200


@pytest.mark.parametrize("start", [None, datetime(2018, 3, 5, 6, 30)])
def test_forecasts_are_drawn_at_the_steps_they_are_of(start: datetime | None) -> None:
    first, samples, steps = 100, 30, 12
    series = np.random.default_rng(0).uniform(0, 200, 200).astype(np.float32)
    label_starts = np.arange(first, first + samples)
    target = series[label_starts[:, None] + np.arange(steps)]
    # A forecast that is right but for 1000 h at h steps ahead: minus that it must lie on the truth.
    forecast = target + 1000 * np.arange(1, steps + 1, dtype=np.float32)
    figure = forecast_against_truth(forecast, target, label_starts, "sensor 3 (id 17)", UNIT, 30, start)
    drawn = lines_of(figure.axes[0])
    assert list(drawn) == ["truth", "30 min ahead", "180 min ahead", "360 min ahead"]
    for (times, values), ahead in zip(drawn.values(), (0, *HORIZONS), strict=True):
        if start is None:
            step = np.array([round(2 * float(time)) for time in times])
        else:
            step = np.array([round((time - start).total_seconds() / 1800) for time in times])
        np.testing.assert_allclose(values - 1000 * ahead, series[step], atol=1e-3)
        assert (step[0], step[-1]) == (first + max(0, ahead - 1), first + samples - 1)
    assert figure.axes[0].get_title() == "sensor 3 (id 17)"
    if start is not None:
        low = num2date(figure.axes[0].get_xlim()[0])
        assert low.date() == datetime(2018, 3, 7).date()
        figure.draw_without_rendering()
        shown = {label.get_text() for label in figure.axes[0].get_xticklabels()}
        assert shown == {f"{hour:02d}:00" for hour in range(8, 24, 2)}
        axes = figure.axes[0]
        axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[0] + 3)  # three days
        figure.draw_without_rendering()
        shown = {label.get_text() for label in axes.get_xticklabels()}
        assert {"Thu 08 Mar", "Fri 09 Mar", "12:00"} < shown


@pytest.mark.parametrize("samples", range(1, 13))
def test_a_day_of_few_samples_is_drawn(samples: int) -> None:
    steps = np.arange(samples)
    values = (steps[:, None] + np.arange(12)).astype(np.float32)
    figure = forecast_against_truth(values, values, steps, "the last day", UNIT, 5, None, np.ones_like(values), "80 %")
    for times, drawn in lines_of(figure.axes[0]).values():
        np.testing.assert_allclose(drawn, 12 * np.asarray(times))


def test_the_error_by_time_of_day_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    samples, nodes, horizon, steps_per_day = 70, 4, 5, 24
    forecast, target = draw.normal(size=(2, samples, nodes, horizon)).astype(np.float32)
    label_starts = np.arange(130, 130 + samples)
    errors: list[list[float]] = [[] for _ in range(steps_per_day)]
    for sample in range(samples):
        for node in range(nodes):
            for ahead in range(horizon):
                error = abs(float(forecast[sample, node, ahead]) - float(target[sample, node, ahead]))
                errors[(130 + sample + ahead) % 24].append(error)
    expected = np.array([np.mean(of_step) for of_step in errors])
    found = mae_by_time_of_day(forecast, target, label_starts, steps_per_day)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    # The series starts at 06:30, so that step 0 of the day is drawn at 6.5 h and the last one before it at 5.5 h.
    start = datetime(2018, 3, 5, 6, 30)
    ((hours, drawn),) = [line.get_data() for line in error_by_time_of_day(found, 60, UNIT, start).axes[0].get_lines()]
    np.testing.assert_allclose(hours, np.arange(24) + 0.5)
    np.testing.assert_array_equal(drawn, np.roll(found, 6))
    ((hours, drawn),) = [line.get_data() for line in error_by_time_of_day(found, 60, UNIT, None).axes[0].get_lines()]
    np.testing.assert_array_equal(hours, np.arange(24))
    np.testing.assert_array_equal(drawn, found)


def test_times_of_day_without_a_target_have_no_error() -> None:
    zero = np.zeros((2, 1, 3), np.float32)
    error = mae_by_time_of_day(zero + 2, zero, np.array([46, 47]), 48)
    assert np.flatnonzero(np.isfinite(error)).tolist() == [0, 1, 46, 47]
    assert np.nanmax(error) == np.nanmin(error) == 2


def adjacency_of(number: int, links: list[tuple[int, int]]) -> csr_array:
    return adjacency_matrix(Links(np.array(links), 0, 0, 0, None), number)


def spans(positions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[:, None] - positions, axis=2)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.permutations(range(12)), st.integers(2, 12))
def test_linked_sensors_of_a_path_are_nearer_than_unlinked_ones(order: list[int], length: int) -> None:
    path = order[:length]
    adjacency = adjacency_of(12, list(pairwise(path)))  # the rest is isolated
    hops = hop_distances(adjacency)
    distance = spans(road_layout(adjacency))
    assert distance[hops == 1].max() < distance[hops > 1].min()
    together = np.isfinite(hops)
    np.testing.assert_allclose(distance[together], hops[together], atol=1e-2)  # a path can be drawn to scale


def test_a_large_component_is_placed_to_scale_by_some_of_its_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.report.figures.PLACED_BY_ALL", 100)
    monkeypatch.setattr("lib.report.figures.PIVOTS", 40)
    side = 16  # a grid of streets, of which two dimensions can show the shape
    place = np.arange(side * side).reshape(side, side)
    streets = [(place[:, :-1], place[:, 1:]), (place[:-1], place[1:])]
    links = [pair for ends in streets for pair in zip(*(end.ravel().tolist() for end in ends), strict=True)]
    positions = road_layout(adjacency_of(side * side, links))
    far, wide = positions.max(axis=0) - positions.min(axis=0)
    assert 0.8 < far / wide < 1.25
    apart, hops = spans(positions), hop_distances(adjacency_of(side * side, links))
    assert np.corrcoef(apart[hops > 0], hops[hops > 0])[0, 1] > 0.9
    assert 0.7 < apart[hops > 0].mean() / hops[hops > 0].mean() < 1.3


def test_components_stand_apart_and_leaves_do_not_coincide() -> None:
    star = [(0, leaf) for leaf in range(1, 7)]
    ring = [(7 + place, 7 + (place + 1) % 5) for place in range(5)]
    positions = road_layout(adjacency_of(14, star + ring))
    assert spans(positions)[~np.eye(14, dtype=bool)].min() > 0.4
    groups = [positions[:7], positions[7:12], positions[12:13], positions[13:]]
    for index, one in enumerate(groups):
        for other in groups[index + 1 :]:
            gap = np.maximum(one.min(axis=0) - other.max(axis=0), other.min(axis=0) - one.max(axis=0))
            assert gap.max() > 1
    np.testing.assert_array_equal(road_layout(np.zeros((1, 1))), [[0, 0]])


def test_the_map_shows_links_and_errors_where_the_sensors_are() -> None:
    positions = np.array([[0, 0], [1, 0], [1, 1.0]])
    error = np.array([3.0, 1.0, 2.0])
    axes = error_map(positions, np.array([[0, 1], [1, 2]]), error, UNIT).axes[0]
    (links,) = [item for item in axes.collections if isinstance(item, LineCollection)]
    (dots,) = [item for item in axes.collections if isinstance(item, PathCollection)]
    np.testing.assert_array_equal(links.get_segments(), positions[[[0, 1], [1, 2]]])
    np.testing.assert_array_equal(dots.get_offsets(), positions)
    np.testing.assert_array_equal(dots.get_array(), error)
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]


def test_similar_sensors_stand_together() -> None:
    group = np.array([2, 0, 1, 0, 2, 1, 0, 2, 1])
    distance = np.where(group[:, None] == group, 1.0, np.inf)
    np.fill_diagonal(distance, 0)
    order = clustered_order(distance)
    assert sorted(order) == list(range(9))
    assert np.count_nonzero(np.diff(group[order])) == 2
    np.testing.assert_array_equal(clustered_order(np.zeros((1, 1))), [0])


@pytest.mark.parametrize("with_distance", [True, False])
def test_matrices_are_drawn_in_the_orders_given(with_distance: bool) -> None:
    distance = distances(6) if with_distance else None
    orders = {"DTW": clustered_order(distances(6)), "road": np.arange(6)[::-1]}
    figure = graph_matrices(distance, masks(6), orders, UNIT)
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    matrices = [*([distance] if distance is not None else []), *masks(6).values()]
    expected = [matrix[order][:, order] for order in orders.values() for matrix in matrices]
    assert len(drawn) == len(expected)
    for image, matrix in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(image, matrix)


def test_patches_and_kernels_are_drawn_as_they_are() -> None:
    for first in (0, 6):
        grid = first + GRID
        mean = grid + np.linspace(-1, 1, 12).reshape(4, 3)
        axes = patch_displacement(mean, mean - 1, mean + 1, first, ["hour -2", "hour -1"]).axes[0]
        patches = [line.get_data() for line in axes.get_lines() if len(line.get_xdata()) == 3]
        np.testing.assert_array_equal([x for x, _ in patches], grid)
        np.testing.assert_allclose([y for _, y in patches], mean - grid)
        bands = axes.collections[:4]
        for patch, band in enumerate(bands):
            low, high = band.get_datalim(axes.transData).intervaly
            np.testing.assert_allclose([low, high], [(mean - 1 - grid)[patch].min(), (mean + 1 - grid)[patch].max()])
        assert axes.get_xlim()[1] == first + 11.5

    kernel = np.array([[1, -2, 3.0], [-3, 4, 5]], np.float32)
    drawn = kernel_profiles([kernel, np.ones((2, 9), np.float32)], tokens=4)
    np.testing.assert_array_equal(drawn.axes[0].get_lines()[0].get_data(), [[-1, 0, 1], [2, 3, 4]])
    (shaded,) = drawn.axes[1].patches
    assert (shaded.get_x(), shaded.get_x() + shaded.get_width()) == (-3.5, 3.5)


def test_patch_positions_are_the_means_over_samples_and_sensors(run: RunFolder) -> None:
    with np.load(run.patch_positions) as untrained:
        np.testing.assert_allclose(untrained["mean"].ravel(), np.arange(8), atol=1e-6)  # plain patches at the start
        np.testing.assert_allclose(untrained["high"], untrained["low"], atol=1e-6)

    resumed = resume_run(run, VARIANTS, None)
    model: Any = resumed.trainer.model
    with torch.no_grad():
        model.front_end.patches.predictor[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    resumed.trainer.save_best()
    lib.runs.score_run(resumed)
    with np.load(run.patch_positions) as saved:
        arrays = {name: saved[name] for name in saved.files}
    assert len(arrays["label_starts"]) == 50
    batch = resumed.trainer.windows.batch(torch.from_numpy(arrays["label_starts"]))
    positions = model.front_end.patches.positions(batch.inputs.series).detach().double().numpy().reshape(-1, 4, 2)
    np.testing.assert_allclose(arrays["mean"], positions.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(arrays["low"], np.quantile(positions, 0.05, axis=0), atol=1e-4)
    np.testing.assert_allclose(arrays["high"], np.quantile(positions, 0.95, axis=0), atol=1e-4)
    assert (arrays["high"] > arrays["low"]).any()

    regular = start_run(load(run.settings, ["Model.deformable_patches=off"]), run.path.parent.parent, "regular")
    regular.trainer.save_best()
    lib.runs.score_run(regular)
    assert regular.folder.is_finished()
    assert not regular.folder.patch_positions.exists()


ALWAYS = {"training_curve", "error_by_horizon", "error_by_time_of_day"}


def test_all_figures_of_a_run_are_made_from_its_files(
    untouched_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("lib.report.figures.save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    run, config = untouched_run, settings_of(untouched_run)
    capsys.readouterr()
    paths = make_figures(run, config, sensors=[1, 4], days=1, first_day=1)
    assert capsys.readouterr().out == ""
    everything = ALWAYS | {"forecast_sensor1", "forecast_sensor4", "error_map", "graphs", "patch_positions", "kernels"}
    assert {path.stem for path in paths} == set(drawn) == everything

    results = load_results(run, config)
    times, truth = lines_of(drawn["forecast_sensor4"].axes[0])["truth"]
    np.testing.assert_array_equal(truth, results.target[48 : 48 + len(truth), 4, 0])
    hours = (times[0] - datetime(2018, 3, 5, 6, 30)).total_seconds() / 3600
    assert hours == (results.label_starts[0] + 48) / 2
    (dots,) = [item for item in drawn["error_map"].axes[0].collections if isinstance(item, PathCollection)]
    expected = [np.abs(results.forecast - results.target)[:, sensor].mean() for sensor in range(5)]
    np.testing.assert_allclose(dots.get_array(), expected, rtol=1e-5)

    # Both branches of a block, added where their centres meet.
    weights = load_checkpoint(run.best)["weights"]
    large, small = (weights[f"front_end.blocks.1.{branch}.weight"].numpy() for branch in ("large", "small"))
    both = large.copy()
    both[:, 9:12] += small
    _, taps = drawn["kernels"].axes[1].get_lines()[0].get_data()
    np.testing.assert_allclose(taps, np.abs(both).mean(axis=0), rtol=1e-6)

    make_figures(run, config)
    median = int(np.argsort(expected)[2])
    assert f"forecast_sensor{median}" in drawn


def test_what_is_missing_or_of_another_series_is_left_out_and_said(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("lib.report.figures.save_figure", lambda figure, path: drawn.update({path.stem: figure}))
    config = settings_of(run)
    matrix, record = dtw_paths(config, wanted_record(config, prepared_for(config)))
    text = record.read_text()

    def panels() -> int:
        capsys.readouterr()
        drawn.clear()
        make_figures(run, config)
        return sum(bool(axes.images) for axes in drawn["graphs"].axes) if "graphs" in drawn else 0

    record.write_text(text.replace('"days": ', '"days": 9'))
    assert panels() == 2
    said = capsys.readouterr().out
    assert said.startswith(f"figure graphs without the DTW distances: {matrix}: found the distances of ")
    assert said.count("\n") == 1
    matrix.unlink()
    assert panels() == 2
    assert f"{matrix}: no such file" in capsys.readouterr().out

    links = config.data.adj_filename
    links.write_text(links.read_text().replace("0,1,1.0\n", ""))
    run.patch_positions.unlink()
    assert panels() == 2  # in the order of position
    said = capsys.readouterr().out
    assert f"figure error_map left out: {links}: found other links than the run was made with" in said
    assert "figure patch_positions left out: " in said
    assert not {"error_map", "patch_positions"} & set(drawn)
    assert set(drawn) > ALWAYS


def test_text_of_data_is_literal_in_every_figure(tmp_path: Path) -> None:
    """Two dollars make no formula, an underscore hides no name, and a letter that the font lacks is no fault."""
    names = ["$\\frac{a$ b$", "_hidden", "a^b_c", "银川"]
    curve = [(np.linspace(1, 2, 3), np.ones(3), 1.0)]
    compared = [
        error_by_horizon({name: scores([1, 2]) for name in names}, 30, names[0]),
        horizons_compared(dict.fromkeys(names, np.ones((2, 3))), {"_too": np.ones(3)}, 30, names[0]),
        error_against_time(dict.fromkeys(names, curve), names[0]),
    ]
    for figure in compared:
        save_figure(figure, tmp_path / "f.png")
        shown = {text.get_text().strip("\u200b") for text in figure.legends[0].get_texts()}
        assert set(names) <= shown
    title = forecast_against_truth(np.ones((9, 6)), np.ones((9, 6)), np.arange(9), names[0], UNIT, 30, None)
    matrices = graph_matrices(None, masks(6), {names[0]: np.arange(6)}, UNIT)
    for figure in (title, matrices):
        save_figure(figure, tmp_path / "f.png")
    for figure in (*compared, title, matrices):
        texts = figure.findobj(Text)
        assert any(names[0] in text.get_text() for text in texts)
        assert not any(text.get_parse_math() for text in texts)
        assert not any("mathdefault" in text.get_text() for text in texts)


def test_a_figure_that_fails_costs_itself_alone(
    untouched_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsaved(_: Figure, path: Path) -> None:
        if path.stem == "error_map":
            raise RuntimeError("no\nsuch glyph")

    def fail(*_: object) -> Figure:
        raise ValueError("no drawing")

    monkeypatch.setattr("lib.report.figures.save_figure", unsaved)
    monkeypatch.setattr("lib.report.results.error_by_horizon", fail)
    capsys.readouterr()
    paths = make_figures(untouched_run, settings_of(untouched_run), sensors=[1])
    assert {path.stem for path in paths} == {
        *(ALWAYS - {"error_by_horizon"}),
        *("forecast_sensor1", "graphs", "patch_positions", "kernels"),
    }
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "figure error_by_horizon left out: ValueError: no drawing",
        "figure error_map left out: RuntimeError: no",
    ]

    def full(_: Figure, path: Path) -> None:
        raise InputError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("lib.report.figures.save_figure", full)
    with pytest.raises(InputError, match="No space left"):
        make_figures(untouched_run, settings_of(untouched_run))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensors": [3, 5]}, "--sensors: found 5, expected positions 0..4"),
        ({"sensors": [-1]}, "--sensors: found -1, expected positions 0..4"),
        ({"days": 0}, "--days: found 0, expected at least 1"),
        ({"first_day": 9}, "--first-day: found 9, expected 0..1, days from the test split's first on"),
        ({"first_day": -1}, "--first-day: found -1, expected 0..1, days from the test split's first on"),
    ],
)
def test_no_such_sensor_or_day(arguments: dict[str, Any], message: str, untouched_run: RunFolder) -> None:
    with pytest.raises(InputError) as raised:
        make_figures(untouched_run, settings_of(untouched_run), **arguments)
    assert str(raised.value) == message


def test_a_run_that_is_not_finished_or_damaged_is_told(run: RunFolder) -> None:
    config = settings_of(run)
    results = load_results(run, config)
    target, starts = results.target, results.label_starts
    run.save_predictions(results.forecast[:, :4], target, starts)
    with pytest.raises(InputError, match=r"predictions\.npz forecast: found shape .*, expected \(\d+, 5, 6\)"):
        load_results(run, config)
    run.save_predictions(np.full_like(results.forecast, np.nan), target, starts)
    with pytest.raises(InputError, match=r"forecast: found values that are not finite, expected numbers only"):
        load_results(run, config)
    run.save_predictions(results.forecast, target, starts)
    run.log.write_text('{"epoch": 1}\n{"epoch"')
    with pytest.raises(InputError, match=r"log\.jsonl: found a damaged file \(.*\), expected JSON in each line"):
        load_results(run, config)
    run.metrics.write_text('{"test": {}}')
    with pytest.raises(InputError, match=r"metrics\.json: found no dataset, .*expected what run\.py writes"):
        load_results(run, config)
    with pytest.raises(InputError, match=r"rum: found no metrics\.json, expected a finished run \(did you mean 'run'"):
        load_results(RunFolder(run.path.with_name("rum")), config)
