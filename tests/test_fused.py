"""Kernels against PyTorch's own operators: those for GPUs on CUDA, elsewhere in Triton's interpreter, and the CPU's."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.counts import work_by_part
from benchmarks.limits import work
from benchmarks.workloads import KINDS, SHIPPED_WINDOWS, Kind, NetworkSizes, loss_of, simulated_workload, step
from lib.compiled import compiled
from lib.interface import Inputs, Neighbours, Sizes
from lib.precision import recompute_in_backward
from model import cpu_kernels, fused
from model.attention import CrossAttention, SpatialAttention, TemporalAttention, TemporalCache, TimeGatedConvolution
from model.attention_blocks import AttentionBlocks
from model.encoder import EncoderLayer
from model.large_kernels import LargeKernelBlock
from tests.conftest import dense_graphs, make_network

if torch.cuda.is_available() and not fused.triton_compiles():
    pytest.skip("Triton finds no C compiler or no Python.h here", allow_module_level=True)
pytestmark = pytest.mark.cuda  # beside the interpreter: `make gpu` runs them on a GPU
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
B, N, M, C, HEADS = 2, 4, 3, 12, 3  # heads and tokens fill no tile
RATE = 0.4
TOLERANCE = 2e-5  # of the norm of a tensor
NEAR_ZERO = 1e-2  # of the largest norm: smaller tensors are measured against this much of it


@pytest.fixture(params=["triton", "cpu"])
def choose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Give a function that says whether modules use the kernels: Triton's, and then those compiled for the CPU."""
    library = cpu_kernels.library
    if request.param == "triton" and find_spec("triton") is None:
        pytest.skip("needs Triton")
    if request.param == "cpu" and (DEVICE.type != "cpu" or library(torch.float32) is None):
        pytest.skip("needs a C++ compiler, and tensors on the CPU")

    def select(chosen: bool) -> None:
        triton, cpu = (chosen and request.param == kind for kind in ("triton", "cpu"))
        monkeypatch.setattr(fused, "runs_kernels", lambda _device: triton)
        monkeypatch.setattr(cpu_kernels, "library", library if cpu else lambda _precision: None)

    select(True)
    return select


triton_alone = pytest.mark.parametrize("choose", ["triton"], indirect=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def graph() -> AttentionBlocks:
    """Return a graph that is not symmetric: the first sensor sees three, and the last is seen by nobody but itself."""
    allowed = torch.eye(N, dtype=torch.bool)
    allowed[0, 1:3] = allowed[2, 0] = allowed[3, 1] = True
    return AttentionBlocks(Neighbours.of(allowed)).to(DEVICE)


def with_gradients(function: Callable[..., object], inputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Return what a function makes of inputs, and the gradients of a sum of its squares, to inputs and parameters.

    With squares a value that rounding takes past the kink of a ReLU hardly changes them.
    """
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    made = function(*inputs)
    results = [made] if isinstance(made, Tensor) else list(made)
    total = sum((draw(*y.shape, seed=7) * y.float().square()).sum() for y in results)
    gradients = torch.autograd.grad(total, [*inputs, *parameters], allow_unused=True)
    return [y.detach() for y in results] + [g for g in gradients if g is not None]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    norms = [other.float().norm().item() for other in expected]
    for one, other, norm in zip(found, expected, norms, strict=True):
        assert one.shape == other.shape
        assert (one.float() - other.float()).norm().item() <= tolerance * max(norm, NEAR_ZERO * max(norms))


def rolled_out(attention: TemporalAttention) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        cache = TemporalCache(tokens=x.shape[2])
        return torch.cat([attention.step(x[:, :, m : m + 1], m, cache) for m in range(x.shape[2])], dim=2)

    return run


def gated(gate: TimeGatedConvolution) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the gate over two of three tokens, which reads a part of the memory's."""
    return lambda x, memory: gate(x[:, :, :2], gate.read(memory))


def rows_of(x: Tensor) -> Tensor:
    """Return a tensor of more sensors and tokens, (B, 20, 17, 32), all of them different."""
    return draw(B, 20, 17, 32, seed=5) * x.mean(dim=(1, 2, 3), keepdim=True)


# Per name: the module, what calls it, and how many inputs (B, N, M, C) it has.
CASES: dict[str, Callable[[], tuple[nn.Module, Callable[..., object], int]]] = {
    "tokens": lambda: (layer := TemporalAttention(C, HEADS, 3, 0.0, causal=False), layer, 1),
    "causal": lambda: (layer := TemporalAttention(C, HEADS, 3, 0.0, causal=True), layer, 1),
    "one step after the other": lambda: (
        layer := TemporalAttention(C, HEADS, 3, 0.0, causal=True),
        rolled_out(layer),
        1,
    ),
    "sensors": lambda: (layer := SpatialAttention(C, HEADS, 0.0), lambda x: layer(x, graph()), 1),
    "voice": lambda: (
        layer := SpatialAttention(C, HEADS, 0.0),
        # Of the second sample nobody whom the last two sensors see has a voice.
        lambda x: layer(x, graph(), torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]], device=DEVICE)),
        1,
    ),
    "wide heads": lambda: (layer := SpatialAttention(96, 4, 0.0), lambda x: layer(x.repeat(1, 1, 6, 8), graph()), 1),
    "many tokens": lambda: (layer := TemporalAttention(32, 4, 5, 0.0, True), lambda x: layer(rows_of(x)), 1),
    "gate": lambda: (layer := TimeGatedConvolution(C, 3, M), gated(layer), 2),
    "cross-attention": lambda: (layer := CrossAttention(C, HEADS, M, 0.0), lambda x, y: layer(x, layer.read(y)), 2),
    "norm of a sum": lambda: (layer := nn.LayerNorm(C), lambda x, y: fused.add_norm(x, y, layer), 2),
    "norm alone": lambda: (layer := nn.LayerNorm(C), lambda x, y: fused.add_norm(x, y, layer)[1], 2),
    "large kernels": lambda: (layer := LargeKernelBlock(C, 5), layer, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_modules_compute_the_same_with_kernels(name: str, choose: Callable[[bool], None]) -> None:
    """In float32 they are equal, and in bfloat16 about as far from that as PyTorch's operators in bfloat16 are."""
    torch.manual_seed(1)
    module, call, count = CASES[name]()
    module.to(DEVICE)
    inputs = [draw(B, N, M, C, seed=number) for number in range(count)]
    results = {}
    for chosen in (True, False):
        choose(chosen)
        for lower in (True, False):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=lower):
                results[chosen, lower] = with_gradients(call, inputs, list(module.parameters()))
    exact = results[False, False]
    assert_same(results[True, False], exact, TOLERANCE)
    least = NEAR_ZERO * max(y.norm().item() for y in exact)
    for with_kernels, without, y in zip(results[True, True], results[False, True], exact, strict=True):
        far, usual = ((z.float() - y).norm().item() for z in (with_kernels, without))
        assert far <= 2 * usual + 0.01 * max(least, y.norm().item())


