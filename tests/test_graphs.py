"""Graphs: reading links, the masks against the released code's and by their properties, the Laplacian encodings."""

import gzip
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

import lib.data.graphs
from lib.data.graphs import (
    EQUAL,
    Links,
    adjacency_matrix,
    build_graphs,
    hop_distances,
    laplacian_encoding,
    read_links,
    released_laplacian_encoding,
    released_similarity_mask,
    similarity_mask_gaussian,
    similarity_mask_nearest,
    topology_mask,
)
from lib.errors import InputError
from tests.conftest import REAL_DATA, REFERENCE

SEEDS = range(6)


def random_links(num_nodes, num_links, seed):
    """Random links; few links leave isolated sensors and several components."""
    ends = np.random.default_rng(seed).integers(0, num_nodes, (num_links, 2))
    pairs = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return Links(pairs.reshape(-1, 2), self_links=0, duplicates=0, reversed_duplicates=0, sensor_ids=None)


def dense(matrix):
    return matrix.toarray() if isinstance(matrix, csr_array) else matrix


def random_distance(num_nodes, seed):
    upper = np.triu(np.random.default_rng(seed).gamma(2.0, 500.0, (num_nodes, num_nodes)), k=1)
    return upper + upper.T


def permuted(matrix, order):
    return matrix[np.ix_(order, order)]


# Links


def write(folder, text, name="X.csv"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_links_are_unique_sorted_and_undirected(tmp_path):
    text = "from,to,cost\n4,1,2.5\n0,3,1\n1,4,7\n2,2,0\n0,3,1\n1,0,3\n1,4,7\n"
    links = read_links(write(tmp_path, text), num_nodes=5)
    assert links.pairs.tolist() == [[0, 1], [0, 3], [1, 4]]
    assert links.pairs.dtype == np.int64
    assert (links.self_links, links.duplicates, links.reversed_duplicates) == (1, 3, 1)
    assert links.sensor_ids is None


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("header", ["from,to,cost", " from , to ,distance ", "\ufefffrom,to,cost"])
def test_line_ends_spaces_and_blank_lines_do_not_matter(tmp_path, newline, header):
    rows = [header, " 0, 1 ,2.0 ", "", "2,1,1e3", "", ""]
    links = read_links(write(tmp_path, newline.join(rows)), num_nodes=3)
    assert links.pairs.tolist() == [[0, 1], [1, 2]]


def test_ids_stand_for_positions_in_the_order_of_the_id_file(tmp_path):
    ids = write(tmp_path, "900\r\n17\r\n305\r\n", "X.txt")
    links = read_links(write(tmp_path, "from,to,distance\n305,900,1\n17,305,2\n"), 3, ids)
    assert links.pairs.tolist() == [[0, 2], [1, 2]]
    assert links.sensor_ids == (900, 17, 305)


def test_header_alone_means_no_links(tmp_path):
    links = read_links(write(tmp_path, "from,to,cost\n"), num_nodes=3)
    assert links.pairs.shape == (0, 2)
    assert not adjacency_matrix(links, 3).nnz


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,7,1.0", "column 'to': found sensor 7, expected a position 0..6 (ids need an id_filename)"),
        ("-1,2,1.0", "column 'from': found sensor -1, expected a position 0..6 (ids need an id_filename)"),
        ("0,1.0,1.0", "column 'to': found '1.0', expected an integer"),
        ("1_0,2,1.0", "column 'from': found '1_0', expected an integer"),
        (",2,1.0", "column 'from': found '', expected an integer"),
        ("0,1", "found 2 columns, expected 3"),
        ("0,1,2,3", "found 4 columns, expected 3"),
        ("0,1,far", "column 3: found 'far', expected a number"),
        ("0,1,", "column 3: found '', expected a number"),
        ("0,1,nan", "column 3: found 'nan', expected a number"),
    ],
)
def test_wrong_row_is_named_by_its_line(tmp_path, row, message):
    path = write(tmp_path, f"from,to,cost\n0,1,1.0\n\n{row}\n1,2,1.0\n")
    with pytest.raises(InputError) as caught:
        read_links(path, num_nodes=7)
    assert str(caught.value) == f"{path} row 4: {message}"


