"""The machine as it is found, before anything is concluded: plain data, so that tests can make it.

Every optional package is really imported: one that is installed and broken must not pass for one
that is missing, since megatron-core would then quietly do without it, or fail in the middle of an
import.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from nemo_gdpo.platform.base import Support

GRADIENT_FUSION_MODULE = "fused_weight_gradient_mlp_cuda"
"""Extension of NVIDIA Apex; `apex.optimizers` can be there without it."""

APEX_KERNELS = "amp_C"
"""Extension that Apex's optimizers are built on."""


@dataclass(frozen=True)
class Package:
    """An optional package in this environment."""

    installed: bool
    failure: str = ""
    """What its import raised, on one line; empty where it imports."""

    @property
    def usable(self) -> bool:
        """It is there and imports."""
        return self.installed and not self.failure


ABSENT = Package(False)
USABLE = Package(True)
NOT_ASKED = Support(False, "Transformer Engine was not asked")


@dataclass(frozen=True)
class Machine:
    """What was found. Nothing in here is a decision."""

    gpus: int = 0
    """GPUs that this process can see."""
    compute_capability: tuple[int, int] | None = None
    """Of the first of them: (9, 0) is Hopper."""
    transformer_engine: Package = ABSENT
    fp8: Mapping[str, Support] = field(default_factory=dict)
    """FP8 precision -> Transformer Engine's own answer; empty without GPU or without it."""
    flash_attention: Support = NOT_ASKED
    """A flash-attention package that Transformer Engine accepts, as it says."""
    apex_optimizers: Package = ABSENT
    """NVIDIA Apex's; PyPI's package of that name is another and has no `optimizers`."""
    gradient_fusion: Package = ABSENT
    """`GRADIENT_FUSION_MODULE`."""
    bitsandbytes: Package = ABSENT
    """Its kernels for matrices in four bits."""


def probe(module: str) -> Package:
    """Import `module` if its top-level package is installed; whatever it raises is the finding."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return ABSENT
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001
        # ImportError and OSError for libraries, RuntimeError and AssertionError of Transformer
        # Engine's own checks, AttributeError of a package built for another torch, and more.
        return Package(True, f"{type(error).__name__}: {_one_line(error)}")
    return USABLE


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def _apex_optimizers() -> Package:
    found = probe("apex.optimizers")
    if found.failure.startswith("ModuleNotFoundError: No module named 'apex"):
        return ABSENT  # PyPI's apex has no such module at all
    if not found.usable:
        return found
    # They import without their kernels, too, and then fail when one is made.
    kernels = probe(APEX_KERNELS)
    return kernels if kernels.installed else Package(True, f"{APEX_KERNELS} is not installed")


def look_at_machine() -> Machine:
    """Look at this machine. Starts no process group and needs none."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    engine = probe("transformer_engine.pytorch")
    asked = bool(gpus) and engine.usable
    return Machine(
        gpus=gpus,
        compute_capability=torch.cuda.get_device_capability() if gpus else None,
        transformer_engine=engine,
        fp8=_fp8_support() if asked else {},
        flash_attention=_flash_attention() if asked else NOT_ASKED,
        apex_optimizers=_apex_optimizers(),
        gradient_fusion=probe(GRADIENT_FUSION_MODULE),
        # Nothing but a key that needs a GPU reads it, and its import takes seconds.
        bitsandbytes=probe("bitsandbytes.functional") if gpus else ABSENT,
    )


def _fp8_support() -> dict[str, Support]:
    """Transformer Engine's answers: compute capability, CUDA and cuBLAS all count in them."""
    with warnings.catch_warnings():
        # Newer versions call the module deprecated; megatron-core 0.19.2 imports it as well.
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformer_engine.pytorch.fp8 import (
            check_fp8_block_scaling_support,
            check_fp8_support,
            check_mxfp8_support,
        )
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "fp8_tensorwise": check_fp8_support,
        "fp8_blockwise": check_fp8_block_scaling_support,
        "fp8_mxfp8": check_mxfp8_support,
    }
    return {precision: Support(*check()) for precision, check in checks.items()}


def _flash_attention() -> Support:
    try:
        # The back ends' import is what fills in the versions.
        importlib.import_module(
            "transformer_engine.pytorch.attention.dot_product_attention.backends"
        )
        from transformer_engine.pytorch.attention.dot_product_attention.utils import (
            FlashAttentionUtils,
        )
    except ImportError as error:
        return Support(False, f"this Transformer Engine does not tell: {_one_line(error)}")
    if FlashAttentionUtils.is_installed or FlashAttentionUtils.v3_is_installed:
        return Support(True)
    return Support(
        False, "no version of the package flash-attn is installed that Transformer Engine accepts"
    )
