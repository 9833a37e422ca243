"""What is measured: simulated road networks and series in the shapes of the data sets, and the steps over them.

The official series are not part of this repository, and neither time nor memory depends on their values. They do depend
on the graphs, so these are built by `lib.graphs` from simulated roads and days.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import Delaunay
from torch import Tensor, nn

from benchmarks.plain_model import PlainDTGLKNet
from lib.acceleration import accelerate
from lib.config import RuntimeConfig
from lib.data import Batch, Calendar, WindowShape, prepare
from lib.data import Windows as PreparedWindows
from lib.dtw import dtw_matrix
from lib.files import load_npz, save_npz
from lib.graphs import Graphs, Links, build_graphs
from lib.training import mean_loss, rollout
from model.dtg_lknet import DTGLKNet

LINKS_PER_SENSOR = 1.1  # PEMS04 has 340 links between 307 sensors: a mean degree of 2.2
STEPS_PER_DAY = 288
SEED = 1

Kind = Literal["training step", "fine-tuning step", "forecast"]
OwnName = Literal["fast", "checkpointed"]  # without and with gradient checkpointing
NetworkName = Literal[OwnName, "plain"]
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
    """The sizes of the network, by default those of the shipped configurations."""

    layers: int = 4
    channels: int = 64
    heads: int = 8
    large_kernels: tuple[int, ...] = (15, 17, 21, 27, 35, 55)


SHIPPED_SIZES = NetworkSizes()


class Graph(NamedTuple):
    """What the network knows of the sensors: two masks (N, N) and the Laplacian encoding (N, C)."""

    similarity_mask: NDArray[np.bool_]
    topology_mask: NDArray[np.bool_]
    laplacian_encoding: NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """A network's sizes, its graph, and one batch: all that a step needs, as plain arrays that fit into a file.

    Attributes:
        sizes: of the network.
        patch_len: steps of a patch.
        graph: of the sensors.
        series, start, target: (B, N, L), (B, N), (B, N, P), as in `lib.data.Batch`.
        device: where it computes.
    """

    sizes: NetworkSizes
    patch_len: int
    graph: Graph
    series: NDArray[np.float32]
    start: NDArray[np.float32]
    target: NDArray[np.float32]
    device: torch.device

    def network(self, name: OwnName = "fast") -> DTGLKNet:
        """Return the network with its first weights, but for patches that have moved: only those need interpolation."""
        torch.manual_seed(SEED)
        network = DTGLKNet(
            *map(torch.from_numpy, self.graph),
            input_steps=self.series.shape[2],
            horizon=self.target.shape[2],
            patch_len=self.patch_len,
            layers=self.sizes.layers,
            channels=self.sizes.channels,
            heads=self.sizes.heads,
            large_kernels=self.sizes.large_kernels,
        )
        nn.init.normal_(network.front_end.patches.predictor[-1].weight, std=0.1)  # type: ignore[index,union-attr]
        network.to(self.device)
        if name == "checkpointed":
            accelerate(network, RuntimeConfig(gradient_checkpointing=True), self.device)
        return network

    def plain_network(self) -> PlainDTGLKNet:
        """Return the plain network, with the weights of the other."""
        return PlainDTGLKNet(self.network()).to(self.device)

    def batch(self) -> Batch:
        """Return the batch, on the device."""
        series, start, target = (torch.from_numpy(x).to(self.device) for x in (self.series, self.start, self.target))
        return Batch(series, start, target, target, torch.zeros(len(series), dtype=torch.int64, device=self.device))


def step(kind: Kind, network: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """Return a function that takes one step, as `lib.training` does, and returns forecast (B, N, P) or loss."""
    if kind == "forecast":
        network.eval()

        @torch.no_grad()
        def forecast() -> Tensor:
            return rollout(network, batch)

        return forecast

    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0)

    def train() -> Tensor:
        forecast = (
            rollout(network, batch)
            if kind == "fine-tuning step"
            else network(batch.series, batch.teacher, batch.step_of_week)
        )
        loss = mean_loss(forecast, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), torch.inf)
        optimizer.step()
        return loss.detach()

    return train


def save_workload(path: Path, workload: Workload) -> None:
    """Write the arrays of a workload to an npz file."""
    arrays = {name: getattr(workload, name) for name in ("series", "start", "target")}
    save_npz(path, {**arrays, **workload.graph._asdict()})


def load_workload(path: Path, sizes: NetworkSizes, patch_len: int, device: torch.device) -> Workload:
    """Read what `save_workload` wrote."""
    arrays = load_npz(path, ("series", "start", "target", *Graph._fields))
    graph = Graph(*(arrays[name] for name in Graph._fields))
    return Workload(sizes, patch_len, graph, arrays["series"], arrays["start"], arrays["target"], device)


def simulated_workload(
    sensors: int, batch: int, windows: WindowShape, sizes: NetworkSizes, device: torch.device
) -> Workload:
    """Return a workload of simulated samples on a simulated road network."""
    graphs = synthetic_network(sensors, sizes.channels, SEED)
    reach = -int(windows.offsets.min())
    rows = reach + windows.horizon + batch + 10
    flow = synthetic_series(rows, sensors, 1, windows.points_per_hour * 24, SEED)
    prepared = prepare(flow, windows, "")
    gathered = PreparedWindows(prepared, windows.horizon, Calendar(windows.points_per_hour * 24), torch.device("cpu"))
    samples = gathered.batch(torch.arange(reach, reach + batch))
    graph = Graph(graphs.similarity, graphs.topology, graphs.laplacian_encoding)
    series, start, target = (x.contiguous().numpy() for x in (samples.series, samples.start, samples.target))
    return Workload(sizes, windows.points_per_hour, graph, series, start, target, device)


@lru_cache
def synthetic_network(sensors: int, encoding_dimension: int, seed: int) -> Graphs:
    """Return the graphs of a simulated road network, by the rules of the shipped configurations.

    Sensors lie at random on a map. The roads are the shortest that connect all of them, and the shortest others up to
    the mean degree of PEMS04. A sensor's day has a morning and an evening peak, by the hour, of random height and time.
    """
    draw = np.random.default_rng(seed)
    place = draw.uniform(size=(sensors, 2))
    first, second = _neighbours(place)
    length = np.linalg.norm(place[first] - place[second], axis=1)
    lengths = np.full((sensors, sensors), 0.0)
    lengths[first, second] = length
    tree = minimum_spanning_tree(lengths).toarray() > 0
    shortest = np.argsort(np.where(tree[first, second], 0.0, length), kind="stable")
    kept = np.sort(shortest[: max(sensors - 1, round(LINKS_PER_SENSOR * sensors))])
    links = Links(np.stack([first[kept], second[kept]], axis=1), 0, 0, 0, None)

    hour = np.arange(24)
    peaks = (
        draw.uniform(100, 500, (sensors, 1)) * np.exp(-(((hour - draw.normal(peak, 1, (sensors, 1))) / 2.5) ** 2))
        for peak in (8, 17)
    )
    days = sum(peaks) + draw.normal(100, 10, (sensors, 24))
    return build_graphs(links, dtw_matrix(days, show_progress=False), sensors, encoding_dimension)


def _neighbours(place: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of points (N, 2) that are neighbours on the map, the lower position first, each once."""
    triangles = Delaunay(place).simplices
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


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
