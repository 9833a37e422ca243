"""The results of a finished run, read from its folder, and the figures drawn from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lib.checkpoints import load_checkpoint, restored
from lib.config import Config
from lib.data.dtw import Nearest
from lib.data.graphs import Links, adjacency_matrix, graph_centre, hop_distances, hops_to_nearest, topology_mask
from lib.data.positions import plane
from lib.data.prepared import Prepared
from lib.data.preparing import calendar_for, distance_of, links_for, origin, positions_for, prepared_of
from lib.data.profile import historical_profile
from lib.data.windowing import nearest_time, time_of_step
from lib.errors import InputError
from lib.files import load_npz
from lib.interface import Encoder, Graphs, Neighbours
from lib.intervals import SCORED_LEVELS, Intervals
from lib.metrics import absolute_errors, mean_or_nan
from lib.report.figures import (
    clustered_order,
    draw_figure,
    error_by_horizon,
    error_by_time_of_day,
    error_map,
    forecast_against_truth,
    graph_matrices,
    imputed_days,
    kernel_profiles,
    patch_displacement,
    road_layout,
    training_curve,
)
from lib.report.style import TIME_FORMAT
from lib.report.text_tables import flow_unit
from lib.run_folder import RunFolder, forecasts_scored

DAYS_DRAWN = 2
SENSORS_DRAWN = 1000  # a matrix of more would have several in a dot; those about the centre of the roads are drawn


@dataclass(frozen=True, eq=False)
class Results:
    """What the folder of a finished run holds.

    Attributes:
        folder: of the run.
        config: its settings.
        metrics: content of metrics.json.
        history: entries of log.jsonl.
        forecast, target: (samples, N, P), raw units; targets that are missing are NaN.
        label_starts: (samples,), consecutive.
        checkpoint: content of best.pt.
        intervals: what prediction intervals are made with; None where the run has none of its weights.
    """

    folder: RunFolder
    config: Config
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    forecast: NDArray[np.float32]
    target: NDArray[np.float32]
    label_starts: NDArray[np.int64]
    checkpoint: Mapping[str, Any]
    intervals: Intervals | None = None

    @property
    def unit(self) -> str:
        """The unit of the flow."""
        return flow_unit(self.config.data.points_per_hour)

    @property
    def minutes(self) -> float:
        """The length of a time step in minutes."""
        return 60 / self.config.data.points_per_hour

    @property
    def start(self) -> datetime | None:
        """The time of the series' first step, where it is known."""
        data = self.config.data
        return None if data.start is None else nearest_time(data.start, data.points_per_hour)

    @property
    def graphs(self) -> Graphs:
        """The graphs that the network was built from."""
        return Graphs.from_content(self.checkpoint["graphs"])

    def sensor_errors(self) -> NDArray[np.float64]:
        """Return the MAE of each sensor over all samples and horizons, (N,); NaN where all its targets are missing."""
        return mean_or_nan(*absolute_errors(self.forecast, self.target, (0, 2)))

    def sensor_name(self, sensor: int) -> str:
        """Return how a sensor is called: by its position, and by its id where the network has ids."""
        ids = self.checkpoint["sensor_ids"]
        return f"sensor {sensor}" if ids is None else f"sensor {sensor} (id {ids[sensor]})"

    def time_name(self, step: int) -> str:
        """Return how a step is called: by its weekday and time, or by the hours since the series' first step."""
        if self.start is None:
            return f"{step * self.minutes / 60:g} h"
        return f"{time_of_step(self.start, step, self.config.data.points_per_hour):{TIME_FORMAT}}"

    def half_width(self, level: float, samples: slice) -> NDArray[np.float32] | None:
        """Return by how much intervals reach to both sides of the forecasts of some samples, (samples, N, P).

        None where the run has no intervals, or none at that level, or where its series is not there and its network
        asks which sensors are imputed.
        """
        if self.intervals is None:
            return None
        starts, calendar = self.label_starts[samples], calendar_for(self.config)
        try:
            imputed = None
            if self.config.needs.imputed and (flags := _own_prepared(self).imputed_flags(calendar)) is not None:
                imputed = flags[starts]
            return self.intervals.half_width(calendar.step_of_week(starts), level, imputed)
        except InputError:
            return None

    def days(self, days: int, first_day: int) -> slice:
        """Return the samples of so many days of the test split, from that one on.

        Raises:
            InputError: there is no such day.
        """
        samples, steps_per_day = len(self.label_starts), self.config.data.steps_per_day
        if days < 1:
            raise InputError(f"--days: found {days}, expected at least 1")
        if not 0 <= first_day * steps_per_day < samples:
            last = (samples - 1) // steps_per_day
            raise InputError(f"--first-day: found {first_day}, expected 0..{last}, days from the test split's first on")
        return slice(first_day * steps_per_day, min(samples, (first_day + days) * steps_per_day))


