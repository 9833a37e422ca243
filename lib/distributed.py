"""Several processes that train one network together, as `torchrun` starts them: all that is known of torch.distributed.

Each process has the whole network and a share of every batch. Gradients, BatchNorm's statistics, losses and errors are
summed over the processes, so that one step is that of one process with the whole batch. Where there is one process,
nothing here does anything.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from warnings import filterwarnings

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lib.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError

# For the first process, while it prepares a series or draws figures. One that dies is noticed at once.
LONGEST_WAIT = timedelta(days=1)
LONGEST_TEXT = 4096  # bytes
Items = TypeVar("Items", Tensor, NDArray[np.int64])


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    All of them must call the methods that exchange something, in the same order.

    Attributes:
        rank: which of them this is.
        size: how many there are.
        on_machine: how many of them this machine has.
    """

    rank: int = 0
    size: int = 1
    on_machine: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def command(self) -> str:
        """What starts a script in as many processes."""
        if self.size == 1:
            return "python"
        machines = f" --nnodes={self.size // self.on_machine}" if self.size > self.on_machine else ""
        return f"torchrun{machines} --nproc_per_node={self.on_machine}"

    def check(self, batch_size: int, device: torch.device) -> None:
        """Check that a network can be trained on a device of each process.

        Raises:
            InputError: the batch cannot be split evenly, or there is no device for each.
        """
        if self.size == 1:
            return
        if batch_size % self.size:
            raise InputError(
                f"[Training] batch_size: found {batch_size}, expected a multiple of the {self.size} processes"
            )
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"[Runtime] device: found {device.type} for {self.size} processes, expected cpu or cuda")
        if device.type == "cuda" and self.on_machine > torch.cuda.device_count():
            raise InputError(
                f"torchrun --nproc_per_node: found {self.on_machine}, expected at most the {torch.cuda.device_count()} "
                "GPUs of this machine, or --device cpu"
            )

    # ------------------------------------------------------------------------------------------------- exchanging

    def share(self, items: Items) -> Items:
        """Return the items of this process: all in their order, split as evenly as they can be."""
        first, end = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[first:end]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes: in each the same, to the bit."""
        if self.size == 1:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def any(self, *flags: bool) -> Sequence[bool]:
        """Return for each flag whether it is set in any process. All wait for one another."""
        if self.size == 1:
            return flags
        # On the host, whatever the device, so that nothing waits for a GPU.
        some = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(some, dist.ReduceOp.MAX)
        return cast(list[bool], some.bool().tolist())

    def text_of_first(self, text: str) -> str:
        """Return the text that the first process gives."""
        if self.size == 1:
            return text
        letters = torch.zeros(LONGEST_TEXT, dtype=torch.uint8)
        if self.first:
            written = torch.frombuffer(bytearray(text.encode(errors="surrogateescape")), dtype=torch.uint8)
            letters[: len(written)] = written
        dist.broadcast(letters, 0)
        return letters.numpy().tobytes().rstrip(b"\0").decode(errors="surrogateescape")

    def gathered(self, share: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return, in the first process, the shares (length, ...) of all in their order; in the others their own."""
        if self.size == 1:
            return share
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(share)
        dist.all_reduce(lengths)
        if not self.first:
            dist.send(torch.from_numpy(np.ascontiguousarray(share)), 0)
            return share
        whole = np.empty((int(lengths.sum()), *share.shape[1:]), dtype=share.dtype)
        parts = np.split(whole, lengths.cumsum(0)[:-1].numpy())
        parts[0][...] = share
        for rank, part in enumerate(parts[1:], start=1):
            dist.recv(torch.from_numpy(part), rank)
        return whole

    def take_weights_of_first(self, model: nn.Module) -> None:
        """Give the network of each process the weights and statistics that it has in the first."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Let the first process do the block alone, and then all others: they find the files that it has made."""
        if not self.first:
            self.any(False)
        yield
        if self.first:
            self.any(False)

    # --------------------------------------------------------------------------------------------------- training

    def parallel(self, model: nn.Module, inputs: Any) -> nn.Module:
        """Return what a network is called by in training, so that its backward pass averages the gradients.

        BatchNorm then normalises by the samples of all processes.

        Args:
            model: gets the weights that it has in the first process.
            inputs: of any sample; they show which weights a forecast depends on.
        """
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = partial(_normalised_by_all, module, module.forward, self)  # type: ignore[method-assign]
        # Weights that receive no gradient, as the released network has, would be waited for.
        trained, weights = model.training, list(model.parameters())
        gradients = torch.autograd.grad(model.eval()(inputs).sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)
        # BatchNorm's statistics are the only buffers that change, and they are the same already.
        filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # PyTorch 2.11 has no other name
        return DistributedDataParallel(model.train(trained), broadcast_buffers=False)

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for passes of a network whose gradients are added up for a later pass to exchange."""
        return cast(DistributedDataParallel, network).no_sync() if self.size > 1 else nullcontext()

    def part_of_mean(self, weight: float | Tensor, device: torch.device) -> Tensor | None:
        """Return what the mean loss of this process's share of a batch counts for in the mean over processes.

        Shares may differ in samples and in missing targets; the mean of all gradients is then that of the whole batch.

        Args:
            weight: of the share.
            device: of the loss.

        Returns:
            A number, 1 for shares that are all alike; None for one process.
        """
        if self.size == 1:
            return None
        own = torch.as_tensor(weight, dtype=torch.float32, device=device)
        return (self.size * own / self.total(own)).nan_to_num()


ONE_PROCESS = Processes()


class _SumOverAll(torch.autograd.Function):
    """The sum of a tensor over all processes; so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _normalised_by_all(norm: _BatchNorm, alone: Callable[[Tensor], Tensor], processes: Processes, x: Tensor) -> Tensor:
    """Normalise (B, C, ...) as BatchNorm does in training, by mean and variance over all processes.

    `nn.SyncBatchNorm` does so on CUDA only. Mean and squares of each process are put together by the formula of Chan,
    Golub and LeVeque (1979): one message, and no difference of large numbers.
    """
    if not norm.training:
        return alone(x)
    over, channels = [axis for axis in range(x.dim()) if axis != 1], x.shape[1]
    values, count = x.float(), x.numel() // channels
    if count:
        variance, mean = torch.var_mean(values, over, correction=0)
    else:  # of no sample: zeros, through which gradients still flow, for all processes must exchange them
        variance = mean = values.sum(over)
    own = torch.cat([mean, variance, mean.new_tensor([count])])
    mine = torch.arange(processes.size, device=x.device).unsqueeze(1) == processes.rank
    means, variances, counts = _SumOverAll.apply(own * mine).split([channels, channels, 1], dim=1)  # (size, C or 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        assert norm.momentum is not None
        for kept, new in ((norm.running_mean, mean), (norm.running_var, variance * total / (total - 1))):
            assert kept is not None
            kept.lerp_(new.to(kept.dtype), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shift = norm.bias - mean * scale
    shape = [channels if axis == 1 else 1 for axis in range(x.dim())]
    return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(x.dtype)


# --------------------------------------------------------------------------------------------------------- joining


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun has started, and give them; one process alone where it has not.

    Only the first prints within the block. A process that fails ends all: the one that was first to fail says why, and
    the others end without a word, with the same exit code.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ONE_PROCESS
        return
    store, rank, _ = next(iter(rendezvous("env://", timeout=LONGEST_WAIT)))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    processes = Processes(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    cuda = torch.cuda.is_available()
    if cuda and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # what `cuda` means in this process
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    # One that ends at once, on wrong input, must not be gone while another still connects to it.
    store.set(f"joined {rank}", "")
    store.wait([f"joined {other}" for other in range(size)], LONGEST_WAIT)
    try:
        with open(os.devnull, "w") as nowhere:
            quiet = nullcontext() if processes.first else redirect_stdout(nowhere)
            quiet_too = nullcontext() if processes.first else redirect_stderr(nowhere)  # progress bars, warnings
            with quiet, quiet_too:
                yield processes
                processes.any(False)  # none leaves before all are done
    except BaseException as error:
        _end_all(store, rank, error)
        raise
    # Networks that shared their gradients hold the group, and are in cycles. Its threads have to end before the
    # interpreter does, which otherwise may abort.
    gc.collect()
    dist.destroy_process_group()


def _end_all(store: Any, rank: int, error: BaseException) -> None:
    """End this process in silence if another was first to fail; return if it has to say itself why it failed.

    Raises:
        SystemExit: another process was the first, or has died without a word.
    """
    if isinstance(error, SystemExit) and not error.code:  # after --help
        return
    codes = {InputError: EXIT_BAD_INPUT, KeyboardInterrupt: EXIT_INTERRUPTED}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), EXIT_FAILED)
    own = f"{rank} {code}"
    try:
        # torchrun keeps the store, so that it outlives all processes.
        first = store.compare_set("failed", "", own).decode()
    except RuntimeError:
        first = own
    if first != own:
        raise SystemExit(int(first.split()[1])) from None
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        print(
            "error: found another process of this run dead, killed or out of memory; --resume goes on from the last "
            "checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_FAILED) from None


def refuse_several_processes() -> None:
    """Raise an InputError where torchrun has started several processes, for scripts that nothing is shared out of."""
    with joined_processes() as processes:
        if processes.size > 1:
            raise InputError(f"torchrun: found {processes.size} processes, expected one: only run.py trains in several")
