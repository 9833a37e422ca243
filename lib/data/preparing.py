"""From a configuration to its prepared series and graphs. Missing or stale files are made, with a message."""

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lib.config import Config
from lib.data.dtw import (
    DTW_VERSION,
    DTWRecord,
    Method,
    Nearest,
    Rows,
    dtw_matrix,
    load_dtw,
    load_dtw_matrix,
    load_dtw_record,
    load_nearest,
    mean_days,
    save_dtw,
)
from lib.data.graphs import Links, SensorGraphs, build_graphs, read_links
from lib.data.nearest import Search, nearest_sensors
from lib.data.positions import read_positions
from lib.data.prepared import MARKS, Prepared, load_prepared, materialize, prepare, save_prepared
from lib.data.sensor_tables import check_sensor_count, is_table, read_table, regular_series, sensor_columns
from lib.data.series import MARKS_ARRAY, has_array, read_marks, read_series, read_start
from lib.data.windowing import Calendar, nearest_time, time_of_step
from lib.devices import choose_device
from lib.errors import InputError
from lib.files import check_unused, check_writable, fingerprint, fingerprint_arrays, load_npz, save_npz

MATRIX_SENSORS = 1000  # of more, only the distances are computed that the rule of the similarity graph asks for
SECONDS_KEPT = 30  # between two writes of how far a search for the nearest has come
PREPARED_VERSION = "3"  # of the rules by which prepared files are made
LONG_STEPS = ".1"  # follows it for steps above 15 minutes, whose rule of imputed values alone is another since


def calendar_for(config: Config) -> Calendar:
    """Return where in the week the steps of a configuration's series lie."""
    return Calendar.starting(config.data.start, config.data.points_per_hour)


def step_namer(config: Config) -> Callable[[int], str]:
    """Return the function that names a step of a configuration's series: by its number, and its time if it is known."""
    start, points_per_hour = config.data.start, config.data.points_per_hour
    if start is None:
        return str
    first = nearest_time(start, points_per_hour)
    return lambda step: f"{step} ({time_of_step(first, step, points_per_hour)})"


def links_for(config: Config) -> Links:
    """Read the road links of a configuration's network.

    The links name sensors by the ids of the id file. Without one they use the column names of a table, where these are
    integers and fit; else positions.

    Raises:
        InputError: the files are not as they should be, or a table's integer names are not the ids of the id file.
    """
    data, source = config.data, config.data.graph_signal_matrix_filename
    names = table_sensors(config) if is_table(source) else ()
    are_ids = bool(names) and all(re.fullmatch("[0-9]{1,18}", name) for name in names)
    are_ids = are_ids and len(set(map(int, names))) == len(names)
    if data.id_filename is None and are_ids:
        try:
            return read_links(data.adj_filename, data.num_of_vertices, source, tuple(map(int, names)))
        except InputError as fault:
            try:
                return read_links(data.adj_filename, data.num_of_vertices)
            except InputError:
                raise fault from None
    try:
        links = read_links(data.adj_filename, data.num_of_vertices, data.id_filename)
    except InputError:
        if data.id_filename is None:
            series_for(config)  # an unreadable series is reported first: it may hold the ids of the links
        raise
    if are_ids and links.sensor_ids is not None:
        for name, sensor_id in zip(names, links.sensor_ids, strict=True):
            if int(name) != sensor_id:
                raise InputError(f"{source}: found column '{name}', expected '{sensor_id}' by {data.id_filename}")
    return links


def table_sensors(config: Config) -> tuple[str, ...]:
    """Return the names of the sensors of a series that is a table, in order.

    Raises:
        InputError: the table cannot be read, or has another number of sensors than the configuration says.
    """
    source = config.data.graph_signal_matrix_filename
    names = sensor_columns(source)
    check_sensor_count(source, names, config.data.num_of_vertices)
    return names


def sensor_names(config: Config, links: Links) -> tuple[str, ...] | None:
    """Return the sensors' names in order: a table's column names, else the ids; None where they have positions only."""
    if is_table(config.data.graph_signal_matrix_filename):
        return table_sensors(config)
    return None if links.sensor_ids is None else tuple(map(str, links.sensor_ids))


