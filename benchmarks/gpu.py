"""All that needs a GPU, in under nine minutes: the tests, the measurements that matter, and a training of full size.

Each part is a process with a time limit of its own; what one does, fails or lacks stops no other. No internet is
needed, and of the packages in requirements.txt only those that a part names.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from lib.command_line import ScriptParser
from lib.devices import choose_device, describe_device
from lib.errors import EXIT_FAILED, run_script
from lib.files import REPOSITORY_ROOT, save_json
from lib.provenance import provenance

EXAMPLES = """examples:
  make gpu
  make gpu PYTHON=python3          where there is no .venv
  make gpu DEVICE=cpu QUICK=1      does the command itself work? small, and without a GPU

Written to results/gpu/<machine>: summary.json, a log of each part, benchmarks/, and training/ without checkpoints.
"""
GRACE = 10.0  # seconds between being asked to end and being made to
NEEDED = ("numpy", "scipy", "tqdm", "matplotlib")
OPTIONAL = ("pandas", "fastdtw", "hypothesis", "pyarrow", "h5py", "tensorboard")
KEPT = ("settings.ini", "environment.json", "log.jsonl", "metrics.json")  # of the run
STAGES = {"teacher forcing": 50, "fine-tuning": 25}  # epochs of the whole schedule


@dataclass(frozen=True)
class Part:
    """One thing to do.

    Attributes:
        name: of its line and its log.
        arguments: of Python.
        seconds: its time limit.
        needs: packages, without which it is left out.
        files: files, without which it is left out.
    """

    name: str
    arguments: Sequence[str]
    seconds: float
    needs: Sequence[str] = NEEDED
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a part: `done`, or what else."""

    name: str
    outcome: str
    seconds: float

    @property
    def fine(self) -> bool:
        """Whether nothing failed; what this machine lacks is no failure."""
        return self.outcome == "done" or self.outcome.startswith("left out")

    def line(self) -> str:
        """Return the line of the summary."""
        return f"{self.name:12s} {self.seconds:6.1f} s  {self.outcome}"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ScriptParser(__doc__, EXAMPLES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where to compute (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="the least of each part")
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY_ROOT / "data" / "PEMS08", metavar="DIR", help="where PEMS08 is"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: results/gpu/<machine>)")
    return parser.parse_args()


def parts(device: str, quick: bool, data: Path, output: Path, scratch: Path) -> Iterator[Part]:
    """Yield what is to be done, the most important first; the limits add up to less than nine minutes.

    Args:
        device: cpu or cuda.
        quick: whether to do the least of each part.
        data: the folder of PEMS08.
        output: where results go that stay.
        scratch: a folder for all else.
    """
    some = ["-k", "stid or dtw"] if quick else []
    tests = ["-m", "pytest", "-m", "cuda", "-rs", "-p", "no:cacheprovider", "--basetemp", str(scratch / "tests"), *some]
    yield Part("tests", tests, 150, (*NEEDED, "pytest"))

    measure = ["-m", "benchmarks.run", "--device", device, "--output", str(output / "benchmarks")]
    measure += ["--quick"] if quick else ["--repeats", "3", "--memory-limit", "50"]
    yield Part("ways", [*measure, "--only", "ways"], 120)
    if not quick:
        yield Part("limits", [*measure, "--only", "limits"], 40)
        yield Part("steps", [*measure, "--only", "training", "fine-tuning", "rollout"], 60)

    run = ["run.py", "--seed", "1", "--device", device, "--output", str(scratch), "--name", "gpu"]
    run += ["--set", f"Data.cache={scratch}"]
    if quick:
        run += ["--config", "configurations/DEMO.conf", "--recipe", "stid_demo", "--epochs", "1"]
        yield Part("training", [*run, "--set", "Training.max_batches=5"], 110)
        return
    series, links = (data / f"PEMS08.{ending}" for ending in ("npz", "csv"))
    run += ["--config", "configurations/PEMS08.conf", "--recipe", "paper", "--epochs", "2", "--fine-tune-epochs", "1"]
    run += ["--set", f"Data.graph_signal_matrix_filename={series}", "--set", f"Data.adj_filename={links}"]
    yield Part("training", run, 110, files=(series, links))


def do(part: Part, device: str, output: Path) -> Outcome:
    """Do a part, with what it prints in a file, and return what came of it."""
    lacking = [package for package in part.needs if find_spec(package) is None]
    lacking += [str(file) for file in part.files if not file.exists()]
    if lacking:
        return Outcome(part.name, f"left out: found no {', no '.join(lacking)}", 0)
    started = time.perf_counter()
    environment = {**os.environ, "TEST_DEVICE": device, "PYTHONUNBUFFERED": "1"}
    with (output / f"{part.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=REPOSITORY_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(part.seconds)
            outcome = "done" if code == 0 else f"failed with exit code {code}: see {part.name}.log"
        except subprocess.TimeoutExpired:
            outcome = f"stopped at its limit of {part.seconds:g} s: what it had measured is kept"
        finally:
            end(process)
    return Outcome(part.name, outcome, round(time.perf_counter() - started, 1))


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started; first kindly, so that a training writes its checkpoint."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue


def keep_training(scratch: Path, output: Path) -> list[str]:
    """Copy the small files of the run, and return lines on how long its epochs took."""
    lines = []
    for run in scratch.glob("*/gpu"):
        (output / "training").mkdir(exist_ok=True)
        for name in KEPT:
            if (run / name).exists():
                shutil.copy(run / name, output / "training" / name)
        if (run / "log.jsonl").exists():
            entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            seconds = {entry["stage"]: entry["seconds"] for entry in entries}  # of the last epoch: the first captures
            lines += [f"an epoch of {stage}, with its validation: {taken:.1f} s" for stage, taken in seconds.items()]
            if seconds.keys() == STAGES.keys():
                minutes = sum(epochs * seconds[stage] for stage, epochs in STAGES.items()) / 60
                lines.append(f"the whole schedule, {' + '.join(map(str, STAGES.values()))} epochs: {minutes:.0f} min")
    return lines


def main() -> None:
    """Do all parts, and print a line of each.

    Raises:
        SystemExit: a part failed, or did not end in time.
    """
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    machine = re.sub("[^a-z0-9]+", "-", describe_device(device).lower()).strip("-")
    output = arguments.output or REPOSITORY_ROOT / "results" / "gpu" / machine
    output.mkdir(parents=True, exist_ok=True)
    if absent := [package for package in OPTIONAL if find_spec(package) is None]:
        print(f"not installed here: {', '.join(absent)}; what needs them is left out")
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for part in parts(arguments.device, arguments.quick, arguments.data.absolute(), output.absolute(), scratch):
            outcome = do(part, arguments.device, output)
            outcomes.append(outcome)
            print(outcome.line(), flush=True)
        lines = keep_training(scratch, output)
    print(*lines, f"written to {output}", sep="\n")
    results = [asdict(outcome) for outcome in outcomes]
    save_json(output / "summary.json", {**provenance(device), "parts": results, "training": lines})
    if not all(outcome.fine for outcome in outcomes):
        raise SystemExit(EXIT_FAILED)


if __name__ == "__main__":
    run_script(main)
