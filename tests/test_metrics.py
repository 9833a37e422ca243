"""Metrics against their definitions in NumPy, whatever the batches."""

import numpy as np
import pytest
import torch

from lib.metrics import SCORES, ForecastErrors, Scores


def definition(forecast: np.ndarray, target: np.ndarray) -> Scores:
    error = np.abs(forecast - target)
    counted = target != 0
    return {
        "mae": error.mean(),
        "rmse": np.sqrt((error**2).mean()),
        "mape": 100 * (error[counted] / target[counted]).mean(),
        "mae_nonzero": error[counted].mean(),
        "rmse_nonzero": np.sqrt((error[counted] ** 2).mean()),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_metrics_equal_their_definitions(batch_size: int) -> None:
    draw = np.random.default_rng(0)
    target = draw.poisson(1.5, (11, 6, 4)).astype(np.float32)
    forecast = target + draw.normal(0, 2, target.shape).astype(np.float32)
    errors = ForecastErrors.zero(horizon=4)
    for part in range(0, 11, batch_size):
        rows = slice(part, part + batch_size)
        errors.update(torch.from_numpy(forecast[rows]), torch.from_numpy(target[rows]))
    wide = forecast.astype(np.float64), target.astype(np.float64)
    assert errors.overall() == pytest.approx(definition(*wide), rel=1e-9)
    by_horizon = errors.by_horizon()
    for step in range(4):
        assert by_horizon[step] == pytest.approx(definition(wide[0][..., step], wide[1][..., step]), rel=1e-9)


def test_targets_that_are_all_zero_have_no_relative_error() -> None:
    errors = ForecastErrors.zero(horizon=2)
    errors.update(torch.ones(3, 1, 2), torch.zeros(3, 1, 2))
    expected = {"mae": 1.0, "rmse": 1.0, "mape": None, "mae_nonzero": None, "rmse_nonzero": None}
    assert errors.overall() == expected
    assert errors.by_horizon() == [expected, expected]
    assert tuple(expected) == SCORES