def positions_for(config: Config, links: Links) -> NDArray[np.float64] | None:
    """Read latitude and longitude (N, 2) of the sensors, NaN where unknown; None where the settings name no file.

    Raises:
        InputError: the file is not as it should be.
    """
    path, number = config.data.positions_filename, config.data.num_of_vertices
    if path is None:
        return None
    positions, others = read_positions(path, sensor_names(config, links) or tuple(map(str, range(number))))
    known = number - np.isnan(positions).any(axis=1).sum()
    if known < number or others:
        print(f"{path}: {known} of {number} sensors have a position; {others} rows are of other sensors")
    return positions


def unlinked_sensors(config: Config, links: Links) -> list[str]:
    """Return the sensors that no road links to another, by name or position."""
    names = sensor_names(config, links)
    unlinked = sorted(set(range(config.data.num_of_vertices)) - set(links.pairs.ravel().tolist()))
    return [names[position] if names else str(position) for position in unlinked]


def series_for(config: Config) -> NDArray[Any]:
    """Read and check the series (T, N, F) of a configuration, from an npz archive or a table.

    It is finite where [Data] missing = error, and may have NaN elsewhere.

    Raises:
        InputError: the series is not as it should be.
    """
    data, gaps = config.data, config.data.missing != "error"
    source = data.graph_signal_matrix_filename
    if not is_table(source):
        start = read_start(source)
        if start is not None and data.start is not None and start != data.start:
            raise InputError(f"{source}: found the start {start}, expected [Data] start = {data.start}")
        return read_series(source, data.num_of_vertices, gaps)
    table = read_table(source)
    return regular_series(table, data.num_of_vertices, data.points_per_hour, data.start, gaps)


def make_prepared(config: Config, materialized: Path | None = None) -> Prepared:
    """Read and check the series, write the prepared file, and if asked the materialised windows as well.

    Raises:
        InputError: the series is not as it should be, or a file to write would replace one that the configuration
            names, or the windows have missing values; nothing is written then.
    """
    source = config.data.graph_signal_matrix_filename
    inputs = input_files(config)
    if materialized is not None:
        check_writable(materialized, "--materialize", config.prepared_path, *inputs)
    series = series_for(config)
    _check_made_files(config, config.prepared_path)
    sensors = table_sensors(config) if is_table(source) else None
    marks = read_marks(source, series.shape[:2])
    try:
        missing, names = config.data.missing, step_namer(config)
        prepared = prepare(series, config.windows, made_from(config), missing, sensors, marks, names)
    except InputError as error:
        raise InputError(f"{source} data: {error}") from None
    if materialized is not None and (prepared.missing is not None or np.isnan(series).any()):
        raise InputError(f"--materialize: found missing values in {source}, expected none, as its format knows none")
    save_prepared(config.prepared_path, prepared)
    if materialized is not None:
        materialize(materialized, series, prepared, config.data.num_for_predict, config.data.steps_per_day)
    return prepared


def input_files(config: Config) -> tuple[Path | None, ...]:
    """Return the files that no other may be written over."""
    data = config.data
    files = (data.graph_signal_matrix_filename, data.adj_filename, data.id_filename, data.positions_filename)
    return (config.source, *files)


def _check_made_files(config: Config, *paths: Path) -> None:
    """Check, before the work that they take, that files can be made from the series and replace none that is read.

    Raises:
        InputError: one would replace another file, or their folder cannot be written to.
    """
    for path in paths:
        check_unused(path, f"{config.source} [Data] dataset_name", *input_files(config))
    folder = config.data.folder
    existing = next(there for there in (folder, *folder.absolute().parents) if os.path.exists(there))
    if os.path.isdir(existing) and not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder}: cannot be written to, expected a folder for {paths[0].name}: name one in [Data] cache "
            "(--set Data.cache=FOLDER)"
        )


def made_from(config: Config) -> dict[str, str]:
    """Return all that a prepared file was made from or checked against, by name."""
    texts = config.texts()
    settings = (
        *("Data.num_of_vertices", "Data.points_per_hour", "Data.num_for_predict", "Data.start", "Data.missing"),
        *("Data.imputed", "Data.split", "Training.num_of_weeks", "Training.num_of_days", "Training.num_of_hours"),
    )
    path = config.data.graph_signal_matrix_filename
    marks = {MARKS: "of the series"} if has_array(path, MARKS_ARRAY) else {}
    version = PREPARED_VERSION if config.data.points_per_hour >= 4 else PREPARED_VERSION + LONG_STEPS
    return {"version": version, "series": fingerprint(path), **marks, **{key: texts[key] for key in settings}}


