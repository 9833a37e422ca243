"""What is measured: simulated road networks and series in the shapes of the data sets, and the steps over them.

The official series are not part of this repository, and neither time nor memory depends on their values. They do depend
on the graphs, so these are built by `lib.data.graphs` from simulated roads and days.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.plain_model import PlainDTGLKNet
from benchmarks.simulated import simulated_days, simulated_links
from lib.captured import Captured, Recorder
from lib.checkpoints import load_tensors, save_tensors
from lib.config import RuntimeConfig, load_config
from lib.data.autoregression import autoregression_lags
from lib.data.graphs import SensorGraphs, build_graphs
from lib.data.nearest import nearest_sensors
from lib.data.prepared import prepare
from lib.data.windowing import Calendar, WindowShape
from lib.data.windows import Batch, Windows
from lib.files import save_npz
from lib.interface import Graphs, Inputs, Sizes
from lib.losses import mean_loss
from lib.precision import accelerate
from lib.runs import start_run
from model.dtg_lknet import DTGLKNet, PaperSettings
from model.encoder import LARGE_KERNELS
from model.residual import ResidualMLP, ResidualMLPSettings
from model.variants import VARIANTS

LINKS_PER_SENSOR = 1.1  # PEMS04 has 340 links between 307 sensors: a mean degree of 2.2
NEIGHBOURS = 10  # of the similarity graph, as shipped
STEPS_PER_DAY = 288
SEED = 1
BATCH_NAMES = ("series", "start", "target")  # in a file

Kind = Literal["training step", "fine-tuning step", "forecast"]
OwnName = Literal["fast", "checkpointed"]  # without and with gradient checkpointing
NetworkName = Literal[OwnName, "plain", "residual MLP"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRAINING_STAGES = KINDS[:2]
OWN_NAMES: tuple[OwnName, ...] = get_args(OwnName)


@dataclass(frozen=True)
class Shape:
    """The shape of a data set.

    Attributes:
        name: of the data set.
        sensors, rows, features: N, T, F of its series.
        windows: which hours a forecast sees.
        batch: samples in a step.
        compared_batch: samples in a step where both networks are measured, fewer where the plain one needs too much.
    """

    name: str
    sensors: int
    rows: int
    features: int
    windows: WindowShape
    batch: int = 4
    compared_batch: int = 4

    @property
    def samples(self) -> int:
        """The number of samples in all splits."""
        return len(self.windows.label_starts(self.rows))


SHIPPED_WINDOWS = WindowShape(weeks=1, days=4, hours=7, horizon=12, points_per_hour=12)
PEMS08 = Shape("PEMS08", 170, 17856, 3, SHIPPED_WINDOWS)
PEMS04 = Shape("PEMS04", 307, 16992, 3, SHIPPED_WINDOWS)
PEMS03 = Shape("PEMS03", 358, 26208, 1, WindowShape(weeks=0, days=3, hours=9, horizon=12, points_per_hour=12))
PEMS07 = Shape("PEMS07", 883, 28224, 1, SHIPPED_WINDOWS, compared_batch=1)


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes of the network that do not follow from windows, by default those of the shipped configurations."""

    layers: int = 4
    channels: int = 64
    heads: int = 8
    large_kernels: tuple[int, ...] = LARGE_KERNELS


SHIPPED_SIZES = NetworkSizes()


