"""CUDA graphs: the work of a function on a GPU is captured once and then replayed, so that nothing waits for its start.

A training step of the paper's network starts hundreds of kernels, each by a call from Python; with small batches the
GPU waits for them most of the time. A replay starts all of them at once.

What is captured repeats the same kernels at the same addresses. So a captured function reads its samples from one
tensor, changes only tensors that stay where they are (weights, statistics, state of the optimiser), and takes every
number that changes from a tensor, such as the learning rate. Random numbers are fresh at each replay: PyTorch hands the
graph the state of its generator and moves that on, as the calls would have.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lib.config import RuntimeConfig
from lib.errors import InputError

WARM_UPS = 3  # calls before the capture, as PyTorch advises: libraries choose their algorithms, the optimiser its state
Result = TypeVar("Result")
Function = Callable[[Tensor], tuple[Tensor, ...]]


class Recorder(Protocol):
    """What calls functions, and captures their work on a device."""

    def run(self, call: Callable[[], Result]) -> Result:
        """Call a function that is captured later, or has been."""

    def record(self, call: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Capture what a function does, doing nothing yet; return what replays it, and the result that this fills."""


class CudaGraphs:
    """The recorder of CUDA.

    Everything runs on one side stream, also what is only called: what autograd remembers of the stream of a weight must
    not lead out of a capture.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self, call: Callable[[], Result]) -> Result:
        """Call a function on the side stream, between what was asked of the current stream before and after."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = call()
        current.wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Capture what a function does; its memory is the graph's own from then on.

        Raises:
            InputError: it does what cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                result = call()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = str(error.__context__ or error).strip().partition("\n")[0]  # the end of a capture fails after it
            raise InputError(
                f"[Runtime] cuda_graphs: found work that cannot be captured ({cause}), expected cuda_graphs = off: set "
                "it in settings.ini of the run, and --resume goes on"
            ) from error
        return graph.replay, result


class Captured:
    """What was captured of a function of label starts (B,), for one number of samples.

    The first calls, `WARM_UPS` of them, are calls; so is every call with another number of samples, as the last batch
    has. All of them do the function's work once: none is only for show.

    Args:
        samples: B, of the calls to replay.
        recorder: None: functions are only called.
    """

    def __init__(self, samples: int, recorder: Recorder | None) -> None:
        self.samples, self.recorder = samples, recorder
        self.calls = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, function: Function, label_starts: Tensor) -> tuple[Tensor, ...]:
        """Return what a function returns, by a call or a replay; the next replay fills the same tensors anew.

        Args:
            function: always the same one. It is not kept, so that nothing that holds this is held by it.
            label_starts: (B,), where the function reads its samples.
        """
        if self.recorder is None:
            return function(label_starts)
        fits = len(label_starts) == self.samples
        if not fits or self.calls < WARM_UPS:
            self.calls += fits
            return self.recorder.run(partial(function, label_starts))
        if self.replay is None:
            self.label_starts = label_starts.clone()
            self.replay, self.result = self.recorder.record(partial(function, self.label_starts))
        self.label_starts.copy_(label_starts)
        self.replay()
        return self.result


def uses_graphs(runtime: RuntimeConfig, device: torch.device, processes: int = 1) -> bool:
    """Return whether training and validation run from CUDA graphs.

    Not with series on the host or disk, where every batch waits for the host anyway. Not in several processes, whose
    exchange of gradients no graph was tried with. Not with gradient checkpointing, which reads the state of the
    generator, and that cannot be captured.
    """
    return (
        runtime.cuda_graphs == "auto"
        and device.type == "cuda"
        and runtime.data == "device"
        and processes == 1
        and not runtime.gradient_checkpointing
    )


def recorder_for(runtime: RuntimeConfig, device: torch.device, processes: int = 1) -> Recorder | None:
    """Return what captures the work on a device; None where nothing does."""
    return CudaGraphs(device) if uses_graphs(runtime, device, processes) else None
