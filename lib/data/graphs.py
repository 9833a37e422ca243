"""The graphs of the road network: links read from a file, the two attention masks, and the Laplacian encoding.

A mask says to which sensors each may attend. It is made as a matrix (N, N), sparse where N may be large, and kept as
lists of neighbours. Distances between sensors come from `lib.data.dtw`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.sparse.linalg import eigsh

from lib.data.dtw import Nearest
from lib.data.text_rows import FAULTS_SHOWN, cells_of, is_number, raise_faults, read_rows, shown
from lib.errors import InputError, nearest
from lib.files import load_npy, refuse_pickle
from lib.interface import Graphs, Neighbours

SimilarityRule = Literal["nearest", "gaussian", "released", "full"]
TopologyRule = Literal["hops", "full"]
EncodingRule = Literal["symmetric", "released"]

HEADERS = (["from", "to", "cost"], ["from", "to", "distance"])
LINK_FORMATS = "links as .csv (from,to,cost), or an N x N matrix as .npy or .csv without header, not 0 where linked"
EQUAL = 1e-6  # magnitudes that differ by less, relatively, are equal but for rounding
DENSE_SENSORS = 1000  # up to so many, all eigenvectors of a Laplacian are found in a second
SEARCHED_AT_ONCE = 256  # sensors whose distances to all others are held
SHIFT = -1e-3  # below all eigenvalues of a Laplacian, and near the least of them, which the sparse solver looks for

Positions = dict[int, int] | range  # position of each sensor, by its id; a range is the identity


@dataclass(frozen=True, eq=False)
class Links:
    """The road links between sensors, undirected.

    Attributes:
        pairs: positions of the linked sensors (E, 2), unique, `from` < `to`, sorted.
        self_links: rows dropped because they link a sensor to itself.
        duplicates: rows dropped because they repeat a link, in either direction.
        reversed_duplicates: those of the duplicates that give the other direction of a link, as a directed file does.
        sensor_ids: the id of each sensor in order, when the file speaks of ids and not of positions.
    """

    pairs: NDArray[np.int64]
    self_links: int
    duplicates: int
    reversed_duplicates: int
    sensor_ids: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class SensorGraphs:
    """The graphs of a road network.

    Attributes:
        similarity: allowed attention between sensors that behave alike.
        topology: allowed attention between sensors near each other on the road.
        laplacian_encoding: position of each sensor in the road graph (N, C).
        links: the road links.
    """

    similarity: Neighbours
    topology: Neighbours
    laplacian_encoding: NDArray[np.float32]
    links: Links

    def tensors(self, autoregression: NDArray[np.float32] | None = None) -> Graphs:
        """Return what a network is built from, perhaps with the coefficients (lags, E) of an autoregression."""
        return Graphs(
            self.similarity,
            self.topology,
            torch.from_numpy(self.laplacian_encoding),
            None if autoregression is None else torch.from_numpy(autoregression),
        )

    def summary(self) -> str:
        """Return one line on the graphs: sizes, components, densities of the masks, rows dropped."""
        num_nodes = len(self.similarity)
        components, _ = connected_components(adjacency_matrix(self.links, num_nodes), directed=False)
        isolated = num_nodes - len(np.unique(self.links.pairs))
        return (
            f"{num_nodes} sensors ({isolated} isolated), {len(self.links.pairs)} links, components: {components}; "
            f"allowed by similarity {self.similarity.density:.1%}, by topology {self.topology.density:.1%}; "
            f"rows dropped: {self.links.self_links} self-links, {self.links.duplicates} duplicates "
            f"({self.links.reversed_duplicates} of them reversed)"
        )


def build_graphs(
    links: Links,
    distance: NDArray[np.float64] | Nearest,
    num_nodes: int,
    encoding_dimension: int,
    similarity: SimilarityRule = "nearest",
    neighbours: int = 10,
    gaussian_threshold: float = 0.5,
    topology: TopologyRule = "hops",
    hops: int = 5,
    encoding: EncodingRule = "symmetric",
) -> SensorGraphs:
    """Build the masks and the encoding of a network.

    Args:
        links: the road links.
        distance: DTW distances (N, N); of `nearest`, those of each sensor's nearest will do.
        num_nodes: number of sensors N.
        encoding_dimension: columns C of the Laplacian encoding.
        similarity: rule of the similarity mask.
        neighbours: most similar sensors allowed, under `nearest`.
        gaussian_threshold: least similarity allowed, under `gaussian`.
        topology: rule of the topology mask.
        hops: sensors at this many hops and beyond are not allowed by the topology mask, under `hops`.
        encoding: normalisation of the Laplacian.

    Raises:
        InputError: a rule is unknown, the distances are of another network, or a mask leaves a sensor nothing to
            attend to.
    """
    if isinstance(distance, Nearest):
        if similarity not in ("nearest", "full"):
            raise ValueError(f"found the nearest sensors alone, expected all distances for the rule {similarity}")
    elif distance.shape != (num_nodes, num_nodes):
        raise InputError(f"DTW distances: found shape {distance.shape}, expected {(num_nodes, num_nodes)}")
    for key, rule, rules in (
        ("similarity rule", similarity, get_args(SimilarityRule)),
        ("topology rule", topology, get_args(TopologyRule)),
        ("encoding rule", encoding, get_args(EncodingRule)),
    ):
        if rule not in rules:
            raise InputError(f"{key}: found '{rule}', expected one of {', '.join(rules)}{nearest(rule, rules)}")
    similar: csr_array | NDArray[np.bool_]
    if similarity == "full":
        similar = full_mask(num_nodes)
    elif isinstance(distance, Nearest):
        similar = mask_of_nearest(distance.sensors[:, :neighbours])
    elif similarity == "nearest":
        similar = similarity_mask_nearest(distance, neighbours)
    elif similarity == "gaussian":
        similar = similarity_mask_gaussian(distance, gaussian_threshold)
    else:
        similar = released_similarity_mask(distance)
    adjacency = adjacency_matrix(links, num_nodes)
    near = topology_mask(adjacency, hops) if topology == "hops" else full_mask(num_nodes)
    masks = {f"similarity mask under the rule '{similarity}'": similar, "topology mask": near}
    for name, mask in masks.items():
        # Only the released rule and hops < 1 can do this; a softmax over nothing would be NaN.
        alone = np.flatnonzero(mask.sum(axis=1) == 0)
        if len(alone):
            raise InputError(f"{name}: found no sensor that sensor {alone[0]} may attend to, expected at least one")
    encode = laplacian_encoding if encoding == "symmetric" else released_laplacian_encoding
    return SensorGraphs(Neighbours.of(similar), Neighbours.of(near), encode(adjacency, encoding_dimension), links)


def read_links(
    path: Path, num_nodes: int, id_filename: Path | None = None, sensor_ids: tuple[int, ...] | None = None
) -> Links:
    """Read road links: a csv `from,to,cost` or `from,to,distance`, one link a row, or an adjacency matrix (N, N).

    The cost is checked to be a number and not used further: the graphs count hops. A matrix, an npy file or a csv
    without header, has a row and a column for each sensor in order, and links two of them where it is not 0; it counts
    as the csv of its links, row by row.

    Args:
        path: the file.
        num_nodes: number of sensors N; without ids, a sensor is a position 0..N-1.
        id_filename: file whose i-th line is the id of sensor i; when given, the csv speaks of ids.
        sensor_ids: (N,) the ids themselves, where `id_filename` is another file that they were read from.

    Raises:
        InputError: a file is missing or empty, its header is another one, rows are wrong (the first few are listed),
            or a matrix has another size than N.
    """
    refuse_pickle(
        path,
        LINK_FORMATS,
        f"import pickle, numpy; numpy.save('{path.stem}.npy', pickle.load(open('{path.name}', 'rb'), "
        "encoding='latin1')[2])",  # as DCRNN has them: ids, positions by id, matrix
    )
    if sensor_ids is None and id_filename is not None:
        sensor_ids = _read_sensor_ids(id_filename, num_nodes)
    if path.suffix.lower() == ".npy":
        matrix = load_npy(path, "an adjacency matrix")
        return _unique_links(_matrix_links(path, matrix, num_nodes), sensor_ids)
    rows = read_rows(path, LINK_FORMATS)
    if rows and _is_matrix_row(rows[0][1]):
        return _unique_links(_matrix_links(path, _parse_matrix(path, rows), num_nodes), sensor_ids)
    # A range maps each position to itself, and needs no memory even if the number of sensors is wrong and huge.
    positions: Positions = range(num_nodes)
    if sensor_ids is not None:
        positions = {sensor: position for position, sensor in enumerate(sensor_ids)}
    expected_headers = " or ".join(",".join(header) for header in HEADERS)
    if not rows:
        raise InputError(f"{path}: found an empty file, expected the header {expected_headers}")
    header_line, header = rows[0]
    if cells_of(header) not in HEADERS:
        raise InputError(f"{path} row {header_line}: found {shown(header)}, expected the header {expected_headers}")

    directed: list[tuple[int, int]] = []
    faults: list[str] = []
    for line, row in rows[1:]:
        try:
            suggest = len(faults) < FAULTS_SHOWN  # the search for a near id is slow, and nobody reads the rest
            directed.append(_parse_link(cells_of(row), positions, id_filename, suggest))
        except ValueError as error:
            faults.append(f"{path} row {line}: {error}")
    raise_faults(path, faults)
    return _unique_links(directed, sensor_ids)


def _unique_links(directed: Sequence[tuple[int, int]], sensor_ids: tuple[int, ...] | None) -> Links:
    links = [(start, end) for start, end in directed if start != end]
    unique = sorted({(min(link), max(link)) for link in links})
    return Links(
        pairs=np.array(unique, dtype=np.int64).reshape(-1, 2),
        self_links=len(directed) - len(links),
        duplicates=len(links) - len(unique),
        reversed_duplicates=len(set(links)) - len(unique),
        sensor_ids=sensor_ids,
    )


def _is_matrix_row(row: str) -> bool:
    """Return whether a first row is that of a matrix: numbers, but not three, which might be a link without header."""
    cells = _matrix_cells(row)
    return len(cells) != len(HEADERS[0]) and all(is_number(cell) for cell in cells)


def _matrix_cells(row: str) -> list[str]:
    if "," not in row:
        return row.split()  # NumPy's savetxt writes spaces
    cells = [cell.strip() for cell in row.split(",")]
    return cells[:-1] if not cells[-1] else cells


def _parse_matrix(path: Path, rows: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
    width = len(_matrix_cells(rows[0][1]))
    values = np.zeros((len(rows), width))
    faults = []
    for place, (line, row) in enumerate(rows):
        cells = _matrix_cells(row)
        wrong = next((column for column, cell in enumerate(cells) if not is_number(cell)), None)
        if wrong is not None:
            faults.append(f"{path} row {line}, column {wrong + 1}: found {shown(cells[wrong])}, expected a number")
        elif len(cells) != width:
            faults.append(f"{path} row {line}: found {len(cells)} columns, expected {width}")
        else:
            values[place] = [float(cell) for cell in cells]
    raise_faults(path, faults)
    return values


def _matrix_links(path: Path, matrix: NDArray[Any], num_nodes: int) -> list[tuple[int, int]]:
    """Return the links (from, to) of an adjacency matrix, row by row."""
    if matrix.shape != (num_nodes, num_nodes):
        shape = " x ".join(map(str, matrix.shape)) or "a single number"
        raise InputError(
            f"{path}: found a matrix of {shape}, expected {num_nodes} x {num_nodes} by num_of_vertices = {num_nodes}"
        )
    if matrix.dtype.kind not in "bfiu":
        raise InputError(f"{path}: found values of type {matrix.dtype}, expected numbers")
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{path} row {row + 1}, column {column + 1}: found {matrix[row, column]}, expected a number, 0 for no link"
        )
    return [(int(start), int(end)) for start, end in np.argwhere(matrix)]


def _read_sensor_ids(path: Path, num_nodes: int) -> tuple[int, ...]:
    line_of: dict[int, int] = {}
    faults = []
    rows = read_rows(path, LINK_FORMATS)
    for line, row in rows:
        try:
            sensor = _integer(row)
        except ValueError as error:
            faults.append(f"{path} row {line}: {error}")
            continue
        if sensor in line_of:
            faults.append(
                f"{path} row {line}: found id {sensor} again (first in row {line_of[sensor]}), expected it once"
            )
        line_of.setdefault(sensor, line)
    raise_faults(path, faults)
    if len(rows) != num_nodes:
        raise InputError(f"{path}: found {len(rows)} sensor ids, expected {num_nodes}, one a line for each sensor")
    return tuple(line_of)


def _integer(text: str) -> int:
    """Return the integer that `text` writes; int() alone would also take '1_0', and 5000 digits not."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"found {shown(text)}, expected an integer")
    return int(text)


