"""The groups of measurements, each a function that yields one row after the other."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.counts import KERNELS_ON_H100, TRAFFIC_ON_H100, work_by_part
from benchmarks.limits import Limit, Work, large_copy, large_product, operator_seconds, shares_by_class, work
from benchmarks.measure import Comparison, Figure, Unit, checked, figure, largest_difference, timed, times
from benchmarks.memory import peak_memory, release_memory
from benchmarks.plain_dtw import dtw_distance
from benchmarks.plain_model import gradients_as_plain
from benchmarks.plain_windows import prepare_windows, save_windows
from benchmarks.report import quantity
from benchmarks.simulated import simulated_days, simulated_links
from benchmarks.workloads import (
    KINDS,
    NEIGHBOURS,
    OWN_NAMES,
    PEMS03,
    PEMS04,
    PEMS07,
    PEMS08,
    SEED,
    SHIPPED_SIZES,
    TRAINING_STAGES,
    Kind,
    NetworkName,
    NetworkSizes,
    OwnName,
    Shape,
    Workload,
    simulated_run,
    simulated_workload,
    step,
    synthetic_series,
)
from lib.captured import WARM_UPS, recorder_for
from lib.config import RuntimeConfig
from lib.data.dtw import dtw_matrix, mean_days
from lib.data.graphs import build_graphs
from lib.data.nearest import nearest_sensors
from lib.data.prepared import prepare, save_prepared
from lib.data.series import FLOW
from lib.data.windowing import Calendar, WindowShape
from lib.data.windows import Windows
from lib.files import REPOSITORY_ROOT
from lib.precision import accelerate
from lib.training import evaluate
from model.attention_blocks import AttentionBlocks

CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of float32 results, relative to their scale
# Of gradients, each relative to its own scale: where a ReLU's input or an error under L1 is zero but for rounding, both
# ways take different sides. In float64 they agree to 1e-8 (tests/test_benchmarks.py).
GRADIENT_TOLERANCE = 1e-2
GIBIBYTE = 2**30
ONE_LAYER = replace(SHIPPED_SIZES, layers=1)
DAYS_AVERAGED = 7  # of the simulated flow, for the sensors' mean days
FLOAT = 4  # bytes of a float32
# What the plain network needs, fitted to measured peaks of training and fine-tuning steps, with the allocator's part in
# them: those of 0.7 to 17 GiB come out within 15%.
ATTENTIONS = 3  # attention matrices for each token in each layer
ACTIVATIONS = 30  # tensors (B, N, 1, C) for each token in each layer
TEMPORARIES = 4  # attention matrices for each token of the layer that is being computed
LARGE, LINKS_OF_SENSOR = "N grows", 1.6  # the links of a sensor where sensors are many
STEPS_OF_DAY = 96  # of 15 minutes, as data of so many sensors have
# The ways of the group `ways`. The first is how all other groups compute.
WAYS = (
    RuntimeConfig(precision="float32", cuda_graphs="off"),
    RuntimeConfig(precision="bf16", cuda_graphs="off"),
    RuntimeConfig(precision="float32"),
    RuntimeConfig(precision="tf32"),
    RuntimeConfig(precision="bf16"),
    RuntimeConfig(precision="tf32", compile="on"),
)
REMARKS: dict[OwnName, str] = {"fast": "", "checkpointed": ", gradient checkpointing"}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how long.

    Attributes:
        device: where the networks compute, and the exact DTW.
        repeats, seconds: rounds of a comparison, and the time after which no further one begins.
        shapes: of the data sets, for all groups but those that grow.
        evaluated: the shape whose evaluation pass, limits, and peak memory of every step are measured, at which steps
            are timed with gradient checkpointing too, and at which the batch grows.
        evaluation_batch: samples in a batch of the evaluation pass.
        full: whether to evaluate all test samples as well.
        sizes: of the network.
        large_sensors: the N at which graphs, the nearest by DTW and steps of this project alone are measured.
        growing_sensors, growing_sizes: the N that cost is measured against at batch 1, and the network's sizes there.
        growing_batches: the batch sizes that cost is measured against.
        counted_batches: the batch sizes at which calls of operators are counted.
        memory_limit: in bytes; where the plain network would need more, it is not measured.
        plain_samples: samples that the plain preparation is timed on.
        plain_pairs: pairs of sensors that plain DTW and fastdtw are timed on.
        product_size: of the square matrices whose product shows the machine's rate of operations.
        copied: float32 in the copy that shows its rate of traffic: far more than its caches hold.
    """

    device: torch.device
    repeats: int = 5
    seconds: float = 30.0
    shapes: tuple[Shape, ...] = (PEMS08, PEMS04, PEMS03, PEMS07)
    evaluated: Shape = PEMS04
    evaluation_batch: int = 16
    full: bool = False
    sizes: NetworkSizes = SHIPPED_SIZES
    growing_sensors: tuple[int, ...] = (100, 200, 400, 800, 1600, 3000)
    growing_sizes: NetworkSizes = ONE_LAYER
    growing_batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    counted_batches: tuple[int, ...] = (4, 16)
    large_sensors: tuple[int, ...] = (100, 300, 1000, 3000, 8600, 10000)
    memory_limit: float = 16 * GIBIBYTE
    plain_samples: int = 128
    plain_pairs: int = 5
    product_size: int = 2048
    copied: int = 2**26


