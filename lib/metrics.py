"""Forecast errors, kept as sums and counts by horizon, so that no batch size can bias them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.distributed import Processes

SCORES = ("mae", "rmse", "mape", "mae_nonzero", "rmse_nonzero")

Scores = dict[str, float | None]


@dataclass
class ForecastErrors:
    """Sums of errors over all samples and sensors, each (P,), by horizon.

    MAE and RMSE are over all targets, MAPE (in percent) over the targets that are not 0, as the paper's code has them;
    `mae_nonzero` and `rmse_nonzero` leave targets of 0 out too, as most other papers do. Targets that are missing count
    nowhere.
    """

    count: Tensor
    nonzero_count: Tensor
    absolute: Tensor
    squared: Tensor
    relative: Tensor
    nonzero_absolute: Tensor
    nonzero_squared: Tensor

    @classmethod
    def zero(cls, horizon: int, device: torch.device | None = None) -> "ForecastErrors":
        """Start with nothing counted, on a device. Sums are float64 where the device has it."""
        precision = torch.float32 if device is not None and device.type == "mps" else torch.float64
        return cls(*(torch.zeros(horizon, dtype=precision, device=device) for _ in range(7)))

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Count forecasts (B, N, P) of targets (B, N, P), both in raw units; targets that are NaN are missing."""
        precision = self.absolute.dtype
        observed = ~target.isnan()
        target = target.to(precision).where(observed, 0)
        error = (forecast.to(precision) - target).abs().where(observed, 0)
        nonzero = (target != 0).to(precision)
        over = (0, 1)
        self.count += observed.sum(over)
        self.nonzero_count += nonzero.sum(over)
        self.absolute += error.sum(over)
        self.squared += error.square().sum(over)
        self.relative += (nonzero * error / target.abs().clamp_min(1e-30)).sum(over)
        self.nonzero_absolute += (nonzero * error).sum(over)
        self.nonzero_squared += (nonzero * error.square()).sum(over)

    def summed(self, processes: Processes) -> "ForecastErrors":
        """Return the sums over all processes, each of which has counted samples of its own."""
        return ForecastErrors(*(processes.total(total.clone()) for total in vars(self).values()))

    def clear(self) -> None:
        """Count nothing any more, in the same tensors."""
        for total in vars(self).values():
            total.zero_()

    def overall(self) -> Scores:
        """Return the scores over all horizons together, by the names of `SCORES`; None where nothing counted."""
        return self._scores(*(float(total.sum()) for total in vars(self).values()))

    def by_horizon(self) -> list[Scores]:
        """Return the scores of each horizon, the first step first."""
        columns = [total.tolist() for total in vars(self).values()]
        return [self._scores(*totals) for totals in zip(*columns, strict=True)]

    @staticmethod
    def _scores(
        count: float,
        nonzero_count: float,
        absolute: float,
        squared: float,
        relative: float,
        nonzero_absolute: float,
        nonzero_squared: float,
    ) -> Scores:
        def mean(total: float, number: float) -> float | None:
            return total / number if number else None

        def root(value: float | None) -> float | None:
            return None if value is None else value**0.5

        relative_mean = mean(relative, nonzero_count)
        return {
            "mae": mean(absolute, count),
            "rmse": root(mean(squared, count)),
            "mape": None if relative_mean is None else 100 * relative_mean,
            "mae_nonzero": mean(nonzero_absolute, nonzero_count),
            "rmse_nonzero": root(mean(nonzero_squared, nonzero_count)),
        }


def absolute_errors(
    forecast: NDArray[np.float32], target: NDArray[np.float32], axis: int | tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return sum and count over some axes of |forecast - target|, where the target is not NaN."""
    observed = ~np.isnan(target)
    errors = np.where(observed, np.abs(forecast - target), 0)
    return errors.sum(axis=axis, dtype=np.float64), observed.sum(axis=axis)


def mean_or_nan(total: NDArray[Any], count: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means of sums and counts, NaN where nothing counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def errors_of(forecast: NDArray[np.float32], target: NDArray[Any]) -> ForecastErrors:
    """Return the errors of forecasts (N, P) or (B, N, P) by horizon, over what is not NaN of the target alike."""
    errors = ForecastErrors.zero(target.shape[-1])
    shape = (-1, *target.shape[-2:])
    errors.update(torch.from_numpy(forecast).reshape(shape), torch.from_numpy(target).reshape(shape))
    return errors


def metrics_content(errors: ForecastErrors, measured: ForecastErrors | None = None) -> dict[str, Any]:
    """Return errors as metrics.json has them: `overall`, and a list `by_horizon`; the same of measured targets alone.

    The last is left out for a series where nothing is imputed.
    """
    content: dict[str, Any] = {"overall": errors.overall(), "by_horizon": errors.by_horizon()}
    if measured is not None:
        content["measured"] = metrics_content(measured)
    return content
