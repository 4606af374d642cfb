"""States of random generators under both of megatron's trackers, on generators of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import random as megatron_random
from safetensors.torch import load_file, save_file

from tests.platform.machines import cuda_platform

PLATFORM = cuda_platform()
SEEDS = {"data-parallel-rng": 11, "model-parallel-rng": 2729}


class _Device:
    """Stands for a GPU's default generator, whose state can be swapped for another generator's."""

    def __init__(self) -> None:
        self.current = torch.Generator()

    def get_state(self, device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> Any:
        del device
        if not graph_safe:
            return self.current.get_state()
        return self.current.clone_state() if clone else self.current

    def set_state(self, state: Any, device: int = -1, graph_safe: bool = False) -> None:
        del device
        if graph_safe:
            if not isinstance(state, torch.Generator):  # as `graphsafe_set_state`
                raise TypeError(f"expected a Generator, but got {type(state)}")
            self.current = state
        else:
            self.current.set_state(state)

    def seed(self, seed: int) -> None:
        self.current.manual_seed(seed)


@pytest.fixture(params=[True, False], ids=["generators", "bytes"])
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """megatron's own tracker over generators of the CPU, in the form that `params` says.

    Transformer Engine's holds the same `torch.Generator` objects as the first of them.
    """
    device = _Device()
    monkeypatch.setattr(megatron_random, "_get_cuda_rng_state", device.get_state)
    monkeypatch.setattr(megatron_random, "_set_cuda_rng_state", device.set_state)
    monkeypatch.setattr(torch.cuda, "get_rng_state", device.get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", device.set_state)
    monkeypatch.setattr(torch.cuda, "manual_seed", device.seed)
    # The CPU's shim derives from megatron's tracker; what a GPU has is the parent.
    made = megatron_random.CudaRNGStatesTracker.__mro__[1]()
    made.use_cudagraphable_rng = request.param
    made.device = device
    for name, seed in SEEDS.items():
        made.add(name, seed)
    monkeypatch.setattr(tensor_parallel, "get_cuda_rng_tracker", lambda: made)
    held = next(iter(made.get_states().values()))
    assert isinstance(held, torch.Generator) is request.param
    return made


def _draw(tracker: Any) -> list[torch.Tensor]:
    drawn = []
    for name in SEEDS:
        with tracker.fork(name):
            drawn.append(torch.randn(3, generator=tracker.device.current))
    return [*drawn, torch.randn(3, generator=tracker.device.current), torch.randn(3)]


def test_saved_states_go_through_a_file_and_draw_the_same_again(
    tracker: Any, tmp_path: Path
) -> None:
    _draw(tracker)  # away from what a seed alone would give
    states = PLATFORM.rng_state()
    assert states.keys() == {"torch", "cuda", *(f"tracker.{name}" for name in SEEDS)}
    save_file({name: state.clone() for name, state in states.items()}, tmp_path / "rng")
    first = _draw(tracker)
    PLATFORM.set_rng_state(load_file(tmp_path / "rng"))
    again = _draw(tracker)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_the_tracker_keeps_its_form(tracker: Any) -> None:
    """A tracker over generators rejects bytes at its next fork, and the other way round."""
    form = type(next(iter(tracker.get_states().values())))
    PLATFORM.set_rng_state(PLATFORM.rng_state())
    assert {type(state) for state in tracker.get_states().values()} == {form}