def for_gpu(settings: Settings) -> Settings:
    """Return settings whose product and copy are large enough to keep a GPU busy."""
    return replace(settings, product_size=8192, copied=2**29)


def quick(settings: Settings) -> Settings:
    """Return settings that show in about two minutes that everything works; their figures are rough."""
    return replace(
        settings,
        repeats=2,
        seconds=2.0,
        shapes=(replace(PEMS08, batch=1, compared_batch=1),),
        evaluated=replace(PEMS08, batch=1, compared_batch=1),
        evaluation_batch=1,
        sizes=ONE_LAYER,
        growing_sensors=(100, 200, 400),
        growing_batches=(1, 2),
        counted_batches=(1,),
        large_sensors=(100, 1100),
        plain_samples=16,
        plain_pairs=2,
        product_size=512,
        copied=2**24,
    )


def preparation(settings: Settings) -> Iterator[Comparison]:
    """Windows by index against materialised ones: time, and size of the file."""
    for shape in settings.shapes:
        series = synthetic_series(shape.rows, shape.sensors, shape.features, steps_per_day(shape), SEED)
        part = series[: shape.rows - shape.samples + settings.plain_samples]
        with tempfile.TemporaryDirectory() as folder:
            prepared_path, plain_path = Path(folder) / "prepared.npz", Path(folder) / "plain.npz"

            functions = {
                "fast": partial(prepare_and_save, series, shape.windows, prepared_path),
                "plain": partial(prepare_and_save_plainly, part, shape.windows, plain_path),
            }
            for function in functions.values():
                function()
            measured = times(functions, CPU, settings.repeats, settings.seconds)
            sizes = {"fast": prepared_path.stat().st_size, "plain": plain_path.stat().st_size}
        difference = checked(f"windows of {shape.name}", windows_difference(part, shape.windows), TOLERANCE)
        factor = shape.samples / settings.plain_samples
        row = Comparison(
            "preparation",
            shape.name,
            shape.sensors,
            None,
            "s",
            measured["fast"],
            measured["plain"].scaled(factor),
            ("plain",),
            difference,
            f"plain: {settings.plain_samples} of {shape.samples} samples",
        )
        yield row
        plain_size = Figure(sizes["plain"], sizes["plain"], sizes["plain"], 1).scaled(factor)
        yield replace(row, what="prepared file", unit="bytes", fast=figure([sizes["fast"]]), plain=plain_size)


