"""A second set of weights in host memory, which takes the place of the model's for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class SwappedWeights:
    """The weights that chunks have now, to be put in their place again later.

    Frozen ones are the same all the time, and are left where they are: of a model with adapters
    these are the adapters alone.

    Host memory holds two sets: these, and the model's own while they are in its place. On a GPU
    both are pinned, so that copies are transfers and nothing else.
    """

    def __init__(self, chunks: Iterable[nn.Module]) -> None:
        """Copy the weights of the chunks that training changes."""
        self._weights = [
            weight for chunk in chunks for weight in chunk.parameters() if weight.requires_grad
        ]
        self._kept = [_host_copy(weight) for weight in self._weights]
        self._own = [torch.empty_like(kept, pin_memory=kept.is_pinned()) for kept in self._kept]

    @property
    def host_bytes(self) -> int:
        """Of both sets."""
        return sum(kept.nbytes for kept in (*self._kept, *self._own))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has these weights; afterwards its own, to the bit."""
        with torch.no_grad():
            _copy(self._weights, self._own)
            _copy(self._kept, self._weights)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self._own, self._weights)


def _host_copy(weight: Tensor) -> Tensor:
    kept = torch.empty_like(weight, device="cpu", pin_memory=weight.device.type == "cuda")
    return kept.copy_(weight.detach())


def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    device = None
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
        device = source.device if source.device.type == "cuda" else target.device
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)  # the host reads, or writes over, what was transferred
