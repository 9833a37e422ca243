"""How close a step is to what the machine can do: its operations, its traffic, and the operators its time goes to."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch._ops import OpOverload
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.measure import Figure
from model.fused import OPERATORS as FUSED

OTHER = "other"
# PyTorch's names of the operators of each class; whatever is not here is OTHER: sums and products element by element,
# the optimizer, the bookkeeping of views and of the backward pass.
OPERATORS = {
    "matrix products": ("mm", "addmm", "linear"),
    "batched products": (
        "bmm",
        "baddbmm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_efficient_attention_backward",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_cudnn_attention_backward",
        "_flash_attention_forward",
        "_flash_attention_backward",
        "_efficient_attention_forward",
        "_efficient_attention_backward",
        "_cudnn_attention_forward",
        "_cudnn_attention_backward",
        "dtg_lknet::attend_tokens",
        "dtg_lknet::attend_tokens_backward",
        "dtg_lknet::attend_step",
        "dtg_lknet::attend_step_backward",
        "dtg_lknet::attend_sensors",
        "dtg_lknet::attend_sensors_backward",
    ),
    "copies and gathers": (
        "copy_",
        "_to_copy",
        "to",
        "clone",
        "contiguous",
        "reshape",
        "cat",
        "stack",
        "flip",
        "fill_",
        "zero_",
        "constant_pad_nd",
        "gather",
        "scatter_add",
        "scatter_add_",
        "index",
        "index_put_",
        "_index_put_impl_",
        "index_select",
        "index_add",
        "index_add_",
        "select_backward",
        "slice_backward",
        "unfold_backward",
        "dtg_lknet::token_columns",
        "dtg_lknet::token_columns_backward",
    ),
    "softmax, norms, activations": (
        "softmax",
        "_softmax",
        "_softmax_backward_data",
        "layer_norm",
        "native_layer_norm",
        "native_layer_norm_backward",
        "batch_norm",
        "_batch_norm_impl_index",
        "native_batch_norm",
        "native_batch_norm_backward",
        "cudnn_batch_norm",
        "cudnn_batch_norm_backward",
        "gelu",
        "gelu_backward",
        "relu",
        "clamp_min",  # as which a ReLU is computed
        "threshold_backward",
        "sigmoid",
        "sigmoid_backward",
        "dtg_lknet::add_norm",
        "dtg_lknet::add_norm_backward",
        "dtg_lknet::scaled_add",
        "dtg_lknet::scaled_add_backward",
        "dtg_lknet::open_gate",
        "dtg_lknet::open_gate_backward",
        "dtg_lknet::add_relu",
    ),
}
CLASS_OF = {name: title for title, names in OPERATORS.items() for name in names}
CLASSES = (*OPERATORS, OTHER)
OVERWRITING = ("aten::copy_", "aten::fill_", "aten::zero_")  # change a tensor without reading what it held


class Work(NamedTuple):
    """What a function asks of the machine.

    Attributes:
        operations: floating-point operations of products.
        traffic: bytes read and written.
        calls: of operators that read or write anything; on a GPU each is one kernel, or a few.
    """

    operations: int
    traffic: int
    calls: int


@dataclass(frozen=True)
class Limit:
    """One row: a step, and the least time that the machine's rates allow for its work.

    Attributes:
        what, shape, sensors, batch: as in `Comparison`.
        time: of the step, in seconds.
        operations: floating-point operations of its products, a multiplication and an addition being two.
        operation_rate: operations a second of a large product of matrices, measured by turns with the step.
        traffic: bytes that its operators read and write, each for itself.
        traffic_rate: bytes a second that a large copy reads and writes, measured by turns with the step.
        operator_seconds: time of one more step within operators: on CUDA of the GPU, else of the CPU.
        shares: of each class of operators in `operator_seconds`, in per cent.
    """

    what: str
    shape: str
    sensors: int
    batch: int
    time: Figure
    operations: int
    operation_rate: float
    traffic: int
    traffic_rate: float
    operator_seconds: float
    shares: dict[str, float]
    table: ClassVar[str] = "limits"  # what the list of such rows is called in the JSON file

    def record(self) -> dict[str, Any]:
        """Return the row as JSON has it, with the least times and how much of each limit is reached."""
        least = {
            "operations": self.operations / self.operation_rate,
            "traffic": self.traffic / self.traffic_rate,
        }
        reached = {name: seconds / self.time.median for name, seconds in least.items()}
        return {**asdict(self), "least_seconds": least, "reached": reached}


def large_product(size: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that multiplies two matrices (size, size) of float32."""
    first, second = torch.rand(2, size, size, device=device)
    return lambda: first @ second