def test_many_wrong_rows_are_listed_up_to_a_few_and_counted(tmp_path):
    path = write(tmp_path, "from,to,cost\n" + "0,1,1.0\n" + "0,9,1.0\n" * 8)
    with pytest.raises(InputError) as caught:
        read_links(path, num_nodes=3)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"{path} row {line}" for line in range(3, 8)]
    assert lines[5:] == [f"{path}: and 3 more wrong rows"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": found an empty file, expected the header from,to,cost or from,to,distance"),
        ("\n \n", ": found an empty file, expected the header from,to,cost or from,to,distance"),
        ("0,1,1.0\n", " row 1: found '0,1,1.0', expected the header from,to,cost or from,to,distance"),
        ("\nfrom,to\n", " row 2: found 'from,to', expected the header from,to,cost or from,to,distance"),
    ],
)
def test_wrong_header(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_links(path, num_nodes=3)
    assert str(caught.value) == f"{path}{message}"


def test_links_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"missing\.csv: no such file"):
        read_links(tmp_path / "missing.csv", num_nodes=3)
    with pytest.raises(InputError, match="cannot be read"):
        read_links(tmp_path, num_nodes=3)
    binary = tmp_path / "X.npz"
    binary.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match=r"X\.npz: found bytes that are not text .* expected links as \.csv"):
        read_links(binary, num_nodes=3)
    with pytest.raises(
        InputError, match=r"adj_mx\.pkl: found a pickle, .* python -c .*numpy\.save\('adj_mx\.npy', pickle"
    ):
        read_links(tmp_path / "adj_mx.pkl", num_nodes=3)


def test_quotes_tabs_and_compression_do_not_matter(tmp_path):
    rows = ["from,to,cost", "0,1,2.0", "2,1,1e3"]
    quoted = "\n".join(",".join(f'"{cell}"' for cell in row.split(",")) for row in rows)
    forms = {"q.csv": quoted, "s.csv": quoted.replace(",", ", "), "t.tsv": quoted.replace(",", "\t")}
    for name, text in forms.items():
        assert read_links(write(tmp_path, text, name), num_nodes=3).pairs.tolist() == [[0, 1], [1, 2]]
    packed = tmp_path / "X.csv.gz"
    packed.write_bytes(gzip.compress(quoted.encode()))
    assert read_links(packed, num_nodes=3).pairs.tolist() == [[0, 1], [1, 2]]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(InputError, match=r"X\.csv\.gz: cannot be read"):
        read_links(packed, num_nodes=3)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_matrix_counts_as_the_list_of_its_links(tmp_path, seed):
    draw = np.random.default_rng(seed)
    number = int(draw.integers(4, 12))
    matrix = draw.normal(size=(number, number)) * (draw.random((number, number)) < 0.3)  # weights, negative ones too
    rows = "".join(f"{start},{end},{matrix[start, end]}\n" for start, end in zip(*np.nonzero(matrix), strict=True))
    expected = read_links(write(tmp_path, f"from,to,cost\n{rows}"), number)
    ids = tuple(range(100, 100 + number))
    for name, form in (("f.npy", matrix), ("b.npy", matrix != 0), ("i.npy", np.sign(matrix).astype(np.int8))):
        np.save(tmp_path / name, form)
    np.savetxt(tmp_path / "commas.csv", matrix, delimiter=",")
    np.savetxt(tmp_path / "spaces.txt", matrix)
    for name in ("f.npy", "b.npy", "i.npy", "commas.csv", "spaces.txt"):
        links = read_links(tmp_path / name, number, None, ids)
        assert links.pairs.tolist() == expected.pairs.tolist()
        assert links.sensor_ids == ids
        for count in ("self_links", "duplicates", "reversed_duplicates"):
            assert getattr(links, count) == getattr(expected, count)
    symmetric = (matrix != 0) | (matrix != 0).T
    assert np.array_equal(dense(adjacency_matrix(expected, number)), symmetric & ~np.eye(number, dtype=bool))
    assert expected.self_links == np.count_nonzero(np.diag(matrix))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.eye(3), ": found a matrix of 3 x 3, expected 4 x 4 by num_of_vertices = 4"),
        (np.zeros((4, 4, 1)), ": found a matrix of 4 x 4 x 1, expected 4 x 4 by num_of_vertices = 4"),
        (np.array(1), ": found a matrix of a single number, expected 4 x 4 by num_of_vertices = 4"),
        (np.full((4, 4), "x"), ": found values of type <U1, expected numbers"),
        (np.diag([0, 1, np.inf, 0]), " row 3, column 3: found inf, expected a number, 0 for no link"),
        ("0,1,0,0\n" * 3, ": found a matrix of 3 x 4, expected 4 x 4 by num_of_vertices = 4"),
        ("0,1,0,0\n" * 3 + "0,1,0\n", " row 4: found 3 columns, expected 4"),
        ("0,1,0,0,\n" * 3 + "0,1,0,\n", " row 4: found 3 columns, expected 4"),  # a comma at the end is no cell
        ("0,1,0,0\n" * 3 + "3,,0,1,0\n", " row 4, column 2: found '', expected a number"),  # an empty cell is one
        ("0,1,0,0\n" * 3 + "0,1,x,0\n", " row 4, column 3: found 'x', expected a number"),
        ("0,1,0,0\n" * 3 + "0,1,nan,0\n", " row 4, column 3: found 'nan', expected a number"),
        ("0,1,1\n" * 4, " row 1: found '0,1,1', expected the header from,to,cost or from,to,distance"),
    ],
)
def test_wrong_matrix(tmp_path, content, message):
    if isinstance(content, str):
        path = write(tmp_path, content)
    else:
        path = tmp_path / "X.npy"
        np.save(path, content)
    with pytest.raises(InputError) as caught:
        read_links(path, num_nodes=4)
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("900\n17\n", ": found 2 sensor ids, expected 3, one a line for each sensor"),
        ("900\n17\n305\n4\n", ": found 4 sensor ids, expected 3, one a line for each sensor"),
        ("", ": found 0 sensor ids, expected 3, one a line for each sensor"),
        ("900\n17\n900\n", " row 3: found id 900 again (first in row 1), expected it once"),
        ("900\nabc\n305\n", " row 2: found 'abc', expected an integer"),
    ],
)
def test_wrong_id_file(tmp_path, text, message):
    ids = write(tmp_path, text, "X.txt")
    with pytest.raises(InputError) as caught:
        read_links(write(tmp_path, "from,to,cost\n"), 3, ids)
    assert str(caught.value) == f"{ids}{message}"


