"""Compute DTW distances between the mean days of the sensors: the similarity graph's input."""

from pathlib import Path
from typing import get_args

import numpy as np

from lib.command_line import ScriptParser
from lib.config import load_config
from lib.data.dtw import Method, Nearest, Rows
from lib.data.preparing import dtw_paths, make_distance, prepared_for
from lib.devices import choose_device
from lib.errors import run_script
from lib.numbers import number_text
from model.variants import VARIANTS

EXAMPLES = """examples:
  python create_dtw.py --config configurations/PEMS04.conf
  python create_dtw.py --config configurations/PEMS04.conf --method fastdtw --radius 6
  python create_dtw.py --config configurations/PEMS07.conf --device cuda
"""


def main() -> None:
    """Parse the arguments, compute, and print what was written."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, help="INI file of the data set")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument(
        "--method",
        choices=get_args(Method),
        help="exact, or the approximation of the fastdtw package (default: the INI's)",
    )
    parser.add_argument("--radius", type=int, help="radius of fastdtw (default: the INI's)")
    parser.add_argument(
        "--rows", choices=get_args(Rows), help="rows that the mean days are taken over (default: the INI's)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: the INI's, or auto)")
    arguments = parser.parse_args()

    # A flag is a setting said otherwise, and is checked like one.
    flags = {"dtw_method": arguments.method, "dtw_radius": arguments.radius, "dtw_rows": arguments.rows}
    changed = [f"Graph.{key}={value}" for key, value in flags.items() if value is not None]
    device = [] if arguments.device is None else [f"Runtime.device={arguments.device}"]
    config = load_config(arguments.config, VARIANTS, [*arguments.set, *changed, *device])
    for notice in config.notices:
        print(notice)
    choose_device(config.runtime.device)  # one that is not there stops before anything is written
    graph = config.graph
    assert graph.dtw_rows != "auto"  # load_config put the variant's rule in its place
    if graph.dtw_method == "fastdtw":
        print("fastdtw is approximate: its distances are upper bounds of the exact ones")
    found, record = make_distance(config, prepared_for(config), graph.dtw_method, graph.dtw_radius, graph.dtw_rows)

    distance, which = (found.distance, " to the nearest") if isinstance(found, Nearest) else (found, "")
    print(f"{record.method} DTW of {len(distance)} sensors, mean of {record.days} days ({record.rows} rows)")
    median = np.sort(distance, axis=None)[distance.size // 2]
    print(f"distances{which} up to {number_text(distance.max(), 1)}, median {number_text(median, 1)}")
    matrix_path, record_path = dtw_paths(config, record)
    print(f"wrote {matrix_path} and {record_path.name}")
    if changed:
        print(f"to use it in run.py, set {', '.join(setting.replace('Graph.', '[Graph] ') for setting in changed)}")


if __name__ == "__main__":
    run_script(main)