def _parse_link(cells: list[str], positions: Positions, id_filename: Path | None, suggest: bool) -> tuple[int, int]:
    """Return the positions of a row's two sensors; a ValueError says what is wrong with the row."""
    if len(cells) != len(HEADERS[0]):
        raise ValueError(f"found {len(cells)} columns, expected {len(HEADERS[0])}")
    ends = []
    for column, cell in zip(("from", "to"), cells[:2], strict=True):
        try:
            sensor = _integer(cell)
        except ValueError as error:
            raise ValueError(f"column '{column}': {error}") from None
        if sensor not in positions:
            if id_filename is None:
                expected = f"a position 0..{positions[-1]} (ids need an id_filename)"
            else:
                hint = nearest(cell, map(str, positions)) if suggest else ""
                expected = f"an id listed in {id_filename.name}{hint}"
            raise ValueError(f"column '{column}': found sensor {sensor}, expected {expected}")
        ends.append(positions[sensor])
    try:
        cost = float(cells[2])
    except ValueError:
        cost = np.nan
    if not np.isfinite(cost):
        raise ValueError(f"column 3: found {shown(cells[2])}, expected a number")
    return ends[0], ends[1]


def adjacency_matrix(links: Links, num_nodes: int) -> csr_array:
    """Return the symmetric boolean adjacency (N, N) of the links, sparse, with an empty diagonal."""
    first, second = links.pairs.T
    rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
    return csr_array((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape=(num_nodes, num_nodes))


def hop_distances(adjacency: csr_array, sensors: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return the least number of links from some sensors to all, (n, N), infinite where no road connects them.

    Args:
        adjacency: adjacency (N, N).
        sensors: (n,) their positions; None stands for all, in order.
    """
    hops: NDArray[np.float64] = dijkstra(adjacency, directed=False, indices=sensors, unweighted=True)
    return hops


def hops_to_nearest(adjacency: csr_array, sensors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the least number of links from each sensor to the nearest of some, (N,), infinite without a road."""
    hops: NDArray[np.float64] = dijkstra(adjacency, directed=False, indices=sensors, unweighted=True, min_only=True)
    return hops


def graph_centre(adjacency: csr_array) -> int:
    """Return the sensor whose greatest distance in links within the largest component is least.

    Of several, and of several largest components, the one of lowest position.
    """
    _, component = connected_components(adjacency, directed=False)  # numbered by their lowest positions
    members = np.flatnonzero(component == np.bincount(component).argmax())
    inside = adjacency[members][:, members]
    parts = np.split(np.arange(len(members)), range(SEARCHED_AT_ONCE, len(members), SEARCHED_AT_ONCE))
    farthest = np.concatenate([hop_distances(inside, part).max(axis=1) for part in parts])
    return int(members[farthest.argmin()])


def topology_mask(adjacency: csr_array, hops: int = 5) -> csr_array:
    """Allow the sensors at fewer than `hops` hops (N, N), the sensor itself included. The released code has hops 5.

    A breadth-first search from all sensors at once: each step adds the neighbours of what was reached.
    """
    num_nodes = adjacency.shape[0]
    reached = csr_array(eye_array(num_nodes, dtype=np.bool_)) if hops >= 1 else no_sensor(num_nodes)
    step = adjacency + reached
    for _ in range(hops - 1):
        before, reached = reached.nnz, reached @ step
        if reached.nnz == before:
            break  # the whole of every component
    return reached


def no_sensor(num_nodes: int) -> csr_array:
    """Allow nothing (N, N)."""
    return csr_array((num_nodes, num_nodes), dtype=np.bool_)


def full_mask(num_nodes: int) -> NDArray[np.bool_]:
    """Allow everything (N, N): the ablation of either mask."""
    return np.ones((num_nodes, num_nodes), dtype=np.bool_)


def similarity_mask_nearest(distance: NDArray[np.float64], neighbours: int = 10) -> csr_array:
    """Allow each sensor itself and its k nearest neighbours by DTW, made symmetric: (N, N), sparse.

    Among equal distances the lower position comes first. With fewer than k other sensors, all are allowed.
    """
    return mask_of_nearest(Nearest.of(distance, neighbours).sensors)


def mask_of_nearest(sensors: NDArray[np.int64]) -> csr_array:
    """Allow each sensor itself and the given ones (N, k), made symmetric: (N, N), sparse."""
    num_nodes, count = sensors.shape
    rows = np.repeat(np.arange(num_nodes), count)
    chosen = csr_array((np.ones(rows.size, dtype=np.bool_), (rows, sensors.ravel())), shape=(num_nodes, num_nodes))
    return csr_array(chosen + chosen.T + eye_array(num_nodes, dtype=np.bool_))


def similarity_mask_gaussian(distance: NDArray[np.float64], threshold: float = 0.5) -> NDArray[np.bool_]:
    """Allow pairs with exp(-(d / sd)^2) >= `threshold`, sd over the whole matrix, and each sensor itself (N, N)."""
    spread = distance.std()
    # No spread means that all distances are those of the diagonal, 0.
    scaled = distance / spread if spread > 0 else np.zeros_like(distance)
    return (np.exp(-(scaled**2)) >= threshold) | np.eye(len(distance), dtype=np.bool_)


def released_similarity_mask(distance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Allow what the authors' released code allows (N, N): it blocks exp(-z^2 / 0.01) > 0.6, z = (d - mean) / sd.

    That blocks the pairs of average distance and keeps both the most and the least similar ones.
    """
    spread = distance.std()
    z = (distance - distance.mean()) / spread if spread > 0 else np.zeros_like(distance)
    return ~(np.exp(-(z**2) / 0.01) > 0.6)


def laplacian_encoding(adjacency: csr_array, dimension: int) -> NDArray[np.float32]:
    """Return the eigenvectors 2..dimension+1 of I - D^-1/2 A D^-1/2, by increasing eigenvalue (Dwivedi et al., 2020).

    Each vector's entry of largest magnitude is positive, the first of them where several are equal but for rounding.
    Eigenvalues that are equal, as the zeros of a network in several components, leave the basis arbitrary: keep the
    encoding with the weights that were trained on it.

    Args:
        adjacency: adjacency (N, N).
        dimension: number of columns.

    Returns:
        Encoding (N, dimension). Isolated sensors have zero rows, being no part of any walk on the graph; columns
        beyond the eigenvectors there are, one fewer than linked sensors, are zero.
    """
    return _encoding(adjacency, dimension, exponent=-0.5)


def released_laplacian_encoding(adjacency: csr_array, dimension: int) -> NDArray[np.float32]:
    """Return the encoding as the authors' released code has it: of I - D^-1 A D^-1, else as `laplacian_encoding`."""
    return _encoding(adjacency, dimension, exponent=-1.0)


def _encoding(adjacency: csr_array, dimension: int, exponent: float) -> NDArray[np.float32]:
    encoding = np.zeros((adjacency.shape[0], dimension), dtype=np.float32)
    linked = np.flatnonzero(adjacency.sum(axis=1))
    weights = adjacency[linked][:, linked].astype(np.float64)
    scale = weights.sum(axis=1) ** exponent
    entries = weights.tocoo()
    scaled = csr_array((scale[entries.row] * entries.data * scale[entries.col], entries.coords), shape=weights.shape)
    kept = _least_eigenvectors(scaled, dimension + 1)[:, 1:]
    if kept.size:
        magnitude = np.abs(kept)
        largest = (magnitude >= (1 - EQUAL) * magnitude.max(axis=0)).argmax(axis=0)
        encoding[linked, : kept.shape[1]] = kept * np.sign(np.take_along_axis(kept, largest[None, :], axis=0))
    return encoding


def _least_eigenvectors(weights: csr_array, count: int) -> NDArray[np.float64]:
    """Return the eigenvectors of the `count` least eigenvalues of I - W, (n, count or n), by increasing eigenvalue.

    Beyond `DENSE_SENSORS` they are found component by component, for a sparse solver would miss some of the equal
    eigenvalues that components have in common.
    """
    size = weights.shape[0]
    if size <= DENSE_SENSORS:
        return _dense_eigenvectors(weights)[1][:, :count]
    _, component = connected_components(weights, directed=False)
    values, places, vectors = [], [], []
    order = np.argsort(component, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(component))[:-1]):
        part = weights[members][:, members]
        if len(members) <= max(DENSE_SENSORS, 2 * count):
            own_values, own_vectors = (found[..., :count] for found in _dense_eigenvectors(part))
        else:
            start = np.random.default_rng(0).uniform(size=len(members))  # the same each time
            laplacian = (eye_array(len(members)) - part).tocsc()
            own_values, own_vectors = eigsh(laplacian, count, sigma=SHIFT, which="LM", v0=start)
        values.append(own_values)
        places += [members] * len(own_values)
        vectors += list(own_vectors.T)
    least = np.argsort(np.concatenate(values), kind="stable")[:count]
    found = np.zeros((size, len(least)))
    for column, place in enumerate(least):
        found[places[place], column] = vectors[place]
    return found


def _dense_eigenvectors(weights: csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh(np.eye(weights.shape[0]) - weights.toarray())
    return values, vectors