def test_unknown_id_names_the_nearest_one(tmp_path):
    ids = write(tmp_path, "317842\n400\n", "X.txt")
    path = write(tmp_path, "from,to,cost\n400,31784,1.0\n")
    with pytest.raises(InputError) as caught:
        read_links(path, 2, ids)
    expected = "column 'to': found sensor 31784, expected an id listed in X.txt (did you mean '317842'?)"
    assert str(caught.value) == f"{path} row 2: {expected}"


@pytest.mark.parametrize(
    ("name", "num_nodes", "rows", "self_links", "duplicates", "reversed_duplicates", "components"),
    [
        ("PEMS03", 358, 547, 1, 0, 0, 8),
        ("PEMS04", 307, 340, 0, 0, 0, 12),
        ("PEMS07", 883, 866, 0, 0, 0, 17),
        ("PEMS08", 170, 295, 0, 18 + 3, 3, 1),
        ("YINCHUAN", 66, 216, 0, 108, 108, 1),
    ],
)
def test_links_of_the_real_networks(name, num_nodes, rows, self_links, duplicates, reversed_duplicates, components):
    path = REAL_DATA / name / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{name} is not at hand")
    id_filename = path.with_suffix(".txt")
    links = read_links(path, num_nodes, id_filename if id_filename.exists() else None)
    assert (links.self_links, links.duplicates) == (self_links, duplicates)
    assert links.reversed_duplicates == reversed_duplicates
    assert len(links.pairs) + self_links + duplicates == rows
    adjacency = adjacency_matrix(links, num_nodes)
    assert adjacency.sum() == 2 * len(links.pairs)
    assert connected_components(adjacency, directed=False)[0] == components
    assert np.unique(np.isfinite(hop_distances(adjacency)), axis=0).shape[0] == components


# Masks


