"""The plain references compute what the project computes, and a benchmark leaves its files. No test asserts a time."""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import run
from benchmarks.counts import work_by_part
from benchmarks.groups import GROUPS, Settings, windows_difference
from benchmarks.limits import CLASSES, large_copy, large_product, operator_seconds, shares_by_class, work
from benchmarks.measure import checked, figure, largest_difference, times
from benchmarks.memory import peak_memory
from benchmarks.plain_dtw import dtw_distance
from benchmarks.plain_model import PlainDTGLKNet, gradients_as_plain
from benchmarks.plain_windows import prepare_windows, save_windows
from benchmarks.report import cost_against_sensors, markdown
from benchmarks.workloads import (
    KINDS,
    OWN_NAMES,
    Kind,
    NetworkSizes,
    Shape,
    Workload,
    loss_of,
    simulated_workload,
    step,
    synthetic_network,
    synthetic_series,
)
from lib.data.dtw import dtw_matrix
from lib.data.prepared import prepare
from lib.data.windowing import WindowShape
from lib.data.windows import Batch
from lib.errors import InputError
from lib.files import load_json, load_npz
from lib.interface import Inputs, Sizes
from model.dtg_lknet import DTGLKNet, PaperSettings

WINDOWS = WindowShape(weeks=0, days=1, hours=3, horizon=4, points_per_hour=4)
SIZES = NetworkSizes(layers=1, channels=8, heads=2, large_kernels=(5, 9))
SHAPE = Shape("TINY", sensors=9, rows=150, features=3, windows=WINDOWS, batch=2, compared_batch=1)
CPU = torch.device("cpu")


