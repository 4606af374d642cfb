"""Choose the platform once per process."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch

from nemo_gdpo.platform.base import FP8_RECIPES, Capabilities, Platform, Support


def _transformer_engine_imports() -> bool:
    if importlib.util.find_spec("transformer_engine") is None:
        return False
    try:
        importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError, RuntimeError):
        # Installed without the CUDA libraries it needs, it raises RuntimeError on import.
        return False
    return True


def _apex_imports() -> bool:
    # PyPI has an unrelated package called apex: only NVIDIA's has `apex.optimizers`.
    try:
        return importlib.util.find_spec("apex.optimizers") is not None
    except ModuleNotFoundError:
        return False


GRADIENT_FUSION_MODULE = "fused_weight_gradient_mlp_cuda"
"""Extension of NVIDIA Apex; `apex.optimizers` can be there without it."""


def _gradient_fusion() -> Support:
    """Whether megatron-core can be asked for `gradient_accumulation_fusion`.

    Transformer Engine's linear layers have such a kernel of their own. But GPTModel always makes
    its output layer of megatron's ColumnParallelLinear, which refuses the setting unless it could
    import Apex's extension (megatron/core/tensor_parallel/layers.py of 0.19.2).
    """
    try:
        importlib.import_module(GRADIENT_FUSION_MODULE)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == GRADIENT_FUSION_MODULE:
            told = f"NVIDIA Apex's extension {GRADIENT_FUSION_MODULE} is not installed"
            return Support(False, told)
        told = str(error).partition("\n")[0]
        return Support(False, f"NVIDIA Apex's {GRADIENT_FUSION_MODULE} does not import: {told}")
    return Support(True)


@functools.cache
def detect_capabilities() -> Capabilities:
    """Look at the machine, without side effects on torch or megatron."""
    precisions = {"fp32", "bf16"}
    if not torch.cuda.is_available():
        without = Support(False, "it is a CUDA kernel, and this machine has no GPU")
        return Capabilities("cpu", False, _apex_imports(), frozenset(precisions), without)
    te = _transformer_engine_imports()
    if te:
        compute = torch.cuda.get_device_capability()
        if compute >= (8, 9):
            precisions.add("fp8_tensorwise")
        if compute[0] == 9:
            precisions.add("fp8_blockwise")
        if compute[0] >= 10:
            precisions.add("fp8_mxfp8")
    assert precisions <= {"fp32", "bf16", *FP8_RECIPES}
    return Capabilities("cuda", te, _apex_imports(), frozenset(precisions), _gradient_fusion())


@functools.cache
def current_platform() -> Platform:
    """The platform of this process, installed. The first call decides for good."""
    capabilities = detect_capabilities()
    platform: Platform
    if capabilities.device_type == "cuda":
        from nemo_gdpo.platform.cuda import CudaPlatform

        platform = CudaPlatform(capabilities)
    else:
        from nemo_gdpo.platform.cpu import CpuPlatform

        platform = CpuPlatform(capabilities)
    platform.install()
    return platform