# ----------------------------------------------------------------------------------------------------- dropout


def kept(seed: int, query: object, key: object, problem: object) -> NDArray[np.float32]:
    """Return the factors of dropout, by Philox 4x32-10 (Salmon et al., 2011, "as easy as 1, 2, 3") in NumPy."""
    low = np.uint64(0xFFFFFFFF)
    words = [np.asarray(x, dtype=np.uint64) for x in (query, key, problem, 0)]
    words = list(np.broadcast_arrays(*words))
    keys = [np.uint64(seed) & low, np.uint64(seed) >> np.uint64(32)]
    for _ in range(10):
        first, third = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        words = [
            (third >> np.uint64(32)) ^ words[1] ^ keys[0],
            third & low,
            (first >> np.uint64(32)) ^ words[3] ^ keys[1],
            first & low,
        ]
        keys = [(keys[0] + np.uint64(0x9E3779B9)) & low, (keys[1] + np.uint64(0xBB67AE85)) & low]
    uniform = (words[0] >> np.uint64(8)).astype(np.float32) / 2**24
    return np.where(uniform >= np.float32(RATE), 1 / (1 - RATE), 0).astype(np.float32)


def formula(packed: Tensor, allowed: Tensor, factors: Tensor, voice: Tensor | None = None) -> Tensor:
    """Attention as papers have it, of packed (problems, items, 3, heads, d), with factors on the weights."""
    query, key, value = packed.permute(2, 0, 3, 1, 4)  # (problems, heads, items, d)
    scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1) * factors
    if voice is not None:
        weights = weights * voice[:, None, None]
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(fused.LEAST_VOICE)
    return (weights @ value).transpose(1, 2).flatten(2)  # (problems, items, C)


SEED = 0x1234_5678_9ABC
PROBLEM = np.arange(B * N * HEADS).reshape(B * N, HEADS, 1, 1)
TOKEN = np.arange(M)


