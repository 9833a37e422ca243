"""Baselines: forecasts without a network, scored on the same targets as the models.

A baseline is fitted on training rows, and its forecast of a sample sees nothing from the label start on. Where values
are missing, means are over the observed ones, and forecasts start from the last observed value.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array

from lib.data.prepared import Prepared
from lib.data.windowing import Calendar
from lib.metrics import ForecastErrors

Forecast = NDArray[np.float32]  # (samples, N, P), raw units
VAR_STEPS = 3
# Relative to the variance of the inputs. None of a vector autoregression is 0: sensors may be copies of each other.
RIDGE_PENALTIES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
VAR_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def targets(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int) -> Forecast:
    """Return the raw targets of samples: (samples, N, P), NaN where they are missing."""
    return _windows(prepared.truth, label_starts, np.arange(horizon))


def last_value(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, _calendar: Calendar) -> Forecast:
    """Repeat the last value before the forecast."""
    return _windows(prepared.forward_filled, label_starts, np.full(horizon, -1))


def yesterday(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, calendar: Calendar) -> Forecast:
    """Repeat the same time yesterday; a horizon beyond a day repeats that day again."""
    period = calendar.steps_per_day
    return _windows(prepared.forward_filled, label_starts, np.arange(horizon) % period - period)


def last_week(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, calendar: Calendar) -> Forecast:
    """Repeat the same time a week ago; a horizon beyond a week repeats that week again."""
    period = calendar.steps_per_week
    return _windows(prepared.forward_filled, label_starts, np.arange(horizon) % period - period)


def time_of_day_mean(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, calendar: Calendar) -> Forecast:
    """Forecast each sensor's mean at that time of day over the training rows."""
    period = calendar.steps_per_day
    mean = _training_mean(prepared, calendar, (period,))
    return _windows(mean, calendar.step_of_week(label_starts), np.arange(horizon), period)


def historical_average(
    prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, calendar: Calendar
) -> Forecast:
    """Forecast each sensor's mean at that time of day on that day of the week over the training rows.

    A time of the week that no training row has is forecast as its time of day.
    """
    period = calendar.steps_per_week
    mean = _training_mean(prepared, calendar, (calendar.steps_per_day, period))
    return _windows(mean, calendar.step_of_week(label_starts), np.arange(horizon), period)


