"""Forecasts with a trained run: its checkpoint alone, the last steps of a file, gaps filled by a stated rule."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib.checkpoints import load_checkpoint, restored
from lib.config import Config, parse_config
from lib.data.preparing import window_shape
from lib.data.sensor_tables import check_sensor_count, grid_steps, is_table, read_table
from lib.data.series import FLOW, Scaling, fill_gaps, find_gaps, missing_values, read_series
from lib.data.windowing import Calendar
from lib.devices import choose_device, configure_cpu
from lib.errors import InputError, nearest
from lib.files import written_whole
from lib.interface import Inputs, Variants
from lib.metrics import ForecastErrors
from lib.run_folder import BEST, RunFolder

FAULTS_SHOWN = 5
HEADER = ("time", "sensor", "minutes_ahead", "forecast")


# ---------------------------------------------------------------------------------------------- what was trained


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A trained run, ready to forecast: all of it is from the checkpoint.

    Attributes:
        path: the checkpoint.
        model: with the best weights, in evaluation mode, on `device`.
        config: the settings of the run; the files that they name need not be there.
        scaling: of the flow.
        sensor_ids: (N,) ids in the model's order, where the run's links speak ids.
        profile_week: (steps of a week, N), the historical profile, of a network that asks for it.
        device: where to compute.
    """

    path: Path
    model: nn.Module
    config: Config
    scaling: Scaling
    sensor_ids: tuple[str, ...] | None
    profile_week: NDArray[np.float32] | None
    device: torch.device

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of the input steps from the first step to forecast, (L,)."""
        return window_shape(self.config).offsets

    @property
    def steps_needed(self) -> int:
        """The number of steps before the forecast that its inputs reach back."""
        return -int(self.offsets.min())


def load_forecaster(folder: RunFolder, variants: Variants, device_name: str) -> Forecaster:
    """Load the best weights of a run, and all that belongs to them, from its checkpoint alone.

    Raises:
        InputError: there is no such run, or its checkpoint is damaged.
    """
    path = folder.best
    if not path.exists():
        siblings = [other.name for other in folder.path.parent.glob("*") if (other / BEST).exists()]
        raise InputError(f"{folder}: found no {BEST}, expected the folder of a run{nearest(folder.name, siblings)}")
    checkpoint = load_checkpoint(path)
    config = parse_config(checkpoint["settings"], path, variants)
    configure_cpu(config.runtime.threads)
    device = choose_device(device_name)
    model = restored(path, checkpoint, config).to(device).eval()
    ids, profile_week = checkpoint["sensor_ids"], checkpoint["profile_week"]
    return Forecaster(
        path,
        model,
        config,
        Scaling(**checkpoint["scaling"]),
        None if ids is None else tuple(map(str, ids)),
        None if profile_week is None else profile_week.numpy(),
        device,
    )


# -------------------------------------------------------------------------------------------- what was measured


@dataclass(frozen=True, eq=False)
class History:
    """Steps of a file in a row, up to its last one.

    Attributes:
        path: the file.
        flow: (T, N) vehicles a step, NaN where it is missing.
        sensors: (N,) names, in the model's order.
        first_step: the number of the first step in the file, counted from 0.
        start: the time of the file's first step, where it has times.
        points_per_hour: time steps in an hour.
    """

    path: Path
    flow: NDArray[np.float64]
    sensors: tuple[str, ...]
    first_step: int
    start: datetime | None
    points_per_hour: int

    def label(self, index: int) -> str:
        """Return the time of a step, by its index into `flow` or beyond, or its number in a file without times."""
        step = self.first_step + index
        return str(step) if self.start is None else str(self.start + timedelta(hours=1) * step / self.points_per_hour)

    def until(self, end: int) -> "History":
        """Return the history without the steps from an index on."""
        return replace(self, flow=self.flow[:end])


def read_history(path: Path, forecaster: Forecaster, steps: int) -> History:
    """Read the last steps of a PEMS npz archive or a sensor table, or all where there are fewer.

    The columns of a table are found by the ids of the forecaster's sensors, and go by position where it has none, as
    the sensors of an archive do. Steps that are absent from a table are gaps, and flows of 0 are where the run was
    trained with [Data] missing = zero_is_missing.

    Raises:
        InputError: the file is not as it should be, or its sensors are not those of the forecaster.
    """
    data, ids = forecaster.config.data, forecaster.sensor_ids
    if not is_table(path):
        series = read_series(path, data.num_of_vertices, gaps=True)
        names = ids or tuple(map(str, range(data.num_of_vertices)))
        first = max(0, len(series) - steps)
        flow = series[first:, :, FLOW].astype(np.float64)
        flow[missing_values(flow, data.missing)] = np.nan
        return History(path, flow, names, first, None, data.points_per_hour)

    table = read_table(path)
    columns: Sequence[int] = range(len(table.sensors))
    if ids is None:
        check_sensor_count(path, table.sensors, data.num_of_vertices)
    else:
        columns = _columns_of(ids, table.sensors, path, forecaster.path)
    step_of_row = grid_steps(table, data.points_per_hour)
    first = max(0, int(step_of_row[-1]) + 1 - steps)
    kept = step_of_row >= first
    flow = np.full((int(step_of_row[-1]) + 1 - first, data.num_of_vertices), np.nan)
    flow[step_of_row[kept] - first] = table.values[kept][:, columns]
    flow[missing_values(flow, data.missing)] = np.nan
    return History(path, flow, ids or table.sensors, first, table.time(0), data.points_per_hour)


def _columns_of(ids: Sequence[str], columns: Sequence[str], path: Path, checkpoint: Path) -> list[int]:
    position = {name: index for index, name in enumerate(columns)}
    unknown, missing = [name for name in columns if name not in ids], [name for name in ids if name not in position]
    if not unknown and not missing:
        return [position[name] for name in ids]
    faults = [
        *(
            f"column {name!r}, expected a sensor of {checkpoint}{nearest(name, missing)}"
            for name in unknown[:FAULTS_SHOWN]
        ),
        *(f"no column {name!r}, a sensor of {checkpoint}{nearest(name, unknown)}" for name in missing[:FAULTS_SHOWN]),
    ][:FAULTS_SHOWN]
    lines = [f"{path}: found {fault}" for fault in faults]
    if more := len(unknown) + len(missing) - len(faults):
        lines.append(f"{path}: and {more} more wrong columns")
    raise InputError("\n".join(lines))


# ---------------------------------------------------------------------------------------------- what comes next


def model_inputs(history: History, offsets: NDArray[np.int64], max_gap: int) -> tuple[NDArray[np.float64], int]:
    """Return the inputs (L, N) of the forecast of the steps after a history, and how many values of them were filled.

    Args:
        history: reaches back at least to the first input; with `max_gap` + 1 steps more where there are, gaps are as
            long as they are in the file.
        offsets: of the input steps from the first step to forecast, (L,).
        max_gap: the longest gap to fill, in steps.

    Raises:
        InputError: there are too few steps, or a longer gap among the inputs.
    """
    length, needed = len(history.flow), -int(offsets.min())
    if length < needed:
        raise InputError(f"{history.path}: found {length} steps before the forecast, expected at least {needed}")
    filled = fill_gaps(history.flow, max_gap)
    is_input = np.zeros(length, dtype=np.bool_)
    is_input[length + offsets] = True
    faults = [
        f"{history.path}: sensor '{history.sensors[sensor]}': found no value from {history.label(first)} to "
        f"{history.label(end - 1)} ({end - first} steps), expected gaps of at most {max_gap} steps (--max-gap)"
        for sensor, first, end in find_gaps(filled)
        if is_input[first:end].any()
    ]
    if len(faults) > FAULTS_SHOWN:
        faults = [*faults[:FAULTS_SHOWN], f"{history.path}: and {len(faults) - FAULTS_SHOWN} more gaps"]
    if faults:
        raise InputError("\n".join(faults))
    return filled[length + offsets], int(np.isnan(history.flow[is_input]).sum())


def next_step_of_week(history: History, config: Config) -> int:
    """Return the step of the week after a history; a file without times is taken to start when the training's did."""
    calendar = Calendar.starting(history.start or config.data.start, config.data.points_per_hour)
    return calendar.step_of_week(history.first_step + len(history.flow))


