"""Make a data set from raw files of Caltrans PeMS, and the configuration for it.

Raw files are those of the PeMS clearinghouse, "Station 5-Minute" and "Station Metadata" of one district. A conversion
that was stopped goes on by the same command.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY_ROOT))

from lib.command_line import ScriptParser  # noqa: E402
from lib.data.caltrans.dataset import Request, find_raw_files, make_dataset  # noqa: E402
from lib.data.caltrans.stations import FILTERS, Metadata, Station, choose, in_order_of, read_metadata  # noqa: E402
from lib.errors import InputError, run_script  # noqa: E402
from lib.ini import FolderName, kind_of, parse_value  # noqa: E402

EXAMPLES = """examples:
  python data/caltrans.py --stations 'raw/d07_text_station_5min_*.txt.gz' --metadata raw/d07_text_meta_2018_03_05.txt \\
      --name LA101 --freeway 101 --type ML
  python data/caltrans.py --stations raw --metadata raw/d07_text_meta_*.txt --name LA15 --minutes 15 --keep-imputed
"""
MINUTES = (5, 15, 60)
DATA, CONFIGURATIONS = REPOSITORY_ROOT / "data", REPOSITORY_ROOT / "configurations"


def up_to_100(text: str) -> float:
    """Return a percentage, or miles beyond which all would be linked."""
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError
    return value


def parse_arguments() -> Namespace:
    """Parse and check the arguments."""
    parser = ScriptParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--stations", nargs="+", required=True, metavar="FILE", help="raw files, patterns of names, or their folder")
    add("--metadata", nargs="+", type=Path, required=True, metavar="FILE", help="station metadata, in order of time")
    add("--name", required=True, help="of the data set: writes data/NAME/ and configurations/NAME.conf")
    for name in FILTERS:
        add(f"--{name}", nargs="+", default=[], metavar=name.upper(), help=f"only stations of this {name}, or of these")
    add(
        "--box",
        nargs=4,
        type=float,
        metavar=("SOUTH", "WEST", "NORTH", "EAST"),
        help="only stations within, in degrees",
    )
    add("--ids", type=Path, metavar="FILE", help="all stations of an id file, in its order, as predict.py needs them")
    percentage: dict[str, Any] = {"type": up_to_100, "metavar": "PERCENT"}
    add("--observed", default=75.0, help="what was observed less is imputed (default: %(default)g)", **percentage)
    add("--keep-imputed", action="store_true", help="keep imputed values and mark them; else they are missing")
    add(
        "--least-known",
        default=50.0,
        help="leave out stations with fewer known values (default: %(default)g)",
        **percentage,
    )
    add("--minutes", type=int, choices=MINUTES, default=5, help="of a step (default: %(default)s)")
    add("--within", type=up_to_100, default=0.5, metavar="MILES", help="link freeways so near (default: %(default)g)")
    for option, folder, written in (("--output", DATA, "NAME/"), ("--configurations", CONFIGURATIONS, "NAME.conf")):
        where = folder.relative_to(REPOSITORY_ROOT)
        add(option, type=Path, default=folder, metavar="DIR", help=f"write DIR/{written} (default: {where})")
    return parser.parse_args()


def chosen_stations(metadata: Metadata, arguments: Namespace) -> tuple[Station, ...]:
    """Return the stations that the arguments ask for."""
    wanted = {name: getattr(arguments, name) for name in FILTERS}
    if arguments.ids is None:
        return choose(metadata, wanted, arguments.box)
    if arguments.box or any(wanted.values()):
        raise InputError(f"--ids: found another choice of stations beside {arguments.ids}, expected one")
    return in_order_of(arguments.ids, metadata)


def main() -> None:
    """Make the data set, and print what was taken and dropped."""
    arguments = parse_arguments()
    try:
        name = parse_value(kind_of(FolderName), arguments.name)
    except ValueError as error:
        raise InputError(f"--name: {error}") from None
    metadata = read_metadata(arguments.metadata)
    request = Request(
        name=name,
        files=find_raw_files(arguments.stations),
        metadata=metadata,
        stations=chosen_stations(metadata, arguments),
        least_observed=arguments.observed,
        keep_imputed=arguments.keep_imputed,
        least_known=arguments.least_known if arguments.ids is None else 0,
        minutes=arguments.minutes,
        within=arguments.within,
    )
    folder, configuration = arguments.output.absolute() / name, arguments.configurations.absolute() / f"{name}.conf"
    for line in make_dataset(request, folder, configuration):
        print(line)
    print(f"wrote {folder} and {configuration}")


if __name__ == "__main__":
    run_script(main)