def prepare_and_save(series: NDArray[np.float64], windows: WindowShape, path: Path) -> None:
    """Prepare a series (T, N, F) as PrepareData.py does."""
    save_prepared(path, prepare(series, windows, {}))


def prepare_and_save_plainly(series: NDArray[np.float64], windows: WindowShape, path: Path) -> None:
    """Materialise the windows of a series (T, N, F)."""
    save_windows(path, prepare_windows(series, windows))


def windows_difference(series: NDArray[np.float64], shape: WindowShape) -> float:
    """Return the largest difference between windows gathered by index and materialised ones, relative to their scale.

    Inputs are scaled, targets are in raw units.
    """
    prepared = prepare(series, shape, {})
    windows = Windows(prepared, shape.horizon, Calendar(24 * shape.points_per_hour), CPU)
    plain = prepare_windows(series, shape)
    fast = {}
    for split, starts in prepared.label_starts.items():
        np.testing.assert_array_equal(plain[f"{split}_timestamp"][:, 0], starts)
        batch = windows.batch(torch.from_numpy(starts))
        fast[f"{split}_x"], fast[f"{split}_target"] = batch.inputs.series.double(), batch.flow.double()
    cut = {name: plain[name][:, :, FLOW] if name.endswith("_x") else plain[name] for name in fast}
    tensors = {name: torch.from_numpy(array).double() for name, array in cut.items()}
    return max(largest_difference({name: fast[name]}, {name: tensor}) for name, tensor in tensors.items())


def dtw(settings: Settings) -> Iterator[Comparison]:
    """DTW of all pairs of sensors, against the textbook's loops and against fastdtw, both on a sample of pairs."""
    for shape in settings.shapes:
        steps = steps_per_day(shape)
        flow = synthetic_series(DAYS_AVERAGED * steps, shape.sensors, 1, steps, SEED)[:, :, FLOW]
        days = mean_days(flow.astype(np.float32), steps, len(flow))
        first, second = np.triu_indices(shape.sensors, k=1)
        chosen = np.random.default_rng(SEED).choice(len(first), settings.plain_pairs, replace=False)
        pairs = [(days[first[pair]].tolist(), days[second[pair]].tolist()) for pair in chosen]
        functions: dict[str, Callable[[], NDArray[np.float64]]] = {
            "fast": partial(dtw_matrix, days, show_progress=False, device=settings.device),
            "textbook": partial(distances_of_pairs, dtw_distance, pairs),
        }
        if has_fastdtw := find_spec("fastdtw") is not None:
            functions["fastdtw"] = partial(distances_of_pairs, fastdtw_distance, pairs)
        results = {name: torch.from_numpy(function()) for name, function in functions.items()}
        exact = {"": results["fast"][first[chosen], second[chosen]]}
        difference = checked("DTW", largest_difference(exact, {"": results["textbook"]}), TOLERANCE)
        measured = times(functions, settings.device, settings.repeats, settings.seconds)
        factor = len(first) / settings.plain_pairs
        note = f"{settings.plain_pairs} of {len(first)} pairs"
        row = Comparison(
            "DTW against the textbook's loops",
            shape.name,
            shape.sensors,
            None,
            "s",
            measured["fast"],
            measured["textbook"].scaled(factor),
            ("plain",),
            difference,
            f"plain: {note}",
        )
        yield row
        if not has_fastdtw:
            continue
        excess = results["fastdtw"] / exact[""] - 1
        if (excess < -TOLERANCE).any():
            raise AssertionError("fastdtw: found a distance below the exact one, expected an upper bound of it")
        yield replace(
            row,
            what="DTW against fastdtw, radius 1",
            plain=measured["fastdtw"].scaled(factor),
            difference=None,
            note=f"fastdtw: {note}; its distances are {max(0.0, float(excess.mean())):.1%} too long in the mean",
        )


