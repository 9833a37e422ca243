"""Batches: samples cut out of the prepared series by index, ready for a network.

Windows with a padded history start before the data; the missing days repeat the first day. Only training uses them, to
have more samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.data.prepared import Prepared
from lib.data.series import next_observed
from lib.data.windowing import Calendar, padded
from lib.distributed import ONE_PROCESS, Processes
from lib.interface import Inputs


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples: the inputs of the network, and its targets.

    Attributes:
        inputs: for a forecast on its own.
        target: (B, N, P) scaled, finite; where it is missing, the last observed value before.
        flow: (B, N, P) the target in raw units, NaN where it is missing.
        observed: (B, N, P) where the target is not missing; None for a series where nothing is.
        measured: (B, N, P), `flow` with NaN where it is imputed too; None for a series where nothing is.
    """

    inputs: Inputs
    target: Tensor
    flow: Tensor
    observed: Tensor | None = None
    measured: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.target)

    @property
    def with_teacher(self) -> Inputs:
        """The inputs for teacher forcing: with the value before each target step."""
        teacher = torch.cat([self.inputs.start.unsqueeze(-1), self.target[:, :, :-1]], dim=-1)  # (B, N, P)
        return self.inputs._replace(teacher=teacher)

    @property
    def weight(self) -> float | Tensor:
        """How many samples these are, each counted by the share of its targets that is observed."""
        return len(self.target) if self.observed is None else self.observed.sum() / self.observed.shape[1:].numel()

    def share_of(self, batch: "Batch") -> float | Tensor:
        """Return the share that this part has of the weight of a batch; 0 where the batch has none."""
        weight, whole = self.weight, batch.weight
        return (weight / whole).nan_to_num() if isinstance(whole, Tensor) else weight / max(1, whole)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def changed(part: Tensor | None) -> Any:
            return None if part is None else change(part)

        inputs = Inputs(*map(changed, self.inputs))
        return Batch(inputs, *map(changed, (self.target, self.flow, self.observed, self.measured)))

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return self._map(lambda part: part.to(device))

    def split(self, samples: int) -> list["Batch"]:
        """Return the batch in parts of so many samples; the last may be smaller. There is one even of no sample."""
        return [
            self._map(lambda part, first=first: part[first : first + samples])  # type: ignore[misc]
            for first in range(0, max(1, len(self.target)), samples)
        ]


