"""From a configuration to its prepared series and graphs: files that are missing or stale are made, and it is said."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config import Config
from lib.data.dtw import DTWRecord, Method, Rows, dtw_matrix, load_dtw_matrix, load_dtw_record, mean_days, save_dtw
from lib.data.graphs import Links, SensorGraphs, build_graphs, read_links
from lib.data.prepared import Prepared, load_prepared, materialize, prepare, save_prepared
from lib.data.sensor_tables import check_sensor_count, is_table, read_table, regular_series, sensor_columns
from lib.data.series import read_series
from lib.data.windowing import Calendar, WindowShape
from lib.devices import choose_device
from lib.errors import InputError
from lib.files import check_unused, check_writable, fingerprint, fingerprint_arrays


def window_shape(config: Config) -> WindowShape:
    """Return the shape of the windows that a configuration asks for."""
    training, data = config.training, config.data
    return WindowShape(
        training.num_of_weeks, training.num_of_days, training.num_of_hours, data.num_for_predict, data.points_per_hour
    )


def calendar_for(config: Config) -> Calendar:
    """Return where in the week the steps of a configuration's series lie."""
    return Calendar.starting(config.data.start, config.data.points_per_hour)


def links_for(config: Config) -> Links:
    """Read the road links of a configuration's network.

    They speak the ids of the id file. Without one, they speak the column names of a table where these are integers,
    unless only positions fit; in all other cases, positions.

    Raises:
        InputError: the files are not as they should be, or a table's integer names are not the ids of the id file.
    """
    data, source = config.data, config.data.graph_signal_matrix_filename
    names = table_sensors(config) if is_table(source) else ()
    are_ids = bool(names) and all(re.fullmatch("0|[1-9][0-9]{0,17}", name) for name in names)
    if data.id_filename is None and are_ids:
        try:
            return read_links(data.adj_filename, data.num_of_vertices, source, tuple(map(int, names)))
        except InputError as fault:
            try:
                return read_links(data.adj_filename, data.num_of_vertices)
            except InputError:
                raise fault from None
    links = read_links(data.adj_filename, data.num_of_vertices, data.id_filename)
    if are_ids and links.sensor_ids is not None:
        for name, sensor_id in zip(names, map(str, links.sensor_ids), strict=True):
            if name != sensor_id:
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
    if not is_table(data.graph_signal_matrix_filename):
        return read_series(data.graph_signal_matrix_filename, data.num_of_vertices, gaps)
    table = read_table(data.graph_signal_matrix_filename)
    return regular_series(table, data.num_of_vertices, data.points_per_hour, data.start, gaps)


def make_prepared(config: Config, materialized: Path | None = None) -> Prepared:
    """Read and check the series, write the prepared file, and if asked the materialised windows as well.

    Raises:
        InputError: the series is not as it should be, or a file to write would replace one that the configuration
            names, or the windows have missing values; nothing is written then.
    """
    source = config.data.graph_signal_matrix_filename
    inputs = _input_files(config)
    check_unused(config.prepared_path, f"{config.source} [Data] dataset_name", *inputs)
    if materialized is not None:
        check_writable(materialized, "--materialize", config.prepared_path, *inputs)
    series = series_for(config)
    sensors = table_sensors(config) if is_table(source) else None
    try:
        prepared = prepare(series, window_shape(config), fingerprint(source), config.data.missing, sensors)
    except InputError as error:
        raise InputError(f"{source} data: {error}") from None
    if materialized is not None and (prepared.missing is not None or np.isnan(series).any()):
        raise InputError(f"--materialize: found missing values in {source}, expected none, as its format knows none")
    save_prepared(config.prepared_path, prepared)
    if materialized is not None:
        materialize(materialized, series, prepared, config.data.num_for_predict)
    return prepared


def _input_files(config: Config) -> tuple[Path | None, ...]:
    """Return the files that no other may be written over."""
    data = config.data
    return (config.source, data.graph_signal_matrix_filename, data.adj_filename, data.id_filename)


def prepared_for(config: Config) -> Prepared:
    """Return the prepared series, from its file when that was made from the series as it is now, else made anew."""
    path, source = config.prepared_path, config.data.graph_signal_matrix_filename
    if os.path.exists(path):  # Path.exists would raise an OSError on a name that is too long
        prepared = load_prepared(path)
        same_windows = np.array_equal(prepared.offsets, window_shape(config).offsets)
        same_sensors = prepared.flow.shape[1] == config.data.num_of_vertices
        same_rule = prepared.missing_rule == config.data.missing
        if same_windows and same_sensors and same_rule and prepared.source_fingerprint == fingerprint(source):
            return prepared
        print(f"{path} is stale: it was made from another series or setting, making it anew")
    else:
        print(f"{path} is missing: making it")
    return make_prepared(config)


def make_distance(
    config: Config, prepared: Prepared, method: Method, radius: int, rows: Rows
) -> tuple[NDArray[np.float64], DTWRecord]:
    """Compute the DTW distances (N, N) between the sensors' mean days, and write them with their record.

    They are computed on the device of [Runtime], which the record does not name: it changes no more than the rounding.

    Raises:
        InputError: there is not one whole day, the files would replace one that the configuration names, or the device
            is not there.
    """
    device = choose_device(config.runtime.device)
    for path in (config.dtw_path, config.dtw_record_path):
        check_unused(path, f"{config.source} [Data] dataset_name", *_input_files(config))
    days, record = _mean_days_and_record(config, prepared, method, radius, rows)
    matrix = dtw_matrix(days, method, radius, device=device)
    save_dtw(config.dtw_path, config.dtw_record_path, matrix, record)
    return matrix, record


def wanted_record(config: Config, prepared: Prepared) -> DTWRecord:
    """Return the record of the DTW distances that [Graph] asks for."""
    graph = config.graph
    assert graph.dtw_rows != "auto"  # load_config put the variant's rule in its place
    return _mean_days_and_record(config, prepared, graph.dtw_method, graph.dtw_radius, graph.dtw_rows)[1]


def distance_for(config: Config, prepared: Prepared) -> NDArray[np.float64]:
    """Return the DTW distances that [Graph] asks for, from their file when they are those, else made anew."""
    graph = config.graph
    assert graph.dtw_rows != "auto"  # load_config put the variant's rule in its place
    wanted = wanted_record(config, prepared)
    missing = [path for path in (config.dtw_path, config.dtw_record_path) if not path.exists()]
    if missing:
        print(f"{missing[0]} is missing: making it")
    else:
        record = load_dtw_record(config.dtw_record_path)
        found = f"found {record}, expected {wanted}"
        if record == wanted:
            matrix = load_dtw_matrix(config.dtw_path, config.data.num_of_vertices)
            if record.is_of(matrix):
                return matrix
            found = f"found other distances than those of {config.dtw_record_path.name}"
        print(f"{config.dtw_path} is stale: {found}, making it anew")
    return make_distance(config, prepared, graph.dtw_method, graph.dtw_radius, graph.dtw_rows)[0]


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
        # Forward-filled, so that no gap at the end is filled from after it.
        days = mean_days(prepared.forward_filled, steps_per_day, count)
    except InputError as error:
        raise InputError(f"{config.data.graph_signal_matrix_filename} data: {error}") from None
    radius = radius if method == "fastdtw" else 0
    return days, DTWRecord(method, radius, rows, count // steps_per_day, fingerprint_arrays(days))
