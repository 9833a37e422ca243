"""Forecasts that need no network: what a model has to beat. Targets are those of the split they are scored on."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from lib.data import Prepared
from lib.metrics import ForecastErrors

Forecast = NDArray[np.float32]  # (samples, N, P), raw units
RIDGE_PENALTIES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def targets(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int) -> Forecast:
    """Return the raw targets of samples: (samples, N, P)."""
    return _windows(prepared.flow, label_starts, np.arange(horizon))


def last_value(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, steps_per_day: int) -> Forecast:
    """Repeat the last value before the forecast."""
    del steps_per_day
    return _windows(prepared.flow, label_starts, np.full(horizon, -1))


def yesterday(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, steps_per_day: int) -> Forecast:
    """Repeat the same time yesterday; a horizon beyond a day repeats that day again."""
    return _windows(prepared.flow, label_starts, np.arange(horizon) % steps_per_day - steps_per_day)


def time_of_day_mean(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, steps_per_day: int) -> Forecast:
    """Forecast each sensor's mean at that time of day over the training rows."""
    training = prepared.flow[: prepared.training_rows]
    time = np.arange(len(training)) % steps_per_day
    total = np.zeros((steps_per_day, training.shape[1]))
    np.add.at(total, time, training)
    count = np.bincount(time, minlength=steps_per_day)[:, None]
    mean = np.where(count > 0, total / np.maximum(count, 1), training.mean(axis=0)).astype(np.float32)
    return _windows(mean, label_starts, np.arange(horizon), period=steps_per_day)


def ridge(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, steps_per_day: int) -> Forecast:
    """Regress each sensor's targets linearly on its own last hour (steps_per_day / 24 steps), with an L2 penalty.

    Fitted on the training samples; the penalty, relative to the mean variance of the inputs, is chosen on validation.
    """
    history = np.arange(-(steps_per_day // 24), 0)

    def samples(starts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x = _windows(prepared.flow, starts, history).transpose(1, 0, 2).astype(np.float64)  # (N, samples, h)
        y = _windows(prepared.flow, starts, np.arange(horizon)).transpose(1, 0, 2).astype(np.float64)
        return x, y

    x, y = samples(prepared.label_starts["train"])
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    x, y = x - x_mean, y - y_mean
    gram, cross = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y  # (N, h, h), (N, h, P)
    variance = np.trace(gram, axis1=1, axis2=2)[:, None, None] / len(history)
    identity = np.eye(len(history))

    def coefficients(penalty: float) -> NDArray[np.float64]:
        # The smallest penalty keeps a sensor that never varies solvable; its coefficients are zero.
        return np.linalg.solve(gram + (penalty * variance + 1e-9) * identity, cross)

    x_val, y_val = samples(prepared.label_starts["val"])
    losses = [np.abs((x_val - x_mean) @ coefficients(penalty) + y_mean - y_val).mean() for penalty in RIDGE_PENALTIES]
    chosen = coefficients(RIDGE_PENALTIES[int(np.argmin(losses))])
    x_new = _windows(prepared.flow, label_starts, history).transpose(1, 0, 2)
    return np.asarray(((x_new - x_mean) @ chosen + y_mean).transpose(1, 0, 2), dtype=np.float32)


BASELINES: dict[str, Callable[[Prepared, NDArray[np.int64], int, int], Forecast]] = {
    "last value": last_value,
    "same time yesterday": yesterday,
    "time-of-day mean": time_of_day_mean,
    "ridge on the last hour": ridge,
}


def score_baselines(prepared: Prepared, split: str, horizon: int, steps_per_day: int) -> dict[str, ForecastErrors]:
    """Return the errors of each baseline on a split's targets, but for those that reach before the series."""
    starts = prepared.label_starts[split]
    truth = torch.from_numpy(targets(prepared, starts, horizon))
    scored = {}
    for name, baseline in BASELINES.items():
        if baseline is yesterday and starts[0] < steps_per_day:
            continue
        errors = ForecastErrors.zero(horizon)
        errors.update(torch.from_numpy(baseline(prepared, starts, horizon, steps_per_day)), truth)
        scored[name] = errors
    return scored


def _windows(
    series: NDArray[np.float32], label_starts: NDArray[np.int64], offsets: NDArray[np.int64], period: int | None = None
) -> Forecast:
    """Return series (T, N) at label_starts + offsets, modulo a period: (samples, N, offsets)."""
    steps = label_starts[:, None] + offsets
    return np.ascontiguousarray(series[steps if period is None else steps % period].transpose(0, 2, 1))