def of_tokens(seed: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda packed: fused.attend_tokens(packed, HEADS, True, RATE, seed)


def of_steps(seed: Tensor) -> Callable[[Tensor], Tensor]:
    def run(packed: Tensor) -> Tensor:
        cache, order, outputs = fused.TokenCache(packed[:, :, :1], M, HEADS), None, []
        for m in range(M):
            newest = packed[:, :, m : m + 1].contiguous()
            output, order = fused._Step.apply(newest, order, cache, m, HEADS, RATE, seed)
            outputs.append(output)
        return torch.cat(outputs, dim=2)

    return run


@pytest.mark.usefixtures("choose")
@pytest.mark.parametrize("operator", [of_tokens, of_steps])
def test_dropout_of_tokens_follows_from_seed_and_place(operator: Callable[[Tensor], Callable[..., Tensor]]) -> None:
    packed, causal = draw(B, N, M, 3 * C), torch.ones(M, M, dtype=torch.bool, device=DEVICE).tril()
    factors = torch.from_numpy(kept(SEED, TOKEN[:, None], TOKEN, PROBLEM)).to(DEVICE)

    def by_hand(packed: Tensor) -> Tensor:
        return formula(packed.view(B * N, M, 3, HEADS, -1), causal, factors).view(B, N, M, C)

    found = with_gradients(operator(torch.tensor([SEED], device=DEVICE)), [packed], [])
    assert_same(found, with_gradients(by_hand, [packed], []), TOLERANCE)


@pytest.mark.usefixtures("choose")
@pytest.mark.parametrize("with_voice", [False, True])
def test_dropout_of_sensors_follows_from_seed_and_place(with_voice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, blocks = draw(B, N, M, 3 * C), graph()
    voice = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]], device=DEVICE) if with_voice else None
    monkeypatch.setattr(fused, "dropout_seed", lambda *_: torch.tensor([SEED], device=DEVICE))
    sensor, problem = np.arange(N), np.arange(B * M * HEADS).reshape(B * M, HEADS, 1, 1)
    factors = torch.from_numpy(kept(SEED, sensor[:, None], sensor, problem)).to(DEVICE)

    def by_hand(packed: Tensor) -> Tensor:
        by_token = packed.transpose(1, 2).reshape(B * M, N, 3, HEADS, -1)
        each = None if voice is None else voice.repeat_interleave(M, dim=0)
        allowed = blocks.neighbours.dense().to(DEVICE)
        return formula(by_token, allowed, factors, each).view(B, M, N, C).transpose(1, 2).relu()

    lists = blocks.lists
    assert lists is not None
    found = with_gradients(lambda packed: fused.attend_sensors(packed, lists, voice, HEADS, RATE), [packed], [])
    assert_same(found, with_gradients(by_hand, [packed], []), TOLERANCE)


@pytest.mark.usefixtures("choose")
def test_dropout_keeps_its_share_and_the_mean() -> None:
    tokens, heads = 16, 32
    packed = torch.zeros(1, 1, tokens, 3 * heads, device=DEVICE)
    packed[..., 2 * heads :] = 1  # equal weights of ones: the sum of the factors, divided by how many there are
    seeds = [torch.tensor([seed], device=DEVICE) for seed in (1, 1, 2)]
    first, again, other = (fused.attend_tokens(packed, heads, False, RATE, seed) for seed in seeds)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(first.mean().item() - 1) < 4 * (RATE / (1 - RATE) / (tokens * tokens * heads)) ** 0.5
    assert len(first.unique()) > 4  # places do not fall together


def test_seeds_are_drawn_where_the_tensor_is_and_only_for_dropout() -> None:
    x = torch.empty(1, device="meta")
    assert fused.dropout_seed(x, 0.0) is None
    seed = fused.dropout_seed(x, 0.1)
    assert seed is not None
    assert seed.device == x.device
    torch.manual_seed(0)
    assert fused.dropout_seed(draw(1), 0.1) != fused.dropout_seed(draw(1), 0.1)


# ------------------------------------------------------------------------------------------------ whole networks

SIZES = Sizes(steps_per_hour=2, weeks=0, days=0, hours=3, horizon=3, channels=8, layers=1, heads=2)


def network(variant: str) -> nn.Module:
    torch.manual_seed(0)
    near = torch.eye(N, dtype=torch.bool) | torch.eye(N, dtype=torch.bool).roll(1, 0)
    graphs = dense_graphs(near, near, torch.randn(N, 3), autoregression=torch.full((1, N, N), 0.1))
    settings = {"mute_imputed": True} if variant == "residual" else {}
    return make_network(variant, graphs, SIZES, large_kernels=(5,), **settings).to(DEVICE).train()


