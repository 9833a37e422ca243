"""The interface of `lib` and the networks: the inputs of a network, what it is built from, and the record of a variant.

A network is an `nn.Module` built by `network(graphs, sizes, settings)`. Called with `Inputs` it returns the scaled
forecast (B, N, P): under teacher forcing where `inputs.teacher` is given, else on its own (the rollout). In training
mode it may return several forecasts (heads, B, N, P), each of which is scored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn


class Inputs(NamedTuple):
    """What a network sees of a batch of samples; all values are scaled.

    B may be 0: of several processes that share a small batch, one may have no sample.

    Attributes:
        series: (B, N, L), the input windows, oldest step first.
        start: (B, N), the last value before the forecast, which an autoregressive decoder starts from.
        step_of_week: (B,), the time of the first step to forecast, counted from Monday at midnight.
        profile: (B, N, D h + P), the historical profile of the last hours of the input and of the steps to forecast;
            None for networks that do not ask for it.
        imputed: (B, N), which sensors are being filled in and not measured (`lib.data.imputed`); None: none is, or the
            network does not ask.
        last_week: (B, N, P), the values one week before the steps to forecast, which imputed sensors repeat; None like
            `imputed`, or where they need not repeat them.
        teacher: (B, N, P), the value before each step to forecast, for teacher forcing; None: a forecast on its own.
        tokens: (B, N, M, C), the front end's output where it was computed before, with more samples than these; None:
            it follows from the series.
    """

    series: Tensor
    start: Tensor
    step_of_week: Tensor
    profile: Tensor | None = None
    imputed: Tensor | None = None
    last_week: Tensor | None = None
    teacher: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The neighbours of each sensor, as lists: a sparse (N, N) matrix by rows. Its length is N.

    Attributes:
        starts: (N + 1,) int64, where the neighbours of each sensor start among all E, and E at the end.
        sensors: (E,) int64, the neighbours of sensor 0 in ascending order, then those of sensor 1, and so on.
    """

    starts: Tensor
    sensors: Tensor

    @staticmethod
    def of(matrix: csr_array | NDArray[Any] | Tensor) -> "Neighbours":
        """Return the lists of a matrix (N, N): the columns of each row that are not 0."""
        sparse = csr_array(matrix)
        sparse.sum_duplicates()
        sparse.eliminate_zeros()
        return Neighbours(*(torch.from_numpy(part.astype(np.int64)) for part in (sparse.indptr, sparse.indices)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def equals(self, other: "Neighbours") -> bool:
        """Return whether all sensors have the same neighbours."""
        return torch.equal(self.starts, other.starts) and torch.equal(self.sensors, other.sensors)

    @property
    def counts(self) -> Tensor:
        """The number of neighbours of each sensor, (N,)."""
        return self.starts.diff()

    @property
    def rows(self) -> Tensor:
        """Whose neighbour each of `sensors` is, (E,)."""
        return torch.repeat_interleave(torch.arange(len(self)), self.counts)

    @property
    def density(self) -> float:
        """The share of all N x N pairs that are neighbours."""
        return len(self.sensors) / len(self) ** 2

    def of_sensor(self, sensor: int) -> NDArray[np.int64]:
        """Return the neighbours of one sensor."""
        neighbours: NDArray[np.int64] = self.sensors[self.starts[sensor] : self.starts[sensor + 1]].numpy()
        return neighbours

    def matrix(self) -> csr_array:
        """Return the sparse boolean matrix (N, N)."""
        allowed = np.ones(len(self.sensors), dtype=np.bool_)
        return csr_array((allowed, self.sensors.numpy(), self.starts.numpy()), shape=(len(self), len(self)))

    def dense(self, values: Tensor | None = None) -> Tensor:
        """Return the (N, N) boolean mask, or (..., N, N) with values (..., E) of the neighbours and 0 elsewhere."""
        if values is None:
            values = torch.ones(len(self.sensors), dtype=torch.bool)
        matrix = values.new_zeros(*values.shape[:-1], len(self), len(self))
        matrix[..., self.rows, self.sensors] = values
        return matrix


class Graphs(NamedTuple):
    """What a network knows of the sensors.

    Attributes:
        similarity: the sensors, which behave alike, that each may attend to.
        topology: the same for sensors near each other on the road.
        laplacian_encoding: (N, any number of channels), the place of each sensor in the road graph.
        autoregression: (lags, E), coefficients of the E neighbours in `topology`, fitted before training
            (`lib.data.autoregression`); None: there are none.
    """

    similarity: Neighbours
    topology: Neighbours
    laplacian_encoding: Tensor
    autoregression: Tensor | None = None

    def content(self) -> dict[str, Any]:
        """Return tensors and plain values, for a file."""
        return {name: vars(value) if isinstance(value, Neighbours) else value for name, value in self._asdict().items()}

    @staticmethod
    def from_content(content: Mapping[str, Any]) -> "Graphs":
        """Return the graphs of a file's content.

        Raises:
            KeyError, TypeError: it is not that of graphs.
        """
        similarity, topology = (Neighbours(**content[name]) for name in ("similarity", "topology"))
        return Graphs(similarity, topology, content["laplacian_encoding"], content["autoregression"])


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What [Data] and [Training] fix for every network.

    Attributes:
        steps_per_hour: h, time steps in an hour.
        weeks, days, hours: W, D, H, the one-hour segments of the input, in this order.
        horizon: P, the steps to forecast.
        channels: C, the width of a token (d_model).
        layers: of the encoder, and of the decoder.
        heads: attention heads.
        kernel_size: tokens under the convolutions of attention and gate; odd.
        dropout: the dropout rate.
    """

    steps_per_hour: int
    weeks: int
    days: int
    hours: int
    horizon: int
    channels: int = 64
    layers: int = 4
    heads: int = 8
    kernel_size: int = 3
    dropout: float = 0.0

    @property
    def steps_per_day(self) -> int:
        """The number of time steps in a day."""
        return 24 * self.steps_per_hour

    @property
    def input_steps(self) -> int:
        """L, the number of time steps of an input."""
        return (self.weeks + self.days + self.hours) * self.steps_per_hour


class Encoder(Protocol):
    """What a network with an encoder can be asked for beside its forecast."""

    tokens: int  # M
    first_step: int  # the step of the input, 0 .. L - 1, that the first token starts at
    deformable: bool  # whether patches choose where they read
    receptive_field_layers: tuple[str, ...]  # dotted names of the modules that erf_conv.py draws by default

    def front(self, inputs: Inputs) -> Tensor:
        """Return the front end's tokens (B, N, M, C). In training they mix the samples of a batch, by BatchNorm."""

    def encode(self, inputs: Inputs) -> Tensor:
        """Return the memory (B, N, M, C)."""

    def kernels(self) -> list[Tensor]:
        """Return the taps (C, K) of each large-kernel block, its branches summed."""

    def patch_positions(self, inputs: Inputs) -> Tensor:
        """Return where each deformable patch reads the series (B, N, L), in steps: (B, N, M, patch_len)."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a network asks for beside the series.

    Attributes:
        calendar: its forecast depends on the time of the week, so that [Data] start is required.
        profile: the historical profile.
        carried_profile: the profile goes on after the training rows.
        imputed: which sensors are imputed, and their values of last week.
        muted_imputed: imputed sensors are left out of the fit of the autoregression.
        autoregression: the coefficients of an autoregression.
    """

    calendar: bool = False
    profile: bool = False
    carried_profile: bool = False
    imputed: bool = False
    muted_imputed: bool = False
    autoregression: bool = False


@dataclass(frozen=True, kw_only=True)
class GraphRules:
    """What `auto` in [Graph] stands for, by key."""

    similarity: str = "nearest"
    laplacian: str = "symmetric"
    dtw_rows: str = "train"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of the network. Tables list the variants in the order of `model.variants.VARIANTS`.

    Attributes:
        name: [Model] variant.
        label: what tables and pages call it.
        network: builds it from graphs, sizes and its own settings.
        settings: the frozen dataclass of its own settings in [Model], each field `Annotated[kind, meaning]`.
        faults: returns what is wrong with its settings under some sizes, by key: what was found and expected.
        graph_rules: what `auto` in [Graph] stands for.
        needs: what it asks for beside the series, by its settings.
        sees_other_sensors: whether the forecast of a sensor depends on others.
        has_encoder: whether it is an `Encoder`, with large kernels to look at.
        of_the_paper: whether tables keep a row open for it until it is measured.
        load_released: gives a network the weights of the released code's checkpoint; None where that has no such model.
        to_released: returns a network's weights as the released code would save them.
    """

    name: str
    label: str
    network: Callable[[Graphs, Sizes, Any], nn.Module]
    settings: type[Any]
    faults: Callable[[Any, Sizes], dict[str, str]] = lambda _settings, _sizes: {}
    graph_rules: GraphRules = GraphRules()
    needs: Callable[[Any], Needs] = lambda _: Needs()
    sees_other_sensors: bool = True
    has_encoder: bool = False
    of_the_paper: bool = False
    load_released: Callable[[nn.Module, Mapping[str, Any]], None] | None = None
    to_released: Callable[[nn.Module], dict[str, Tensor]] | None = None


Variants = Mapping[str, Variant]  # by name, in the order of tables; the first is the default