def load_results(folder: RunFolder, config: Config) -> Results:
    """Read what a finished run has written.

    Raises:
        InputError: a file is missing or damaged, or the forecasts are of another shape than the settings say.
    """
    metrics = folder.read_metrics()
    predictions = folder.read_predictions()
    intervals = folder.read_own_intervals()
    expected = (len(predictions["label_starts"]), config.data.num_of_vertices, config.data.num_for_predict)
    for name in ("forecast", "target"):
        place = f"{folder.predictions} {name}"
        if predictions[name].shape != expected:
            raise InputError(f"{place}: found shape {predictions[name].shape}, expected {expected}")
        wrong = ~np.isfinite(predictions[name])
        if name == "target" and (config.data.missing != "error" or config.data.imputed == "missing"):
            wrong &= ~np.isnan(predictions[name])
        if wrong.any():
            raise InputError(f"{place}: found values that are not finite, expected numbers only")
    checkpoint = load_checkpoint(folder.best)
    return Results(
        folder, config, metrics, folder.read_log(), **predictions, checkpoint=checkpoint, intervals=intervals
    )


def mae_by_time_of_day(
    forecast: NDArray[np.float32], target: NDArray[np.float32], label_starts: NDArray[np.int64], steps_per_day: int
) -> NDArray[np.float64]:
    """Return the MAE by the step of the day of the target, counted from that of the series' first step.

    Args:
        forecast, target: (samples, N, P), targets NaN where missing.
        label_starts: (samples,).
        steps_per_day: steps in a day.

    Returns:
        (steps_per_day,), in the unit of the forecasts; NaN where there is no target.
    """
    parts = absolute_errors(forecast, target, axis=1)  # sums and counts, each (samples, P)
    steps = (label_starts[:, None] + np.arange(forecast.shape[2])) % steps_per_day
    return mean_or_nan(*(np.bincount(steps.ravel(), part.ravel(), steps_per_day) for part in parts))


