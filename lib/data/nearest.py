"""The nearest sensors of each by exact DTW, without the distances of most pairs: for thousands of sensors.

Of 8,600 sensors there are 37 million pairs, of which `similarity = nearest` needs those of each sensor and its k
nearest. A lower bound of the distance, that costs next to nothing, rules out most others; what is left is computed in
the order of the bound, and given up as soon as it is clear that it is too far. The neighbours are those of all
distances.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from tqdm import tqdm

from lib.data.dtw import CELLS_ON_DEVICE, CPU, PAIRS_PER_THREAD, Nearest, check_profiles, columns_of, wavefront

LEVELS = 1024  # of flow, at which the bound is tabulated
SLACK = 1e-5  # by which a bound is lowered, relatively, for the rounding of float32 on both sides
BATCHES_PER_ROUND = 32  # between two updates of what is near
ROWS_AT_ONCE = 256  # sensors whose pairs with all others are held

Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]
Keep = Callable[["Search"], None]


@dataclass(frozen=True, eq=False)
class Search:
    """How far a search has come: what can be written, and gone on from.

    Attributes:
        nearest: the k nearest of each sensor among the pairs seen so far; -1 at an infinite distance where none is.
        reached: all pairs with a bound below this were seen.
    """

    nearest: Nearest
    reached: float


@dataclass(frozen=True, eq=False)
class Found:
    """The nearest sensors of each, and how many pairs they took.

    Attributes:
        nearest: the k nearest of each sensor.
        pairs: of sensors, all of them.
        computed: whose distance was computed to its end.
        abandoned: whose computation was given up.
    """

    nearest: Nearest
    pairs: int
    computed: int
    abandoned: int

    def summary(self) -> str:
        """Return a line on what was skipped."""
        computed, abandoned = (number / max(1, self.pairs) for number in (self.computed, self.abandoned))
        return (
            f"of {self.pairs:,} pairs {1 - computed - abandoned:.1%} were skipped by a lower bound, "
            f"{abandoned:.1%} given up early, {computed:.1%} computed"
        )


def nearest_sensors(
    profiles: NDArray[np.float64],
    neighbours: int,
    show_progress: bool = True,
    pairs_per_batch: int | None = None,
    device: torch.device = CPU,
    begun: Search | None = None,
    keep: Keep | None = None,
) -> Found:
    """Return the k nearest other sensors of each by DTW, the same as `Nearest.of` all distances (`dtw_matrix`).

    Args:
        profiles: one series a sensor (N, L).
        neighbours: k; with fewer than k other sensors, all of them.
        show_progress: draw a bar over the pairs, when stderr is a terminal.
        pairs_per_batch: pairs computed at once, in each thread or on the device; None takes what suits the device.
        device: where the distances are computed.
        begun: an earlier search over the same profiles, to go on from.
        keep: is given the search after each round.

    Raises:
        InputError: a profile is not finite.
    """
    check_profiles(profiles)
    number, length = profiles.shape
    count = min(neighbours, number - 1)
    at_once = pairs_per_batch or (PAIRS_PER_THREAD if device.type == "cpu" else max(1, CELLS_ON_DEVICE // length))
    total = number * (number - 1) // 2
    if count <= 0:
        return Found(Nearest(np.zeros((number, 0), dtype=np.int64), np.zeros((number, 0))), total, 0, 0)
    distances = _Distances(profiles, at_once, device)
    nothing = Nearest(np.full((number, count), -1), np.full((number, count), np.inf))
    search = begun or Search(nothing, -np.inf)
    computed = abandoned = 0
    with (
        distances,
        tqdm(total=total, unit="pair", desc="nearest by DTW", disable=None if show_progress else True) as bar,
    ):
        if begun is None:
            # Whatever is near by plain differences is near enough to begin with.
            pairs = _near_pairs(profiles, count)
            computed = len(pairs[0])
            search = Search(_merged(search.nearest, pairs, distances(pairs, np.full(computed, np.inf))), -np.inf)
        (first, second), bound = _candidates(profiles, search)
        bar.update(total - len(bound))
        round_size = BATCHES_PER_ROUND * at_once
        for start in range(0, len(bound), round_size):
            chosen = slice(start, start + round_size)
            i, j, least = first[chosen], second[chosen], bound[chosen]
            farthest = search.nearest.distance[:, -1]
            limit = np.maximum(farthest[i], farthest[j])
            open_pairs = least <= limit
            pairs = i[open_pairs], j[open_pairs]
            distance = distances(pairs, limit[open_pairs])
            finished = np.isfinite(distance)
            computed, abandoned = computed + int(finished.sum()), abandoned + int((~finished).sum())
            pairs = pairs[0][finished], pairs[1][finished]
            search = Search(_merged(search.nearest, pairs, distance[finished]), float(least[-1]))
            bar.update(len(i))
            if keep is not None:
                keep(search)
            if (bound[start + round_size :][:1] > search.nearest.distance[:, -1].max()).any():
                bar.update(len(bound) - start - len(i))
                break
    return Found(search.nearest, total, computed, abandoned)


class _Distances:
    """The DTW distances of pairs, infinite where they are beyond a limit; in threads on a CPU, else on a device."""

    def __init__(self, profiles: NDArray[np.float64], at_once: int, device: torch.device) -> None:
        self.at_once, self.device = at_once, device
        self.columns: Any = columns_of(profiles)
        self.executor = ThreadPoolExecutor(os.cpu_count() if device.type == "cpu" else 1)
        if device.type != "cpu":
            self.columns = tuple(torch.from_numpy(columns).to(device) for columns in self.columns)

    def __enter__(self) -> "_Distances":
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)  # Ctrl-C waits for the batches at work, not for all that are queued

    def __call__(self, pairs: Pairs, limit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances (P,) of pairs under limits (P,)."""

        def solve(start: int) -> NDArray[np.float64]:
            batch = slice(start, start + self.at_once)
            i, j, most = pairs[0][batch], pairs[1][batch], limit[batch].astype(np.float32)
            columns, reversed_columns = self.columns
            if self.device.type == "cpu":
                found = wavefront(np, np.take(columns, i, axis=1), np.take(reversed_columns, j, axis=1), most)
            else:
                places = [torch.from_numpy(part).to(self.device) for part in (i, j)]
                first, second = columns.index_select(1, places[0]), reversed_columns.index_select(1, places[1])
                found = wavefront(torch, first, second, torch.from_numpy(most).to(self.device)).cpu().numpy()
            return np.asarray(found, dtype=np.float64)

        parts = self.executor.map(solve, range(0, len(limit), self.at_once))
        return np.concatenate([np.zeros(0), *parts])