@torch.no_grad()
def forecast_flow(forecaster: Forecaster, inputs: NDArray[np.float64], step_of_week: int) -> NDArray[np.float32]:
    """Return the flow (N, P) of the next P steps, the first at that step of the week, from inputs (L, N).

    All are in vehicles a step.
    """

    def scaled(flow: NDArray[Any]) -> Tensor:
        # Rounded as in a prepared file, so that the same rows give the same forecast as in a test in float32.
        rounded = forecaster.scaling.to_float32(flow.astype(np.float32))
        return torch.from_numpy(np.ascontiguousarray(rounded.T)[None]).to(forecaster.device)

    series = scaled(inputs)  # (1, N, L)
    profile = None
    if (week := forecaster.profile_week) is not None:
        data = forecaster.config.data
        steps_ahead = np.arange(-data.points_per_hour, data.num_for_predict)
        profile = scaled(week[(step_of_week + steps_ahead) % len(week)])  # (1, N, h + P)
    steps = torch.tensor([step_of_week], device=forecaster.device)
    scaled_forecast = forecaster.model(Inputs(series, series[:, :, -1], steps, profile))  # (1, N, P)
    forecast: NDArray[np.float32] = forecaster.scaling.to_raw(scaled_forecast)[0].float().cpu().numpy()
    return forecast


def score_observed(forecast: NDArray[np.float32], truth: NDArray[np.float64]) -> ForecastErrors:
    """Return the errors of a forecast (N, P) by horizon, over the sensors whose truth (N, P) is not NaN."""
    errors = ForecastErrors.zero(truth.shape[1])
    errors.update(torch.from_numpy(forecast)[None], torch.from_numpy(truth)[None])
    return errors


def save_forecast(path: Path, history: History, forecast: NDArray[np.float32]) -> None:
    """Write the forecast (N, P) of the steps after a history as CSV, a row for each step and sensor.

    The columns are `time` (the number of the step where the history has no times), `sensor`, `minutes_ahead` of the
    history's last step, and `forecast` in vehicles a step.
    """
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(HEADER)
        for step, flows in enumerate(forecast.T):
            time = history.label(len(history.flow) + step)
            minutes = f"{60 * (step + 1) / history.points_per_hour:g}"
            writer.writerows(
                (time, name, minutes, f"{flow:.3f}") for name, flow in zip(history.sensors, flows, strict=True)
            )
