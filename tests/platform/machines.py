"""Machines as they would be found, and what can be concluded of them."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.platform.base import Capabilities, Support
from nemo_gdpo.platform.capabilities import capabilities_of
from nemo_gdpo.platform.cuda import CudaPlatform
from nemo_gdpo.platform.machine import ABSENT, USABLE, Machine, Package

EVERY_FP8 = {
    "fp8_tensorwise": Support(True),
    "fp8_blockwise": Support(True),
    "fp8_mxfp8": Support(False, "Device compute capability 10.0 or higher required."),
}
"""Transformer Engine's answers on a Hopper GPU."""


def machine(**found: Any) -> Machine:
    """A Hopper machine with everything, but for what is `found` otherwise."""
    everything: dict[str, Any] = {
        "gpus": 8,
        "compute_capability": (9, 0),
        "transformer_engine": USABLE,
        "fp8": EVERY_FP8,
        "flash_attention": Support(True),
        "apex_optimizers": USABLE,
        "gradient_fusion": USABLE,
        "bitsandbytes": USABLE,
    }
    return Machine(**{**everything, **found})


def without_gpu(**found: Any) -> Machine:
    """A machine without GPU, as the CPU environment has it."""
    return Machine(**found)


def without_engine(**found: Any) -> Machine:
    """The Hopper machine without Transformer Engine."""
    return machine(**{"transformer_engine": ABSENT, "fp8": {}, **found})


def broken_engine(**found: Any) -> Machine:
    """The Hopper machine with a Transformer Engine that does not import."""
    failure = "ImportError: libcudnn.so.9: cannot open shared object file"
    return machine(**{"transformer_engine": Package(True, failure), "fp8": {}, **found})


def capabilities(**found: Any) -> Capabilities:
    """Those of `machine`."""
    return capabilities_of(machine(**found))


def cuda_platform(**found: Any) -> CudaPlatform:
    """The platform of `machine`, which starts nothing until it is asked for a device."""
    return CudaPlatform(capabilities(**found))
