"""Forecasting with a trained run, from its checkpoint alone and the last steps of a file."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lib.bias_correction import corrected, earlier_starts, steps_back
from lib.captured import Captured, recorder_for
from lib.checkpoints import load_checkpoint, restored
from lib.config import Config, DataConfig, parse_config
from lib.data.imputed import causal_flags, marked_flags
from lib.data.prepared import MARKS, Prepared
from lib.data.profile import DECAY, historical_profile
from lib.data.sensor_tables import check_sensor_count, grid_steps, is_table, read_table, start_time
from lib.data.series import (
    FLOW,
    Scaling,
    fill_gaps,
    find_gaps,
    missing_values,
    read_marks,
    read_series,
    read_start,
    refuse_negative,
)
from lib.data.windowing import Calendar, nearest_step, time_of_step
from lib.data.windows import Windows
from lib.devices import choose_device, configure_cpu
from lib.errors import InputError, nearest
from lib.files import written_whole
from lib.interface import Variants
from lib.intervals import bounds
from lib.numbers import number_text
from lib.run_folder import BEST, RunFolder

FAULTS_SHOWN = 5
BATCH = 32  # forecasts computed at once
PROFILE_DAYS = 14  # of a file, for a historical profile of its own
IMPUTED_DAYS = 8  # of a file, to look for imputed sensors: they repeat the week before
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
        sensors: (N,) names in the model's order; where the run had none they are its positions, 0 to N - 1.
        named: whether the run had names.
        profile_week: (steps of a week, N), the historical profile, of a network that asks for it.
        device: where to compute.
        road_map: latitude and longitude of the sensors (N, 2), and the pairs (E, 2) of linked ones; None if unknown.
    """

    path: Path
    model: nn.Module
    config: Config
    scaling: Scaling
    sensors: tuple[str, ...]
    named: bool
    profile_week: NDArray[np.float32] | None
    device: torch.device
    road_map: tuple[NDArray[np.float64], NDArray[np.int64]] | None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of the input steps from the first step to forecast, (L,)."""
        return self.config.windows.offsets

    @property
    def steps_needed(self) -> int:
        """The number of steps before the forecast that its inputs reach back."""
        return -int(self.offsets.min())

    @property
    def steps_useful(self) -> int | None:
        """The number of steps before the forecast that are of use; None: all that there are."""
        data, needs = self.config.data, self.config.needs
        if needs.carried_profile:
            return None
        useful = max(self.steps_needed, IMPUTED_DAYS * data.steps_per_day if needs.imputed else 0)
        return useful + (steps_back(data.steps_per_day) if self.config.training.bias_correction else 0)


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
    ids, profile_week, kept = checkpoint["sensor_ids"], checkpoint["profile_week"], checkpoint["map"]
    return Forecaster(
        path,
        model,
        config,
        Scaling(**checkpoint["scaling"]),
        tuple(map(str, range(config.data.num_of_vertices) if ids is None else ids)),
        ids is not None,
        None if profile_week is None else profile_week.numpy(),
        device,
        None if kept is None else (kept["positions"].numpy(), kept["links"].numpy()),
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
        start: the time of the file's first step by all its rows; of a file without times that of the run's series, if
            it is known.
        has_times: whether the file has times.
        points_per_hour: time steps in an hour.
        marks: (T, N), which values the file marks as imputed; None: it has no marks.
    """

    path: Path
    flow: NDArray[np.float64]
    sensors: tuple[str, ...]
    first_step: int
    start: datetime | None
    has_times: bool
    points_per_hour: int
    marks: NDArray[np.bool_] | None = None

    @property
    def calendar(self) -> Calendar:
        """Where in the week the steps of `flow` lie; where no time is known, the file's first step begins a week."""
        of_file = Calendar.starting(self.start, self.points_per_hour)
        return Calendar(of_file.steps_per_day, of_file.step_of_week(self.first_step))

    def label(self, index: int) -> str:
        """Return the time of a step, by its index into `flow` or beyond, or its number where no time is known."""
        step = self.first_step + index
        return str(step) if self.start is None else str(time_of_step(self.start, step, self.points_per_hour))

    def until(self, end: int) -> "History":
        """Return the history without the steps from an index on."""
        return replace(self, flow=self.flow[:end], marks=None if self.marks is None else self.marks[:end])

    def with_unknown(self, steps: int) -> "History":
        """Return the history with some steps more, of which nothing is known."""
        later = ((0, steps), (0, 0))
        marks = None if self.marks is None else np.pad(self.marks, later)
        return replace(self, flow=np.pad(self.flow, later, constant_values=np.nan), marks=marks)