def ridge(prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, calendar: Calendar) -> Forecast:
    """Regress each sensor's targets linearly on its own last hour (steps_per_day / 24 steps), with an L2 penalty.

    Fitted on the training samples; the penalty, relative to the mean variance of the inputs, is chosen on validation.
    Where targets of the fit are missing, they are forward-filled.
    """
    history = np.arange(-(calendar.steps_per_day // 24), 0)
    filled = prepared.forward_filled

    def samples(starts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x = _windows(filled, starts, history).transpose(1, 0, 2).astype(np.float64)  # (N, samples, h)
        y = _windows(filled, starts, np.arange(horizon)).transpose(1, 0, 2).astype(np.float64)
        return x, y

    x, y = samples(prepared.label_starts["train"])
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    x -= x_mean
    y -= y_mean
    gram, cross = x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y  # (N, h, h), (N, h, P)
    variance = np.trace(gram, axis1=1, axis2=2)[:, None, None] / len(history)
    identity = np.eye(len(history))

    def coefficients(penalty: float) -> NDArray[np.float64]:
        # The smallest penalty keeps a sensor that never varies solvable; its coefficients are zero.
        return np.linalg.solve(gram + (penalty * variance + 1e-9) * identity, cross)

    x_val, y_val = samples(prepared.label_starts["val"])
    losses = [np.abs((x_val - x_mean) @ coefficients(penalty) + y_mean - y_val).mean() for penalty in RIDGE_PENALTIES]
    chosen = coefficients(RIDGE_PENALTIES[int(np.argmin(losses))])
    x_new = _windows(filled, label_starts, history).transpose(1, 0, 2)
    return np.asarray(((x_new - x_mean) @ chosen + y_mean).transpose(1, 0, 2), dtype=np.float32)


def vector_autoregression(
    prepared: Prepared, label_starts: NDArray[np.int64], horizon: int, _calendar: Calendar
) -> Forecast:
    """Regress the next step of all sensors linearly on the last three of all, with an L2 penalty, and iterate.

    x[t] = x[t-1] A_1 + x[t-2] A_2 + x[t-3] A_3 on values standardised by sensor (Lütkepohl 2005, New Introduction to
    Multiple Time Series Analysis, chapter 2; the penalty as in Hoerl and Kennard 1970). Mean, deviation and A are those
    of the training rows. A forecast stays within twice the largest deviation from the mean that the training rows have.
    The penalty is chosen on every P-th validation sample, whose targets do not overlap. Where targets of the fit are
    missing, they are forward-filled.
    """
    rows, sensors = prepared.training_rows, prepared.flow.shape[1]
    lags = max(1, min(VAR_STEPS, rows - 1))
    filled = prepared.forward_filled
    mean = filled[:rows].mean(axis=0, dtype=np.float64)
    deviation = filled[:rows].std(axis=0, dtype=np.float64)
    deviation[deviation == 0] = 1
    inputs = (filled - mean) / deviation
    # An unstable autoregression grows without bound: over a long horizon its forecasts would be infinite.
    limit = 2 * np.abs(inputs[:rows]).max(axis=0)  # (N,)

    # The normal equations block by block, so that the inputs are never laid side by side for all rows.
    lagged = [inputs[lags - lag : rows - lag] for lag in range(1, lags + 1)]  # each (rows - lags, N)
    gram = np.block([[earlier.T @ later for later in lagged] for earlier in lagged])  # (lags N, lags N)
    cross = np.concatenate([earlier.T @ inputs[lags:rows] for earlier in lagged])  # (lags N, N)

    def coefficients(penalty: float) -> NDArray[np.float64]:
        penalised = gram + np.diag(np.full(len(gram), penalty * rows))  # an input's squares sum up to the rows
        solution: NDArray[np.float64] = cho_solve(cho_factor(penalised, overwrite_a=True), cross)
        return solution  # (lags N, N), those of the last step first

    def iterated(solution: NDArray[np.float64], starts: NDArray[np.int64]) -> Forecast:
        forecast = np.empty((len(starts), sensors, horizon), dtype=np.float32)
        state = np.concatenate([inputs[starts - lag] for lag in range(1, lags + 1)], axis=1)  # (samples, lags N)
        for step in range(horizon):
            ahead = np.clip(state @ solution, -limit, limit)
            forecast[:, :, step] = ahead * deviation + mean
            state = np.concatenate([ahead, state[:, :-sensors]], axis=1)
        return forecast

    apart = prepared.label_starts["val"][::horizon]
    truth = _windows(filled, apart, np.arange(horizon))
    losses = [np.abs(iterated(coefficients(penalty), apart) - truth).mean() for penalty in VAR_PENALTIES]
    return iterated(coefficients(VAR_PENALTIES[int(np.argmin(losses))]), label_starts)


class Baseline(NamedTuple):
    """A forecast (samples, N, P) in raw units by `forecast(prepared, label_starts, horizon, calendar)`.

    It looks `days_back` before a label start, where that is more than the inputs of every sample hold. With more
    sensors than `most_sensors` it would take more time and memory than a network.
    """

    forecast: Callable[[Prepared, NDArray[np.int64], int, Calendar], Forecast]
    days_back: int = 0
    most_sensors: int | None = None


BASELINES = {
    "last value": Baseline(last_value),
    "same time yesterday": Baseline(yesterday, days_back=1),
    "same time last week": Baseline(last_week, days_back=7),
    "time-of-day mean": Baseline(time_of_day_mean),
    "historical average": Baseline(historical_average),
    "ridge on the last hour": Baseline(ridge),
    "vector autoregression": Baseline(vector_autoregression, most_sensors=2000),  # memory grows with N^2, time with N^3
}


def score_baselines(
    prepared: Prepared, split: str, horizon: int, calendar: Calendar
) -> dict[str, tuple[ForecastErrors, ForecastErrors | None]]:
    """Return the errors of each baseline on a split's targets.

    Left out are those that look back before the series, and those that are not for so many sensors.

    The second errors are those of the measured targets alone; None for a series where nothing is imputed.
    """
    starts = prepared.label_starts[split]
    truths = [prepared.truth, *([] if prepared.measured is None else [prepared.measured])]
    targets_of = [torch.from_numpy(_windows(truth, starts, np.arange(horizon))) for truth in truths]
    scored = {}
    for name, baseline in BASELINES.items():
        if starts[0] < baseline.days_back * calendar.steps_per_day:
            continue
        if baseline.most_sensors is not None and prepared.flow.shape[1] > baseline.most_sensors:
            continue
        forecast = torch.from_numpy(baseline.forecast(prepared, starts, horizon, calendar))
        errors = [ForecastErrors.zero(horizon) for _ in targets_of]
        for each, target in zip(errors, targets_of, strict=True):
            each.update(forecast, target)
        scored[name] = (errors[0], errors[1] if len(errors) > 1 else None)
    return scored


def _training_mean(prepared: Prepared, calendar: Calendar, periods: Sequence[int]) -> Forecast:
    """Return the means (period, N) of the observed training values by step of the last, longest of the periods.

    A mean of no value is that of the period before, or of all values. Each period divides the next, the last a week.
    """
    training = prepared.truth[: prepared.training_rows]
    observed = ~np.isnan(training)
    rows = np.arange(len(training))
    steps = calendar.step_of_week(rows)
    mean = np.zeros((1, training.shape[1]))
    for period in (1, *periods):
        adding = csr_array((np.ones(len(rows)), (steps % period, rows)), shape=(period, len(rows)))
        total, count = adding @ np.where(observed, training, 0), adding @ observed
        shorter = np.tile(mean, (period // len(mean), 1))
        mean = np.where(count > 0, total / np.maximum(count, 1), shorter)
    return mean.astype(np.float32)


def _windows(
    series: NDArray[np.float32], label_starts: NDArray[np.int64], offsets: NDArray[np.int64], period: int | None = None
) -> Forecast:
    """Return series (T, N) at label_starts + offsets, modulo a period: (samples, N, offsets)."""
    steps = label_starts[:, None] + offsets
    return np.ascontiguousarray(series[steps if period is None else steps % period].transpose(0, 2, 1))