@dataclass(frozen=True, eq=False)
class Workload:
    """A network's sizes, its graphs, and one batch: all that a step needs.

    Attributes:
        windows: which hours a forecast sees.
        sizes: of the network.
        graphs: of the sensors.
        series, start, target: (B, N, L), (B, N), (B, N, P), scaled, as in a `lib.data.windows.Batch`.
        device: where it computes; the tensors above are on the CPU.
    """

    windows: WindowShape
    sizes: NetworkSizes
    graphs: Graphs
    series: Tensor
    start: Tensor
    target: Tensor
    device: torch.device

    @property
    def network_sizes(self) -> Sizes:
        """The sizes as networks take them."""
        return Sizes(
            steps_per_hour=self.windows.points_per_hour,
            weeks=self.windows.weeks,
            days=self.windows.days,
            hours=self.windows.hours,
            horizon=self.windows.horizon,
            channels=self.sizes.channels,
            layers=self.sizes.layers,
            heads=self.sizes.heads,
        )

    def network(self, name: OwnName = "fast") -> DTGLKNet:
        """Return the network with its first weights, but for patches that have moved: only those need interpolation."""
        torch.manual_seed(SEED)
        network = DTGLKNet(self.graphs, self.network_sizes, PaperSettings(large_kernels=self.sizes.large_kernels))
        nn.init.normal_(network.front_end.patches.predictor[-1].weight, std=0.1)  # type: ignore[index,union-attr]
        network.to(self.device)
        if name == "checkpointed":
            accelerate(network, RuntimeConfig(gradient_checkpointing=True), self.device)
        return network

    def plain_network(self) -> PlainDTGLKNet:
        """Return the plain network, with the weights of the other."""
        return PlainDTGLKNet(self.network()).to(self.device)

    def residual_mlp(self) -> nn.Module:
        """Return the residual MLP, with an autoregression of half an hour."""
        torch.manual_seed(SEED)
        topology = self.graphs.topology
        lags = autoregression_lags(24 * self.windows.points_per_hour)
        coefficients = (0.5 / lags / topology.counts[topology.rows]).repeat(lags, 1)
        graphs = self.graphs._replace(autoregression=coefficients)
        return ResidualMLP(graphs, self.network_sizes, ResidualMLPSettings()).to(self.device)

    def batch(self) -> Batch:
        """Return the batch, on the device; the profile is 0, so that the residual is the flow."""
        profile = self.series.new_zeros(*self.series.shape[:2], self.windows.points_per_hour + self.windows.horizon)
        inputs = Inputs(self.series, self.start, torch.zeros(len(self.series), dtype=torch.int64), profile)
        return Batch(inputs, self.target, flow=self.target).to(self.device)


def step(kind: Kind, network: nn.Module, batch: Batch, recorder: Recorder | None = None) -> Callable[[], Tensor]:
    """Return a function that takes one step, as `lib.training` does, and returns forecast (B, N, P) or loss.

    With a recorder it is captured and replayed, but for gathering the batch, which is there.
    """
    if recorder is not None:
        called, captured = _step(kind, network, batch, True), Captured(len(batch), recorder)
        return lambda: captured(lambda _: (called(),), batch.inputs.step_of_week)[0]
    return _step(kind, network, batch, False)


def _step(kind: Kind, network: nn.Module, batch: Batch, capturable: bool) -> Callable[[], Tensor]:
    if kind == "forecast":
        network.eval()

        @torch.no_grad()
        def forecast() -> Tensor:
            return network(batch.inputs)

        return forecast

    network.train()
    rate = torch.tensor(1e-3, device=batch.target.device) if capturable else 1e-3
    fused = batch.target.is_cuda or capturable or None
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0, fused=fused, capturable=capturable)

    def train() -> Tensor:
        loss = loss_of(kind, network, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), torch.inf)
        optimizer.step()
        return loss.detach()

    return train