def distances_of_pairs(
    distance: Callable[[list[float], list[float]], float], pairs: Sequence[tuple[list[float], list[float]]]
) -> NDArray[np.float64]:
    """Return the distances of pairs of series, one after the other."""
    return np.array([distance(first, second) for first, second in pairs])


def fastdtw_distance(first: list[float], second: list[float]) -> float:
    """Return the distance of two series by the package fastdtw, radius 1."""
    from fastdtw import fastdtw  # a machine with a GPU may lack it

    return float(fastdtw(first, second, radius=1)[0])


def training(settings: Settings) -> Iterator[Comparison]:
    """A step of every weight under teacher forcing."""
    yield from steps_by_shape("training step", settings)


def fine_tuning(settings: Settings) -> Iterator[Comparison]:
    """A step of every weight through the rollout."""
    yield from steps_by_shape("fine-tuning step", settings)


def forecast(settings: Settings) -> Iterator[Comparison]:
    """The forecast of a batch through the rollout."""
    yield from steps_by_shape("forecast", settings)


def evaluation(settings: Settings) -> Iterator[Comparison]:
    """The evaluation pass over the test split, from one of its batches, and in full if asked."""
    shape, device, batch_size = settings.evaluated, settings.device, settings.evaluation_batch
    flow = synthetic_series(shape.rows, shape.sensors, 1, steps_per_day(shape), SEED)
    prepared = prepare(flow, shape.windows, {})
    windows = Windows(prepared, shape.windows.horizon, Calendar(steps_per_day(shape)), device)
    workload = simulated_workload(shape.sensors, 1, shape.windows, settings.sizes, device)
    networks = {"fast": workload.network(), "plain": workload.plain_network()}
    starts = prepared.label_starts["test"]
    functions = {
        name: partial(evaluate, network, windows, starts[:batch_size], batch_size, "evaluation", keep_forecast=True)
        for name, network in networks.items()
    }
    forecasts = {}
    for name, function in functions.items():
        kept = function().forecast
        assert kept is not None
        forecasts[name] = {"": torch.from_numpy(kept)}
    difference = checked("evaluation", largest_difference(forecasts["fast"], forecasts["plain"]), TOLERANCE)
    measured = times(functions, device, settings.repeats, settings.seconds)
    factor = len(starts) / batch_size
    note = f"{batch_size} of {len(starts)} samples"
    row = Comparison(
        f"evaluation of {len(starts)} test samples",
        shape.name,
        shape.sensors,
        batch_size,
        "s",
        measured["fast"].scaled(factor),
        measured["plain"].scaled(factor),
        ("fast", "plain"),
        difference,
        f"both: {note}",
    )
    yield row
    if settings.full:
        everything = partial(evaluate, networks["fast"], windows, starts, batch_size, "evaluation")
        seconds = figure([timed(everything, device)])
        yield replace(row, what=f"{row.what}, all run", fast=seconds, extrapolated=("plain",), note=f"plain: {note}")


def prediction(settings: Settings) -> Iterator[Comparison]:
    """predict.py from its start to the written file, beside a process that loads PyTorch and the series alone."""
    shape = settings.shapes[0]
    with tempfile.TemporaryDirectory() as folder:
        archive, run = simulated_run(shape, Path(folder))
        predict = ["predict.py", "--run", str(run), "--input", str(archive), "--output", str(Path(folder) / "out.csv")]
        least = ["-c", "import sys, numpy, torch; numpy.load(sys.argv[1])['data']", str(archive)]
        functions = {"fast": partial(run_python, predict), "plain": partial(run_python, least)}
        for function in functions.values():
            function()
        measured = times(functions, CPU, settings.repeats, settings.seconds)
    note = "plain: loads PyTorch and the series, and forecasts nothing"
    yield Comparison(
        "predict.py", shape.name, shape.sensors, 1, "s", measured["fast"], measured["plain"], (), None, note
    )


def run_python(arguments: Sequence[str]) -> None:
    """Run Python in a process of its own, in the repository's root, and check that it succeeds."""
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY_ROOT, check=True, stdout=subprocess.DEVNULL)


