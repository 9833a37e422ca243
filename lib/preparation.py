"""From a configuration to its prepared series and graphs: files that are missing or stale are made, and it is said."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lib.config import Config
from lib.data import Prepared, WindowShape, load_prepared, materialize, prepare, read_series, save_prepared
from lib.dtw import DTWRecord, Method, Rows, dtw_matrix, load_dtw, mean_days, save_dtw
from lib.errors import InputError
from lib.files import fingerprint, fingerprint_arrays
from lib.graphs import Graphs, Links, build_graphs, read_links


def window_shape(config: Config) -> WindowShape:
    """Return the shape of the windows that a configuration asks for."""
    training, data = config.training, config.data
    return WindowShape(
        training.num_of_weeks, training.num_of_days, training.num_of_hours, data.num_for_predict, data.points_per_hour
    )


def links_for(config: Config) -> Links:
    """Read the road links of a configuration's network."""
    return read_links(config.data.adj_filename, config.data.num_of_vertices, config.data.id_filename)


def make_prepared(config: Config, materialized: Path | None = None) -> Prepared:
    """Read and check the series, write the prepared file, and if asked the materialised windows as well.

    Raises:
        InputError: the series is not as it should be; nothing is written then.
    """
    source = config.data.graph_signal_matrix_filename
    series = read_series(source, config.data.num_of_vertices)
    try:
        prepared = prepare(series, window_shape(config), fingerprint(source))
    except InputError as error:
        raise InputError(f"{source} data: {error}") from None
    save_prepared(config.prepared_path, prepared)
    if materialized is not None:
        materialize(materialized, series, prepared, config.data.num_for_predict)
    return prepared


def prepared_for(config: Config) -> Prepared:
    """Return the prepared series, from its file when that was made from the npz as it is now, else made anew."""
    path, source = config.prepared_path, config.data.graph_signal_matrix_filename
    if path.exists():
        prepared = load_prepared(path)
        same_windows = np.array_equal(prepared.offsets, window_shape(config).offsets)
        if same_windows and prepared.source_fingerprint == fingerprint(source):
            return prepared
        print(f"{path} is stale: it was made from another series or setting, making it anew")
    else:
        print(f"{path} is missing: making it")
    return make_prepared(config)


def make_distance(
    config: Config, prepared: Prepared, method: Method, radius: int, rows: Rows
) -> tuple[NDArray[np.float64], DTWRecord]:
    """Compute the DTW distances (N, N) between the sensors' mean days, and write them with their record."""
    days, record = _mean_days_and_record(config, prepared, method, radius, rows)
    matrix = dtw_matrix(days, method, radius)
    save_dtw(config.dtw_path, config.dtw_record_path, matrix, record)
    return matrix, record


def distance_for(config: Config, prepared: Prepared) -> NDArray[np.float64]:
    """Return the DTW distances that [Graph] asks for, from their file when they are those, else made anew."""
    graph = config.graph
    assert graph.dtw_rows != "auto"  # load_config put the variant's rule in its place
    _, wanted = _mean_days_and_record(config, prepared, graph.dtw_method, graph.dtw_radius, graph.dtw_rows)
    if config.dtw_path.exists():
        matrix, record = load_dtw(config.dtw_path, config.dtw_record_path, config.data.num_of_vertices)
        if record == wanted:
            return matrix
        print(f"{config.dtw_path} is stale: found {record}, expected {wanted}, making it anew")
    else:
        print(f"{config.dtw_path} is missing: making it")
    return make_distance(config, prepared, graph.dtw_method, graph.dtw_radius, graph.dtw_rows)[0]


def graphs_for(config: Config, prepared: Prepared, links: Links) -> Graphs:
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
        days = mean_days(prepared.flow, steps_per_day, count)
    except InputError as error:
        raise InputError(f"{config.data.graph_signal_matrix_filename} data: {error}") from None
    radius = radius if method == "fastdtw" else 0
    return days, DTWRecord(method, radius, rows, count // steps_per_day, fingerprint_arrays(days))
