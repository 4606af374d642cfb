"""CUDA torch's generator functions, over the CPU's one generator.

On a CUDA build a random-number state is a `torch.Generator` that can be shared: setting it makes
the device draw from that very object. Transformer Engine's tracker, and megatron's recomputation,
keep such objects.
"""

from __future__ import annotations

from typing import Any

import torch

_DEFAULT = torch.default_generator


class _Device:
    """Which generator the device draws from."""

    def __init__(self) -> None:
        self.current = _DEFAULT.clone_state()

    def note(self) -> torch.Generator:
        """The current generator, brought up to what has been drawn."""
        self.current.set_state(_DEFAULT.get_state())
        return self.current

    def draw_from(self, generator: torch.Generator) -> None:
        self.note()
        self.current = generator
        _DEFAULT.set_state(generator.get_state())


def install() -> None:
    """Replace the functions of Transformer Engine and of megatron."""
    from megatron.core.tensor_parallel import random as megatron
    from transformer_engine.pytorch import distributed as engine

    device = _Device()

    def get(where: Any, clone: bool, graph_safe: bool) -> Any:
        del where
        if not graph_safe:
            return _DEFAULT.get_state()
        return device.note().clone_state() if clone else device.note()

    def set_(state: Any, where: Any, graph_safe: bool) -> None:
        del where
        if not graph_safe:
            _DEFAULT.set_state(state)
            return
        if not isinstance(state, torch.Generator):
            raise TypeError(f"graphsafe_set_state expected a Generator, but got {type(state)}")
        device.draw_from(state)

    ours: Any = engine
    ours.graph_safe_rng_available = lambda: True  # of every CUDA build since torch 2.4
    ours._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=True: get(
        device, clone, graph_safe
    )
    ours._set_cuda_rng_state = lambda state, device=-1, graph_safe=True: set_(
        state, device, graph_safe
    )
    theirs: Any = megatron
    theirs._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: get(
        device, clone, graph_safe
    )
    theirs._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: set_(
        state, device, graph_safe
    )
