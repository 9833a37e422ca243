"""Draw the effective receptive field of a trained run: which inputs move the centre token of a layer."""

import argparse
from pathlib import Path
from typing import cast

from lib.command_line import ScriptParser, integer_from
from lib.data.graphs import adjacency_matrix, hops_to_nearest
from lib.data.preparing import links_for
from lib.data.windowing import evenly_spaced
from lib.errors import InputError, run_script
from lib.interface import Encoder
from lib.report.receptive_field import choose_nodes, receptive_field, save_receptive_field, summary
from lib.run_folder import RunFolder
from lib.runs import open_run
from model.variants import VARIANTS

EXAMPLES = """examples:
  python erf_conv.py --run experiments/PEMS04/paper-seed1
  python erf_conv.py --run experiments/PEMS04/paper-seed1 --layer encoder.0.temporal --node 17
  python erf_conv.py --run experiments/PEMS04/paper-seed1 --layer front_end.blocks.0 --node all --samples 200

By default two pictures are made: of the large kernels' output (front_end), and of the encoder's last layer, before the
LayerNorm that would hide the mean over channels. A layer is any module that the encoder runs and whose output has the
axes (batch, node, token, channel). Written into the run's folder: erf_<layer>.npz, figures/erf_<layer>.png and .pdf, in
place of older ones.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of a trained run")
    parser.add_argument("--layer", metavar="NAME", help="dotted name of a module (default: two pictures, see below)")
    parser.add_argument(
        "--samples",
        type=integer_from(1),
        default=50,
        metavar="K",
        help="samples, spread over the test split (default: 50)",
    )
    parser.add_argument(
        "--node",
        default="center",
        metavar="center|all|INDEX",
        help="the sensor: the road graph's centre (default), the mean of all, or a position",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute (default: auto)"
    )
    return parser.parse_args()


def main() -> None:
    """Compute, print and draw the receptive field of each layer asked for.

    Raises:
        InputError: the run's model has no encoder.
    """
    arguments = parse_arguments()
    run = open_run(RunFolder(arguments.run.resolve()), VARIANTS, arguments.device)
    config = run.config
    if not config.variant.has_encoder:
        expected = ", ".join(name for name, variant in VARIANTS.items() if variant.has_encoder)
        raise InputError(f"--run: found variant = {config.variant.name} in {run.folder}, expected {expected}")
    adjacency = adjacency_matrix(links_for(config), config.data.num_of_vertices)
    nodes = choose_nodes(arguments.node, adjacency)
    hops = hops_to_nearest(adjacency, nodes)
    label_starts = evenly_spaced(run.prepared.label_starts["test"], arguments.samples)
    segments = [name for name, _ in config.windows.segments]
    model = cast(Encoder, run.model)
    for layer in (arguments.layer,) if arguments.layer else model.receptive_field_layers:
        field = receptive_field(
            run.model,
            layer,
            run.windows,
            label_starts,
            nodes,
            hops,
            batch_size=config.runtime.micro_batch or config.training.batch_size,
        )
        print(summary(field, segments))
        if field.contribution.any():
            written = save_receptive_field(run.folder, field, run.prepared.offsets, segments)
            print("  wrote", *written, sep="\n    ")


if __name__ == "__main__":
    run_script(main)
