"""Measure speed and memory against plain references, check that both compute the same, and say what limits a step."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.groups import GIBIBYTE, GROUPS, Settings, for_gpu, quick
from benchmarks.memory import release_memory
from benchmarks.report import Report, machine_name, progress_line, tables
from lib.command_line import ScriptParser, integer_from
from lib.devices import choose_device, configure_cpu
from lib.errors import run_script
from lib.files import REPOSITORY_ROOT
from lib.provenance import provenance

EXAMPLES = """examples:
  python -m benchmarks.run
  python -m benchmarks.run --quick
  python -m benchmarks.run --only training memory
  python -m benchmarks.run --device cuda

Written to results/benchmarks: <machine>.json, <machine>.md, <machine>_cost_against_n.png and .pdf. Groups that are not
measured keep what an earlier run wrote. Run it on a machine that does nothing else.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS), help="groups to measure")
    parser.add_argument("--quick", action="store_true", help="small and rough, in about two minutes")
    parser.add_argument("--full", action="store_true", help="evaluate all test samples, not one batch only")
    parser.add_argument(
        "--repeats", type=integer_from(1), metavar="K", help="rounds of a comparison at most (default: 5)"
    )
    parser.add_argument(
        "--threads", type=integer_from(0), default=0, metavar="K", help="CPU threads (default: PyTorch's choice)"
    )
    parser.add_argument(
        "--memory-limit",
        type=float,
        default=16.0,
        metavar="GIB",
        help="the plain network is left out where it would need more (default: 16)",
    )
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY_ROOT / "results" / "benchmarks", metavar="DIR", help="where to write"
    )
    arguments = parser.parse_args()
    if not arguments.memory_limit >= 0:
        parser.error(f"--memory-limit: found {arguments.memory_limit:g}, expected a number of GiB of at least 0")
    return arguments


def measure(settings: Settings, groups: Iterable[str], folder: Path, machine: str) -> Report:
    """Measure groups one after the other, and write what they give to the machine's files in a folder."""
    report, origin = Report(folder, machine), provenance(settings.device)
    for group in groups:
        report.begin(group, origin)
        for row in GROUPS[group](settings):
            report.add(group, row)
            print(progress_line(group, row), flush=True)
            release_memory()
        report.end(group)
    return report


def main() -> None:
    """Measure what the command line asks for, and print the tables."""
    arguments = parse_arguments()
    configure_cpu(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as everything else
    settings = Settings(choose_device(arguments.device), full=arguments.full)
    settings = replace(settings, memory_limit=arguments.memory_limit * GIBIBYTE)
    settings = for_gpu(settings) if settings.device.type == "cuda" else settings
    settings = quick(settings) if arguments.quick else settings
    if arguments.repeats is not None:
        settings = replace(settings, repeats=arguments.repeats)
    machine = machine_name(settings.device) + ("-quick" if arguments.quick else "")
    report = measure(settings, arguments.only, arguments.output, machine)
    for group in arguments.only:
        print(f"\n{group}\n\n{tables(report.groups[group])}")
    print(f"written: {report.json}")


if __name__ == "__main__":
    run_script(main)