def read_history(
    path: Path, forecaster: Forecaster, steps: int | None, by_position: bool = False, until: str | None = None
) -> History:
    """Read the last steps of a PEMS npz archive or a sensor table, or all where there are fewer, or steps is None.

    The columns of a table are found by the names of the forecaster's sensors, with `by_position` by their order; an
    archive has no names. Steps that are absent from a table are gaps, and so is what [Data] missing of the run says.
    With `until` the steps from that time on are left out, and no check looks at them.

    Raises:
        InputError: the file is not as it should be, or its sensors are not those of the forecaster, or there is nothing
            before that time, or no data up to it.
    """
    data, sensors = forecaster.config.data, forecaster.sensors
    if not is_table(path):
        series = read_series(path, data.num_of_vertices, gaps=True)
        first = 0 if steps is None else max(0, len(series) - steps)
        flow = series[first:, :, FLOW].astype(np.float64)
        marks = read_marks(path, series.shape[:2])
        marks = None if marks is None else marks[first:]
        start = read_start(path)
        has_times, start = start is not None, start or data.start
        history = History(path, flow, sensors, first, start, has_times, data.points_per_hour, marks)
        return _checked(_before(history, until), data)

    table = read_table(path)
    if by_position:
        check_sensor_count(path, table.sensors, data.num_of_vertices)
        sensors = table.sensors
    columns = _columns_of(sensors, table.sensors, path, forecaster)
    step_of_row = grid_steps(table, data.points_per_hour)
    first = 0 if steps is None else max(0, int(step_of_row[-1]) + 1 - steps)
    kept = step_of_row >= first
    flow = np.full((int(step_of_row[-1]) + 1 - first, data.num_of_vertices), np.nan)
    flow[step_of_row[kept] - first] = table.values[kept][:, columns]
    history = History(path, flow, sensors, first, start_time(table, data.points_per_hour), True, data.points_per_hour)
    return _checked(_before(history, until), data)


def _before(history: History, until: str | None) -> History:
    """Return the steps of a history before a local time, such as 2018-03-05 08:00; all of them without one.

    Raises:
        InputError: the text is no such time, the times of the history are not known, or it ends before.
    """
    if until is None:
        return history
    try:
        time = datetime.fromisoformat(until)
    except ValueError:
        time = None
    if time is None or time.tzinfo is not None:
        raise InputError(f"--until: found {until!r}, expected a local time such as '2018-03-05 08:00'")
    if history.start is None:
        raise InputError(f"--until: found {until!r}, but neither {history.path} nor the run says when it begins")
    end = int(nearest_step((time - history.start) / timedelta(hours=1) * history.points_per_hour)) - history.first_step
    if not 0 < end <= len(history.flow):
        span = f"{history.label(1)} to {history.label(len(history.flow))}"
        raise InputError(f"--until: found {until!r}, expected a time from {span}, where {history.path} ends")
    return history.until(end)


def _checked(history: History, data: DataConfig) -> History:
    """Return a history with NaN where the flow is missing by [Data] missing, and refuse negative flows."""
    rule = data.missing
    history.flow[missing_values(history.flow, rule)] = np.nan
    way_out = "leave the cells empty, or NaN in an archive"
    try:
        refuse_negative(history.flow, rule, history.sensors.__getitem__, history.label, way_out)
    except InputError as error:
        raise InputError(f"{history.path}: {error}") from None
    return history


def _columns_of(sensors: Sequence[str], columns: Sequence[str], path: Path, forecaster: Forecaster) -> list[int]:
    """Return the columns (N,) of sensors, by their names.

    Raises:
        InputError: the names are not those of the sensors, in any order.
    """
    position, checkpoint = {name: index for index, name in enumerate(columns)}, forecaster.path
    unknown = sorted(set(columns) - set(sensors), key=columns.index)
    missing = [name for name in sensors if name not in position]
    if not unknown and not missing:
        return [position[name] for name in sensors]
    if not forecaster.named:
        check_sensor_count(path, columns, len(sensors))
        raise InputError(
            f"{path}: found column {unknown[0]!r}, expected 0 to {len(sensors) - 1}, as {checkpoint} was trained "
            "without names; where the columns are in the order of its sensors, add --by-position"
        )
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


