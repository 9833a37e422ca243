"""A simulated data set of any size, for what is measured on thousands of sensors: roads, series and a configuration.

python -m benchmarks.simulated --sensors 2000 --rows 4032 --output /tmp/SIM2000
python run.py --config /tmp/SIM2000/SIM2000.conf --recipe residual_mlp_small
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import Delaunay
from tqdm import tqdm

from lib.command_line import ScriptParser
from lib.data.graphs import Links
from lib.errors import run_script
from lib.files import save_npz, written_whole

SENSORS_AT_ONCE = 256
PERSISTENCE = 0.9  # of the noise, from one step to the next
START = "2018-01-01"  # a Monday


def simulated_links(sensors: int, links_per_sensor: float, seed: int) -> Links:
    """Return the links of a simulated road network.

    Sensors lie at random on a map. The roads are the shortest that connect all of them, and the shortest others up to
    the mean number of links.
    """
    place = np.random.default_rng(seed).uniform(size=(sensors, 2))
    first, second = _neighbours(place)
    length = np.linalg.norm(place[first] - place[second], axis=1)
    tree = minimum_spanning_tree(csr_array((length, (first, second)), shape=(sensors, sensors))).tocoo()
    in_tree = np.isin(first * sensors + second, tree.coords[0].astype(np.int64) * sensors + tree.coords[1])
    shortest = np.argsort(np.where(in_tree, 0.0, length), kind="stable")
    kept = np.sort(shortest[: max(sensors - 1, round(links_per_sensor * sensors))])
    return Links(np.stack([first[kept], second[kept]], axis=1), 0, 0, 0, None)


def _neighbours(place: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of points (N, 2) that are neighbours on the map, the lower position first, each once."""
    triangles = Delaunay(place).simplices
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int64)
    return pairs[:, 0], pairs[:, 1]


def simulated_days(sensors: int, steps_per_day: int, seed: int) -> NDArray[np.float64]:
    """Return the expected flow of a working day in vehicles a step, (N, steps_per_day).

    A small night, a broad day and two peaks, whose heights and times differ from sensor to sensor, all times the
    sensor's size, of which some have a multiple of others.
    """
    draw, hour = np.random.default_rng(seed), np.arange(steps_per_day) / steps_per_day * 24

    def bump(middle: float, spread: float, width: float) -> NDArray[np.float64]:
        middles = draw.normal(middle, spread, (sensors, 1))
        return np.exp(-0.5 * ((hour - middles) / width) ** 2)

    shape = 0.05 + draw.uniform(0.5, 0.8, (sensors, 1)) * bump(13.5, 0.5, 4.5)
    shape += draw.uniform(0.1, 0.6, (sensors, 1)) * bump(7.5, 0.5, 1.2)
    shape += draw.uniform(0.1, 0.6, (sensors, 1)) * bump(17.0, 0.5, 1.6)
    size = draw.lognormal(np.log(2500), 0.5, (sensors, 1))  # vehicles an hour
    return shape * size * 24 / steps_per_day


def simulated_flow(
    rows: int, sensors: int, steps_per_day: int, seed: int, show_progress: bool = True
) -> NDArray[np.uint16]:
    """Return a series (T, N) of whole vehicles that begins on a Monday: the day, less at the weekend, and noise.

    The noise lasts for some steps, as that of traffic does. Its size is that of counts, and a tenth of the flow.
    """
    days = simulated_days(sensors, steps_per_day, seed)
    step = np.arange(rows)
    of_day, weekend = step % steps_per_day, step // steps_per_day % 7 >= 5
    flow = np.empty((rows, sensors), dtype=np.uint16)
    starts = range(0, sensors, SENSORS_AT_ONCE)
    for start in tqdm(starts, desc="simulating", unit="block", disable=None if show_progress else True, leave=False):
        some = slice(start, start + SENSORS_AT_ONCE)
        draw = np.random.default_rng([seed, start])
        expected = days[some, of_day].astype(np.float32)
        expected[:, weekend] *= 0.7
        noise = draw.standard_normal(expected.shape, dtype=np.float32) * np.float32((1 - PERSISTENCE**2) ** 0.5)
        noise = lfilter([np.float32(1)], [np.float32(1), np.float32(-PERSISTENCE)], noise, axis=1)
        noise *= 0.1 * expected
        noise += np.sqrt(expected) * draw.standard_normal(expected.shape, dtype=np.float32)
        flow[:, some] = (expected + noise).round().clip(0, 65535).T
    return flow


def write_simulated(
    folder: Path, sensors: int, rows: int, points_per_hour: int, links_per_sensor: float, seed: int
) -> Path:
    """Write series, links and configuration into a folder, named after it, and return the configuration's path."""
    name = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    flow = simulated_flow(rows, sensors, 24 * points_per_hour, seed)
    save_npz(folder / f"{name}.npz", {"data": flow[:, :, None]})
    with written_whole(folder / f"{name}.csv") as partial:
        links = simulated_links(sensors, links_per_sensor, seed).pairs
        partial.write_text("from,to,cost\n" + "".join(f"{start},{end},1\n" for start, end in links.tolist()))
    config = folder / f"{name}.conf"
    with written_whole(config) as partial:
        partial.write_text(f"""# Simulated: python -m benchmarks.simulated --sensors {sensors} --rows {rows}
[Data]
adj_filename = {folder.resolve() / name}.csv
graph_signal_matrix_filename = {folder.resolve() / name}.npz
num_of_vertices = {sensors}
points_per_hour = {points_per_hour}
num_for_predict = {points_per_hour}
dataset_name = {name}
start = {START}

[Training]
batch_size = 16
num_of_weeks = 1
num_of_days = 4
num_of_hours = 7
epochs = 50
fine_tune_epochs = 25
learning_rate = 0.001
dropout = 0
kernel_size = 3
num_layers = 4
d_model = 64
nb_head = 8
""")
    return config


def main() -> None:
    """Write a simulated data set."""
    parser = ScriptParser(__doc__, "examples: see above")
    parser.add_argument("--sensors", type=int, required=True, help="N")
    parser.add_argument("--rows", type=int, required=True, help="T, time steps")
    parser.add_argument("--points-per-hour", type=int, default=12, help="time steps in an hour (default: 12)")
    parser.add_argument("--links-per-sensor", type=float, default=1.6, help="road links a sensor (default: 1.6)")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder, whose name is the data set's"
    )
    arguments = parser.parse_args()
    config = write_simulated(
        arguments.output,
        arguments.sensors,
        arguments.rows,
        arguments.points_per_hour,
        arguments.links_per_sensor,
        arguments.seed,
    )
    print(f"wrote {config} with its series and links")


if __name__ == "__main__":
    run_script(main)
