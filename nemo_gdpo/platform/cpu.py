"""The CPU platform: gloo, local layers, and a shim that lets megatron-core run without CUDA.

megatron-core 0.19.2 addresses CUDA directly in some sixty places. None of its files is edited;
`CpuPlatform.install` replaces the entry points it uses: the current device, literal `device="cuda"`
arguments, tensor type names, streams, and the random-number tracker.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from nemo_gdpo.platform.base import LOCAL, TRACKER, Capabilities

_CPU = torch.device("cpu")
_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
}


class _CudaArgumentsToCpu(TorchFunctionMode):
    """Rewrites what megatron-core hard-codes for CUDA, in every torch call outside backward."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The optimizers sort parameters by the *name* of their CUDA tensor type.
            name = func(*args)
            return _CUDA_TYPE_NAMES.get(name, name)
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                kwargs["device"] = _CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        return func(*args, **kwargs)


class _NullStream:
    """Stands for a CUDA stream or event: on the CPU everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def wait_stream(self, other: Any) -> None:
        del other

    def wait_event(self, event: Any) -> None:
        del event

    def record(self, stream: Any = None) -> None:
        del stream

    def wait(self, stream: Any = None) -> None:
        del stream

    def synchronize(self) -> None:
        return None


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Leave megatron-core's fused functions as they are written while its package is imported.

    The package decorates most of them with `torch.compile` before `disable_jit_fuser` can be
    called. Nothing here calls them compiled, and the decoration alone imports torch's compiler.
    """
    real = torch.compile
    torch.compile = _as_written  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = real


def _as_written(function: Any = None, **settings: Any) -> Any:
    del settings
    return _as_written if function is None else function


@contextlib.contextmanager
def _null_stream_context(stream: Any = None) -> Iterator[None]:
    del stream
    yield


def _clone_rng_state(
    device: Any = None, clone: bool = False, graph_safe: bool = False
) -> torch.Tensor:
    del device, clone, graph_safe
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
    del device, graph_safe
    torch.set_rng_state(new_state)


class CpuPlatform:
    """One thread per rank, gloo between ranks."""

    distributed_backend = "gloo"

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self._mode: _CudaArgumentsToCpu | None = None

    def install(self) -> None:
        if self._mode is not None:
            return
        if "megatron.core.tensor_parallel" in sys.modules:
            raise RuntimeError("the CPU platform must be installed before megatron is imported")
        with _nothing_compiled():
            from megatron.core import jit

            jit.disable_jit_fuser()
        self._patch_cuda()
        self._patch_random()
        # Entered for the life of the process, on this thread alone: torch's mode stack is per
        # thread. A backward pass runs without it, since the autograd engine leaves function modes
        # outside: what megatron's backward functions call, recomputed layers included, must not
        # name CUDA, and does not; devices come from tensors or `torch.cuda.current_device`.
        self._mode = _CudaArgumentsToCpu()
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    @staticmethod
    def _patch_cuda() -> None:
        cuda: Any = torch.cuda
        cuda.current_device = lambda: _CPU
        cuda.synchronize = lambda device=None: None
        cuda.empty_cache = lambda: None
        cuda.current_stream = lambda device=None: _NullStream()
        cuda.stream = _null_stream_context
        cuda.Stream = _NullStream
        cuda.Event = _NullStream
        cuda.get_rng_state = _clone_rng_state
        cuda.set_rng_state = _set_rng_state
        cuda.manual_seed = torch.manual_seed

    @staticmethod
    def _patch_random() -> None:
        from megatron.core.tensor_parallel import random as megatron_random

        class CpuRNGStatesTracker(megatron_random.CudaRNGStatesTracker):  # type: ignore[misc]
            """Named CPU generator states. The parent warns that the CPU state moved."""

            @contextlib.contextmanager
            def fork(
                self, name: str = megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME
            ) -> Iterator[None]:
                if name not in self.states_:
                    raise KeyError(f"random-number state {name} is not known")
                outer = torch.get_rng_state()
                torch.set_rng_state(self.states_[name])
                try:
                    yield
                finally:
                    self.states_[name] = torch.get_rng_state()
                    torch.set_rng_state(outer)

        megatron_random.CudaRNGStatesTracker = CpuRNGStatesTracker
        megatron_random._get_cuda_rng_state = _clone_rng_state
        megatron_random._set_cuda_rng_state = _set_rng_state

    def device(self, local_rank: int) -> torch.device:
        del local_rank
        return _CPU

    def device_identity(self) -> str | None:
        return None

    def device_name(self) -> str:
        return "cpu"

    def settle_arithmetic(self) -> list[str]:
        return []

    def transformer_config_overrides(
        self, precision: str, *, interleaved: bool, layers: str
    ) -> dict[str, Any]:
        assert layers == LOCAL
        return {
            "use_cpu_initialization": True,
            "gradient_accumulation_fusion": False,
            "bias_activation_fusion": False,
            "bias_dropout_fusion": False,
            "apply_rope_fusion": False,
            # With the batched point-to-point calls, gloo pairs the wrong messages at PP=2 under a
            # virtual pipeline, and the result is silently wrong; the plain schedule has no overlap.
            "overlap_p2p_comm": interleaved,
            "batch_p2p_comm": False,
            **({"bf16": True} if precision == "bf16" else {}),
        }

    def manual_seed(self, seed: int) -> None:
        from megatron.core import tensor_parallel

        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        states = {f"{TRACKER}{k}": v for k, v in get_cuda_rng_tracker().get_states().items()}
        return {"torch": torch.get_rng_state(), **states}

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        torch.set_rng_state(state["torch"])
        get_cuda_rng_tracker().set_states(
            {k.removeprefix(TRACKER): v for k, v in state.items() if k.startswith(TRACKER)}
        )

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
