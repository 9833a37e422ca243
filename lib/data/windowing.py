"""Where samples lie in a series: the shape of windows, the splits, and the calendar.

A series is (T, N), time step and sensor. A sample is named by its label start t0, the index of its first target step:
its inputs lie at t0 + offsets, its targets at t0 .. t0 + P - 1.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError

SPLITS = ("train", "val", "test")
PADDED_FROM_DAY = 2  # the first day of a padded history being 0
STEP_TOLERANCE = 0.01  # in steps; times are rounded to seconds where a step is no whole number of them
A_MONDAY = datetime(2018, 1, 1)
Steps = TypeVar("Steps", Tensor, NDArray[np.int64], int)


@dataclass(frozen=True)
class WindowShape:
    """Which past hours a forecast sees, and how far it reaches.

    The input is `weeks + days + hours` segments of one hour, oldest first: the target's first hour in each of the last
    weeks, then in each of the last days, then the last hours before it. The target is the `horizon` steps from t0 on.
    """

    weeks: int
    days: int
    hours: int
    horizon: int
    points_per_hour: int
    split_windows: bool = False  # of one hour of input, whatever the input is; else of the samples whose input exists

    @property
    def segments(self) -> tuple[tuple[str, int], ...]:
        """Name and offset from t0 of each one-hour segment, oldest first."""
        day = 24 * self.points_per_hour
        return (
            *((f"week -{i}", -i * 7 * day) for i in range(self.weeks, 0, -1)),
            *((f"day -{i}", -i * day) for i in range(self.days, 0, -1)),
            *((f"hour -{i}", -i * self.points_per_hour) for i in range(self.hours, 0, -1)),
        )

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of the input steps from t0, (L,)."""
        first = np.array([offset for _, offset in self.segments], dtype=np.int64)
        return (first[:, None] + np.arange(self.points_per_hour)).ravel()

    def label_starts(self, rows: int) -> NDArray[np.int64]:
        """Return the label starts of a series of that many rows that are split, in time order.

        Raises:
            InputError: there are too few rows for one sample in each split.
        """
        reach = self.points_per_hour if self.split_windows else -int(self.offsets.min())
        starts = np.arange(reach, rows - self.horizon + 1, dtype=np.int64)
        before_training = max(0, self._first_of_training - reach)
        smallest = max(3, -(-5 * (before_training + 1) // 3))  # from there on no split is empty
        if len(starts) < smallest:
            needed = reach + self.horizon + smallest - 1
            raise InputError(
                f"found {rows} rows, expected at least {needed} for windows of {self.weeks} weeks, {self.days} days, "
                f"{self.hours} hours and {self.horizon} target steps"
            )
        return starts

    def split(self, rows: int) -> dict[str, NDArray[np.int64]]:
        """Return the label starts of train, val and test: the first 60 %, the next 20 %, the last 20 % in time."""
        starts = self.label_starts(rows)
        train, val, test = np.split(starts, [int(0.6 * len(starts)), int(0.8 * len(starts))])
        return dict(zip(SPLITS, (train[train >= self._first_of_training], val, test), strict=True))

    @property
    def _first_of_training(self) -> int:
        """The first label start to train on: its input exists, or is padded no more than `PADDED_FROM_DAY` allows."""
        reach = -int(self.offsets.min())
        return min(reach, PADDED_FROM_DAY * 24 * self.points_per_hour) if self.split_windows else reach


@dataclass(frozen=True)
class Calendar:
    """Where in the week each step of a series lies; a week has seven days and starts on Monday at midnight.

    Where the time of the series' first step is not known, that step counts as the first of a week.
    """

    steps_per_day: int
    first_step: int = 0  # step of the week of the series' first step

    @property
    def steps_per_week(self) -> int:
        """The number of time steps in a week."""
        return 7 * self.steps_per_day

    def step_of_week(self, steps: Steps) -> Steps:
        """Return the step of the week, 0 .. 7 steps_per_day - 1, of steps of the series."""
        return (steps + self.first_step) % self.steps_per_week

    @classmethod
    def starting(cls, start: datetime | None, points_per_hour: int) -> "Calendar":
        """Return the calendar of a series whose first step is at that time."""
        steps_per_day = 24 * points_per_hour
        if start is None:
            return cls(steps_per_day)
        first_step = int(nearest_step((start - A_MONDAY) / timedelta(hours=1) * points_per_hour))
        return cls(steps_per_day, first_step % (7 * steps_per_day))


def nearest_step(steps: Any) -> NDArray[np.int64]:
    """Return the whole steps that times belong to, which are given in steps since any full hour or any row of a table.

    This is the only rule that turns times into steps. It takes the nearest step, so a clock that is seconds early
    changes nothing. A time half-way between two steps, within the tolerance, belongs to the earlier one: some files
    stamp the middle of an interval.
    """
    return np.ceil(np.asarray(steps) - 0.5 - STEP_TOLERANCE).astype(np.int64)


def nearest_time(time: datetime, points_per_hour: int) -> datetime:
    """Return the time of the step that a time belongs to, to the second."""
    step = nearest_step((time - A_MONDAY) / timedelta(hours=1) * points_per_hour)
    return time_of_step(A_MONDAY, int(step), points_per_hour)


def time_of_step(start: datetime, step: int, points_per_hour: int) -> datetime:
    """Return the time of a step, counted from that at `start`, to the second."""
    time = start + timedelta(hours=1) * step / points_per_hour
    return (time + timedelta(milliseconds=500)).replace(microsecond=0)


def padded(steps: Steps, steps_per_day: int) -> Steps:
    """Return steps of the series; those before it are moved to the same time of its first day."""
    return steps + (steps < 0) * (steps % steps_per_day - steps)


def evenly_spaced(label_starts: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    """Return that many of the label starts, from the first to the last; all of them where there are fewer."""
    places = np.linspace(0, len(label_starts) - 1, min(samples, len(label_starts)))
    return label_starts[places.round().astype(np.int64)]
