"""Products with rounded factors stand for a GPU's in TF32, in both directions, and a run in each makes a table."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from benchmarks import tf32
from benchmarks.tf32 import RoundedFactors, rounded
from tests.conftest import DatasetMaker, tiny_series

SPACING = 2.0**-10  # of the numbers that TF32 has from 1 to 2


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_are_rounded_to_the_nearest() -> None:
    x = 1 + torch.arange(4 * 1024) * SPACING / 4  # every fourth is kept, every other fourth is a tie
    expected = 1 + np.round(np.arange(4 * 1024) / 4) * SPACING  # NumPy takes the even one of a tie too
    for power in (-120, -1, 0, 30):
        np.testing.assert_array_equal(rounded(-x * 2.0**power).numpy(), -expected * 2.0**power)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    np.testing.assert_array_equal(rounded(special).numpy(), special.numpy())


def test_products_round_their_factors_in_both_directions_and_nothing_else() -> None:
    x, weight, bias, incoming = draw(5, 7), draw(3, 7, seed=1), draw(3, seed=2), draw(5, 3, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    with RoundedFactors():
        y = F.linear(*inputs)
        gradients = torch.autograd.grad(y, inputs, incoming)
        batched = torch.bmm(x.detach()[None], weight.detach().T[None])
        exact = F.linear(*(tensor.detach().double() for tensor in inputs))
    x, weight, bias = (tensor.detach() for tensor in inputs)
    torch.testing.assert_close(batched[0], rounded(x) @ rounded(weight).T)
    torch.testing.assert_close(y, F.linear(rounded(x), rounded(weight), bias))
    expected = rounded(incoming) @ rounded(weight), rounded(incoming).T @ rounded(x), incoming.sum(0)
    for found, by_hand in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, by_hand)
    assert (y - exact).abs().max() > 1e-5  # float64 is left alone, and so is what is outside
    torch.testing.assert_close(F.linear(x, weight, bias), exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_figures")
def test_the_table_has_a_row_for_each_precision(
    make_dataset: DatasetMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make_dataset(tiny_series())
    arguments = ["--config", path, "--recipe", "stid", "--seeds", 2, "--output", tmp_path, "--results", tmp_path]
    arguments += ["--set", "Training.epochs=1"]
    monkeypatch.setattr(sys, "argv", [tf32.__file__, *map(str, arguments)])
    tf32.main()
    table = pd.read_csv(tmp_path / "TINY" / "tf32.csv").set_index("name")
    exact, other = (table.loc[name] for name in ("float32", "tf32"))
    assert exact["seeds"] == other["seeds"] == 2
    assert f"`python -m benchmarks.tf32 --config {path} " in (tmp_path / "TINY" / "tf32.md").read_text()
    assert 0 < abs(exact["mae"] - other["mae"]) < 0.01 * exact["mae"]
