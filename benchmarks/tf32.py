"""What TF32 costs in accuracy, measured without a GPU: train with factors of products rounded as a GPU rounds them."""

import argparse
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib.command_line import ScriptParser, add_training_flags
from lib.config import load_config
from lib.errors import run_script
from lib.files import check_writable
from lib.report.comparison import check_same_targets, group_row, read_runs, table_paths, write_tables
from lib.runs import complete_run
from model.variants import VARIANTS

EXAMPLES = """examples:
  python -m benchmarks.tf32 --config configurations/DEMO.conf --recipe residual_mlp_demo

Interrupted, the same command goes on where it stopped.
"""
DROPPED_BITS = 13  # of the 23 of a float32's fraction; TF32 has 10
ATEN = torch.ops.aten
FACTORS = {ATEN.mm: 0, ATEN.bmm: 0, ATEN.addmm: 1, ATEN.baddbmm: 1}  # the place of the first of the two


def rounded(x: Tensor) -> Tensor:
    """Return float32 numbers in the nearest that TF32 has, of two the even one."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << DROPPED_BITS - 1) - 1 + (bits >> DROPPED_BITS & 1)
    return (bits + half >> DROPPED_BITS << DROPPED_BITS).view(torch.float32)


class RoundedFactors(TorchDispatchMode):
    """While this is on, float32 products round both factors, forward and backward, and sum in float32.

    Those are the products that `torch.set_float32_matmul_precision("high")` takes to TF32 on a GPU.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Call an operator."""
        del types
        place = FACTORS.get(function.overloadpacket)
        if place is not None and arguments[place].dtype == torch.float32:
            factors = map(rounded, arguments[place : place + 2])
            arguments = (*arguments[:place], *factors, *arguments[place + 2 :])
        return function(*arguments, **(named or {}))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    add_training_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Train in both precisions with each seed, and write the table."""
    arguments = parse_arguments()
    configs = [
        load_config(arguments.config, VARIANTS, [*arguments.set, f"Training.seed={seed}"], arguments.recipe)
        for seed in range(1, arguments.seeds + 1)
    ]
    data = configs[0].data
    stem = arguments.results / data.dataset_name / "tf32"
    for path in table_paths(stem):
        check_writable(path, "--results")
    groups = []
    for name, mode in (("float32", nullcontext()), ("tf32", RoundedFactors())):
        with mode:
            folders = [
                complete_run(config, arguments.output, f"{name}-seed{config.training.seed}", VARIANTS)
                for config in configs
            ]
        check_same_targets(folders)
        groups.append(read_runs(name, folders))
    rows = [{"name": group.name, **group_row(group, groups[0])} for group in groups]
    write_tables(stem, "Simulated TF32", rows, groups, groups[0], data)
    print(f"\nwrote {stem}.csv and {stem.name}.md")


if __name__ == "__main__":
    run_script(main)
