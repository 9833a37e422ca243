"""Dropout: the share that is kept, its scale, its gradient, and fresh numbers at every call."""

import pytest
import torch

from model.dropout import drop

SHAPE = (7, 101, 1001)  # not a multiple of the values that share a random number


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_kept_values_are_scaled_and_a_share_is_dropped(rate: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(SHAPE, requires_grad=True)
    y = drop(x, rate)
    kept = y != 0
    torch.testing.assert_close(y, torch.where(kept, x / (1 - rate), 0.0))
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs((~kept).double().mean().item() - rate) < 4 * deviation + 1e-5
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / (1 - rate))


def test_values_are_dropped_independently_and_anew() -> None:
    torch.manual_seed(1)
    first, second = (drop(torch.ones(400_000), 0.5) == 0 for _ in range(2))
    pairs = [(first, second)] + [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 4)]
    for one, other in pairs:  # the four values of one random number among them
        assert abs((one & other).double().mean().item() - 0.25) < 0.004
    torch.manual_seed(1)
    assert torch.equal(drop(torch.ones(400_000), 0.5) == 0, first)


def test_no_rate_changes_nothing_and_any_shape_and_type_is_taken() -> None:
    x = torch.randn(3, 5)
    assert drop(x, 0) is x
    for y in (torch.ones(()), torch.ones(0, 4), torch.ones(5, 3).t(), torch.ones(9, dtype=torch.bfloat16)):
        dropped = drop(y, 0.5)
        assert dropped.shape == y.shape
        assert dropped.dtype == y.dtype
        assert set(dropped.unique().tolist()) <= {0.0, 2.0}