def check_inputs(history: History, offsets: NDArray[np.int64], max_gap: int) -> int:
    """Return how many inputs of the forecast of the steps after a history are filled in.

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
    is_input = np.zeros(length, dtype=np.bool_)
    is_input[length + offsets] = True
    faults = [
        f"{history.path}: sensor '{history.sensors[sensor]}': found no value from {history.label(first)} to "
        f"{history.label(end - 1)} ({end - first} steps), expected gaps of at most {max_gap} steps (--max-gap)"
        for sensor, first, end in find_gaps(fill_gaps(history.flow, max_gap))
        if is_input[first:end].any()
    ]
    if len(faults) > FAULTS_SHOWN:
        faults = [*faults[:FAULTS_SHOWN], f"{history.path}: and {len(faults) - FAULTS_SHOWN} more gaps"]
    if faults:
        raise InputError("\n".join(faults))
    return int(np.isnan(history.flow[is_input]).sum())


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What a run forecasts from some steps of a history.

    Attributes:
        flow: (B, N, P), in vehicles a step.
        imputed: (B, N), which sensors were imputed then; None where the network does not ask for it.
        earlier: how many more forecasts were made, for the errors that correct these.
    """

    flow: NDArray[np.float32]
    imputed: NDArray[np.bool_] | None
    earlier: int


def forecast_next(forecaster: Forecaster, history: History, max_gap: int) -> Forecasts:
    """Return the forecast of the steps after a history: `forecasts_from` its end."""
    now = np.array([len(history.flow)])
    return forecasts_from(forecaster, history.with_unknown(forecaster.config.data.num_for_predict), now, max_gap)


def what_was_known(forecaster: Forecaster, history: History, imputed: NDArray[np.bool_] | None) -> list[str]:
    """Return lines on how many sensors (N,) are imputed after a history, and on the days of the profile."""
    calendar, length, lines = history.calendar, len(history.flow), []
    if imputed is not None:
        found = f"imputed sensors: {imputed.sum()} of {len(imputed)}"
        needed = IMPUTED_DAYS * calendar.steps_per_day
        if history.marks is not None:
            lines.append(f"{found} by the marks of the file")
        elif length < needed:
            lines.append(f"imputed sensors: not looked for, {length} steps were read and {needed} are needed")
        elif imputed.any():
            lines.append(f"{found} repeat last week and are forecast by it")
    if forecaster.config.needs.carried_profile:
        days = length // calendar.steps_per_day
        lines.append(
            f"historical profile of the {days} days before the forecast"
            if days >= PROFILE_DAYS
            else f"historical profile of the run's training: the file has {days} whole days before the forecast, "
            f"and {PROFILE_DAYS} are needed for one of its own"
        )
    return lines


def forecasts_from(
    forecaster: Forecaster, history: History, label_starts: NDArray[np.int64], max_gap: int
) -> Forecasts:
    """Return the forecasts from many steps of a history.

    Each is made from the steps before its label start alone: gaps, profile and imputed sensors are as they were known
    then, and so are the errors that correct it.

    Args:
        forecaster: the run.
        history: from the file's first step on.
        label_starts: (B,), the first steps to forecast, as indices into the history, in order.
        max_gap: the longest gap among the inputs of an earlier forecast whose errors count, in steps.
    """
    if not forecaster.config.training.bias_correction:
        return Forecasts(*_network_forecasts(forecaster, history, label_starts), earlier=0)
    own = PROFILE_DAYS * history.calendar.steps_per_day if forecaster.config.needs.carried_profile else 0
    of_training, of_file = label_starts[label_starts < own], label_starts[label_starts >= own]
    parts = [
        _corrected_forecasts(forecaster, history, starts, first, max_gap)
        for starts, first in ((of_training, 0), (of_file, own))
        if len(starts)
    ]
    flags = [part.imputed for part in parts if part.imputed is not None]
    return Forecasts(
        np.concatenate([part.flow for part in parts]),
        np.concatenate(flags) if flags else None,
        sum(part.earlier for part in parts),
    )


def _corrected_forecasts(
    forecaster: Forecaster, history: History, label_starts: NDArray[np.int64], first: int, max_gap: int
) -> Forecasts:
    """Return the forecasts from label starts (B,), corrected by the errors of earlier ones.

    None of these is from a step before `first`: forecasts with the profile of training err in another way than those
    with a profile of the file, so their errors say nothing of these.
    """
    horizon, day = forecaster.config.data.num_for_predict, history.calendar.steps_per_day
    earlier = earlier_starts(label_starts, horizon, day)
    earlier = earlier[earlier >= max(first, forecaster.steps_needed)]
    earlier = earlier[~refused_starts(history, forecaster.offsets, earlier, max_gap)]
    starts = np.union1d(earlier, label_starts)
    forecast, imputed = _network_forecasts(forecaster, history, starts)
    target = history.flow[starts[:, None] + np.arange(horizon)].transpose(0, 2, 1).astype(np.float32)
    flow = corrected(forecast, target, starts, day, imputed)
    asked = np.searchsorted(starts, label_starts)
    flags = None if imputed is None else imputed[asked]
    return Forecasts(flow[asked], flags, len(starts) - len(label_starts))


