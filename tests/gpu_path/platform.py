"""The project's CUDA platform where there is no CUDA."""

from __future__ import annotations

from nemo_gdpo.platform import cuda, current_platform
from nemo_gdpo.platform.cpu import CpuPlatform
from nemo_gdpo.platform.cuda import CudaPlatform


class RehearsedGpu(CudaPlatform):
    """All answers are the CUDA platform's, but for the collectives."""

    distributed_backend = "gloo"
    _shim: CpuPlatform | None = None

    def install(self) -> None:
        super().install()
        if RehearsedGpu._shim is None:
            RehearsedGpu._shim = CpuPlatform(self.capabilities)
            RehearsedGpu._shim.install()


def choose(kind: type[CudaPlatform]) -> None:
    """Make the project's own choice of a platform end here."""
    cuda.CudaPlatform = kind  # type: ignore[misc]
    assert isinstance(current_platform(), kind)
