"""Enumerations of the compiled module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum

import torch


class DType(IntEnum):
    """`transformer_engine.h` of 2.12."""

    kByte = 0
    kInt16 = 1
    kInt32 = 2
    kInt64 = 3
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat8E8M0 = 9
    kFloat4E2M1 = 10


class FP8FwdTensors(IntEnum):
    """Index of a quantiser of the forward pass."""

    GEMM1_INPUT = 0
    GEMM1_WEIGHT = 1
    GEMM1_OUTPUT = 2
    GEMM2_INPUT = 3
    GEMM2_WEIGHT = 4
    GEMM2_OUTPUT = 5
    GEMM3_INPUT = 6
    GEMM3_WEIGHT = 7
    GEMM3_OUTPUT = 8


class FP8BwdTensors(IntEnum):
    """Index of a quantiser of the backward pass."""

    GRAD_OUTPUT1 = 0
    GRAD_INPUT1 = 1
    GRAD_OUTPUT2 = 2
    GRAD_INPUT2 = 3
    GRAD_OUTPUT3 = 4
    GRAD_INPUT3 = 5


TORCH = {
    DType.kByte: torch.uint8,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
    DType.kFloat8E4M3: torch.float8_e4m3fn,
    DType.kFloat8E5M2: torch.float8_e5m2,
}
_ORDERED = (DType, FP8FwdTensors, FP8BwdTensors)
_MEMBER = re.compile(r"\b(NVTE_[A-Z][A-Za-z]*_[A-Za-z_]+|CommOverlapType)\.(\w+)")


def all_of(sources: Iterable[str]) -> dict[str, type[IntEnum]]:
    """All enumerations that these Python files use.

    The numbers of those that are not written out above matter nowhere: their members stand in the
    order in which they are met.
    """
    met: dict[str, dict[str, None]] = {}
    for source in sources:
        for label, member in _MEMBER.findall(source):
            met.setdefault(label, {})[member] = None
    found = {label: IntEnum(label, list(members), start=0) for label, members in met.items()}
    return found | {one.__name__: one for one in _ORDERED}  # type: ignore[return-value]