def random_network(tokens: int = 4, dropout: float = 0.0, **settings: bool) -> DTGLKNet:
    """Return a network of 9 sensors in float64 with all weights drawn, also those that start at zero."""
    sizes = Sizes(
        steps_per_hour=4, weeks=0, days=0, hours=tokens, horizon=4, channels=8, layers=2, heads=2, dropout=dropout
    )
    graphs = synthetic_network(9, 8, 3).tensors()
    network = DTGLKNet(graphs, sizes, PaperSettings(large_kernels=(3, 15, 55), **settings)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def random_inputs(network: DTGLKNet, batch: int = 3) -> tuple[Inputs, Inputs, Tensor]:
    """Draw inputs for teacher forcing, the same for a forecast on its own, and a target."""
    sensors, steps = len(network.laplacian_encoding), network.front_end.patches.input_steps
    series = torch.randn(batch, sensors, steps, dtype=torch.float64)
    teacher, target = torch.randn(2, batch, sensors, network.horizon, dtype=torch.float64)
    alone = Inputs(series, teacher[:, :, 0], torch.zeros(batch, dtype=torch.int64))
    return alone._replace(teacher=teacher), alone, target


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


@pytest.mark.parametrize("tokens", [4, 3])  # as many as the horizon has steps, and another number
@pytest.mark.parametrize("training", [False, True])
def test_both_networks_forecast_the_same(tokens: int, training: bool) -> None:
    network = random_network(tokens).train(training)
    plain = PlainDTGLKNet(network)
    with torch.no_grad():
        for inputs in random_inputs(network)[:2]:
            torch.testing.assert_close(network(inputs), plain(inputs), rtol=1e-9, atol=1e-9)
    fast_statistics, statistics = (
        [buffer for name, buffer in module.named_buffers() if "running" in name] for module in (network, plain)
    )
    assert len(statistics) == 2 * 2 * len(network.front_end.blocks)
    torch.testing.assert_close(fast_statistics, statistics, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("through_rollout", [False, True])
def test_both_networks_have_the_same_gradients(through_rollout: bool) -> None:
    network = random_network().train()
    plain = PlainDTGLKNet(network)
    with_teacher, alone, target = random_inputs(network)
    for model in (network, plain):
        F.l1_loss(model(alone if through_rollout else with_teacher), target).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    gradients = gradients_as_plain(network)
    assert gradients.keys() == expected.keys()
    assert sum(map(torch.numel, gradients.values())) == sum(map(torch.numel, network.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-11)


def test_the_plain_network_has_weights_of_its_own() -> None:
    network = random_network().eval()
    plain = PlainDTGLKNet(network)
    inputs, *_ = random_inputs(network)
    with torch.no_grad():
        before = plain(inputs)
        for parameter in network.parameters():
            parameter.zero_()
        torch.testing.assert_close(plain(inputs), before)


def test_a_network_of_another_kind_has_no_plain_one() -> None:
    for part in ("deformable_patches", "large_branch", "small_branch", "laplacian_encoding", "time_gate"):
        with pytest.raises(ValueError, match="found"):
            PlainDTGLKNet(random_network(**{part: False}))
    with pytest.raises(ValueError, match="without dropout"):
        PlainDTGLKNet(random_network(dropout=0.1))


@pytest.mark.parametrize("windows", [WINDOWS, replace(WINDOWS, weeks=1, horizon=7), replace(WINDOWS, days=0)])
def test_materialised_windows_are_those_by_index(windows: WindowShape) -> None:
    reach = -int(windows.offsets.min())
    series = synthetic_series(reach + windows.horizon + 20, 5, 2, 24 * windows.points_per_hour, seed=4)
    assert windows_difference(series, windows) < 1e-6


def test_materialised_windows_have_the_same_scaling_and_are_saved(tmp_path: Path) -> None:
    series = synthetic_series(150, 5, 3, 96, seed=5)
    windows, prepared = prepare_windows(series, WINDOWS), prepare(series, WINDOWS, {})
    np.testing.assert_array_equal(windows["maximum"].ravel(), prepared.maximum)
    np.testing.assert_array_equal(windows["minimum"].ravel(), prepared.minimum)
    save_windows(tmp_path / "windows.npz", windows)
    saved = load_npz(tmp_path / "windows.npz", tuple(windows))
    for name, array in windows.items():
        np.testing.assert_array_equal(saved[name], array)


def test_textbook_dtw_is_that_of_the_library() -> None:
    profiles = np.random.default_rng(0).normal(size=(4, 30))
    matrix = dtw_matrix(profiles, show_progress=False)
    expected = [[dtw_distance(first.tolist(), second.tolist()) for second in profiles] for first in profiles]
    np.testing.assert_allclose(matrix, expected, rtol=1e-5)
    assert dtw_distance([0.0, 1.0, 5.0], [0.0, 0.0, 1.0, 3.0]) == 2.0


def test_a_simulated_network_is_like_a_road_network() -> None:
    graphs = synthetic_network(307, 16, 1)
    pairs = graphs.links.pairs
    assert len(np.unique(pairs, axis=0)) == len(pairs) == round(1.1 * 307)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert "components: 1;" in graphs.summary()
    assert 0.01 < graphs.topology.density < 0.1
    assert graphs.similarity.counts.min() - 1 >= 10  # itself and the most similar ones


def test_differences_are_relative_to_their_scale() -> None:
    plain = {"large": torch.tensor([100.0, -200.0]), "tiny": torch.tensor([1e-9])}
    assert largest_difference(plain, plain) == 0
    assert largest_difference({**plain, "large": torch.tensor([101.0, -200.0])}, plain) == pytest.approx(0.005)
    assert largest_difference({**plain, "tiny": torch.tensor([3e-9])}, plain) < 1e-8  # noise beside the other
    assert checked("", 1e-5, 1e-4) == 1e-5
    for difference in (1e-3, float("nan")):
        with pytest.raises(AssertionError, match="differ by"):
            checked("a step", difference, 1e-4)


def test_what_is_compared_takes_turns() -> None:
    calls: list[str] = []
    measured = times({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, repeats=3, seconds=60)
    assert calls == list("abbaab")
    assert {name: median.repeats for name, median in measured.items()} == {"a": 3, "b": 3}
    assert times({"a": lambda: None}, CPU, repeats=5, seconds=-1)["a"].repeats == 2
    assert figure([3.0, 1.0, 2.0, 10.0, 2.0]).median == 2.0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be told apart from the parent's")
def test_peak_memory_is_that_of_the_step_alone() -> None:
    workload = simulated_workload(9, 1, WINDOWS, SIZES, CPU)
    ballast = np.ones(2**25)  # 256 MiB, which ru_maxrss of a child begins with
    assert 0 <= peak_memory("training step", "plain", workload) < ballast.nbytes // 4


def test_operations_of_products_are_counted() -> None:
    first, second = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    assert work(lambda: first @ second).operations == 2 * 5 * 7 * 3
    assert work(lambda: (first @ second).sum().backward()).operations == 3 * 2 * 5 * 7 * 3
    assert work(large_product(16, CPU)).operations == 2 * 16**3
    # Attention as one operator, which the CPU has its own for: two products forward; again the scores, and four, back.
    query, key, value = torch.randn(3, 2, 4, 9, 8, requires_grad=True)
    attended = 2 * 4 * 2 * 9 * 9 * 8
    assert work(lambda: F.scaled_dot_product_attention(query, key, value)).operations == 2 * attended
    both = work(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert both.operations == (2 + 5) * attended


@pytest.mark.parametrize(
    ("floats", "function"),
    [
        (3, lambda x, y: x + y),
        (3, lambda x, y: x.add_(y)),
        (2, lambda x, y: x.copy_(y)),
        (3, lambda x, y: torch.add(x, y, out=torch.empty_like(x))),
        (1, lambda x, _: x.zero_()),
        (1, lambda x, _: torch.zeros_like(x)),
        (2, lambda x, _: x.clone()),
        (4, lambda x, y: torch._foreach_mul_([x, y], 2.0)),
        (4, lambda x, y: torch.cat([x, y])),
        (0, lambda x, _: torch.empty_like(x)),
        (0, lambda x, y: (x.view(4, 6).t()[1:].unflatten(1, (2, 2)).detach(), y.expand(9, 24), y.contiguous())),
        (3, lambda x, y: x.expand(1, 24) * y),
        (1 + 1 / 24 + 1, lambda x, y: x * y[:1].expand(24)),
    ],
)
def test_traffic_is_what_operators_read_and_write(floats: float, function: Callable[[Tensor, Tensor], object]) -> None:
    first, second = torch.randn(2, 24)
    assert work(lambda: function(first, second)).traffic == round(floats * 24 * 4)


def test_traffic_of_a_copy_and_a_product() -> None:
    assert work(large_copy(100, CPU)).traffic == 2 * 100 * 4
    first, second = torch.randn(5, 7), torch.randn(7, 3)
    assert work(lambda: first @ second).traffic == 4 * (5 * 7 + 7 * 3 + 5 * 3)


def test_time_is_shared_among_classes_of_operators() -> None:
    shares = shares_by_class({"addmm": 1, "mm": 2, "bmm": 1, "copy_": 3, "gelu": 1, "add": 1, "unheard of": 1})
    assert shares == dict(zip(CLASSES, (30, 10, 30, 10, 20), strict=True))
    x = torch.randn(64, 64)
    seconds = operator_seconds(lambda: torch.softmax(x @ x, dim=1), CPU)
    assert seconds.keys() >= {"mm", "_softmax"}
    shares = shares_by_class(seconds)
    assert sum(shares.values()) == pytest.approx(100)
    assert shares["matrix products"] > 0
    assert shares["softmax, norms, activations"] > 0
    assert shares["batched products"] == 0


class Line(nn.Module):
    """A linear map and a ReLU over series of three steps."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        sizes = (3, *hidden, 2)
        self.linear = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))

    def forward(self, inputs: Inputs) -> Tensor:
        return torch.relu(self.linear(inputs.series))


def test_calls_and_traffic_of_a_known_network_are_those_by_hand() -> None:
    series, target = torch.randn(4, 5, 3), torch.randn(4, 5, 2)  # 60 and 40 numbers; 6 weights and 2 biases
    batch = Batch(Inputs(series, series[:, :, 0], torch.zeros(4, dtype=torch.int64)), target, flow=target)
    forward, backward, optimizer = work_by_part("fine-tuning step", Line(), batch).values()
    product, relu, difference, absolute, mean = 60 + 6 + 2 + 40, 80, 120, 80, 41
    assert forward == (2 * 20 * 3 * 2, 4 * (product + relu + difference + absolute + mean), 5)
    one, division, sign, times_sign, of_relu, of_weights, of_bias = 1, 41, 80, 120, 120, 60 + 40 + 6, 42
    sums = one + division + sign + times_sign + of_relu + of_weights + of_bias
    assert backward == (2 * 20 * 3 * 2, 4 * sums, 7)
    *_, of_deeper = work_by_part("fine-tuning step", Line(4, 5, 6), batch).values()
    assert optimizer.calls == of_deeper.calls <= 10  # of lists of tensors, however many there are
    # AdamW alone reads weights, gradients and two moments, and writes all but the gradients.
    assert 4 * (4 + 3) * 8 < optimizer.traffic < of_deeper.traffic


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_on_meta_is_what_runs(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTG_LKNET_KERNELS", "off")  # tests/test_fused.py counts those
    workload = simulated_workload(9, 2, WINDOWS, SIZES, CPU)
    network, batch = workload.network(), workload.batch()
    counted = work_by_part(kind, network, batch)["forward"]
    function = step(kind, network, batch) if kind == "forecast" else lambda: loss_of(kind, network.train(), batch)
    assert counted == pytest.approx(work(function), rel=0.01)  # the CPU has other forms of a few


@pytest.mark.parametrize("kind", KINDS[:2])
def test_gradient_checkpointing_computes_more(kind: Kind) -> None:
    workload = simulated_workload(9, 1, WINDOWS, SIZES, CPU)
    fast, checkpointed = (work(step(kind, workload.network(name), workload.batch())) for name in OWN_NAMES)
    assert fast.operations < checkpointed.operations < 2 * fast.operations


def tiny_settings() -> Settings:
    return Settings(
        CPU,
        repeats=2,
        shapes=(SHAPE,),
        evaluated=SHAPE,
        evaluation_batch=3,
        full=True,
        sizes=SIZES,
        growing_sensors=(8, 12),
        growing_sizes=SIZES,
        growing_batches=(1, 2),
        counted_batches=(2,),
        large_sensors=(7, 10, 13),
        memory_limit=1.45e5,
        plain_samples=20,
        plain_pairs=2,
        product_size=16,
        copied=1000,
    )


def test_a_benchmark_leaves_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_peaks = []

    def fake_peak(kind: Kind, name: str, workload: Workload) -> int:
        measured_peaks.append((kind, name, workload.series.shape, workload.sizes))
        return 2**20 * workload.series.numel()

    predicted = []
    monkeypatch.setattr("benchmarks.groups.peak_memory", fake_peak)
    monkeypatch.setattr("benchmarks.report.LEAST_GROWN", 7)
    monkeypatch.setattr("gc.collect", lambda: 0)  # which takes longer than a tiny step
    monkeypatch.setattr("benchmarks.groups.run_python", predicted.append)  # a process takes seconds to load PyTorch
    run.measure(tiny_settings(), GROUPS, tmp_path, "machine")
    groups = load_json(tmp_path / "machine.json")["groups"]
    assert groups.keys() == GROUPS.keys()
    for name, group in groups.items():
        assert group["complete"]
        assert {"started", "git_commit", "command", "hardware", "packages"} <= group.keys()
        for row in group["comparisons"] if name != "limits" else ():
            assert row["fast"]["lower_quartile"] <= row["fast"]["median"] <= row["fast"]["upper_quartile"]
            assert (row["ratio"] is None) == (row["plain"] is None)
            if row["plain"] is not None:
                assert row["ratio"] == row["plain"]["median"] / row["fast"]["median"]
            elif name != "large" and row["batch"] == SHAPE.compared_batch:
                assert "the limit is" in row["note"]
    compared = {
        name: [row["plain"] is not None for row in groups[name]["comparisons"]] for name in ("training", "batch")
    }
    assert compared == {"training": [True, True, False], "batch": [True, False]}  # with checkpointing, a larger batch
    assert not any(row["plain"] for row in groups["fine-tuning"]["comparisons"])  # beyond the limit of memory
    evaluated = groups["evaluation"]["comparisons"]
    assert [row["extrapolated"] for row in evaluated] == [["fast", "plain"], ["plain"]]
    assert [(row["what"], row["batch"], row["plain"] is not None) for row in groups["memory"]["comparisons"]] == [
        ("memory of a training step, 1 layer", 1, True),
        ("memory of a training step, gradient checkpointing, 1 layer", 1, True),
        ("memory of a fine-tuning step, 1 layer", 1, False),
        ("memory of a fine-tuning step, gradient checkpointing, 1 layer", 1, False),
        ("memory of a forecast, 1 layer", 1, True),
        ("memory of a training step, 1 layer", 2, False),
        ("memory of a training step, gradient checkpointing, 1 layer", 2, False),
        ("memory of a fine-tuning step, 1 layer", 2, False),
        ("memory of a fine-tuning step, gradient checkpointing, 1 layer", 2, False),
    ]
    assert len(set(measured_peaks)) == len(measured_peaks)  # the plain network's too, once for both rows beside it

    assert [command[0] for command in predicted] == ["predict.py", "-c", "predict.py", "-c", "-c", "predict.py"]
    limits = groups["limits"]["limits"]
    assert [row["what"] for row in limits] == [f"{kind}, 1 layer" for kind in KINDS]
    for row in limits:
        assert row["operations"] > 0
        assert row["traffic"] > 0
        for name in ("operations", "traffic"):
            rate = {"operations": "operation_rate", "traffic": "traffic_rate"}[name]
            assert row["least_seconds"][name] == row[name] / row[rate]
            assert row["reached"][name] == row["least_seconds"][name] / row["time"]["median"]
        assert tuple(row["shares"]) == CLASSES
        assert sum(row["shares"].values()) == pytest.approx(100)
    counted = groups["counts"]["comparisons"]
    assert [row["unit"] for row in counted] == ["calls", "bytes"] * len(KINDS)
    assert all(row["fast"]["median"] > 0 and row["plain"] and row["note"] for row in counted)
    training, fine_tuning, forecast = (row["operations"] for row in limits)
    assert forecast < training < 3.1 * forecast  # a forward pass, and two more for the gradients
    assert fine_tuning > forecast

    text = (tmp_path / "machine.md").read_text(encoding="utf-8")
    assert text == markdown(groups)
    assert all(f"## {name}\n" in text for name in GROUPS)
    grown = text.split("## large\n")[1].split("Exponents b of a N^b, fitted from N = 7 on: ")[1].split("\n")[0]
    linear = {"memory of a training step, paper 1.00", "memory of a forecast, residual MLP 1.00"}
    assert linear <= set(grown[:-1].split("; "))
    of_limits = text.split("## limits\n")[1].split("\n## ")[0].strip()
    rates, operators = (table.splitlines() for table in of_limits.split("\n\n")[1:])
    assert len(rates) == len(operators) == 2 + len(KINDS)
    assert f"{limits[0]['operations'] / 1e6:.3g} Mflop" in rates[2]
    assert [cell.strip() for cell in operators[0].split("|")[5:-1]] == ["in operators", *CLASSES]
    assert [cell.strip() for cell in operators[2].split("|")[6:-1]] == [
        f"{share:.1f}%" for share in limits[0]["shares"].values()
    ]
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"machine_cost_against_n.{suffix}").stat().st_size > 1000

    # One group alone is measured again, and the others stay as they are.
    run.measure(replace(tiny_settings(), growing_batches=(1,)), ["batch"], tmp_path, "machine")
    again = load_json(tmp_path / "machine.json")["groups"]
    assert len(again["batch"]["comparisons"]) == 1
    assert {name: group for name, group in again.items() if name != "batch"} == {
        name: group for name, group in groups.items() if name != "batch"
    }


def test_a_group_that_is_broken_off_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> object:
        yield next(iter(GROUPS["batch"](settings)))
        raise KeyboardInterrupt

    monkeypatch.setitem(run.GROUPS, "training", broken)
    with pytest.raises(KeyboardInterrupt):
        run.measure(tiny_settings(), ["training"], tmp_path, "machine")
    group = load_json(tmp_path / "machine.json")["groups"]["training"]
    assert not group["complete"]
    assert len(group["comparisons"]) == 1


def test_the_exponent_of_the_cost_is_fitted() -> None:
    def row(sensors: int, unit: str) -> dict[str, object]:
        return {
            "unit": unit,
            "sensors": sensors,
            "fast": {"median": 3.0 * sensors},
            "plain": {"median": 0.1 * sensors**2} if sensors < 800 else None,
        }

    drawing = cost_against_sensors([row(sensors, unit) for sensors in (100, 200, 400, 800) for unit in ("s", "bytes")])
    for axes in drawing.axes:
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["this project, N^1.00", "plain reference, N^2.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "trainig"], "--only: invalid choice: 'trainig'"),
        (["--repeats", "0"], "--repeats: found 0, expected an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(InputError, match=message):
        run.main()
