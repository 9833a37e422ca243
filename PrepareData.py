"""Prepare a sensor series for training: check it, split it, scale it, and write one small file beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.command_line import ScriptParser
from lib.config import load_config
from lib.data.imputed import LEAST_SHARE, shortest_run
from lib.data.prepared import Prepared
from lib.data.preparing import (
    calendar_for,
    links_for,
    make_prepared,
    positions_for,
    sensor_names,
    series_for,
    step_namer,
    unlinked_sensors,
)
from lib.data.sensor_tables import is_table
from lib.data.series import CHUNK_ROWS, FLOW, last_observed, missing_markers, missing_values
from lib.data.windowing import SPLITS, Calendar
from lib.errors import run_script
from model.variants import VARIANTS

EXAMPLES = """examples:
  python PrepareData.py --config configurations/PEMS04.conf
  python PrepareData.py --config configurations/DEMO.conf --materialize /tmp/DEMO_windows.npz
"""
NAMES_SHOWN = 10
IMPUTED = {"keep": "scored with them and without", "missing": "left out of loss and scores"}


def missing_counts(prepared: Prepared, horizon: int, calendar: Calendar, names: Sequence[str] | None) -> list[str]:
    """Return lines on what is missing, and on zeros that may be; none where there is nothing to tell."""
    lines = []
    if prepared.missing is not None:
        steps = np.arange(len(prepared.missing))[:, None]
        longest = np.concatenate(  # of each sensor
            [
                np.where(part.missing, steps - last_observed(part.missing), 0).max(axis=0)
                for _, part in prepared.in_blocks()
                if part.missing is not None
            ]
        )
        sensor = int(longest.argmax())
        targets = [f"{prepared.missing_targets(prepared.label_starts[split], horizon).sum():,}" for split in SPLITS]
        lines.append(
            f"missing: {prepared.missing.sum():,} values ({100 * prepared.missing.mean():.2f} %) at "
            f"{np.count_nonzero(longest)} sensors, longest gap {longest[sensor]} steps (sensor "
            f"{names[sensor] if names else sensor}); left out as targets: {targets[0]} of training, {targets[1]} of "
            f"validation, {targets[2]} of test"
        )
    if prepared.imputed is not None:
        share, rule = prepared.imputed.mean(axis=0), prepared.made_from["Data.imputed"]  # share of each sensor
        hours = 24 * shortest_run(calendar) / calendar.steps_per_day
        how, least = f"repeat the week or the day before for {hours:g} hours or more", LEAST_SHARE
        if prepared.marked:
            how, least = "are marked in the file", 0.0
        lines.append(
            f"imputed: {100 * share.mean():.2f} % of the values {how}, at {np.count_nonzero(share > least)} sensors; "
            f"{IMPUTED[rule]} ([Data] imputed = {rule})"
        )
    zeros = sum(np.count_nonzero(part.truth == 0) for _, part in prepared.in_blocks())
    if zeros:
        lines.append(
            f"zero: {zeros:,} values ({100 * zeros / prepared.flow.size:.2f} %) are taken for empty roads; where they "
            "are gaps, set [Data] missing = zero_is_missing"
        )
    return lines


def marked_counts(flow: NDArray[Any], rule: str) -> list[str]:
    """Return a line on the values of a flow (T, N) as read that mark gaps; none where none does."""
    marks = [str(marker).removesuffix(".0") for marker in missing_markers(rule)]
    counts: Counter[str] = Counter()
    for row in range(0, len(flow), CHUNK_ROWS):
        part = flow[row : row + CHUNK_ROWS]
        counts.update({f"of {mark}": int(missing_values(part, mark).sum() - np.isnan(part).sum()) for mark in marks})
        counts["negative"] += int((part < 0).sum())
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return [f"marked: {shown}; they are among the missing values"] if shown else []


def main() -> None:
    """Parse the arguments, prepare, and print what was found."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, help="INI file of the data set")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting; repeatable"
    )
    parser.add_argument(
        "--materialize",
        type=Path,
        metavar="FILE.npz",
        help="also write every window, in the file format of the released code (large: PEMS07 needs 14 GB)",
    )
    arguments = parser.parse_args()

    config = load_config(arguments.config, VARIANTS, arguments.set)
    for notice in config.notices:
        print(notice)
    links = links_for(config)
    positions_for(config, links)
    prepared = make_prepared(config, arguments.materialize)

    steps, sensors = prepared.flow.shape
    source = config.data.graph_signal_matrix_filename
    print(f"{source}: {steps} steps, {sensors} sensors, {len(prepared.minimum)} features")
    print(
        f"{config.data.adj_filename}: {len(links.pairs)} links "
        f"(dropped {links.self_links} self-links, {links.duplicates} duplicate rows)"
    )
    if is_table(source) and config.data.id_filename is None:
        print(f"the links speak the {'positions' if links.sensor_ids is None else 'names'} of the table's sensors")
    if unlinked := unlinked_sensors(config, links):
        shown = ", ".join(unlinked[:NAMES_SHOWN]) + (", ..." if len(unlinked) > NAMES_SHOWN else "")
        print(f"{len(unlinked)} of {sensors} sensors have no links: {shown}")
    step_name = step_namer(config)
    for split in SPLITS:
        starts = prepared.label_starts[split]
        print(f"{split:5s} {len(starts):6d} samples, label starts {step_name(starts[0])} .. {step_name(starts[-1])}")
    print(f"flow  {prepared.minimum[0]:g} .. {prepared.maximum[0]:g} in training inputs")
    calendar, names = calendar_for(config), sensor_names(config, links)
    for line in missing_counts(prepared, config.data.num_for_predict, calendar, names):
        print(line)
    if config.data.missing not in ("error", "interpolate"):  # then none but NaN is missing
        for line in marked_counts(series_for(config)[:, :, FLOW], config.data.missing):
            print(line)
    print(f"wrote {config.prepared_path} ({config.prepared_path.stat().st_size / 2**20:.1f} MiB)")
    if arguments.materialize is not None:
        print(f"wrote {arguments.materialize} ({arguments.materialize.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    run_script(main)
