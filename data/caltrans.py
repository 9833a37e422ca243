"""Make a data set from raw files of Caltrans PeMS, and the configuration for it.

Raw files are those of the PeMS clearinghouse, "Station 5-Minute" and "Station Metadata" of one district. A conversion
that was stopped goes on by the same command.
"""

import sys
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY_ROOT))

from lib.command_line import ScriptParser  # noqa: E402
from lib.data.caltrans.dataset import Request, find_raw_files, make_dataset  # noqa: E402
from lib.data.caltrans.stations import FILTERS, choose, read_metadata  # noqa: E402
from lib.errors import InputError, run_script  # noqa: E402
from lib.ini import FolderName, kind_of, parse_value  # noqa: E402

EXAMPLES = """examples:
  python data/caltrans.py --stations 'raw/d07_text_station_5min_*.txt.gz' --metadata raw/d07_text_meta_2016_07_01.txt \\
      --name LA101 --freeway 101 --type ML
  python data/caltrans.py --stations raw --metadata raw/d07_text_meta_*.txt --name LA15 --minutes 15 --keep-imputed
"""
MINUTES = (5, 15, 60)


def up_to_100(text: str) -> float:
    """Return a percentage, or miles beyond which all would be linked."""
    value = float(text)
    if not 0 <= value <= 100:
        raise ValueError
    return value


def main() -> None:
    """Parse the arguments, make the data set, and print what was taken and dropped."""
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
        help="only stations between, in degrees",
    )
    add(
        "--observed",
        type=up_to_100,
        default=75.0,
        metavar="PERCENT",
        help="observed less is imputed (default: %(default)g)",
    )
    add("--keep-imputed", action="store_true", help="keep imputed values and mark them; else they are missing")
    add(
        "--least-known",
        type=up_to_100,
        default=50.0,
        metavar="PERCENT",
        help="leave out stations with fewer known values (default: %(default)g)",
    )
    add("--minutes", type=int, choices=MINUTES, default=5, help="of a step (default: %(default)s)")
    add("--within", type=up_to_100, default=0.5, metavar="MILES", help="link freeways so near (default: %(default)g)")
    add("--output", type=Path, default=REPOSITORY_ROOT / "data", metavar="DIR", help="write DIR/NAME/ (default: data)")
    add(
        "--configurations",
        type=Path,
        default=REPOSITORY_ROOT / "configurations",
        metavar="DIR",
        help="write DIR/NAME.conf (default: configurations)",
    )
    arguments = parser.parse_args()

    try:
        name = parse_value(kind_of(FolderName), arguments.name)
    except ValueError as error:
        raise InputError(f"--name: {error}") from None
    metadata = read_metadata(arguments.metadata)
    request = Request(
        name=name,
        files=find_raw_files(arguments.stations),
        metadata=metadata,
        stations=choose(metadata, {filter_: getattr(arguments, filter_) for filter_ in FILTERS}, arguments.box),
        least_observed=arguments.observed,
        keep_imputed=arguments.keep_imputed,
        least_known=arguments.least_known,
        minutes=arguments.minutes,
        within=arguments.within,
    )
    folder, configuration = arguments.output.absolute() / name, arguments.configurations.absolute() / f"{name}.conf"
    for line in make_dataset(request, folder, configuration):
        print(line)
    print(f"wrote {folder} and {configuration}")


if __name__ == "__main__":
    run_script(main)
