"""Batches: samples cut out of the prepared series by index, ready for a network.

Windows with a padded history start before the data; the missing days repeat the first day. Only training uses them, to
have more samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.data.prepared import Prepared
from lib.data.series import CHUNK_ROWS, next_observed
from lib.data.windowing import Calendar, padded
from lib.distributed import ONE_PROCESS, Processes
from lib.files import scratch
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


class OnDisk:
    """A series (T, N) that stays where its arrays are; what is asked for is read and computed anew each time.

    Args:
        computed: from rows of the arrays, the rows of the series.
        arrays: each (T, N).
    """

    def __init__(self, computed: Callable[..., NDArray[Any]], *arrays: NDArray[Any]) -> None:
        self.computed, self.arrays = computed, arrays

    def __getitem__(self, steps: Tensor) -> Tensor:
        """Return the rows at these steps (...), as (..., N)."""
        return torch.from_numpy(self.computed(*(array[steps.numpy()] for array in self.arrays)))


Series = Tensor | OnDisk


class Windows:
    """The windows of a prepared series, for models on a device.

    They are gathered where the series is kept: on the device too; or on the host, from where they are moved; or on
    disk, from where only the rows of a batch are read, and several processes share what the system remembers of it.

    Args:
        prepared: the series.
        horizon: P.
        calendar: of the series.
        device: where the batches go.
        kept: where the series is kept, [Runtime] data.
        profile: (T, N), the historical profile (`lib.data.profile`), for networks that ask for it.
        imputed: (T + 1, N), which sensors are imputed at each step (`lib.data.imputed`), for networks that ask.
        hours: D, the last hours of the input, of which the profile is given.
    """

    def __init__(
        self,
        prepared: Prepared,
        horizon: int,
        calendar: Calendar,
        device: torch.device,
        kept: Literal["device", "host", "disk"] = "device",
        profile: NDArray[np.float32] | None = None,
        imputed: NDArray[np.bool_] | None = None,
        hours: int = 1,
    ) -> None:
        self.prepared = prepared
        self.scaling = prepared.scaling
        self.calendar = calendar
        self.device = device
        self.on_disk = kept == "disk"
        self.home = device if kept == "device" else torch.device("cpu")
        unscored, unmeasured = prepared.unscored, prepared.unmeasured
        self.all_targets_count = unscored is None
        self.flow = self._masked(unscored)  # (T, N), and so are the others
        self.measured = None if unmeasured is None else self._masked(unmeasured)
        self.scaled = self._scaled(prepared.flow)
        self.forward_filled = self.scaled
        self.next_observed: Series | None = None
        if prepared.missing is not None:
            filled, following = scratch(prepared.flow.shape, np.float32), scratch(prepared.flow.shape, np.int32)
            for sensors, part in prepared.in_blocks():
                assert part.missing is not None
                filled[:, sensors], following[:, sensors] = part.forward_filled, next_observed(part.missing)
            self.forward_filled = self._scaled(filled)
            self.next_observed = self._kept(following)
        self.input_offsets = torch.tensor(prepared.offsets, device=self.home)
        self.target_offsets = torch.arange(horizon, device=self.home)
        self.profile = None if profile is None else self._scaled(profile)
        self.imputed = None if imputed is None else self._kept(imputed)  # (T + 1, N)
        self.profile_offsets = torch.arange(-hours * (calendar.steps_per_day // 24), horizon, device=self.home)

    def _kept(self, values: NDArray[Any]) -> Series:
        if self.on_disk:
            return OnDisk(lambda rows: rows, values)
        # A mapped file is neither aligned for sure nor to be written to, as PyTorch wants it.
        return torch.from_numpy(np.require(values, requirements=["A", "W"])).to(self.home)

    def _scaled(self, flow: NDArray[np.float32]) -> Series:
        if self.on_disk:
            return OnDisk(self.scaling.to_float32, flow)
        scaled = np.empty_like(flow)
        for row in range(0, len(flow), CHUNK_ROWS):
            scaled[row : row + CHUNK_ROWS] = self.scaling.to_float32(flow[row : row + CHUNK_ROWS])
        return torch.from_numpy(scaled).to(self.home)

    def _masked(self, mask: NDArray[np.bool_] | None) -> Series:
        """Return the flow, NaN where a mask is true."""
        if mask is None:
            return self._kept(self.prepared.flow)
        if self.on_disk:
            return OnDisk(lambda flow, hidden: np.where(hidden, np.float32(np.nan), flow), self.prepared.flow, mask)
        return self._kept(np.where(mask, np.float32(np.nan), self.prepared.flow))

    @property
    def targets_per_sample(self) -> int:
        """The number of targets of a sample, N * P, observed or missing."""
        return int(self.prepared.flow.shape[1]) * len(self.target_offsets)

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
            steps = padded(label_starts[:, None] + self.profile_offsets, self.calendar.steps_per_day)
            profile = self.profile[steps].transpose(1, 2).contiguous()  # (B, N, D h + P)
        imputed = last_week = None
        if self.imputed is not None:
            imputed = self.imputed[label_starts]  # (B, N)
        if self.imputed is not None and not self.prepared.marked:
            # Before the second week nothing is flagged, so what is read there does not matter.
            week = self.calendar.steps_per_week
            last_week = self._read(label_starts, self.target_offsets % week - week)  # (B, N, P)
        step_of_week = self.calendar.step_of_week(label_starts)
        inputs = Inputs(series, series[:, :, -1], step_of_week, profile, imputed, last_week)
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

    def parts(
        self, label_starts: NDArray[np.int64] | Tensor, batch_size: int, processes: Processes = ONE_PROCESS
    ) -> Iterator[Tensor]:
        """Yield label starts where the series is kept, by batches in their order; the last one may be smaller.

        Of several processes each gets its share of every batch, which may be none.
        """
        starts = torch.as_tensor(label_starts).to(self.home)
        for first in range(0, len(starts), batch_size):
            yield processes.share(starts[first : first + batch_size])

    def batches(
        self, label_starts: NDArray[np.int64] | Tensor, batch_size: int, processes: Processes = ONE_PROCESS
    ) -> Iterator[Batch]:
        """Yield the batches of these `parts`."""
        yield from map(self.batch, self.parts(label_starts, batch_size, processes))
