"""Preparation as such code usually does it: all windows cut out in a loop, materialised, scaled, saved compressed."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.data.series import FLOW
from lib.data.windowing import WindowShape

Windows = dict[str, NDArray[Any]]


def prepare_windows(series: NDArray[np.float64], shape: WindowShape) -> Windows:
    """Return all windows of a series (T, N, F), scaled by the least and greatest value of the training inputs.

    Returns:
        For each split `*_x` (B, N, F, L), `*_target` (B, N, P) in raw units and `*_timestamp` (B, 1), the label starts;
        `maximum` and `minimum` (1, 1, F, 1).
    """
    samples = []
    for start in range(len(series)):
        segments = [start + offset for _, offset in shape.segments]
        if min(segments) < 0 or start + shape.horizon > len(series):
            continue
        parts = [series[first : first + shape.points_per_hour] for first in segments]
        window = np.concatenate(parts, axis=0).transpose(1, 2, 0)  # (N, F, L)
        target = series[start : start + shape.horizon, :, FLOW].T  # (N, P)
        samples.append((window[None], target[None], np.array([[start]])))

    first, second = int(0.6 * len(samples)), int(0.8 * len(samples))
    splits = {"train": samples[:first], "val": samples[first:second], "test": samples[second:]}
    windows: Windows = {}
    for split, members in splits.items():
        for name, arrays in zip(("x", "target", "timestamp"), zip(*members, strict=True), strict=True):
            windows[f"{split}_{name}"] = np.concatenate(arrays, axis=0)

    windows["maximum"] = maximum = windows["train_x"].max(axis=(0, 1, 3), keepdims=True)
    windows["minimum"] = minimum = windows["train_x"].min(axis=(0, 1, 3), keepdims=True)
    for split in splits:
        windows[f"{split}_x"] = 2 * (windows[f"{split}_x"] - minimum) / (maximum - minimum) - 1
    return windows


def save_windows(path: Path, windows: Windows) -> None:
    """Write the windows to a compressed npz file."""
    np.savez_compressed(path, allow_pickle=False, **windows)