class Windows:
    """The windows of a prepared series, for models on a device.

    They are gathered where the series is kept: on the device too, or on the host, from where they are moved.

    Args:
        prepared: the series.
        horizon: P.
        calendar: of the series.
        device: where the batches go.
        on_host: whether the series is kept on the host.
        profile: (T, N), the historical profile (`lib.data.profile`), for networks that ask for it.
        imputed: (T + 1, N), which sensors are imputed at each step (`lib.data.imputed`), for networks that ask.
        hours: D, the last hours of the input, of which the profile is given.
        drift: (T + 1, N, 3), how far sensors were from their profile (`lib.data.profile`), for networks that ask.
    """

    def __init__(
        self,
        prepared: Prepared,
        horizon: int,
        calendar: Calendar,
        device: torch.device,
        on_host: bool = False,
        profile: NDArray[np.float32] | None = None,
        imputed: NDArray[np.bool_] | None = None,
        hours: int = 1,
        drift: NDArray[np.float32] | None = None,
    ) -> None:
        self.prepared = prepared
        self.scaling = prepared.scaling
        self.calendar = calendar
        self.device = device
        self.home = torch.device("cpu") if on_host else device
        self.flow = torch.from_numpy(prepared.truth).to(self.home)  # (T, N)
        self.all_targets_count = prepared.unscored is None
        measured = prepared.measured
        self.measured = None if measured is None else torch.from_numpy(measured).to(self.home)  # (T, N)
        self.scaled = self._scaled(prepared.flow)  # (T, N)
        self.forward_filled = self.scaled
        self.next_observed: Tensor | None = None
        if prepared.missing is not None:
            self.forward_filled = self._scaled(prepared.forward_filled)  # (T, N)
            self.next_observed = torch.from_numpy(next_observed(prepared.missing)).to(self.home)  # (T, N)
        self.input_offsets = torch.from_numpy(prepared.offsets).to(self.home)
        self.target_offsets = torch.arange(horizon, device=self.home)
        self.profile = None if profile is None else self._scaled(profile)  # (T, N)
        self.imputed = None if imputed is None else torch.from_numpy(imputed).to(self.home)  # (T + 1, N)
        self.drift = None  # differences of flow: the offset of the scaling does not concern them
        if drift is not None:
            self.drift = torch.from_numpy(self.scaling.difference_to_float32(drift)).to(self.home)  # (T + 1, N, 3)
        self.profile_offsets = torch.arange(-hours * (calendar.steps_per_day // 24), horizon, device=self.home)

    def _scaled(self, flow: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(self.scaling.to_float32(flow)).to(self.home)

    @property
    def targets_per_sample(self) -> int:
        """The number of targets of a sample, N * P, observed or missing."""
        return self.flow.shape[1] * len(self.target_offsets)

    def observed_targets(self, label_starts: NDArray[np.int64]) -> int:
        """Return how many targets of the samples with these label starts are not missing."""
        missing = self.prepared.missing_targets(label_starts, len(self.target_offsets))
        return len(label_starts) * self.targets_per_sample - int(missing.sum())

    def batch(self, label_starts: Tensor) -> Batch:
        """Cut out the samples with these label starts, (B,) where the series is kept, none on its first day."""
        series = self._read(label_starts, self.input_offsets)  # (B, N, L)
        targets = label_starts[:, None] + self.target_offsets
        flow = self.flow[targets].transpose(1, 2).contiguous()  # (B, N, P)
        observed = None if self.all_targets_count else ~flow.isnan()
        target = self.forward_filled[targets].transpose(1, 2).contiguous()  # (B, N, P)
        profile = None
        if self.profile is not None:
            steps = label_starts[:, None] + self.profile_offsets
            profile = self.profile[steps].transpose(1, 2).contiguous()  # (B, N, D h + P)
        imputed = last_week = None
        if self.imputed is not None:
            imputed = self.imputed[label_starts]  # (B, N)
        if self.imputed is not None and not self.prepared.marked:
            # Before the second week nothing is flagged, so what is read there does not matter.
            week = self.calendar.steps_per_week
            last_week = self._read(label_starts, self.target_offsets % week - week)  # (B, N, P)
        step_of_week = self.calendar.step_of_week(label_starts)
        drift = None if self.drift is None else self.drift[label_starts]  # (B, N, 3)
        inputs = Inputs(series, series[:, :, -1], step_of_week, profile, imputed, last_week, drift)
        measured = None if self.measured is None else self.measured[targets].transpose(1, 2)  # (B, N, P)
        return Batch(inputs, target, flow, observed, measured).to(self.device)

    def _read(self, label_starts: Tensor, offsets: Tensor) -> Tensor:
        """Return what is known before label starts (B,) of the steps at offsets (L,) below 0: scaled, (B, N, L)."""
        steps = padded(label_starts[:, None] + offsets, self.calendar.steps_per_day)  # (B, L)
        read = self.scaled[steps]
        if self.next_observed is not None:
            # A gap that is not over before t0 is forward-filled: a line through it would end at a target.
            over = self.next_observed[steps] < label_starts[:, None, None]
            read = torch.where(over, read, self.forward_filled[steps])
        return read.transpose(1, 2).contiguous()

    def batches(
        self, label_starts: NDArray[np.int64] | Tensor, batch_size: int, processes: Processes = ONE_PROCESS
    ) -> Iterator[Batch]:
        """Yield batches over all these label starts, in their order; the last one may be smaller.

        Of several processes each gets its share of every batch, which may be none.
        """
        starts = torch.as_tensor(label_starts).to(self.home)
        for first in range(0, len(starts), batch_size):
            yield self.batch(processes.share(starts[first : first + batch_size]))
