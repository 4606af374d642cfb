"""Products of bfloat16 matrices, accumulated and written in float32.

On a GPU these are tensor-core GEMMs with a float32 result (`out_dtype`, which torch has for CUDA
alone): no sum is ever rounded to bfloat16. On a CPU, for tests, the operands are widened first: a
product of two bfloat16 numbers is exact in float32, so that only the order of summing differs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(left_MK: Tensor, right_KN: Tensor, *, out_MN: Tensor) -> None:
    """Write left @ right to `out_MN`, float32."""
    if left_MK.device.type == "cpu":
        torch.mm(left_MK.float(), right_KN.float(), out=out_MN)
    else:
        torch.mm(left_MK, right_KN, torch.float32, out=out_MN)


def add_product(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    """Add left @ right to `total_MN`, float32, in place: no second matrix of its size."""
    if left_MK.device.type == "cpu":
        total_MN.addmm_(left_MK.float(), right_KN.float())
        return
    # A batch of one, which is the same GEMM: torch before 2.10 and some of its pre-releases (NGC
    # images) refuse a float32 matrix to add to in `addmm`, never in `baddbmm`.
    total = total_MN[None]
    torch.baddbmm(total, left_MK[None], right_KN[None], torch.float32, out=total)
