"""What a layer sees of the input: against finite differences and known spreads, and as erf_conv.py draws it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from lib.data.graphs import Links, adjacency_matrix, graph_centre, hop_distances, hops_to_nearest
from lib.data.prepared import Prepared
from lib.data.windowing import Calendar, WindowShape, evenly_spaced
from lib.data.windows import Windows
from lib.errors import InputError
from lib.interface import Inputs, Sizes
from lib.report.receptive_field import (
    DECADES,
    ROWS_DRAWN,
    ReceptiveField,
    choose_nodes,
    input_share,
    layer_output,
    log_normalised,
    receptive_field,
    summary,
)
from lib.run_folder import RunFolder
from lib.runs import start_run
from tests.conftest import Call, DatasetMaker, dense_graphs, load, make_network

NODES, PATCH, TOKENS = 4, 2, 8  # an even number of tokens has its centre at M // 2, not at (M - 1) // 2
STARTS = np.array([30, 41, 50])
SHAPE = WindowShape(weeks=0, days=0, hours=TOKENS, horizon=1, points_per_hour=PATCH)


def roads(*sensors: int) -> csr_array:
    """Return the adjacency of roads along so many sensors each."""
    ends = np.cumsum(sensors) - 1
    first = np.setdiff1d(np.arange(sum(sensors)), ends)
    return adjacency_matrix(Links(np.stack([first, first + 1], axis=1), 0, 0, 0, None), sum(sensors))


PATH = roads(NODES)
PATH_HOPS = hop_distances(PATH)


def make_windows(unit: float = 1.0) -> Windows:
    flow = np.random.default_rng(0).uniform(10, 90, (60, NODES)).astype(np.float32) * np.float32(unit)
    bounds = np.array([10.0 * unit]), np.array([90.0 * unit])
    prepared = Prepared(flow, SHAPE.offsets, {"test": STARTS}, *bounds, made_from={})
    return Windows(prepared, 1, Calendar(24 * PATCH), torch.device("cpu"))


def field_of(model: nn.Module, layer: str, node: str = "center", **changes: object) -> ReceptiveField:
    nodes = choose_nodes(node, PATH)
    arguments = {"windows": make_windows(), "label_starts": STARTS, "batch_size": 2, **changes}
    return receptive_field(model, layer, nodes=nodes, hops=hops_to_nearest(PATH, nodes), **arguments)


class Stack(nn.Module):
    """Regular patches, convolutions of width 3 over tokens, then each sensor and its neighbours on the road summed."""

    first_step = 0

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH, 3)
        self.mix = nn.ModuleList(nn.Conv2d(3, 3, (1, 3), padding=(0, 1)) for _ in range(depth))
        self.spread = nn.Linear(NODES, NODES, bias=False)
        self.neighbours = nn.Identity()
        self.twice = nn.Identity()
        self.pair = Pair()
        self.unused = nn.Linear(3, 3)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.1, 1.0)
        with torch.no_grad():
            self.spread.weight *= torch.from_numpy(PATH_HOPS <= 1)

    def encode(self, inputs: Inputs) -> Tensor:
        x = self.embed(inputs.series.unflatten(-1, (-1, PATCH)))  # (B, N, M, 3)
        self.pair(self.twice(x))
        for convolution in self.mix:
            x = convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.twice(x)
        return self.neighbours(self.spread(x.transpose(1, 3)).transpose(1, 3))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.fixture
def network() -> nn.Module:
    """The full network with random weights everywhere, so that patches are read between steps."""
    torch.manual_seed(0)
    sizes = Sizes(steps_per_hour=PATCH, weeks=0, days=0, hours=TOKENS, horizon=1, channels=4, layers=1, heads=2)
    allowed = torch.from_numpy(PATH_HOPS <= 1)
    model = make_network("paper", dense_graphs(allowed, allowed, torch.randn(NODES, 2)), sizes, large_kernels=(5, 3))
    for name, tensor in model.named_parameters():
        nn.init.normal_(tensor, mean=float("norm.weight" in name), std=0.3)
    return model


@pytest.mark.parametrize("layer", ["front_end", "encoder.0.temporal", "encoder_norm"])
def test_equals_finite_differences_of_each_sample(network: nn.Module, layer: str) -> None:
    """In float64, moving each raw flow up and down, one sample after the other."""
    windows, step, node = make_windows(), 1e-3, 1
    field = field_of(network, layer, str(node))
    exact = network.double().eval()
    expected = np.zeros((NODES, TOKENS * PATCH))
    for start in STARTS:
        flow = windows.flow.double()[torch.from_numpy(start + SHAPE.offsets)].T  # (N, L)
        moves = step * torch.eye(flow.numel(), dtype=torch.float64).view(-1, *flow.shape)
        _, value, step_of_week, *_ = windows.batch(torch.tensor([start])).inputs
        others = value.expand(len(moves), -1), step_of_week.expand(len(moves))
        with torch.no_grad():
            above, below = (
                layer_output(exact, layer, Inputs(windows.scaling.to_scaled(moved), *others))[:, node, TOKENS // 2]
                for moved in (flow + moves, flow - moves)
            )
        expected += ((above - below).mean(1) / (2 * step)).abs().view(flow.shape).numpy()
    assert expected.max() > 1e-4
    np.testing.assert_allclose(field.contribution, expected, rtol=2e-3, atol=1e-4 * expected.max())


def test_batch_size_has_no_influence(network: nn.Module) -> None:
    one, all_at_once = (field_of(network, "encoder_norm", batch_size=size).contribution for size in (1, 3))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-4, atol=1e-5 * one.max())


def test_patch_embedding_sees_its_own_patch_with_its_own_weights() -> None:
    model = Stack(depth=0)
    field = field_of(model, "embed", "2")
    expected = np.zeros((NODES, TOKENS, PATCH))
    expected[2, TOKENS // 2] = len(STARTS) * model.embed.weight.mean(0).abs().detach() / 40  # 40 vehicles a scaled unit
    np.testing.assert_allclose(field.contribution, expected.reshape(NODES, -1), rtol=1e-6)
    assert not field.sees_others
    assert field.rows.shape == (1, TOKENS * PATCH)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stacked_convolutions_see_one_more_patch_each(depth: int) -> None:
    field = field_of(Stack(depth), "twice", "1")
    seen = np.abs(np.arange(TOKENS) - TOKENS // 2) <= depth
    np.testing.assert_array_equal(field.contribution[1] > 0, seen.repeat(PATCH))
    assert not np.delete(field.contribution, 1, axis=0).any()


def test_neighbours_are_seen_and_drawn_by_distance() -> None:
    field = field_of(Stack(0), "neighbours", "2")
    np.testing.assert_array_equal(field.contribution.any(axis=1), PATH_HOPS[2] <= 1)
    np.testing.assert_array_equal(field.sensors, [2, 1, 3, 0])
    np.testing.assert_array_equal(field.rows, field.contribution[[2, 1, 3, 0]])
    np.testing.assert_array_equal(field.inputs, field.contribution)


def test_all_nodes_give_the_mean_of_each_where_sensors_are_apart(network: nn.Module) -> None:
    together = field_of(network, "front_end", "all")
    each = [field_of(network, "front_end", str(node)).rows[0] for node in range(NODES)]
    np.testing.assert_allclose(together.rows, np.mean(each, axis=0)[None], rtol=1e-4)
    assert "the mean of all 4 sensors" in summary(together, [name for name, _ in SHAPE.segments])


def test_contributions_are_per_raw_flow(network: nn.Module) -> None:
    """The same traffic counted in tenths of a vehicle: the same scaled input, a tenth of the effect of each count."""
    counted, tenths = (field_of(network, "encoder_norm", windows=make_windows(unit)).contribution for unit in (1, 10))
    np.testing.assert_allclose(tenths, counted / 10, rtol=1e-3, atol=1e-6 * counted.max())


def test_a_gradient_cut_off_leaves_nothing(network: nn.Module) -> None:
    network.embed_series = lambda inputs: network.front_end(inputs.series).detach()  # type: ignore[assignment]
    field = field_of(network, "encoder_norm")
    assert not field.contribution.any()
    assert "no gradient reaches the input" in summary(field, [name for name, _ in SHAPE.segments])
    assert field_of(network, "front_end").contribution.any()


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.5, 0.99])
def test_input_share_of_known_spreads(threshold: float) -> None:
    assert input_share(np.full((10, 10), 0.1), threshold) == pytest.approx(threshold)
    one = np.zeros((5, 8))
    one[3, 2] = 7.0
    assert input_share(one, threshold) == 1 / 40
    halves = 0.5 ** np.arange(1.0, 51)  # the first k hold 1 - 2^-k
    assert input_share(halves[::-1], threshold) == np.ceil(-np.log2(1 - threshold)) / 50


def test_log_normalised_spans_its_decades() -> None:
    largest = 42.0
    powers = largest * 10.0 ** -np.array([0, 1, DECADES, DECADES + 2])
    np.testing.assert_allclose(log_normalised(powers), [1, 1 - 1 / DECADES, 0, 0], atol=1e-12)
    assert np.isnan(log_normalised(np.array([0.0, 1.0]))[0])


def test_centre_of_the_largest_component() -> None:
    assert graph_centre(PATH) == 1  # of 1 and 2
    assert graph_centre(roads(3, 5)) == 5
    assert graph_centre(roads(3)) == 1
    assert graph_centre(roads(1, 1, 1, 1)) == 0  # no links at all


def test_rows_are_limited_and_without_road_come_last() -> None:
    count = ROWS_DRAWN + 5
    hops = np.arange(count, dtype=float)[::-1]
    hops[-2] = np.inf
    field = ReceptiveField("x", np.ones((count, 4)), np.array([count - 1]), hops, 1, 2, 0, STARTS)
    np.testing.assert_array_equal(field.sensors, [count - 1, *range(count - 3, count - 2 - ROWS_DRAWN, -1)])
    assert "no road 2.9%, the 30 sensors drawn 85.7%" in summary(field, ["hour -2", "hour -1"])


@pytest.mark.parametrize("choice", ["4", "-1", "centre", "", "1.5", "²"])
def test_wrong_nodes_are_refused(choice: str) -> None:
    with pytest.raises(InputError, match=r"--node: found .*, expected center, all or a position 0\.\.3"):
        choose_nodes(choice, PATH)


def test_samples_are_spread_from_first_to_last() -> None:
    starts = np.arange(100, 201)
    np.testing.assert_array_equal(evenly_spaced(starts, 5), [100, 125, 150, 175, 200])
    np.testing.assert_array_equal(evenly_spaced(starts, 500), starts)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("embd", "--layer: found no module 'embd', expected the dotted name of one, the nearest: embed, "),
        ("", "--layer: found no module ''"),
        ("unused", "--layer unused: found a module that encoding does not run"),
        ("mix", "--layer mix: found a module that encoding does not run"),
        ("mix.0", r"output of shape \(2, 3, 4, 8\), expected one with a node and a token axis: \(2, 4, 8, channels\)"),
        ("pair", "--layer pair: found an output of type tuple"),
    ],
)
def test_wrong_layers_are_told(layer: str, message: str) -> None:
    model = Stack(depth=1)
    with pytest.raises(InputError, match=message):
        field_of(model, layer)
    assert not any(module._forward_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------- the script


def trained_run(make_dataset: DatasetMaker, root: Path, variant: str = "paper") -> RunFolder:
    settings = [f"Model.variant={variant}", "Model.large_kernels=5 3", "Training.max_batches=1", "Runtime.device=cpu"]
    config = load(make_dataset(fine_tune_epochs=0), settings)
    run = start_run(config, root / "runs", "trained")
    run.trainer.fit()
    return run.folder


def files_in(folder: RunFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


def outputs_of(layer: str) -> set[str]:
    return {f"erf_{layer}.npz", f"figures/erf_{layer}.png", f"figures/erf_{layer}.pdf"}


def test_script_writes_both_pictures(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_run(make_dataset, tmp_path)
    before = files_in(folder)
    assert call("erf_conv.py", "--run", folder, "--samples", 6, "--device", "cpu") == 0
    assert files_in(folder) - before == outputs_of("front_end") | outputs_of("encoder.0")
    printed = capsys.readouterr().out
    assert "front_end: token 1 of 0..2 at sensor 2, 6 test samples" in printed
    for layer, sensors in (("front_end", [2]), ("encoder.0", [2, 1, 3, 0, 4])):
        assert (folder.figures / f"erf_{layer}.png").read_bytes().startswith(b"\x89PNG")
        saved = np.load(folder.receptive_field(layer), allow_pickle=False)
        np.testing.assert_array_equal(saved["sensors"], sensors)
        np.testing.assert_array_equal(saved["hops"], [2, 1, 0, 1, 2])
        np.testing.assert_array_equal(saved["offsets"], [-48, -47, -4, -3, -2, -1])
        assert saved["contribution"].shape == (5, 6)
        assert len(saved["label_starts"]) == 6
        assert saved["log_normalised"].shape == (len(sensors), 6)
        assert np.nanmax(saved["log_normalised"]) == 1
        assert f"{saved['input_shares'][-1]:.1%}" in printed

    # A dotted name, all sensors, and again over the files of an earlier call.
    for node in ("all", "0"):
        layer = "encoder.0.temporal"
        assert call("erf_conv.py", "--run", folder, "--samples", 2, "--node", node, "--layer", layer) == 0
        saved = np.load(folder.receptive_field(layer), allow_pickle=False)
        assert len(saved["nodes"]) == {"all": 5, "0": 1}[node]
    assert outputs_of("encoder.0.temporal") <= files_in(folder)


def test_script_refuses_a_wrong_layer_and_writes_nothing(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_run(make_dataset, tmp_path)
    before = files_in(folder)
    for layer, words in (("frontend", "the nearest: front_end"), ("decoder.0", "that encoding does not run")):
        assert call("erf_conv.py", "--run", folder, "--layer", layer) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert files_in(folder) == before


def test_script_says_that_the_released_variant_cuts_the_encoder_off(
    make_dataset: DatasetMaker, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_run(make_dataset, tmp_path, "released")
    before = files_in(folder)
    assert call("erf_conv.py", "--run", folder, "--samples", 2) == 0
    assert files_in(folder) - before == outputs_of("front_end")
    assert "no gradient reaches the input" in capsys.readouterr().out
