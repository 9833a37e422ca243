"""A linear autoregression on the topology graph: what the last steps near a sensor say of its next ones.

Vehicles that passed one sensor reach the next one minutes later, with the chance in their number. Only sensors near
each other share vehicles within minutes, so the coefficients of all others are 0.
"""

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lib.data import Calendar, Prepared
from lib.usual_flow import UsualFlow

LAG_MINUTES = 30
PENALTY = 0.14  # over the root of the rows; in units of a sensor's standard deviation
ROUNDS = 5  # by then forecasts change by less than 1 in 1,000
FIRST_NORM, LEAST_NORM = 0.1, 1e-3  # of a neighbour's coefficients, which are mostly below 1
LEAST_MISS = 0.3  # in standard deviations; below it a miss counts by its square, as in the loss of Huber


def autoregression_lags(steps_per_day: int) -> int:
    """Return the number of steps that a forecast is from."""
    return max(1, LAG_MINUTES * steps_per_day // (24 * 60))


def graph_autoregression(
    prepared: Prepared, usual: UsualFlow, near: NDArray[np.bool_], calendar: Calendar
) -> NDArray[np.float32]:
    """Regress by how much each sensor deviates from the usual on the last half hour of those near it.

        x[t] = sum over l of x[t-1-l] A[l],  with  sum |miss| + sum over j of penalty |A[:, j, i]|  least for each i

    The absolute error is the one that forecasts are scored by, and does not let a few large misses of an incident
    decide. The coefficients of a neighbour are penalised as a group, so that few neighbours are left (group lasso,
    Yuan and Lin 2006). Both by ridge regressions whose weights are the inverse misses and norms of the one before
    (Schlossmacher 1973; Daubechies et al. 2010). Fitted on the training rows; where values are missing there, the last
    known one stands in for them.

    Args:
        prepared: the series.
        usual: what is usual at each of its steps.
        near: (N, N), true where sensor j may tell of sensor i, in either order.
        calendar: of the series.

    Returns:
        Coefficients (lags, N, N) for deviations in any unit that all sensors share: A[l, j, i] is what a unit at j,
        1 + l steps before, adds to i.
    """
    rows, sensors = prepared.training_rows, prepared.held.shape[1]
    lags = autoregression_lags(calendar.steps_per_day)
    deviation = prepared.held[:rows] - usual.series[:rows]
    scale = deviation.std(axis=0)
    scale[scale == 0] = 1
    deviation /= scale
    penalty = PENALTY * np.sqrt(rows - lags)
    coefficients = np.zeros((lags, sensors, sensors), dtype=np.float32)
    neighbours = near | near.T | np.eye(sensors, dtype=bool)
    for sensor in tqdm(range(sensors), desc="autoregression", unit="sensor", disable=None, leave=False):
        others = np.flatnonzero(neighbours[sensor])
        lagged = [deviation[lags - lag : rows - lag, others] for lag in range(1, lags + 1)]
        inputs = np.concatenate(lagged, axis=1)  # (rows - lags, lags n)
        coefficients[:, others, sensor] = _least_absolute(inputs, deviation[lags:, sensor], lags, penalty)
    coefficients *= scale / scale[:, None]
    return coefficients


def _least_absolute(
    inputs: NDArray[np.float32], target: NDArray[np.float32], lags: int, penalty: float
) -> NDArray[np.float64]:
    """Return coefficients (lags, n) for inputs (rows, lags n) of n sensors, penalised as n groups."""
    weights = np.ones(len(target), dtype=np.float32)
    norms = np.full(inputs.shape[1] // lags, FIRST_NORM)
    for _ in range(ROUNDS):
        weighted = inputs * weights[:, None]
        gram = (weighted.T @ inputs).astype(np.float64)
        gram.flat[:: len(gram) + 1] += np.tile(penalty / np.maximum(norms, LEAST_NORM), lags)
        solved = np.linalg.solve(gram, (weighted.T @ target).astype(np.float64))
        norms = np.linalg.norm(solved.reshape(lags, -1), axis=0)
        weights = 1 / np.maximum(np.abs(target - inputs @ solved.astype(np.float32)), LEAST_MISS)
        weights /= weights.mean()  # so that the penalty keeps its weight
    return np.asarray(solved.reshape(lags, -1), dtype=np.float64)
