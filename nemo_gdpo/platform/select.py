"""Choose the platform once per process."""

from __future__ import annotations

import functools

from nemo_gdpo.errors import UserError
from nemo_gdpo.importing import uncollected
from nemo_gdpo.platform.base import Capabilities, Platform
from nemo_gdpo.platform.capabilities import capabilities_of
from nemo_gdpo.platform.machine import look_at_machine


@functools.cache
def detect_capabilities() -> Capabilities:
    """Look at the machine, without side effects on torch or megatron."""
    return capabilities_of(look_at_machine())


def platform_for(capabilities: Capabilities) -> Platform:
    """The platform of such a machine, not installed.

    Raises:
        UserError: the environment is broken; megatron-core would fail in the middle of an import,
            or quietly do without what is broken.
    """
    if capabilities.unusable is not None:
        raise UserError(str(capabilities.unusable))
    if capabilities.device_type == "cuda":
        from nemo_gdpo.platform.cuda import CudaPlatform

        return CudaPlatform(capabilities)
    from nemo_gdpo.platform.cpu import CpuPlatform

    return CpuPlatform(capabilities)


@functools.cache
def current_platform() -> Platform:
    """The platform of this process, installed. The first call decides for good.

    Raises:
        UserError: the environment is broken.
    """
    with uncollected():  # it imports megatron-core
        platform = platform_for(detect_capabilities())
        platform.install()
    return platform
