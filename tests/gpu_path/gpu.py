"""A process that believes in a GPU with Transformer Engine, on a CPU.

Transformer Engine's real Python layer runs over the stand-in for its compiled module, under the
project's own CUDA platform with gloo in the place of NCCL. Tensors live on the CPU and say that
they are on a GPU. What this cannot show: NCCL, streams, flash and fused attention, context
parallelism under Transformer Engine, where a tensor lies.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from nemo_gdpo.platform import cpu
from nemo_gdpo.platform.cuda import CudaPlatform
from nemo_gdpo.platform.machine import GRADIENT_FUSION_MODULE
from tests.gpu_path import compiled, generators
from tests.support import bitsandbytes_stand_in

HOPPER, BLACKWELL = (9, 0), (10, 0)
ENVIRONMENT = {
    # The compiled libraries are not looked for.
    "NVTE_PROJECT_BUILDING": "1",
    "NVTE_TORCH_COMPILE": "0",
    "TORCHDYNAMO_DISABLE": "1",
    # A kernel that the stand-in lacks; the softmax is torch's.
    "NVTE_MASKED_SOFTMAX_FUSION": "0",
}


IS_CUDA: Any = torch.Tensor.is_cuda
"""The descriptor of the property."""


class GpuMode(cpu._CudaArgumentsToCpu):
    """The CPU platform's mode, under which tensors also say that they are on a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == IS_CUDA.__get__:
            return True
        if func is torch.Tensor.to and len(args) > 1 and _names_a_gpu(args[1]):
            args = (args[0], torch.device("cpu"), *args[2:])
        return super().__torch_function__(func, types, args, kwargs)


def _names_a_gpu(target: Any) -> bool:
    return isinstance(target, int | str | torch.device) and torch.device(target).type == "cuda"


class Properties(SimpleNamespace):
    """`torch.cuda.get_device_properties`: what is asked for of it."""


def become(capability: tuple[int, int], *, apex: bool = False) -> None:
    """Change the machine, and forget what was concluded from the last one.

    Args:
        capability: generation of the GPU.
        apex: whether Apex's extension for weight gradients can be imported. Its function is not
            called: only the output layer would, and the project's own head stands in its place.
    """
    device = Properties(
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        name="rehearsal",
        uuid=f"GPU-{os.environ.get('LOCAL_RANK', '0')}",
        total_memory=80 << 30,
    )
    facts: Any = torch.cuda
    facts.get_device_capability = lambda *_: capability
    facts.get_device_properties = lambda *_: device
    sys.modules.pop(GRADIENT_FUSION_MODULE, None)
    if apex:
        spec = importlib.machinery.ModuleSpec(GRADIENT_FUSION_MODULE, None)
        sys.modules[GRADIENT_FUSION_MODULE] = importlib.util.module_from_spec(spec)
    for name, module in list(sys.modules.items()):
        if name == "megatron.core.tensor_parallel.layers":
            vars(module)["_grad_accum_fusion_available"] = apex
        if name.startswith(("transformer_engine", "nemo_gdpo.platform")):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


def _pretend() -> None:
    """Facts and entry points of CUDA that the CPU platform's shim does not cover, or too late."""
    torch.version.cuda = "13.0"
    facts: Any = torch.cuda
    facts.nvtx = SimpleNamespace(range_push=lambda *_: None, range_pop=lambda: None, range=None)
    facts.max_memory_allocated = lambda *_: 0
    facts.current_device = lambda: torch.device("cpu")
    facts.set_device = lambda *_: None
    facts.device_count = lambda: 8
    facts.is_available = lambda: True
    facts.is_initialized = lambda: False
    facts.is_current_stream_capturing = lambda: False
    facts._is_in_bad_fork = lambda: False
    facts._lazy_init = lambda: None
    collectives: Any = torch.distributed
    together = collectives._coalescing_manager

    def coalescing_manager(group: Any = None, device: Any = None, async_ops: bool = False) -> Any:
        # Megatron names no device, and then torch's own serves over gloo, too.
        return together(group, None, async_ops) if device is None else _OneByOne()

    collectives._coalescing_manager = coalescing_manager


class _OneByOne:
    """In the place of NCCL's coalesced collectives, which gloo lacks."""

    def __enter__(self) -> _OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def wait(self) -> None:
        """All has been done already."""


def _import_transformer_engine(tree: Path) -> None:
    """Import the real Python layer over the stand-in."""
    sys.path.insert(0, str(tree))
    sys.modules[compiled.NAME] = compiled.build(tree)
    # ONNX is not installed, and nothing here exports: `export.py` only wants the names.
    onnx = ModuleType("transformer_engine.pytorch.onnx_extensions")
    exporter = (tree / "transformer_engine/pytorch/export.py").read_text()
    wanted = re.search(r"from \.onnx_extensions import \(([^)]*)\)", exporter)
    assert wanted is not None
    vars(onnx).update(dict.fromkeys(re.findall(r"\w+", wanted[1])))
    sys.modules[onnx.__name__] = onnx
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["transformer_engine"] = package
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    spec.loader.exec_module(package)
    assert package.pytorch.LayerNormLinear is not None


def _enter_the_mode_in_backward(mode: type[GpuMode]) -> None:
    """torch leaves function modes at the border of the autograd engine."""
    of_torch: Any = BackwardCFunction
    apply = of_torch.apply

    def under_mode(self: Any, *args: Any) -> Any:
        with mode():
            return apply(self, *args)

    of_torch.apply = under_mode


def start(
    tree: Path, mode: type[GpuMode] = GpuMode, kind: type[CudaPlatform] | None = None
) -> None:
    """Turn this process into one with a Hopper GPU. Before any import of megatron.

    Args:
        tree: the folder that holds `transformer_engine`.
        mode: what CUDA means here.
        kind: the platform; None is the one of tensors that lie on the CPU.
    """
    os.environ.update(ENVIRONMENT)
    _pretend()
    become(HOPPER)
    _import_transformer_engine(tree)
    sys.modules |= bitsandbytes_stand_in.modules()
    cpu._CudaArgumentsToCpu = mode  # type: ignore[misc]
    from tests.gpu_path import platform

    platform.choose(platform.RehearsedGpu if kind is None else kind)
    generators.install()
    _enter_the_mode_in_backward(mode)