def _near_pairs(profiles: NDArray[np.float64], count: int) -> Pairs:
    """Return pairs (i < j) in which each sensor is with at least `count` others that are near by plain differences."""
    number = len(profiles)
    chosen = []
    for start in range(0, number, ROWS_AT_ONCE):
        rows = np.arange(start, min(number, start + ROWS_AT_ONCE))
        apart = cdist(profiles[rows], profiles, "cityblock")
        apart[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(apart, count - 1, axis=1)[:, :count]
        chosen.append(np.stack([np.repeat(rows, count), near.ravel()]))
    pairs = np.unique(np.sort(np.concatenate(chosen, axis=1), axis=0), axis=1).astype(np.int32)
    return pairs[0], pairs[1]


def _candidates(profiles: NDArray[np.float64], search: Search) -> tuple[Pairs, NDArray[np.float32]]:
    """Return the pairs (i < j) that a search has not seen and may still be near, with their bounds, the least first.

    The bound is that of Yi, Jagadish and Faloutsos (1998), which is LB_Keogh under an unlimited window: every value
    meets one of the other profile, which is not above that profile's greatest. So the distance is at least the sum of
    what one profile has above the greatest value of the other, and likewise below the least. If their ranges overlap,
    both sums count, for no step of a path pays for both with the same difference; else the greater.
    """
    farthest = search.nearest.distance[:, -1]
    greatest, least = profiles.max(axis=1), profiles.min(axis=1)
    above, above_level = _tabulated(profiles, greatest)
    # The same upside down.
    below, below_level = _tabulated(-profiles, -least)
    found = []
    for i in range(len(profiles) - 1):
        others = slice(i + 1, None)
        over = np.maximum(above[i, above_level[others]], above[others, above_level[i]])
        under = np.maximum(below[i, below_level[others]], below[others, below_level[i]])
        overlap = (greatest[i] >= least[others]) & (greatest[others] >= least[i])
        bound = np.where(overlap, over + under, np.maximum(over, under)) * np.float32(1 - SLACK)
        open_pairs = np.flatnonzero(
            (bound >= np.float32(search.reached)) & (bound <= np.maximum(farthest[i], farthest[others]))
        )
        found.append((open_pairs.astype(np.int32) + np.int32(i + 1), bound[open_pairs]))
    second, bounds = (np.concatenate(part) for part in zip(*found, strict=True))
    first = np.repeat(np.arange(len(found), dtype=np.int32), [len(part) for part, _ in found])
    order = np.argsort(bounds, kind="stable")
    return (first[order], second[order]), bounds[order]


def _tabulated(
    profiles: NDArray[np.float64], limits: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return how much of each profile is above each of some levels, (N, levels), and the level of each limit (N,).

    A limit's level is the next one that is not below it, so that no more is counted than is above the limit.
    """
    levels = np.unique(np.quantile(limits, np.linspace(0, 1, LEVELS)))
    table = np.empty((len(profiles), len(levels)), dtype=np.float32)
    for row, profile in zip(table, np.sort(profiles, axis=1), strict=True):
        place = np.searchsorted(profile, levels, side="right")  # values from here on are above
        rest = np.append(np.cumsum(profile[::-1])[::-1], 0)
        row[:] = np.maximum(rest[place] - (len(profile) - place) * levels, 0)
    return table, np.minimum(np.searchsorted(levels, limits), len(levels) - 1)


def _merged(nearest: Nearest, pairs: Pairs, distance: NDArray[np.float64]) -> Nearest:
    """Return the nearest sensors with those of some pairs among them, each at most once."""
    number, count = nearest.sensors.shape
    of = np.concatenate([np.repeat(np.arange(number), count), *pairs])
    sensors = np.concatenate([nearest.sensors.ravel(), *pairs[::-1]])
    distances = np.concatenate([nearest.distance.ravel(), distance, distance])
    order = np.lexsort((sensors, distances, of))
    of, sensors, distances = of[order], sensors[order], distances[order]
    again = np.append(False, (of[1:] == of[:-1]) & (sensors[1:] == sensors[:-1]) & (sensors[1:] >= 0))
    of, sensors, distances = of[~again], sensors[~again], distances[~again]
    starts = np.searchsorted(of, np.arange(number))
    kept = starts[:, None] + np.arange(count)
    return Nearest(sensors[kept], distances[kept])
