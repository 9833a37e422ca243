"""Attention in blocks against dense attention under the same mask, on networks of many shapes."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lib.interface import Inputs, Neighbours, Sizes
from model.attention_blocks import BLOCK_SIZES, AttentionBlocks, partition
from model.scaled_dot_product import FEW_KEYS, scaled_dot_product
from tests.conftest import dense_graphs, make_network


def ring(sensors: int, reach: int) -> NDArray[np.bool_]:
    """Return the mask of sensors along a ring road, each of which sees so many to either side, in random order."""
    apart = np.abs(np.subtract.outer(np.arange(sensors), np.arange(sensors)))
    order = np.random.default_rng(sensors).permutation(sensors)
    return (np.minimum(apart, sensors - apart) <= reach)[np.ix_(order, order)]


def scattered(sensors: int, neighbours: int) -> NDArray[np.bool_]:
    """Return a mask of random neighbours, which need not look back."""
    mask = np.random.default_rng(sensors).random((sensors, sensors)) < neighbours / sensors
    return mask | np.eye(sensors, dtype=bool)


MASKS = {
    "alone": np.eye(50, dtype=bool),
    "ring": ring(120, 3),
    "ring, blocks not full": ring(101, 2),
    "scattered": scattered(90, 3),
    "a hub": ring(80, 1) | (np.arange(80) == 7) | (np.arange(80) == 7)[:, None],
    "dense": scattered(40, 20),
    "wide": ring(600, 65),  # a block looks at more keys than few
    "dense and wide": scattered(150, 75),
    "one sensor": np.ones((1, 1), dtype=bool),
}


@pytest.fixture(params=MASKS)
def allowed(request: pytest.FixtureRequest) -> NDArray[np.bool_]:
    return MASKS[request.param]


def inputs(sensors: int) -> list[Tensor]:
    torch.manual_seed(sensors)
    return [torch.randn(2, 12, sensors, 2, requires_grad=True) for _ in range(3)]


def test_attention_and_gradients_equal_those_of_dense_attention(allowed: NDArray[np.bool_]) -> None:
    mask, graph = torch.from_numpy(allowed), AttentionBlocks(Neighbours.of(allowed))
    query, key, value = inputs(len(allowed))
    weight = torch.randn_like(query)
    results = []
    for y in (graph(query, key, value, 0.0), scaled_dot_product(query, key, value, mask, 0.0)):
        results.append([y, *torch.autograd.grad((weight * y).sum(), (query, key, value))])
    for in_blocks, dense in zip(*results, strict=True):
        torch.testing.assert_close(in_blocks, dense, atol=1e-5, rtol=1e-5)


def test_wide_blocks_take_the_fused_kernel() -> None:
    graph = AttentionBlocks(Neighbours.of(MASKS["wide"]))
    assert graph.block_mask.shape[2] > FEW_KEYS
    query, key, value = inputs(600)
    with profile(activities=[ProfilerActivity.CPU]) as profiled, torch.no_grad():
        graph(query, key, value, 0.0)
    assert any("flash_attention" in event.key for event in profiled.key_averages())


def test_in_bf16_many_keys_give_the_float32_result_rounded() -> None:
    """As a precision of its own PyTorch's kernel for CPUs loses more than the rounding, and most of its speed."""
    query, key, value = (x.bfloat16() for x in inputs(FEW_KEYS + 50))
    expected = scaled_dot_product(query.float(), key.float(), value.float(), None, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scaled_dot_product(query, key, value, None, 0.0)
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_blocks_hold_every_sensor_once_and_all_it_may_look_at(allowed: NDArray[np.bool_], size: int) -> None:
    blocks = partition(Neighbours.of(allowed), size)
    members = np.concatenate([block[0] for block in blocks])
    assert np.array_equal(np.sort(members), np.arange(len(allowed)))
    assert max(len(block[0]) for block in blocks) <= size
    for sensors, neighbours in blocks:
        assert np.array_equal(np.flatnonzero(allowed[sensors].any(axis=0)), neighbours)


def test_sparse_masks_are_cut_and_dense_ones_are_not() -> None:
    cut = {name: AttentionBlocks(Neighbours.of(mask)).is_cut for name, mask in MASKS.items()}
    assert cut["ring"]
    assert cut["wide"]
    assert cut["alone"]
    assert not cut["dense"]
    assert not cut["dense and wide"]
    assert not cut["one sensor"]


def test_the_blocks_of_a_long_road_do_not_grow_with_its_length() -> None:
    widths = {AttentionBlocks(Neighbours.of(ring(length, 3))).block_mask.shape[2] for length in (100, 200, 400)}
    assert len(widths) == 1


def test_blocks_are_no_weights_and_are_copied_with_the_network() -> None:
    sizes = Sizes(steps_per_hour=4, weeks=0, days=0, hours=2, horizon=2, channels=8, layers=1, heads=2)
    encoding = torch.randn(60, 2)
    graphs = [dense_graphs(*[ring(60, reach)] * 2, encoding) for reach in (1, 4)]
    model, other = (make_network("paper", of_sensors, sizes).eval() for of_sensors in graphs)
    inputs = Inputs(torch.randn(1, 60, 8), torch.randn(1, 60), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        expected = other(inputs)
        model.load_state_dict(other.state_dict())
        assert not torch.equal(model(inputs), expected)  # the masks are still its own
        restored = make_network("paper", graphs[1], sizes).eval()
        restored.load_state_dict(other.state_dict())
        assert torch.equal(restored(inputs), expected)
        assert torch.equal(deepcopy(other)(inputs), expected)