def memory(settings: Settings) -> Iterator[Comparison]:
    """Peak memory of one step above the interpreter's own: of every kind for one shape, of training for the others.

    Where the plain network gets a smaller batch, both stages of training are measured with the whole one too.
    """
    for shape in settings.shapes:
        case = Case.of(shape, settings)
        for kind in KINDS if shape == settings.evaluated else KINDS[:1]:
            yield from compare_memory(kind, case, settings, own_names(kind))
        if shape.compared_batch < shape.batch:
            for kind in TRAINING_STAGES:
                yield from compare_memory(kind, replace(case, batch=shape.batch), settings, own_names(kind))


def growing_network(settings: Settings) -> Iterator[Comparison]:
    """Time and memory of a training step against N."""
    for sensors in settings.growing_sensors:
        case = Case("N grows", settings.evaluated.windows, sensors, 1, settings.growing_sizes)
        yield from compare_step("training step", case, settings)
        yield from compare_memory("training step", case, settings)


def growing_batch(settings: Settings) -> Iterator[Comparison]:
    """Time of a training step against the batch."""
    case = replace(Case.of(settings.evaluated, settings), name="batch grows")
    for batch in settings.growing_batches:
        yield from compare_step("training step", replace(case, batch=batch), settings)


def large_networks(settings: Settings) -> Iterator[Comparison]:
    """Thousands of sensors: the nearest by DTW, the graphs, and steps of the paper's network and the residual MLP."""
    for sensors in settings.large_sensors:
        case = Case(LARGE, settings.evaluated.windows, sensors, 1, settings.sizes)
        yield from large_graphs(case, settings)
        workload = simulated_workload(sensors, 1, case.windows, case.sizes, settings.device, LINKS_OF_SENSOR)
        for kind in (KINDS[0], KINDS[-1]):
            yield from large_step(kind, "fast", workload, case, settings)
            yield from large_step(kind, "residual MLP", workload, case, settings)


def ways(settings: Settings) -> Iterator[Comparison]:
    """Every step in all ways to compute it that the device has, as [Runtime] says them, beside the plain network.

    Each has its time alone, for the precision of products is one setting of the process.
    """
    device, shape, last = settings.device, settings.evaluated, settings.shapes[-1]
    case = replace(Case.of(shape, settings), batch=settings.evaluation_batch)
    larger = replace(Case.of(last, settings), batch=last.batch)
    for kind in KINDS:
        for one in dict.fromkeys((case, larger)):
            yield from ways_of(kind, one, settings, [way for way in WAYS if not refused(way, kind, device)])


def refused(way: RuntimeConfig, kind: Kind, device: torch.device) -> bool:
    """Return whether a way is of a GPU that this device is not, or takes minutes: only a training step is compiled."""
    return (device.type != "cuda" and way != WAYS[0]) or (way.compile == "on" and kind != KINDS[0])


def limits(settings: Settings) -> Iterator[Limit]:
    """Every step against the least time that the machine's rates allow, and the operators that its time goes to."""
    case = Case.of(settings.evaluated, settings)
    for kind in KINDS:
        yield measure_limit(kind, case, settings)


def counts(settings: Settings) -> Iterator[Comparison]:
    """Calls of operators and bytes of every step, of both networks: exact, with no GPU and nothing computed."""
    case = Case.of(settings.evaluated, settings)
    for batch in settings.counted_batches:
        for kind in KINDS:
            yield from count_step(kind, replace(case, batch=batch))


GROUPS: dict[str, Callable[[Settings], Iterator[Comparison] | Iterator[Limit]]] = {
    "prepare": preparation,
    "dtw": dtw,
    "training": training,
    "fine-tuning": fine_tuning,
    "rollout": forecast,
    "evaluation": evaluation,
    "prediction": prediction,
    "memory": memory,
    "scaling": growing_network,
    "batch": growing_batch,
    "large": large_networks,
    "ways": ways,
    "limits": limits,
    "counts": counts,
}