def make_figures(
    folder: RunFolder, config: Config, sensors: Sequence[int] = (), days: int = DAYS_DRAWN, first_day: int = 0
) -> list[Path]:
    """Draw the figures of a run from its files, and return their paths.

    A figure whose files are missing, or which fails, is left out, and it is said.

    Args:
        folder: of the finished run.
        config: its settings.
        sensors: positions of those whose forecast is drawn; none stands for the sensor of median error.
        days: how many days of forecast are drawn.
        first_day: from which day of the test split on.

    Raises:
        InputError: there is no such sensor or day, or a file that every run writes is missing or damaged.
    """
    results = load_results(folder, config)
    unit, minutes, start = results.unit, results.minutes, results.start
    drawn = results.days(days, first_day)
    number = config.data.num_of_vertices
    errors = results.sensor_errors()
    for sensor in sensors:
        if not 0 <= sensor < number:
            raise InputError(f"--sensors: found {sensor}, expected positions 0..{number - 1}")

    half_width = results.half_width(SCORED_LEVELS[0], drawn)

    def forecast_of(sensor: int) -> Figure:
        return forecast_against_truth(
            results.forecast[drawn, sensor],
            results.target[drawn, sensor],
            results.label_starts[drawn],
            f"{results.sensor_name(sensor)}, test split",
            unit,
            minutes,
            start,
            None if half_width is None else half_width[:, sensor],
            f"{SCORED_LEVELS[0]:.0%} interval",
        )

    by_horizon = {name: scores["by_horizon"] for name, scores in forecasts_scored(results.metrics).items()}
    by_time = mae_by_time_of_day(results.forecast, results.target, results.label_starts, config.data.steps_per_day)
    median = np.argsort(errors)[np.isfinite(errors).sum() // 2]  # NaN comes last
    figures: dict[str, Callable[[], Figure | None]] = {}
    if results.history:
        figures["training_curve"] = partial(training_curve, results.history, unit)
    figures["error_by_horizon"] = partial(error_by_horizon, by_horizon, minutes, unit)
    figures["error_by_time_of_day"] = partial(error_by_time_of_day, by_time, minutes, unit, start)
    figures |= {f"forecast_sensor{sensor}": partial(forecast_of, sensor) for sensor in sensors or [int(median)]}
    figures |= {"error_map": partial(_error_map, results), "imputed": partial(_imputed_days, results)}
    if config.variant.sees_other_sensors:
        figures["graphs"] = partial(_graph_matrices, results)
    if config.variant.has_encoder:
        figures["patch_positions"] = partial(_patch_displacement, results)
        figures["kernels"] = partial(_kernel_profiles, results)
    return [path for name, draw in figures.items() for path in draw_figure(draw, folder.figures / f"{name}.png")]


def _own_links(results: Results) -> tuple[Links, csr_array]:
    """Return the road links of the run's network with their adjacency (N, N).

    Raises:
        InputError: there is no such file, or it is not the one that the run was made with.
    """
    config, path = results.config, results.config.data.adj_filename
    links = links_for(config)
    adjacency = adjacency_matrix(links, config.data.num_of_vertices)
    wanted = Neighbours.of(topology_mask(adjacency, config.graph.hops)) if config.graph.topology == "hops" else None
    other_mask = wanted is not None and not wanted.equals(results.graphs.topology)
    own = origin(config, links)["links"]
    if other_mask or results.checkpoint["made_from"].get("links", own) != own:
        raise InputError(f"{path}: found other links than the run was made with, expected the same file")
    return links, adjacency


def road_map(results: Results) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return latitude and longitude (N, 2) of the run's sensors and the pairs (E, 2) of linked ones; None if unknown.

    A run that was trained without positions has those that its settings.ini names since.

    Raises:
        InputError: the file that the settings name is not as it should be.
    """
    if (kept := results.checkpoint["map"]) is not None:
        return kept["positions"].numpy(), kept["links"].numpy()
    if results.config.data.positions_filename is None:
        return None
    positions = positions_for(results.config, links_for(results.config))
    assert positions is not None
    return positions, _own_links(results)[0].pairs


def usual_flow(results: Results, label_starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the flow that is usual at the targets of samples: the historical profile of the training rows.

    Args:
        results: of the run.
        label_starts: (samples,).

    Returns:
        (samples, N, P), in raw units.

    Raises:
        InputError: the run's network asks for no profile, and there is no prepared series to make it of.
    """
    calendar, week = calendar_for(results.config), results.checkpoint["profile_week"]
    if week is None:
        prepared = _own_prepared(results)
        rows, middle = prepared.training_rows, prepared.scaling.middle
        usual = historical_profile(prepared.observed[:rows], rows, calendar, middle).week
    else:
        usual = week.numpy()
    steps = label_starts[:, None] + np.arange(results.config.data.num_for_predict)
    return usual[calendar.step_of_week(steps)].transpose(0, 2, 1)


def _own_distance(results: Results) -> NDArray[np.float64]:
    """Return the DTW distances (N, N) of the run's graphs.

    Raises:
        InputError: there is no such file, or it was made otherwise or of another series.
    """
    distance = distance_of(results.config, _own_prepared(results))
    if isinstance(distance, Nearest):
        raise InputError("found the distances of the nearest sensors alone, expected those of all pairs")
    return distance


def _own_prepared(results: Results) -> Prepared:
    """Return the prepared series of the run.

    Raises:
        InputError: there is no such file, or it is of another series.
    """
    prepared = prepared_of(results.config)
    own = prepared.made_from["series"]
    if results.checkpoint["made_from"].get("series", own) != own:
        raise InputError(f"{results.config.prepared_path}: found another series than the run was made with")
    return prepared


def _imputed_days(results: Results) -> Figure | None:
    """Draw the imputed values of the run's series; nothing where there are none."""
    prepared = _own_prepared(results)
    if prepared.imputed is None:
        return None
    steps = results.config.data.steps_per_day
    days = len(prepared.imputed) // steps
    share = prepared.imputed[: days * steps].reshape(days, steps, -1).mean(axis=1).T
    return imputed_days(share, results.start)


def _error_map(results: Results) -> Figure:
    errors = results.sensor_errors()
    shown = np.where(np.isnan(errors), -np.inf, errors)  # no dot, and not among the greatest, where nothing is known
    if (network := road_map(results)) is not None:
        positions, pairs = network
        return error_map(plane(positions), pairs, shown, results.unit, kilometres=True)
    links, adjacency = _own_links(results)
    return error_map(road_layout(adjacency), links.pairs, shown, results.unit)


def _graph_matrices(results: Results) -> Figure:
    distance, orders, number = None, {}, results.config.data.num_of_vertices
    shown, adjacency, among = np.arange(number), None, ""
    try:
        adjacency = _own_links(results)[1]
    except InputError as error:
        print(f"figure graphs without the order by road: {error}")
    if number > SENSORS_DRAWN:
        if adjacency is not None:
            hops = hops_to_nearest(adjacency, np.array([graph_centre(adjacency)]))
            shown = np.argsort(hops, kind="stable")
        shown = np.sort(shown[:SENSORS_DRAWN])
        among = f",\n{len(shown)} of {number} sensors"
    try:
        distance = _own_distance(results)[np.ix_(shown, shown)]
        orders[f"DTW clusters{among}"] = clustered_order(distance)
    except InputError as error:
        print(f"figure graphs without the DTW distances: {error}")
    if adjacency is not None:
        orders[f"road clusters{among}"] = clustered_order(hop_distances(adjacency, shown)[:, shown])
    graphs = results.graphs
    masks = {
        f"{name} mask": graph.matrix()[shown][:, shown].toarray()
        for name, graph in (("similarity", graphs.similarity), ("topology", graphs.topology))
    }
    return graph_matrices(distance, masks, orders or {f"position{among}": np.arange(len(shown))}, results.unit)


def _network(results: Results) -> Encoder:
    """Return the run's network with the best weights."""
    return cast(Encoder, restored(results.folder.best, results.checkpoint, results.config))


def _patch_displacement(results: Results) -> Figure | None:
    """Draw where the patches read the input; nothing for regular ones."""
    network = _network(results)
    if not network.deformable:
        return None
    positions = load_npz(results.folder.patch_positions, ("mean", "low", "high"))
    segments = [name for name, _ in results.config.windows.segments]
    return patch_displacement(**positions, first_step=network.first_step, segments=segments)


def _kernel_profiles(results: Results) -> Figure:
    model = _network(results)
    return kernel_profiles([kernel.detach().numpy() for kernel in model.kernels()], model.tokens)
