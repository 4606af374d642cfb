"""A GPU of fake tensors: each has a shape, a type and a device, and no memory.

torch lets Python register a device. Tensors on it are not on the CPU, so that mixing the two fails
as it does on a GPU. Whatever says "cuda" is taken to mean it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from nemo_gdpo.platform.cpu import _NullStream
from tests.gpu_path import gpu as real_gpu
from tests.gpu_path.fakes import attention
from tests.gpu_path.gpu import GpuMode
from tests.gpu_path.platform import RehearsedGpu

NAME = "gpu"
_IS_CUDA: Any = vars(torch._C.TensorBase)["is_cuda"].__get__


class _Backend(backend_registration._DummyBackendModule):
    """`torch.gpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]


def gpu() -> torch.device:
    """The one device."""
    return torch.device(NAME, 0)


def _is_cuda(target: Any) -> bool:
    return isinstance(target, str | torch.device) and torch.device(target).type == "cuda"


class FakeGpuMode(GpuMode):
    """What names CUDA means the fake GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func == _IS_CUDA:
            return args[0].device.type == NAME
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            kind = func(*args).rpartition(".")[2]
            return f"torch.cuda.{kind}" if args[0].device.type == NAME else f"torch.{kind}"
        if func is torch.Tensor.cuda:
            return args[0].to(gpu())
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], gpu(), *args[2:])
        if func is torch.tensor and isinstance(args[0], list):
            # Numbers of tensors in a list are read past all modes.
            args = (pytree.tree_map_only(torch.Tensor, lambda x: x.item(), args[0]), *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = gpu()
        return super().__torch_function__(func, types, args, kwargs)


class _Stream(_NullStream):
    """Attention under context parallelism lets two of them wait for each other."""

    def record_event(self, event: Any = None) -> Any:
        return event


class FakeGpu(RehearsedGpu):
    """Tensors lie on the fake GPU."""

    distributed_backend = "nccl"

    def install(self) -> None:
        super().install()
        cuda: Any = torch.cuda
        cuda.current_device = gpu
        cuda.Stream, cuda.current_stream = _Stream, _Stream
        cuda.device_of = lambda tensor: contextlib.nullcontext()

    def device(self, local_rank: int) -> torch.device:
        super().device(local_rank)
        return gpu()

    def device_identity(self) -> str | None:
        return None  # the other ranks of this world are not there


def start(tree: Path) -> None:
    """Turn this process into one with a fake GPU. Before any import of megatron.

    Args:
        tree: the folder that holds `transformer_engine`.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    cuda: Any = torch.cuda
    cuda.current_device = gpu
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    real_gpu.start(tree, FakeGpuMode, FakeGpu)
    attention.install()


def _apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module.to` and the like. Torch cannot swap a fake parameter: a new one takes its place."""
    del recurse
    fresh: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = _moved(parameter, function, fresh)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


def _moved(
    parameter: torch.nn.Parameter, function: Any, fresh: dict[int, torch.nn.Parameter]
) -> torch.nn.Parameter:
    """Itself where it need not move; the same for all modules that share it."""
    if id(parameter) not in fresh:
        with torch.no_grad():
            moved = function(parameter)
        new = parameter
        if (moved.device, moved.dtype) != (parameter.device, parameter.dtype):
            # Made there: a fake tensor that came from the CPU keeps a mark of it for dispatch.
            there = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
            new = torch.nn.Parameter(there, requires_grad=parameter.requires_grad)
            vars(new).update({**vars(parameter), **vars(new)})  # megatron's marks, our device
        fresh[id(parameter)] = fresh[id(new)] = new
    return fresh[id(parameter)]