def steps_per_day(shape: Shape) -> int:
    """Return the time steps of a day."""
    return 24 * shape.windows.points_per_hour


@dataclass(frozen=True)
class Case:
    """One network and its batch: the data set's name or what grows, the windows, N, B, and the network's sizes."""

    name: str
    windows: WindowShape
    sensors: int
    batch: int
    sizes: NetworkSizes

    @classmethod
    def of(cls, shape: Shape, settings: Settings) -> "Case":
        """Return the case of a shape, with the batch at which both networks are measured."""
        return cls(shape.name, shape.windows, shape.sensors, shape.compared_batch, settings.sizes)

    def workload(self, device: torch.device) -> Workload:
        """Return the network and a simulated batch."""
        return simulated_workload(self.sensors, self.batch, self.windows, self.sizes, device)

    def label(self, what: str, name: OwnName = "fast") -> str:
        """Return what the table calls a measurement of one of this project's networks."""
        return f"{what}{REMARKS[name]}, {self.sizes.layers} layer{'s' if self.sizes.layers > 1 else ''}"

    def row(self, label: str, unit: Unit, fast: Figure) -> Comparison:
        """Return the row of a figure, with nothing beside it yet."""
        return Comparison(label, self.name, self.sensors, self.batch, unit, fast)

    def plain_memory(self, kind: Kind) -> float:
        """Return about how many bytes the plain network needs for a step: attention weights and activations."""
        tokens, horizon = len(self.windows.segments), self.windows.horizon
        decoded = horizon * (horizon + 1) / 2 if kind == "fine-tuning step" else horizon
        kept = 0.0 if kind == "forecast" else self.sizes.layers * (tokens + decoded)  # tokens, over all layers
        attention = FLOAT * self.batch * self.sizes.heads * self.sensors**2
        activations = FLOAT * self.batch * self.sensors * self.sizes.channels * ACTIVATIONS
        return kept * (ATTENTIONS * attention + activations) + TEMPORARIES * max(tokens, horizon) * attention

    def too_much(self, kind: Kind, settings: Settings) -> str:
        """Return the note on a plain network that needs too much memory, empty where it does not."""
        needed, limit = self.plain_memory(kind), settings.memory_limit
        if needed <= limit:
            return ""
        return f"plain: needs about {needed / GIBIBYTE:.1f} GiB, the limit is {limit / GIBIBYTE:.1f}"


def own_names(kind: Kind) -> tuple[OwnName, ...]:
    """Return this project's networks that a step is measured with: a forecast has no gradients to keep values for."""
    return OWN_NAMES if kind in TRAINING_STAGES else ("fast",)


def steps_by_shape(kind: Kind, settings: Settings) -> Iterator[Comparison]:
    """Compare a step at each shape; where the plain network gets a smaller batch, the whole one is measured too."""
    for shape in settings.shapes:
        case = Case.of(shape, settings)
        yield from compare_step(kind, case, settings, own_names(kind) if shape == settings.evaluated else ("fast",))
        if shape.compared_batch < shape.batch:
            yield from time_step(kind, replace(case, batch=shape.batch), settings)


def time_step(
    kind: Kind, case: Case, settings: Settings, names: Sequence[OwnName] = ("fast",), note: str = ""
) -> list[Comparison]:
    """Time a step of this project's networks alone."""
    workload = case.workload(settings.device)
    steps: dict[str, Callable[[], Tensor]] = {
        name: step(kind, workload.network(name), workload.batch()) for name in names
    }
    for function in steps.values():
        function()
    measured = times(steps, settings.device, settings.repeats, settings.seconds)
    return [replace(case.row(case.label(kind, name), "s", measured[name]), note=note) for name in names]


