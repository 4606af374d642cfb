"""What the compiled module says of the libraries and of the device."""

from __future__ import annotations

from typing import Any

EXPORTED = (
    "device_supports_multicast",
    "get_cublasLt_version",
    "get_cudnn_version",
    "get_fused_attn_backend",
    "get_num_cublas_streams",
    "get_stream_priority_range",
    "ubuf_built_with_mpi",
)


def get_cublasLt_version() -> int:
    """Of CUDA 13.1."""
    return 130100


def get_cudnn_version() -> int:
    """9.19.0."""
    return 91900


def get_num_cublas_streams() -> int:
    """Streams of grouped products."""
    return 4


def get_stream_priority_range() -> tuple[int, int]:
    """(lowest, highest)."""
    return 0, -5


def device_supports_multicast(*_: Any) -> bool:
    """No overlap of communication with products."""
    return False


def ubuf_built_with_mpi() -> bool:
    """No overlap of communication with products."""
    return False


def get_fused_attn_backend(*_: Any, **__: Any) -> Any:
    """None: there are no kernels of attention here; the unfused back end is plain torch."""
    import transformer_engine_torch as tex

    return tex.NVTE_Fused_Attn_Backend.NVTE_No_Backend