def large_copy(size: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that copies so many float32 to a place that exists."""
    source, target = torch.rand(2, size, device=device)
    return lambda: target.copy_(source)


def work(function: Callable[[], object]) -> Work:
    """Count the operations, the traffic and the operators of one call; on the device `meta` nothing is computed."""
    aten = torch.ops.aten
    fused_on_cpu = {  # PyTorch counts its counterparts on a GPU
        aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
            query, key, value
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, query, key, value, *_, **__: (
            sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    fused_on_gpu = {  # two products on the way there, and five on the way back, where the scores are made anew
        FUSED.attend_tokens: lambda *shapes, **_: 4 * _token_pairs(shapes[0]),
        FUSED.attend_tokens_backward: lambda *shapes, **_: 10 * _token_pairs(shapes[1]),
        FUSED.attend_step: lambda *shapes, **_: 4 * _step_pairs(shapes[0], shapes[2]),
        FUSED.attend_step_backward: lambda *shapes, **_: 10 * _step_pairs(shapes[1], shapes[4]),
        FUSED.attend_sensors: lambda *shapes, **_: 4 * _sensor_pairs(shapes[0], shapes[2]),
        FUSED.attend_sensors_backward: lambda *shapes, **_: 10 * _sensor_pairs(shapes[1], shapes[6]),
    }
    # The inner mode is the first to see an operator, and takes composite ones apart before the outer one counts them.
    formulas = {**fused_on_cpu, **fused_on_gpu}
    with _Traffic() as traffic, FlopCounterMode(display=False, custom_mapping=formulas) as operations:
        function()
    return Work(operations.get_total_flops(), traffic.bytes, traffic.calls)


def _token_pairs(packed: Sequence[int]) -> int:
    """Return how many pairs of query and key, times channels, attention over tokens (B, N, M, 3C) has."""
    samples, sensors, tokens, channels = packed
    return samples * sensors * tokens**2 * channels // 3


def _step_pairs(packed: Sequence[int], step: int) -> int:
    """Return the same for the newest token (B, N, 1, 3C) of a rollout."""
    return math.prod(packed) // 3 * (step + 1)


def _sensor_pairs(packed: Sequence[int], others: Sequence[int]) -> int:
    """Return the same for attention over sensors, (B, N, M, 3C), with so many neighbours, (E,), of all."""
    samples, _, tokens, channels = packed
    return samples * tokens * others[0] * channels // 3


class _Traffic(TorchDispatchMode):
    """Sums what every operator reads and writes, as if each found its inputs in memory and left its outputs there.

    Views and allocations move nothing, and are no calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.calls = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        moved = operator_traffic(func, args, kwargs or {}, result)
        self.bytes += moved
        self.calls += moved > 0
        return result


def operator_traffic(operator: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the bytes that one call of an operator reads and writes: each of its tensors once, none for a view.

    What an operator changes in place is read and written, but for what it overwrites; what only lends its shape is not
    read. Of a gather the whole source counts, once.
    """
    name = operator._schema.name
    reads_shape = name.startswith("aten::new_") or name.endswith("_like")
    if "empty" in name or torch.Tag.inplace_view in operator.tags:  # memory is taken, or a shape changed: no traffic
        return 0
    read: list[Tensor] = []
    changed: list[Tensor] = []
    for position, argument in enumerate(operator._schema.arguments):
        tensors = list(_tensors(args[position] if position < len(args) else kwargs.get(argument.name)))
        is_changed = argument.alias_info is not None and argument.alias_info.is_write
        changed += tensors if is_changed else []
        read += [] if reads_shape or argument.is_out or (is_changed and name in OVERWRITING) else tensors
    known = {tensor.untyped_storage()._cdata for tensor in read + changed}  # on `meta` no storage has an address
    made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in known]
    return sum(map(_bytes, read + changed + made)) if changed or made else 0


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Return the size of a tensor in memory, where an axis along which it was expanded takes nothing."""
    return tensor.element_size() * math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )


def operator_seconds(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the seconds of one call that each operator takes by itself, by its name: on CUDA of the GPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        function()
        if on_gpu:
            torch.cuda.synchronize(device)
    # A GPU's kernels are events of their own, and count for the operators that started them as well.
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    return {
        event.key.removeprefix("aten::"): 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in events
    }


def shares_by_class(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each class of operators in the time of all, in per cent."""
    by_class: dict[str, float] = defaultdict(float)
    for name, own in seconds.items():
        by_class[CLASS_OF.get(name, OTHER)] += own
    total = sum(by_class.values())
    return {title: 100 * by_class[title] / total for title in CLASSES}