def loss_of(kind: Kind, network: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a stage of training."""
    forecast = network(batch.inputs if kind == "fine-tuning step" else batch.with_teacher)
    return mean_loss("mae", forecast, batch.target, batch.observed)


def save_workload(path: Path, workload: Workload) -> None:
    """Write the tensors of a workload to a file."""
    batch = {name: getattr(workload, name) for name in BATCH_NAMES}
    save_tensors(path, {"graphs": workload.graphs.content(), **batch})


def load_workload(path: Path, windows: WindowShape, sizes: NetworkSizes, device: torch.device) -> Workload:
    """Read what `save_workload` wrote."""
    content = load_tensors(path)
    graphs = Graphs.from_content(content["graphs"])
    return Workload(windows, sizes, graphs, **{name: content[name] for name in BATCH_NAMES}, device=device)


def simulated_workload(
    sensors: int,
    batch: int,
    windows: WindowShape,
    sizes: NetworkSizes,
    device: torch.device,
    links_per_sensor: float = LINKS_PER_SENSOR,
) -> Workload:
    """Return a workload of simulated samples on a simulated road network."""
    graphs = synthetic_network(sensors, sizes.channels, SEED, links_per_sensor)
    reach = -int(windows.offsets.min())
    rows = reach + windows.horizon + batch + 10
    flow = synthetic_series(rows, sensors, 1, windows.points_per_hour * 24, SEED)
    prepared = prepare(flow, windows, {})
    gathered = Windows(prepared, windows.horizon, Calendar(windows.points_per_hour * 24), torch.device("cpu"))
    samples = gathered.batch(torch.arange(reach, reach + batch))
    inputs = samples.inputs
    return Workload(windows, sizes, graphs.tensors(), inputs.series, inputs.start, samples.target, device)


def simulated_run(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """Write a simulated series, and a run of the residual MLP on it with its first weights; return both paths."""
    archive, links, conf = (folder / f"{shape.name}.{ending}" for ending in ("npz", "csv", "conf"))
    steps_per_hour = shape.windows.points_per_hour
    flow = synthetic_series(shape.rows, shape.sensors, 1, 24 * steps_per_hour, SEED)
    save_npz(archive, {"data": flow.astype(np.float32)}, compressed=True)
    roads = synthetic_network(shape.sensors, SHIPPED_SIZES.channels, SEED).links.pairs
    links.write_text("from,to,cost\n" + "".join(f"{first},{second},1\n" for first, second in roads))
    conf.write_text(
        f"""[Data]
adj_filename = {links}
graph_signal_matrix_filename = {archive}
num_of_vertices = {shape.sensors}
points_per_hour = {steps_per_hour}
num_for_predict = {shape.windows.horizon}
dataset_name = {shape.name}
start = 2016-07-01

[Training]
batch_size = 32
num_of_weeks = {shape.windows.weeks}
num_of_days = {shape.windows.days}
num_of_hours = {shape.windows.hours}
epochs = 1
fine_tune_epochs = 0
learning_rate = 0.004
dropout = 0
kernel_size = 3
num_layers = 1
d_model = 32
nb_head = 4

[Model]
variant = residual_mlp
carry_profile = on
"""
    )
    run = start_run(load_config(conf, VARIANTS), folder, "run")
    run.trainer.save_best()
    return archive, run.folder.path


@lru_cache
def synthetic_network(
    sensors: int, encoding_dimension: int, seed: int, links_per_sensor: float = LINKS_PER_SENSOR
) -> SensorGraphs:
    """Return the graphs of a simulated road network, by the rules of the shipped configurations."""
    links = simulated_links(sensors, links_per_sensor, seed)
    nearest = nearest_sensors(simulated_days(sensors, 24, seed), NEIGHBOURS, show_progress=False).nearest
    return build_graphs(links, nearest, sensors, encoding_dimension)


def synthetic_series(rows: int, sensors: int, features: int, steps_per_day: int, seed: int) -> NDArray[np.float64]:
    """Return a series (T, N, F): flow in whole vehicles, and occupancy and speed where there are three features.

    A daily rhythm with a random walk, rounded as the loop detectors' files are, for compression depends on it.
    """
    draw = np.random.default_rng(seed)
    step = np.arange(rows)[:, None]
    rhythm = 200 - 150 * np.cos(2 * np.pi * (step / steps_per_day + draw.normal(0, 0.03, sensors)))
    flow = (rhythm + draw.normal(0, 0.5, (rows, sensors)).cumsum(axis=0) + draw.normal(0, 15, rhythm.shape)).clip(0)
    occupancy, speed = flow / 4000, 70 - flow / 20 + draw.normal(0, 1, flow.shape)
    columns = (flow.round(), occupancy.round(4), speed.clip(3).round(1))
    return np.stack(columns[:features], axis=2)