def compare_step(kind: Kind, case: Case, settings: Settings, names: Sequence[OwnName] = ("fast",)) -> list[Comparison]:
    """Time a step of this project's networks and the plain one, and check that they compute the same.

    All begin with the same weights. Compared are the forecasts, or the losses and all gradients of the first step.
    """
    if note := case.too_much(kind, settings):
        return time_step(kind, case, settings, names, note)
    workload = case.workload(settings.device)
    networks = {name: workload.network(name) for name in names}
    plain, batch = workload.plain_network(), workload.batch()
    steps: dict[str, Callable[[], Tensor]] = {name: step(kind, network, batch) for name, network in networks.items()}
    steps["plain"] = step(kind, plain, batch)
    results = {name: {"": function()} for name, function in steps.items()}
    gradients = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    differences = {}
    for name, network in networks.items():
        what = f"{case.label(kind, name)}, {case.sensors} sensors"
        difference = checked(what, largest_difference(results[name], results["plain"]), TOLERANCE)
        if kind != "forecast":
            of_gradients = largest_difference(gradients_as_plain(network), gradients)
            difference = max(difference, checked(f"gradients of a {what}", of_gradients, GRADIENT_TOLERANCE))
        differences[name] = difference
    measured = times(steps, settings.device, settings.repeats, settings.seconds)
    return [
        replace(
            case.row(case.label(kind, name), "s", measured[name]),
            plain=measured["plain"],
            difference=differences[name],
        )
        for name in names
    ]


def compare_memory(
    kind: Kind, case: Case, settings: Settings, names: Sequence[OwnName] = ("fast",)
) -> list[Comparison]:
    """Measure the peak memory of one step of each network, above the interpreter's own."""
    workload = case.workload(settings.device)
    rows = [
        case.row(case.label(f"memory of a {kind}", name), "bytes", figure([peak_memory(kind, name, workload)]))
        for name in names
    ]
    if note := case.too_much(kind, settings):
        return [replace(row, note=note) for row in rows]
    plain = figure([peak_memory(kind, "plain", workload)])
    return [replace(row, plain=plain) for row in rows]


def ways_of(kind: Kind, case: Case, settings: Settings, runtimes: Sequence[RuntimeConfig]) -> Iterator[Comparison]:
    """Time a step in several ways; the note says what the first calls took, and the most memory of a GPU."""
    device, workload, note, plain = settings.device, case.workload(settings.device), case.too_much(kind, settings), None
    torch.set_float32_matmul_precision("highest")
    if not note:
        function = step(kind, workload.plain_network(), workload.batch())
        exact = function().detach()
        plain = times({"plain": function}, device, settings.repeats, settings.seconds)["plain"]
        del function
    for runtime in runtimes:
        release_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        network = workload.network()
        accelerate(network, runtime, device)
        function = step(kind, network, workload.batch(), recorder_for(runtime, device))
        started = time.perf_counter()
        first = function().detach().clone()
        warming = time.perf_counter() - started + sum(timed(function, device) for _ in range(WARM_UPS))
        way = f"{runtime.precision}{', CUDA graphs' * (runtime.cuda_graphs == 'auto')}"
        way += ", compiled" * (runtime.compile == "on")
        what = case.label(f"{kind}, {way}")
        difference = None if note else largest_difference({"": first}, {"": exact})
        if difference is not None and runtime.precision == "float32":
            checked(what, difference, TOLERANCE)
        figure_ = times({way: function}, device, settings.repeats, settings.seconds)[way]
        remarks = [f"first {1 + WARM_UPS} calls {warming:.1f} s", *([note] if note else [])]
        if device.type == "cuda":
            remarks.append(f"at most {torch.cuda.max_memory_reserved(device) / GIBIBYTE:.2f} GiB")
        yield replace(case.row(what, "s", figure_), plain=plain, difference=difference, note="; ".join(remarks))
        del network, function


