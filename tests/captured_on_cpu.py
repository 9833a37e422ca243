"""A recorder that captures work on the CPU, in place of CUDA graphs."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

Result = TypeVar("Result")


class Tape:
    """Captures as a CUDA graph does: which operator was called, with which tensors and which numbers.

    A replay calls the same operators on the same tensors, in Python's place, and writes each result where it was at the
    capture. So a number that Python computed stays as it was, a tensor that took another's place is not seen, and
    nothing may be asked of a tensor's value. The capture itself changes nothing, as on a GPU.
    """

    def __init__(self) -> None:
        self.replays = 0
        self.captures = 0

    def run(self, call: Callable[[], Result]) -> Result:
        return call()

    def record(self, call: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.captures += 1
        with _Taping() as taping:
            result = call()
        taping.undo()
        operations = taping.operations

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for function, arguments, options, kept in operations:
                    values = tensors_of(function(*arguments, **options))
                    for tensor, value in zip(kept, values, strict=True):
                        if tensor.data_ptr() != value.data_ptr():
                            tensor.copy_(value)

        return replay, result


def tensors_of(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, torch.Tensor)]


class _Taping(TorchDispatchMode):
    """Notes all operators but views, which stay views of what is written into."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # by address, with a copy
        self.random = torch.get_rng_state()

    def undo(self) -> None:
        """Put back what the operators have changed."""
        for storage, copy in self.before.values():
            storage.copy_(copy)
        torch.set_rng_state(self.random)

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        # Of all arguments, for not every operator says which it changes: BatchNorm does not.
        for tensor in tensors_of((arguments, options)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = (storage, storage.clone())
        result = function(*arguments, **options)
        schema = function._schema  # type: ignore[attr-defined]
        if schema.is_mutable or not any(argument.alias_info for argument in schema.arguments):
            self.operations.append((function, arguments, options, tensors_of(result)))
        return result