def test_masks_equal_those_of_the_released_code():
    with np.load(REFERENCE / "graphs_n20.npz", allow_pickle=False) as reference:
        allowed = released_similarity_mask(reference["distance"])
        assert np.array_equal(allowed, ~reference["blocked_similarity"])
        near = topology_mask(csr_array(reference["adjacency"].astype(bool)))
        assert np.array_equal(near.toarray(), ~reference["blocked_topology"])


@pytest.mark.parametrize("seed", SEEDS)
def test_hop_distances_count_powers_of_the_adjacency(seed):
    adjacency = adjacency_matrix(random_links(15, 14, seed), 15)
    expected = np.full((15, 15), np.inf)
    reached = np.eye(15, dtype=bool)
    for hops in range(15):
        expected[reached & np.isinf(expected)] = hops
        reached = (reached.astype(int) @ dense(adjacency).astype(int)) > 0
    assert np.array_equal(hop_distances(adjacency), expected)


def test_topology_mask_grows_with_the_hops_up_to_the_component():
    adjacency = adjacency_matrix(random_links(25, 22, seed=3), 25)
    hops_between = hop_distances(adjacency)
    masks = [topology_mask(adjacency, hops).toarray() for hops in range(1, 26)]
    assert all(np.array_equal(mask, hops_between < hops) for hops, mask in enumerate(masks, start=1))
    assert np.array_equal(masks[0], np.eye(25, dtype=bool))
    assert all((nearer <= farther).all() for nearer, farther in pairwise(masks))
    assert np.array_equal(masks[-1], np.isfinite(hops_between))


def test_nearest_keeps_the_most_similar_others_both_ways():
    distance = random_distance(12, seed=0)
    mask = similarity_mask_nearest(distance, neighbours=3).toarray()
    for i in range(12):
        closest = {int(j) for j in np.argsort(distance[i]) if j != i}
        ranked = sorted(closest, key=lambda j: distance[i, j])[:3]
        chosen_by = [j for j in range(12) if j != i and (distance[j, np.arange(12) != j] < distance[j, i]).sum() < 3]
        assert set(np.flatnonzero(mask[i])) == {i, *ranked, *chosen_by}


@pytest.mark.parametrize("seed", SEEDS)
def test_nearest_is_symmetric_and_grows_with_the_neighbours(seed):
    distance = random_distance(12, seed)
    masks = [similarity_mask_nearest(distance, neighbours).toarray() for neighbours in range(15)]
    assert np.array_equal(masks[0], np.eye(12, dtype=bool))
    assert masks[11].all()
    assert masks[14].all()
    for neighbours, (fewer, more) in enumerate(pairwise(masks)):
        assert np.array_equal(more, more.T)
        assert (fewer <= more).all()
        assert (fewer.sum(axis=1) >= min(neighbours, 11) + 1).all()


def test_nearest_breaks_ties_by_position_and_counts_identical_sensors_as_others():
    # All alike: sensors 0 and 1 are chosen by all others, and choose one another and sensor 2.
    mask = similarity_mask_nearest(np.zeros((6, 6)), neighbours=2).toarray()
    expected = np.eye(6, dtype=bool)
    expected[:2] = expected[:, :2] = True
    assert np.array_equal(mask, expected)


def test_gaussian_is_a_bound_on_the_distance():
    distance = random_distance(20, seed=0)
    for threshold in (0.2, 0.5, 0.9):
        farthest = distance.std() * np.sqrt(-np.log(threshold))
        assert np.array_equal(similarity_mask_gaussian(distance, threshold), distance <= farthest)
    assert similarity_mask_gaussian(np.zeros((4, 4))).all()
    assert np.array_equal(similarity_mask_gaussian(distance, threshold=1.5), np.eye(20, dtype=bool))


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_follow_a_permutation_of_the_sensors(seed):
    distance, adjacency = random_distance(14, seed), adjacency_matrix(random_links(14, 12, seed), 14)
    order = np.random.default_rng(seed).permutation(14)
    for rule in (similarity_mask_nearest, similarity_mask_gaussian, released_similarity_mask):
        assert np.array_equal(dense(rule(permuted(distance, order))), permuted(dense(rule(distance)), order))
    reordered = topology_mask(permuted(adjacency, order))
    assert np.array_equal(dense(reordered), permuted(dense(topology_mask(adjacency)), order))