def _network_forecasts(
    forecaster: Forecaster, history: History, label_starts: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Return what `forecasts_from` does, without correction."""
    config, horizon, calendar = forecaster.config, forecaster.config.data.num_for_predict, history.calendar
    flow = history.flow.astype(np.float32)
    length, day = len(flow), calendar.steps_per_day
    missing = np.isnan(flow)
    filled = fill_gaps(history.flow, length).astype(np.float32) if missing.any() else flow
    minimum, maximum = (np.array([limit]) for limit in (forecaster.scaling.minimum, forecaster.scaling.maximum))
    splits, gaps = {"train": np.array([length])}, missing if missing.any() else None
    made_from = {} if history.marks is None else {MARKS: str(history.path)}
    prepared = Prepared(filled, forecaster.offsets, splits, minimum, maximum, made_from, gaps)
    flags = None
    if config.needs.imputed and history.marks is not None:
        flags = marked_flags(history.marks & ~missing)
    elif config.needs.imputed:
        flags = causal_flags(flow, calendar)
        flags[: IMPUTED_DAYS * day] = False

    week = forecaster.profile_week
    of_week = None if week is None else week[calendar.step_of_week(np.arange(length))]
    parts = [(label_starts, of_week)]
    early = label_starts < PROFILE_DAYS * day  # with too few days before them for a profile of their own
    if config.needs.carried_profile and not early.all():
        first = label_starts[~early].min() - config.training.num_of_hours * config.data.points_per_hour
        own = np.zeros_like(flow)
        own[first:] = historical_profile(flow, length, calendar, forecaster.scaling.middle, DECAY, first).series
        parts = [(label_starts[early], of_week), (label_starts[~early], own)]
    recorder = recorder_for(config.runtime, forecaster.device)
    forecasts = []
    bar = tqdm(total=len(label_starts), desc="forecasts", unit="forecast", leave=False, disable=None)
    with bar:
        for starts, profile in parts:
            if not len(starts):
                continue
            windows = Windows(
                prepared,
                horizon,
                calendar,
                forecaster.device,
                profile=profile,
                imputed=flags,
                hours=config.training.num_of_hours,
            )
            forecast, captured = partial(_forecast, forecaster, windows), Captured(BATCH, recorder)
            for part in windows.parts(starts, BATCH):
                forecasts.append(captured(forecast, part)[0].float().cpu().numpy())
                bar.update(len(part))
    return np.concatenate(forecasts), None if flags is None else flags[label_starts]


@torch.no_grad()
def _forecast(forecaster: Forecaster, windows: Windows, label_starts: Tensor) -> tuple[Tensor]:
    """Return the forecasts (B, N, P) from label starts, in vehicles a step."""
    return (forecaster.scaling.to_raw(forecaster.model(windows.batch(label_starts).inputs)),)


def refused_starts(
    history: History, offsets: NDArray[np.int64], label_starts: NDArray[np.int64], max_gap: int
) -> NDArray[np.bool_]:
    """Return from which label starts (B,) `check_inputs` would refuse to forecast, for a gap among the inputs."""
    refused = np.zeros(len(label_starts), dtype=np.bool_)
    gaps = {(first, end) for _, first, end in find_gaps(history.flow) if end - first > max_gap or first == 0}
    for first, end in gaps:
        too_long = np.minimum(end, label_starts) - first > max_gap  # what is known of it by then
        if first == 0:
            too_long |= label_starts <= end  # no value before to fill it with
        inputs = label_starts[:, None] + offsets
        refused |= too_long & ((inputs >= first) & (inputs < end)).any(axis=1)
    return refused


def save_forecast(
    path: Path, history: History, forecast: NDArray[np.float32], half_widths: Mapping[float, NDArray[np.float32]]
) -> None:
    """Write the forecast (N, P), at least 0, of the steps after a history as CSV, a row for each step and sensor.

    The columns are `time` (the number of the step where no time is known), `sensor`, `minutes_ahead` of the
    history's last step, `forecast`, and for each level of `half_widths` (N, P) the bounds of the interval, such as
    `lower_0.8` and `upper_0.8`; all in vehicles a step.
    """
    columns = [forecast, *(bound for width in half_widths.values() for bound in bounds(forecast, width))]
    names = [f"{end}_{level:g}" for level in half_widths for end in ("lower", "upper")]
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow((*HEADER, *names))
        for step, flows in enumerate(zip(*(column.T for column in columns), strict=True)):
            time = history.label(len(history.flow) + step)
            minutes = f"{60 * (step + 1) / history.points_per_hour:g}"
            for name, *values in zip(history.sensors, *flows, strict=True):
                writer.writerow((time, name, minutes, *map(number_text, values)))