def prepared_for(config: Config) -> Prepared:
    """Return the prepared series, from its file when that was made from the series as it is now, else made anew."""
    path = config.prepared_path
    if os.path.exists(path):  # Path.exists would raise an OSError on a name that is too long
        wanted = made_from(config)
        try:
            prepared = load_prepared(path)
        except InputError as error:
            if "made_from" not in str(error):
                raise
            print(f"{path} is stale: an earlier version made it, making it anew")
            return make_prepared(config)
        if (stale := _first_difference(prepared.made_from, wanted)) is None:
            return prepared
        key, was, now = stale
        print(f"{path} is stale: {key} was {was}, now it is {now}, making it anew")
    else:
        print(f"{path} is missing: making it")
    return make_prepared(config)


def prepared_of(config: Config) -> Prepared:
    """Return the prepared series from its file; none is made.

    Raises:
        InputError: there is no such file, or it is stale.
    """
    prepared = load_prepared(config.prepared_path)
    if stale := _first_difference(prepared.made_from, made_from(config)):
        key, was, now = stale
        raise InputError(f"{config.prepared_path}: found {key} {was or 'none'}, expected {now or 'none'}")
    return prepared


def _first_difference(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Return the first name under which something else is now than was, and both; None where there is none."""
    return next(((name, was.get(name, "nothing"), now[name]) for name in now if was.get(name) != now[name]), None)


def origin(config: Config, links: Links) -> dict[str, str]:
    """Return what a run is trained on beside its series (`made_from`), by name: the road links, and sensors' names."""
    names = sensor_names(config, links)
    sensors = "" if names is None else fingerprint_arrays(np.array(names))
    return {"links": fingerprint_arrays(links.pairs), "sensors": sensors}


def check_origin(config: Config, was: Mapping[str, str], path: Path) -> None:
    """Check that the files that a run was trained on are as they were.

    Args:
        config: the settings of the run.
        was: `made_from` and `origin` as they were then, or what is known of them.
        path: the checkpoint that says so.

    Raises:
        InputError: one is another, or the rules have changed by which a series is prepared.
    """
    now = {**made_from(config), **origin(config, links_for(config))}
    changed = _first_difference(was, {name: now[name] for name in now if name in was})
    if changed is None:
        return
    name, before, after = changed
    series = config.data.graph_signal_matrix_filename
    files = {
        "series": (series, "another series"),
        "links": (config.data.adj_filename, "other links"),
        "sensors": (config.data.id_filename or series, "other names of sensors"),
    }
    if name in files:
        file, other = files[name]
        raise InputError(f"{file}: found {other} than {path} was trained on, expected the same file")
    raise InputError(f"{path}: found a series prepared by {name} {before}, expected {after}: train the run anew")


def dtw_paths(config: Config, record: DTWRecord) -> tuple[Path, Path]:
    """Return the files of the DTW distances with a record: the distances, and the record."""
    stem = f"{config.data.dataset_name}_dtw_{record.key}"
    return config.data.folder / f"{stem}.{'npz' if record.neighbours else 'npy'}", config.data.folder / f"{stem}.json"


def make_distance(
    config: Config, prepared: Prepared, method: Method, radius: int, rows: Rows
) -> tuple[NDArray[np.float64] | Nearest, DTWRecord]:
    """Compute the DTW distances between the sensors' mean days, and write them with their record.

    They are those of all pairs (N, N). Of more than `MATRIX_SENSORS` sensors, of which the similarity graph asks for
    the nearest alone, they are those of the nearest; a search for them that was interrupted is gone on with.

    They are computed on the device of [Runtime], which the record does not name: it changes no more than the rounding.

    Raises:
        InputError: there is not one whole day, the files would replace one that the configuration names, or the device
            is not there.
    """
    device = choose_device(config.runtime.device)
    days, record = _mean_days_and_record(config, prepared, method, radius, rows)
    paths = dtw_paths(config, record)
    _check_made_files(config, *paths)
    distances: NDArray[np.float64] | Nearest
    if record.neighbours:
        distances = _search_nearest(days, record.neighbours, device, paths[0].with_suffix(".begun.npz"))
    else:
        distances = dtw_matrix(days, method, radius, device=device)
    save_dtw(*paths, distances, record)
    return distances, record


def _search_nearest(days: NDArray[np.float64], neighbours: int, device: torch.device, begun_path: Path) -> Nearest:
    """Return the nearest sensors of each; how far the search has come is kept in a file until it ends."""
    begun, written = None, time.monotonic()
    if begun_path.exists():
        content = load_npz(begun_path, ("sensors", "distance", "reached"))
        begun = Search(Nearest(content["sensors"], content["distance"]), float(content["reached"]))
        print(f"going on with {begun_path}")

    def keep(search: Search) -> None:
        nonlocal written
        if time.monotonic() - written >= SECONDS_KEPT:
            save_npz(begun_path, {**vars(search.nearest), "reached": np.array(search.reached)})
            written = time.monotonic()

    found = nearest_sensors(days, neighbours, device=device, begun=begun, keep=keep)
    begun_path.unlink(missing_ok=True)
    print(found.summary())
    return found.nearest


def wanted_record(config: Config, prepared: Prepared) -> DTWRecord:
    """Return the record of the DTW distances that [Graph] asks for."""
    graph = config.graph
    assert graph.dtw_rows != "auto"  # load_config put the variant's rule in its place
    return _mean_days_and_record(config, prepared, graph.dtw_method, graph.dtw_radius, graph.dtw_rows)[1]


def distance_for(config: Config, prepared: Prepared) -> NDArray[np.float64] | Nearest:
    """Return the DTW distances that [Graph] asks for, from their file when they are those, else made anew."""
    wanted = wanted_record(config, prepared)
    matrix_path, record_path = paths = dtw_paths(config, wanted)
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        print(f"{missing[0]} is missing: making it")
    else:
        record = load_dtw_record(record_path)
        found = f"found {record}, expected {wanted}"
        if record == wanted:
            load = load_nearest if record.neighbours else load_dtw_matrix
            distances: NDArray[np.float64] | Nearest = load(matrix_path, config.data.num_of_vertices)
            if record.is_of(distances):
                return distances
            found = f"found other distances than those of {record_path.name}"
        print(f"{matrix_path} is stale: {found}, making it anew")
    return make_distance(config, prepared, wanted.method, config.graph.dtw_radius, wanted.rows)[0]


def distance_of(config: Config, prepared: Prepared) -> NDArray[np.float64] | Nearest:
    """Return the DTW distances that [Graph] asks for from their file; none is made.

    Raises:
        InputError: there is no such file, or it holds others.
    """
    wanted = wanted_record(config, prepared)
    matrix_path, record_path = dtw_paths(config, wanted)
    distances, record = load_dtw(matrix_path, record_path, config.data.num_of_vertices)
    if record != wanted:
        raise InputError(f"{matrix_path}: found the distances of {record}, expected those of {wanted}")
    return distances


def graphs_for(config: Config, prepared: Prepared, links: Links) -> SensorGraphs:
    """Build the graphs that [Graph] asks for."""
    graph = config.graph
    assert graph.similarity != "auto"  # load_config put the variant's rules in its place
    assert graph.laplacian != "auto"
    return build_graphs(
        links,
        distance_for(config, prepared),
        config.data.num_of_vertices,
        config.training.d_model,
        graph.similarity,
        graph.neighbours,
        graph.gaussian_threshold,
        graph.topology,
        graph.hops,
        graph.laplacian,
    )


def _mean_days_and_record(
    config: Config, prepared: Prepared, method: Method, radius: int, rows: Rows
) -> tuple[NDArray[np.float64], DTWRecord]:
    count = prepared.training_rows if rows == "train" else len(prepared.flow)
    steps_per_day = config.data.steps_per_day
    try:
        days = mean_days(prepared.observed, steps_per_day, count)
    except InputError as error:
        raise InputError(f"{config.data.graph_signal_matrix_filename} data: {error}") from None
    radius = radius if method == "fastdtw" else 0
    graph, number = config.graph, len(days)
    nearest_alone = number > MATRIX_SENSORS and method == "exact" and graph.similarity in ("nearest", "full")
    neighbours = min(graph.neighbours, number - 1) if nearest_alone else 0
    made = fingerprint_arrays(days)
    return days, DTWRecord(method, radius, rows, count // steps_per_day, made, DTW_VERSION, neighbours)