def large_graphs(case: Case, settings: Settings) -> Iterator[Comparison]:
    """Time the making of the graphs, part by part, each once."""

    def row(what: str, started: float, note: str = "") -> Comparison:
        seconds = figure([time.perf_counter() - started])
        return replace(case.row(what, "s", seconds), batch=None, note=note)

    days = simulated_days(case.sensors, STEPS_OF_DAY, SEED)
    started = time.perf_counter()
    found = nearest_sensors(days, NEIGHBOURS, show_progress=False, device=settings.device)
    yield row(f"nearest {NEIGHBOURS} by DTW, days of {STEPS_OF_DAY} steps", started, found.summary())
    links = simulated_links(case.sensors, LINKS_OF_SENSOR, SEED)
    started = time.perf_counter()
    graphs = build_graphs(links, found.nearest, case.sensors, case.sizes.channels)
    yield row("masks and Laplacian encoding", started, graphs.summary())
    started = time.perf_counter()
    blocks = [AttentionBlocks(mask) for mask in (graphs.similarity, graphs.topology)]
    shapes = (" x ".join(map(str, graph.block_mask.shape)) if graph.is_cut else "whole" for graph in blocks)
    yield row("blocks of both masks", started, ", ".join(shapes))


def large_step(
    kind: Kind, name: NetworkName, workload: Workload, case: Case, settings: Settings
) -> Iterator[Comparison]:
    """Time a step, and measure its peak memory."""
    network = workload.residual_mlp() if name == "residual MLP" else workload.network()
    function = step(kind, network, workload.batch())
    function()
    label = f"{kind}, {'paper' if name == 'fast' else name}"
    yield case.row(label, "s", times({label: function}, settings.device, settings.repeats, settings.seconds)[label])
    del network, function
    release_memory()
    yield case.row(f"memory of a {label}", "bytes", figure([peak_memory(kind, name, workload)]))


def measure_limit(kind: Kind, case: Case, settings: Settings) -> Limit:
    """Measure a step and the machine's rates by turns, count what the step asks for, and profile one more step."""
    device, workload = settings.device, case.workload(settings.device)
    functions = {
        "step": step(kind, workload.network(), workload.batch()),
        "product": large_product(settings.product_size, device),
        "copy": large_copy(settings.copied, device),
    }
    for function in functions.values():
        function()
    asked = {name: work(function) for name, function in functions.items()}
    measured = times(functions, device, settings.repeats, settings.seconds)
    seconds = operator_seconds(functions["step"], device)
    return Limit(
        case.label(kind),
        case.name,
        case.sensors,
        case.batch,
        measured["step"],
        asked["step"].operations,
        asked["product"].operations / measured["product"].median,
        asked["step"].traffic,
        asked["copy"].traffic / measured["copy"].median,
        sum(seconds.values()),
        shares_by_class(seconds),
    )


def count_step(kind: Kind, case: Case) -> Iterator[Comparison]:
    """Count the calls and the traffic of one step of both networks; the note says what each part of ours has."""
    workload = case.workload(CPU)
    batch = workload.batch()
    fast, plain = (work_by_part(kind, network, batch) for network in (workload.network(), workload.plain_network()))

    def row(what: str, unit: Unit, number: Callable[[Work], int], on_h100: str) -> Comparison:
        ours, reference = (figure([sum(map(number, parts.values()))]) for parts in (fast, plain))
        note = ", ".join(f"{part} {quantity(number(done), unit)}" for part, done in fast.items())
        if on_h100 and (case.name, case.sizes) == (PEMS04.name, SHIPPED_SIZES):
            note += f"; an H100: {on_h100}"
        return replace(case.row(case.label(f"{what} of a {kind}"), unit, ours), plain=reference, note=note)

    kernels = f"{KERNELS_ON_H100[kind]:,} kernels" if kind in KERNELS_ON_H100 else ""
    moved = quantity(TRAFFIC_ON_H100[kind], "bytes") if case.batch == PEMS04.batch else ""
    yield row("operators", "calls", lambda done: done.calls, kernels)
    yield row("traffic", "bytes", lambda done: done.traffic, moved)
