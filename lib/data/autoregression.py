"""Fitting a linear autoregression of the residual on the topology graph.

Vehicles that pass one sensor reach the next one minutes later. Only sensors near each other share vehicles within
minutes, so the coefficients of all other pairs are 0.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lib.data.prepared import Prepared
from lib.data.profile import HistoricalProfile
from lib.data.windowing import Calendar
from lib.interface import Neighbours

LAG_MINUTES = 30
# In units of a sensor's standard deviation:
PENALTY = 0.28  # times the root of the number of rows
FIRST_NORM, LEAST_NORM = 0.1, 1e-3  # of a neighbour's coefficients, which are mostly below 1
LEAST_ERROR = 0.1  # delta of Huber's loss: smaller errors count quadratically, larger ones linearly
ROUNDS = 6  # ten lower the forecast error by 0.04 % and take 1.6 times as long


def autoregression_lags(steps_per_day: int) -> int:
    """Return the number of lags: the steps of half an hour, at least one."""
    return max(1, LAG_MINUTES * steps_per_day // (24 * 60))


def graph_autoregression(
    prepared: Prepared,
    profile: HistoricalProfile,
    near: Neighbours,
    calendar: Calendar,
    imputed: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Regress the residual of each sensor (flow less profile) on the last steps of the sensors near it.

        x[t] = sum over l of A[l] x[t-1-l]

    under Huber's loss (1964), so that the few large errors of an incident do not dominate. The coefficients of each
    neighbour, and of the sensor itself, are penalised by the norm of all its lags, so that few neighbours are left
    (group lasso, Yuan and Lin 2006). Both are solved by ridge regressions with weights inverse to the errors and norms
    of the one before (Daubechies et al. 2010).

    It is fitted on the observed values of the training rows a day or more after a sensor's first value: before, the
    sensor has no profile, and its residual counts as 0 for the others. Missing inputs are forward-filled. Sensors
    without any such row have coefficients of 0.

    Args:
        prepared: the series.
        profile: its historical profile.
        near: the sensors that each is regressed on, itself among them.
        calendar: of the series.
        imputed: (T or more, N), which sensors are imputed at each step. They are left out: their residuals count as 0
            for the others, and are not fitted. None: no sensor is imputed.

    Returns:
        Coefficients (lags, E) of the E neighbours in `near`, for residuals in any unit that all sensors share: A[l, e]
        is what a unit at the neighbour, 1 + l steps before, adds to the sensor whose neighbour it is.
    """
    sensors, lags = prepared.flow.shape[1], autoregression_lags(calendar.steps_per_day)
    rows = slice(calendar.steps_per_day, prepared.training_rows)
    observed = ~np.isnan(prepared.truth)
    seen = np.logical_or.accumulate(observed)[: max(0, rows.stop - rows.start)]  # a day before
    residual = np.where(seen, prepared.forward_filled[rows] - profile.series[rows], 0)
    measured = np.ones(seen.shape, dtype=np.bool_) if imputed is None else ~imputed[rows]
    residual = np.where(measured, residual, 0)
    coefficients = np.zeros((lags, len(near.sensors)), dtype=np.float32)
    if len(residual) <= lags:
        return coefficients
    scale = residual.std(axis=0, dtype=np.float64).astype(np.float32)
    scale[scale == 0] = 1
    counting = (seen & observed[rows] & measured)[lags:]
    # PyTorch, because NumPy chooses its own number of threads, and rounding depends on that number.
    values = torch.from_numpy(residual / scale)  # (rows, N)
    for sensor in tqdm(range(sensors), desc="autoregression", unit="sensor", disable=None, leave=False):
        others, counted = near.of_sensor(sensor), torch.from_numpy(counting[:, sensor])
        lagged = [values[lags - lag : len(values) - lag, others] for lag in range(1, lags + 1)]
        inputs = torch.cat(lagged, dim=1)[counted]  # (rows - lags or fewer, lags n)
        fitted = _robust_group_lasso(inputs, values[lags:, sensor][counted], lags)  # (lags, n)
        coefficients[:, near.starts[sensor] : near.starts[sensor + 1]] = fitted.numpy()
    coefficients *= scale[near.rows] / scale[near.sensors]
    return coefficients


def _robust_group_lasso(inputs: Tensor, target: Tensor, lags: int) -> Tensor:
    """Return coefficients (lags, n) for inputs (rows, lags n) of n sensors, penalised as n groups."""
    penalty = PENALTY * max(1, len(target)) ** 0.5  # a sensor without any row is solvable too
    solved, weights = target.new_zeros(inputs.shape[1]), torch.ones_like(target)
    norms = torch.full((inputs.shape[1] // lags,), FIRST_NORM, dtype=torch.float64)
    for _ in range(ROUNDS):
        weighted = inputs * weights[:, None]
        gram = (weighted.T @ inputs).double()
        gram.diagonal().add_((penalty / norms.clamp_min(LEAST_NORM)).repeat(lags))
        solved = torch.linalg.solve(gram, (weighted.T @ target).double())
        norms = solved.view(lags, -1).norm(dim=0)
        weights = 1 / (target - inputs @ solved.float()).abs().clamp_min(LEAST_ERROR)
        weights /= weights.mean()  # as in the first round, so that the penalty stands against the same sum of squares
    return solved.view(lags, -1).float()
