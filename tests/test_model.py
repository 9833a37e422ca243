"""Properties that hold for any weights, and forms that must be equal."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.checkpoints import restored
from lib.interface import Graphs, Inputs, Neighbours, Sizes
from model.attention import SpatialAttention, TemporalAttention, TemporalCache, TimeGatedConvolution, TokenConvolution
from model.attention_blocks import AttentionBlocks
from model.deformable_patches import DeformablePatches
from model.dtg_lknet import DTGLKNet
from model.encoder import sinusoidal_encoding
from model.large_kernels import LargeKernelBlock
from model.variants import VARIANTS
from tests.conftest import DatasetMaker, dense_graphs, load, make_network

SIZES = Sizes(steps_per_hour=4, weeks=0, days=0, hours=6, horizon=4, channels=16, layers=2, heads=4)


def random_graphs(num_nodes: int, encoding_channels: int = 5) -> Graphs:
    masks = []
    for _ in range(2):
        mask = torch.rand(num_nodes, num_nodes) < 0.4
        masks.append(mask | mask.T | torch.eye(num_nodes, dtype=torch.bool))
    return dense_graphs(masks[0], masks[1], torch.randn(num_nodes, encoding_channels))


def random_model(variant: str = "paper", graphs: Graphs | None = None, sizes: Sizes = SIZES) -> DTGLKNet:
    """Build a network with all weights drawn, also those that start at zero, and BatchNorm statistics of its own."""
    model = make_network(variant, random_graphs(6) if graphs is None else graphs, sizes)
    assert isinstance(model, DTGLKNet)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def random_inputs(model: DTGLKNet, batch: int = 2) -> Inputs:
    """Draw inputs for teacher forcing."""
    num_nodes = len(model.laplacian_encoding)
    series = torch.randn(batch, num_nodes, model.front_end.patches.input_steps)
    teacher = torch.randn(batch, num_nodes, model.horizon)
    return Inputs(series, teacher[:, :, 0], torch.zeros(batch, dtype=torch.int64), teacher=teacher)


def test_memory_of_a_rollout_is_freed_after_its_backward_pass() -> None:
    """As the kernels of a GPU keep it: what is in a circle of nodes of autograd would never be freed."""
    attention = TemporalAttention(8, 2, 3, 0.1, causal=True).to("meta")
    cache = TemporalCache(tokens=3)
    torch.cat([attention.step(torch.ones(2, 3, 1, 8, device="meta"), m, cache) for m in range(3)]).sum().backward()
    kept = weakref.ref(cache.packed)
    assert kept() is not None
    del cache
    gc.collect()
    assert kept() is None


def alone(inputs: Inputs) -> Inputs:
    """Return the inputs for a forecast on its own."""
    return inputs._replace(teacher=None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def rollout_by_decoding_anew(model: DTGLKNet, inputs: Inputs) -> Tensor:
    """The specification of a rollout: the sequence so far is decoded from its beginning at every step."""
    start = inputs.start.unsqueeze(-1)
    values = start
    for _ in range(model.horizon):
        forecast = model.decode(values, model.read(model.encode(inputs)))
        values = torch.cat([start, forecast], dim=-1)
    return forecast


@pytest.mark.parametrize("variant", ["paper", "released"])
@torch.no_grad()
def test_rollout_equals_decoding_anew(variant: str) -> None:
    model = random_model(variant)
    inputs = alone(random_inputs(model))
    torch.testing.assert_close(model(inputs), rollout_by_decoding_anew(model, inputs), atol=1e-5, rtol=0)


def test_rollout_has_the_gradients_of_decoding_anew() -> None:
    model = random_model()
    inputs = alone(random_inputs(model))
    gradients = []
    for rollout in (DTGLKNet.forward, rollout_by_decoding_anew):
        model.zero_grad()
        rollout(model, inputs).square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


@torch.no_grad()
def test_the_decoder_cannot_see_the_future() -> None:
    model = random_model()
    inputs = random_inputs(model)
    before = model(inputs)
    for step in range(1, model.horizon):
        changed = inputs.teacher.clone()
        changed[:, :, step:] += torch.randn_like(changed[:, :, step:])
        after = model(inputs._replace(teacher=changed))
        torch.testing.assert_close(after[:, :, :step], before[:, :, :step], atol=1e-6, rtol=0)
        assert not torch.allclose(after[:, :, step], before[:, :, step])


def test_every_parameter_receives_a_gradient() -> None:
    model = random_model().train()
    inputs = random_inputs(model, batch=4)
    F.l1_loss(model(inputs), torch.randn_like(inputs.teacher)).backward()
    # The BatchNorm that follows subtracts any bias that is the same for all samples and tokens.
    cancelled = {f"front_end.blocks.{i}.contract.bias" for i in range(6)}
    for name, parameter in model.named_parameters():
        largest = parameter.grad.abs().max().item()
        assert (largest < 1e-5) if name in cancelled else (largest > 1e-7), f"{name}: {largest}"


def test_a_short_training_moves_what_the_released_code_never_trains() -> None:
    model = make_network("paper", random_graphs(6), SIZES)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = torch.randn(4, 6, 4)
    series = torch.cat([torch.randn(4, 6, 20), target], dim=-1)
    inputs = Inputs(series, series[:, :, -4], torch.zeros(4, dtype=torch.int64), teacher=series[:, :, -4:])
    for _ in range(10):
        loss = F.l1_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = dict(model.named_parameters())
    for name in before:
        moved = (after[name] - before[name]).abs().max().item()
        if "contract.bias" not in name:  # cancelled by BatchNorm
            assert moved > 1e-4, f"{name} moved by {moved}"
    patches = model.front_end.patches
    regular = patches.centres[:, None] + torch.linspace(-1.5, 1.5, 4)
    assert (patches.positions(series) - regular).abs().max() > 1e-3


@torch.no_grad()
def test_permuting_the_sensors_with_their_graphs_permutes_the_forecast() -> None:
    graphs, order = random_graphs(6), torch.randperm(6)
    masks = (mask.dense()[order][:, order] for mask in (graphs.similarity, graphs.topology))
    model = random_model(graphs=graphs)
    other = random_model(graphs=dense_graphs(*masks, graphs.laplacian_encoding[order]))
    other.load_state_dict(model.state_dict())
    inputs = random_inputs(model)
    permuted = inputs._replace(
        series=inputs.series[:, order], start=inputs.start[:, order], teacher=inputs.teacher[:, order]
    )
    torch.testing.assert_close(other(permuted), model(inputs)[:, order])
    torch.testing.assert_close(other(alone(permuted)), model(alone(inputs))[:, order])


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(
    ("num_nodes", "hours", "patch_len", "horizon"),  # the patches are an hour long
    [(1, 1, 4, 1), (2, 6, 4, 3), (5, 1, 12, 6), (3, 12, 12, 12), (3, 3, 12, 24), (3, 12, 1, 2)],
)
def test_any_number_of_sensors_tokens_and_steps(
    variant: str, num_nodes: int, hours: int, patch_len: int, horizon: int
) -> None:
    sizes = replace(SIZES, steps_per_hour=patch_len, hours=hours, horizon=horizon, channels=8, layers=1)
    model = random_model(variant, random_graphs(num_nodes), sizes).train()
    inputs = random_inputs(model)
    forecast = model(inputs)
    assert forecast.shape == (2, num_nodes, horizon)
    assert forecast.isfinite().all()
    assert model(alone(inputs)).shape == (2, num_nodes, horizon)


@pytest.mark.parametrize("patch_len", [1, 3, 8, 24])
def test_patches_need_not_be_an_hour_long(patch_len: int) -> None:
    model = make_network("paper", random_graphs(3), SIZES, patch_len=patch_len)
    assert isinstance(model, DTGLKNet)
    assert model.tokens == 24 // patch_len
    inputs = random_inputs(model)
    assert model.encode(inputs).shape == (2, 3, 24 // patch_len, 16)
    assert model(inputs).shape == model(alone(inputs)).shape == (2, 3, 4)


@torch.no_grad()
def test_memory_of_another_length_than_the_horizon_is_interpolated() -> None:
    gate = TimeGatedConvolution(channels=4, kernel_size=3, horizon=5)
    memory = torch.randn(1, 2, 3, 4)
    gates, contents = gate.gate_content(memory).numpy()[..., :4], gate.gate_content(memory).numpy()[..., 4:]
    steps = np.linspace(0, 2, 5)
    for node in range(2):
        for channel in range(4):
            expected_gate = np.interp(steps, np.arange(3), gates[0, node, :, channel])
            expected = 1 / (1 + np.exp(-expected_gate)) + np.interp(steps, np.arange(3), contents[0, node, :, channel])
            np.testing.assert_allclose(gate.read(memory)[0, node, :, channel], expected, rtol=1e-5)


@pytest.mark.parametrize(("kernel_size", "tokens"), [(55, 12), (15, 12), (3, 12), (5, 1), (7, 40)])
@torch.no_grad()
def test_large_kernel_block_equals_depthwise_convolutions(kernel_size: int, tokens: int) -> None:
    block = LargeKernelBlock(channels=6, kernel_size=kernel_size)
    block.convolution_scale.fill_(0.7)
    block.feed_forward_scale.fill_(0.4)
    x = torch.randn(2, 3, tokens, 6)

    y = x.flatten(0, 1).transpose(1, 2)  # (B N, C, M), as convolutions have it
    branches = [(block.large, kernel_size), (block.small, 3)]
    convolved = sum(F.conv1d(y, b.weight[:, None], b.bias, padding=size // 2, groups=6) for b, size in branches)
    y = F.batch_norm(y + 0.7 * F.gelu(convolved), None, None, training=True)
    feed_forward = block.contract(F.gelu(block.expand(y.transpose(1, 2)))).transpose(1, 2)
    y = F.batch_norm(y + 0.4 * feed_forward, None, None, training=True)
    expected = y.transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(block.train()(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_merged_kernels_equal_two_branches() -> None:
    model = random_model()
    inputs = random_inputs(model)
    expected = model(inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.merge()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters - 6 * (3 + 1) * 16
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)
    model.merge()  # merging twice changes nothing
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_token_convolution_equals_a_convolution(causal: bool) -> None:
    convolution = TokenConvolution(channels=5, out_channels=7, kernel_size=3, causal=causal)
    x = torch.randn(2, 3, 6, 5)
    weight = convolution.linear.weight.unflatten(1, (3, 5)).transpose(1, 2)  # (out, in, taps)
    padded = F.pad(x.flatten(0, 1).transpose(1, 2), (2, 0) if causal else (1, 1))
    expected = F.conv1d(padded, weight, convolution.linear.bias).transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(convolution(x), expected)
    if causal:
        past: list[Tensor] = []
        steps = [convolution.step(x[:, :, token : token + 1], past) for token in range(6)]
        torch.testing.assert_close(torch.cat(steps, dim=2), expected)


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Attention as it is written in papers, over (..., tokens, d)."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value


@torch.no_grad()
def test_spatial_attention_equals_its_formula() -> None:
    layer = SpatialAttention(channels=8, heads=2, dropout=0.0)
    allowed = random_graphs(5).similarity.dense()
    x = torch.randn(2, 5, 3, 8)
    heads = layer.query_key_value(x).unflatten(-1, (3, 2, 4)).permute(3, 0, 2, 4, 1, 5)  # (3, B, M, heads, N, d)
    expected = attention(*heads, allowed).permute(0, 3, 1, 2, 4).flatten(3).relu()
    torch.testing.assert_close(layer(x, AttentionBlocks(Neighbours.of(allowed))), expected)
    everywhere = attention(*heads, torch.ones_like(allowed)).permute(0, 3, 1, 2, 4).flatten(3).relu()
    torch.testing.assert_close(layer(x, None), everywhere)


@torch.no_grad()
def test_spatial_attention_sees_only_allowed_sensors() -> None:
    layer = SpatialAttention(channels=8, heads=2, dropout=0.0)
    allowed = torch.eye(4, dtype=torch.bool)
    allowed[0, 1] = True
    x = torch.randn(1, 4, 2, 8)
    graph = AttentionBlocks(Neighbours.of(allowed))
    before = layer(x, graph)
    x[:, 1] += 1
    changed = (layer(x, graph) != before).flatten(2).any(-1)[0]
    assert changed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_temporal_attention_equals_its_formula(causal: bool) -> None:
    layer = TemporalAttention(channels=8, heads=2, kernel_size=3, dropout=0.0, causal=causal)
    x = torch.randn(2, 3, 5, 8)
    query, key = layer.query_key(x).chunk(2, dim=-1)
    split = [y.unflatten(-1, (2, 4)).transpose(2, 3) for y in (query, key, layer.value(x))]  # (B, N, heads, M, d)
    allowed = torch.ones(5, 5, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    expected = layer.output(attention(*split, allowed).transpose(2, 3).flatten(3))
    torch.testing.assert_close(layer(x), expected)
    if causal:
        cache = TemporalCache(tokens=5)
        steps = [layer.step(x[:, :, token : token + 1], token, cache) for token in range(5)]
        torch.testing.assert_close(torch.cat(steps, dim=2), expected)


@torch.no_grad()
def test_deformable_patches_read_by_linear_interpolation() -> None:
    patches = DeformablePatches(input_steps=12, patch_len=4)
    series = torch.randn(2, 3, 12)
    patches.reset_parameters()
    torch.testing.assert_close(patches(series), series.unflatten(-1, (3, 4)))  # regular at the start

    nn.init.normal_(patches.predictor[-1].weight, std=3)
    positions = patches.positions(series)
    assert positions.min() >= 0
    assert positions.max() <= 11
    assert (positions.diff(dim=-1) >= 0).all()
    for sample in range(2):
        for node in range(3):
            expected = np.interp(positions[sample, node].numpy(), np.arange(12), series[sample, node].numpy())
            np.testing.assert_allclose(patches(series)[sample, node], expected, atol=1e-5)


def test_patches_pass_on_what_is_no_number() -> None:
    """So that a training that has left the finite numbers says so, and not that a place is out of reach."""
    patches = DeformablePatches(6, 3)
    assert torch.isfinite(patches(torch.ones(1, 1, 6))).all()
    nn.init.constant_(patches.predictor[-1].bias, torch.nan)
    assert torch.isnan(patches(torch.ones(1, 1, 6))).all()


def test_patches_that_do_not_divide_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_len 5 does not divide the input of 24 steps"):
        DeformablePatches(24, 5)


def test_sinusoid_equals_its_formula() -> None:
    encoding = sinusoidal_encoding(9, 6)
    for token in range(9):
        for pair in range(3):
            angle = token / 10000 ** (2 * pair / 6)
            expected = torch.tensor([np.sin(angle), np.cos(angle)], dtype=torch.float32)
            torch.testing.assert_close(encoding[token, 2 * pair : 2 * pair + 2], expected, atol=1e-6, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    model = random_model(sizes=replace(SIZES, dropout=0.5))
    inputs = random_inputs(model)
    assert torch.equal(model(inputs), model(inputs))
    assert torch.equal(model(alone(inputs)), model(alone(inputs)))
    model.train()
    assert not torch.equal(model(inputs), model(inputs))
    assert not torch.equal(model(alone(inputs)), model(alone(inputs)))


@torch.no_grad()
def test_a_checkpoint_restores_the_network_with_its_graphs(make_dataset: DatasetMaker) -> None:
    config = load(make_dataset(horizon=4))
    graphs = random_graphs(6)
    model = random_model(graphs=graphs, sizes=config.sizes)
    assert not any("graph" in name or "laplacian" in name for name in model.state_dict())
    checkpoint = {"graphs": graphs.content(), "weights": model.state_dict()}
    other = restored(Path("best.pt"), checkpoint, config).eval()
    inputs = random_inputs(model)
    assert torch.equal(other(inputs), model(inputs))
    assert torch.equal(other(alone(inputs)), model(alone(inputs)))
    assert torch.equal(other.similarity_graph.neighbours.dense(), graphs.similarity.dense())


def test_every_record_says_what_its_network_is() -> None:
    for name, variant in VARIANTS.items():
        assert variant.name == name
        graphs = random_graphs(6)
        coefficients = torch.zeros(1, len(graphs.topology.sensors))
        model = variant.network(graphs._replace(autoregression=coefficients), SIZES, variant.settings())
        assert variant.has_encoder == hasattr(model, "encode")
