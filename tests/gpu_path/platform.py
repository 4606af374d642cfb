"""The project's CUDA platform where there is no CUDA."""

from __future__ import annotations

from typing import Any

import torch

from nemo_gdpo.platform import Capabilities, cuda, current_platform
from nemo_gdpo.platform.cpu import CpuPlatform
from nemo_gdpo.platform.cuda import CudaPlatform


class RehearsedGpu(CudaPlatform):
    """All answers are the CUDA platform's, but for the device, the collectives and attention."""

    distributed_backend = "gloo"
    _shim: CpuPlatform | None = None

    def __init__(self, capabilities: Capabilities) -> None:
        super().__init__(capabilities)

    def install(self) -> None:
        if RehearsedGpu._shim is None:
            RehearsedGpu._shim = CpuPlatform(self.capabilities)
            RehearsedGpu._shim.install()

    def device(self, local_rank: int) -> torch.device:
        del local_rank
        return torch.device("cpu")

    def transformer_config_overrides(self, precision: str, *, interleaved: bool) -> dict[str, Any]:
        from megatron.core.transformer.enums import AttnBackend

        overrides = super().transformer_config_overrides(precision, interleaved=interleaved)
        # The one back end that is no kernel.
        return overrides | {"attention_backend": AttnBackend.unfused}


def choose(kind: type[CudaPlatform]) -> None:
    """Make the project's own choice of a platform end here."""
    cuda.CudaPlatform = kind  # type: ignore[misc]
    assert isinstance(current_platform(), kind)
