"""Fake tensors of which some have numbers: those that depend on neither weights nor activations.

Shapes depend on numbers in a few places: how many positions have a label, how long the longest
response is. Those come from the batch. So a small tensor that is made of numbers alone keeps them
beside its fake self, and so does what is computed from such tensors; whatever meets a tensor
without numbers has none. A question for numbers that nobody knows raises.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
LARGEST = 1 << 16
"""Elements of the largest tensor whose numbers are kept."""
PLAIN = {Tensor, torch.nn.Parameter, FakeTensor}
_UNSET = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class Answer(NamedTuple):
    """What a function is told that asks for a number nobody knows."""

    function: str
    number: float


class Write(NamedTuple):
    """Elements that something was written to."""

    storage: int
    start: int
    stop: int


def place(tensor: Tensor) -> Write:
    """The elements of a contiguous tensor."""
    start, count = int(tensor.storage_offset()), int(tensor.numel())
    return Write(tensor.untyped_storage()._cdata, start, start + count)


def _has_tensors(func: Any) -> bool:
    return any("Tensor" in str(result.type) for result in func._schema.returns)


class Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside a `FakeTensorMode`: keeps numbers, and notes what is written."""

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answers = answers
        self._known: Any = WeakIdKeyDictionary()
        self._lost: dict[int, Tensor] = {}
        """Storages of numbers that something without numbers was written into."""
        self.writes: list[Write] = []

    def numbers(self, tensor: Tensor) -> Tensor | None:
        """A tensor's numbers, on the CPU; None where nobody knows them."""
        found = self._known.get(tensor) if isinstance(tensor, FakeTensor) else tensor
        if found is None or found.untyped_storage()._cdata in self._lost:
            return None
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if set(types) - PLAIN:
            return NotImplemented  # first taken apart by their own class
        kwargs = {} if kwargs is None else kwargs
        if func in _INDEXING:
            args = (args[0], self._positions(args[1]), *args[2:])
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = all(self.numbers(x) is not None for x in tensors)
        if func._schema.is_mutable:
            self._note_writes(func, args, kwargs, known=known)
        if not known and func is aten._local_scalar_dense.default:
            return self._answer()
        if not known or func in _UNSET or torch.Tag.nondeterministic_seeded in func.tags:
            return func(*args, **kwargs)
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operation on fakes and on numbers."""
        fakes = None
        if _has_tensors(func) and torch.Tag.dynamic_output_shape not in func.tags:
            fakes = func(*args, **kwargs)
            if any(x.numel() > LARGEST for x in pytree.tree_leaves(fakes)):
                return fakes
        device = next((x.device for x in pytree.tree_leaves(args) if isinstance(x, Tensor)), None)
        args, kwargs = pytree.tree_map_only(Tensor, self.numbers, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with unset_fake_temporarily():
            numbers = func(*args, **kwargs)
        if fakes is None:
            return pytree.tree_map_only(Tensor, lambda x: self._fake(x, device), numbers)
        for fake, real in zip(pytree.tree_leaves(fakes), pytree.tree_leaves(numbers), strict=True):
            self._known[fake] = real
        return fakes

    def _fake(self, numbers: Tensor, device: torch.device | None) -> Tensor:
        fake = torch.empty_strided(
            numbers.shape, numbers.stride(), dtype=numbers.dtype, device=device
        )
        self._known[fake] = numbers
        return fake

    def _positions(self, indices: Any) -> list[Tensor | None]:
        """Masks as positions, which is what torch makes of them: their number is known then."""
        found: list[Tensor | None] = []
        for index in indices:
            numbers = None if index is None else self.numbers(index)
            if numbers is None or numbers.dtype != torch.bool:
                found.append(index)
                continue
            with unset_fake_temporarily():
                positions = numbers.nonzero(as_tuple=True)
            found += [self._fake(one, index.device) for one in positions]
        return found

    def _answer(self) -> float:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            for answer in self._answers:
                if frame.f_code.co_name == answer.function:
                    return answer.number
            frame = frame.f_back
        raise RuntimeError("a number is asked for that depends on weights or activations")

    def _note_writes(self, func: Any, args: Any, kwargs: Any, *, known: bool) -> None:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for target in pytree.tree_leaves(given.get(argument.name)):
                if not isinstance(target, Tensor):
                    continue
                self.writes.append(place(target))
                numbers = None if known else self.numbers(target)
                if numbers is not None:
                    self._lost[numbers.untyped_storage()._cdata] = numbers