# Laplacian encodings


def normalised_laplacian(adjacency, exponent):
    scale = np.diag(adjacency.sum(axis=1).astype(float) ** exponent)
    return np.eye(len(scale)) - scale @ dense(adjacency) @ scale


def ring_with_chords(num_nodes):
    """A connected graph."""
    adjacency = np.zeros((num_nodes, num_nodes), dtype=bool)
    for i in range(num_nodes):
        adjacency[i, (i + 1) % num_nodes] = adjacency[(i + 1) % num_nodes, i] = True
    adjacency[0, num_nodes // 2] = adjacency[num_nodes // 2, 0] = True
    adjacency[1, 4] = adjacency[4, 1] = True
    return csr_array(adjacency)


@pytest.mark.parametrize(("encode", "exponent"), [(laplacian_encoding, -0.5), (released_laplacian_encoding, -1.0)])
@pytest.mark.parametrize("dimension", [1, 4, 13])
def test_columns_are_orthonormal_eigenvectors_in_order(encode, exponent, dimension):
    adjacency = ring_with_chords(14)
    encoding = encode(adjacency, dimension)
    laplacian = normalised_laplacian(adjacency, exponent)
    eigenvalues, vectors = np.linalg.eig(laplacian)
    order = np.argsort(eigenvalues.real)[1 : dimension + 1]
    assert encoding.dtype == np.float32
    np.testing.assert_allclose(encoding.T @ encoding, np.eye(dimension), atol=1e-5)
    np.testing.assert_allclose(laplacian @ encoding, encoding * eigenvalues.real[order], atol=1e-5)
    basis = np.linalg.qr(vectors.real[:, order])[0]
    np.testing.assert_allclose(basis @ (basis.T @ encoding), encoding, atol=1e-5)
    magnitude = np.abs(encoding)
    rows = (magnitude >= (1 - EQUAL) * magnitude.max(axis=0)).argmax(axis=0)  # a symmetric graph has several
    assert (encoding[rows, np.arange(dimension)] > 0).all()


def test_second_eigenvector_tells_the_ends_of_a_road_apart():
    road = np.diag(np.ones(9, dtype=bool), k=1)
    column = laplacian_encoding(csr_array(road | road.T), 1)[:, 0]
    assert (np.sign(column[:5]) == -np.sign(column[:4:-1])).all()
    assert len(set(np.sign(column[:5]))) == 1


@pytest.mark.parametrize("encode", [laplacian_encoding, released_laplacian_encoding])
def test_isolated_sensors_have_zero_rows_and_do_not_change_the_others(encode):
    linked = ring_with_chords(9)
    adjacency = np.zeros((12, 12), dtype=bool)
    kept = [0, 1, 3, 4, 5, 7, 8, 9, 11]
    adjacency[np.ix_(kept, kept)] = dense(linked)
    encoding = encode(csr_array(adjacency), 5)
    assert not encoding[[2, 6, 10]].any()
    np.testing.assert_array_equal(encoding[kept], encode(linked, 5))


@pytest.mark.parametrize("encode", [laplacian_encoding, released_laplacian_encoding])
def test_small_networks_are_padded_with_zeros(encode):
    adjacency = ring_with_chords(6)
    encoding = encode(adjacency, 64)
    np.testing.assert_array_equal(encoding[:, :5], encode(adjacency, 5))
    assert encoding.shape == (6, 64)
    assert not encoding[:, 5:].any()
    for num_nodes in (1, 4):
        assert not encode(csr_array((num_nodes, num_nodes), dtype=bool), 8).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_encoding_follows_a_permutation_of_the_sensors(seed):
    # The ring with chords has simple eigenvalues; the projection does not depend on the signs.
    adjacency = ring_with_chords(14)
    order = np.random.default_rng(seed).permutation(14)
    encoding, reordered = laplacian_encoding(adjacency, 4), laplacian_encoding(permuted(adjacency, order), 4)
    np.testing.assert_allclose(np.abs(reordered), np.abs(encoding[order]), atol=1e-5)


@pytest.mark.parametrize("encode", [laplacian_encoding, released_laplacian_encoding])
@pytest.mark.parametrize("components", [1, 3])
def test_the_sparse_solver_finds_what_the_dense_one_does(encode, components, monkeypatch):
    """The eigenvectors themselves where eigenvalues are simple, and else the space that equal ones span."""
    number = 60
    links = [random_links(number, 90, seed).pairs + number * seed for seed in range(components)]
    adjacency = adjacency_matrix(Links(np.concatenate(links), 0, 0, 0, None), number * components)
    expected = encode(adjacency, 9)
    monkeypatch.setattr(lib.data.graphs, "DENSE_SENSORS", 25)
    found = encode(adjacency, 9)
    assert np.array_equal(found, encode(adjacency, 9))
    linked = np.flatnonzero(adjacency.sum(axis=1))
    inside = adjacency[linked][:, linked]
    zeros = 0  # columns of eigenvalue 0, one fewer than components
    if encode is laplacian_encoding:
        zeros = connected_components(inside, directed=False)[0] - 1
        assert np.abs(normalised_laplacian(inside, -0.5) @ found[linked, :zeros]).max(initial=0) < 1e-5
    np.testing.assert_allclose(found[:, zeros:], expected[:, zeros:], atol=1e-5)


# Together


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_nodes", [1, 2, 13])
@pytest.mark.parametrize("similarity", ["nearest", "gaussian"])
def test_every_sensor_may_attend_to_itself_in_any_network(num_nodes, similarity, seed):
    links = random_links(num_nodes, 8, seed)
    graphs = build_graphs(links, random_distance(num_nodes, seed), num_nodes, 6, similarity=similarity)
    assert graphs.similarity.dense().diagonal().all()
    assert graphs.topology.dense().diagonal().all()
    assert graphs.laplacian_encoding.shape == (num_nodes, 6)


def test_build_graphs_passes_every_choice_on():
    links, distance = random_links(13, 20, seed=0), random_distance(13, seed=0)
    adjacency = adjacency_matrix(links, 13)
    graphs = build_graphs(links, distance, 13, 4, neighbours=2, hops=2)
    assert np.array_equal(graphs.similarity.dense(), dense(similarity_mask_nearest(distance, 2)))
    assert np.array_equal(graphs.topology.dense(), dense(adjacency) | np.eye(13, dtype=bool))
    assert np.array_equal(graphs.laplacian_encoding, laplacian_encoding(adjacency, 4))
    graphs = build_graphs(links, distance, 13, 4, similarity="gaussian", gaussian_threshold=0.7)
    assert np.array_equal(graphs.similarity.dense(), dense(similarity_mask_gaussian(distance, 0.7)))
    graphs = build_graphs(links, distance, 13, 4, similarity="released", encoding="released")
    assert np.array_equal(graphs.similarity.dense(), dense(released_similarity_mask(distance)))
    assert np.array_equal(graphs.laplacian_encoding, released_laplacian_encoding(adjacency, 4))


def test_build_graphs_refuses_what_the_model_cannot_use():
    links, distance = random_links(6, 5, seed=0), random_distance(6, seed=0)
    with pytest.raises(InputError, match=r"similarity rule: found 'nearst', .* \(did you mean 'nearest'\?\)"):
        build_graphs(links, distance, 6, 4, similarity="nearst")
    with pytest.raises(InputError, match="encoding rule: found 'symetric', expected one of symmetric, released"):
        build_graphs(links, distance, 6, 4, encoding="symetric")
    with pytest.raises(InputError, match=r"DTW distances: found shape \(6, 6\), expected \(7, 7\)"):
        build_graphs(links, distance, 7, 4)
    with pytest.raises(InputError, match="under the rule 'released': found no sensor that sensor 0 may attend to"):
        build_graphs(links, np.zeros((6, 6)), 6, 4, similarity="released")


def test_summary_counts_components_isolated_sensors_and_densities():
    links = Links(
        np.array([[0, 1], [1, 2], [4, 5]]), self_links=1, duplicates=3, reversed_duplicates=2, sensor_ids=None
    )
    graphs = build_graphs(links, random_distance(7, seed=0), 7, 4, neighbours=6)
    assert graphs.summary() == (
        "7 sensors (2 isolated), 3 links, components: 4; allowed by similarity 100.0%, by topology 30.6%; "
        "rows dropped: 1 self-links, 3 duplicates (2 of them reversed)"
    )