def batch(through_rollout: bool) -> Inputs:
    B = 1
    values = draw(B, N, SIZES.horizon, seed=2)
    imputed = torch.zeros(B, N, dtype=torch.bool, device=DEVICE)
    imputed[0, 1] = True
    return Inputs(
        draw(B, N, SIZES.input_steps, seed=1),
        values[:, :, 0],
        torch.zeros(B, dtype=torch.int64, device=DEVICE),
        profile=draw(B, N, 3 * SIZES.steps_per_hour + SIZES.horizon, seed=3),
        imputed=imputed,
        last_week=values,
        teacher=None if through_rollout else values,
    )


@pytest.mark.parametrize("through_rollout", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released", "residual"])
def test_networks_compute_the_same_with_kernels(
    variant: str, through_rollout: bool, choose: Callable[[bool], None]
) -> None:
    results = []
    for chosen in (True, False):
        choose(chosen)
        model = network(variant)
        results.append(with_gradients(lambda model=model: model(batch(through_rollout)), [], list(model.parameters())))
    assert_same(*results, 1e-3)


def test_a_second_way_back_gives_the_same_gradients(choose: Callable[[bool], None]) -> None:
    choose(True)
    attention = TemporalAttention(C, HEADS, 3, 0.0, causal=True).to(DEVICE)
    loss = rolled_out(attention)(draw(1, N, M, C)).square().mean()
    first, second = (torch.autograd.grad(loss, list(attention.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_dropout_is_the_same_when_a_layer_is_computed_again(choose: Callable[[bool], None]) -> None:
    choose(True)
    temporal, spatial = TemporalAttention(C, HEADS, 3, RATE, causal=True), SpatialAttention(C, HEADS, RATE)
    layer = EncoderLayer(temporal, spatial, C, 0.0).to(DEVICE)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(with_gradients(lambda x: layer(x, graph()), [draw(1, N, M, C)], list(layer.parameters())))
        recompute_in_backward([layer])
    assert_same(*results, 1e-6)


@triton_alone
@pytest.mark.usefixtures("choose")
def test_operators_are_as_compilers_want_them() -> None:
    """Their shapes without values, their gradients, and what they change, are as they say."""
    packed, lists = draw(B, N, M, 3 * C).requires_grad_(), graph().lists
    assert lists is not None
    x, y = draw(B, N, M, C).requires_grad_(), draw(B, N, M, C, seed=1).requires_grad_()
    norm, number = nn.LayerNorm(C).to(DEVICE), torch.tensor(0.3, device=DEVICE, requires_grad=True)
    seed = torch.tensor([SEED], device=DEVICE)
    calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (fused.attend_tokens, (packed, HEADS, True, RATE, seed)),
        (fused._attend_sensors, (packed, *lists, None, HEADS, 0.0, None)),
        (fused._token_columns, (x, 3, 1)),
        (fused._add_norm, (x, y, norm.weight, norm.bias, norm.eps, torch.float32)),
        (fused._scaled_add, (x, y, number, True)),
        (fused._open_gate, (x,)),
        (fused._add_relu, (x, y)),
        (fused.attend_step, (packed[:, :, :1].detach().contiguous(), draw(B, N, M, 2 * C), 1, HEADS, 0.0, None)),
    ]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=checks)  # type: ignore[arg-type]


@triton_alone
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_on_meta_is_what_runs_with_kernels(kind: Kind, choose: Callable[[bool], None]) -> None:
    windows, sizes = SHIPPED_WINDOWS, NetworkSizes(layers=1, channels=8, heads=2, large_kernels=(5,))
    workload = simulated_workload(N, 1, windows, sizes, DEVICE)
    model, data = workload.network(), workload.batch()
    choose(True)
    counted = work_by_part(kind, model.cpu(), data)["forward"]
    model.to(DEVICE)
    function = step(kind, model, data) if kind == "forecast" else lambda: loss_of(kind, model.train(), data)
    assert counted == pytest.approx(work(function), rel=0.01)


@pytest.mark.parametrize(
    ("compiler", "reason"), [("there-is-none", "found no C++ compiler there-is-none"), ("false", "false failed")]
)
def test_without_a_compiler_pytorch_computes(
    compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu_kernels.library.__wrapped__(torch.float32) is None
    assert list(tmp_path.rglob("*.*")) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("cpu_kernels.cpp is not compiled, so PyTorch's own operators compute, slower: ")
    assert reason in line


def test_compiled_kernels_that_cannot_be_loaded_are_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "seven.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    first = compiled(source)
    if first is None:
        pytest.skip("needs a C++ compiler")
    (kept,) = tmp_path.rglob("*.so")
    kept.unlink()  # the first library stays open
    kept.write_bytes(b"cut off")
    again = compiled(source)
    assert again is not None
    assert again.seven() == first.seven() == 7
