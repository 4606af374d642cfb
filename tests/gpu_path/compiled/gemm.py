"""Matrix products, and what cuBLASLt demands of the shapes of FP8 operands.

`cublaslt_gemm.cu` checks the leading dimensions and says "Caller must pad"; cuBLAS' own table
(Tensor Core Usage, FP8) adds that a row of the result takes a multiple of 16 bytes. Here every
product of FP8 operands is held to both, and a shape that breaks them raises, as it would on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.gpu_path.compiled.calls import CALLS
from tests.gpu_path.compiled.enums import TORCH, DType
from tests.gpu_path.compiled.storage import MX_BLOCK, kind_of, read

EXPORTED = ("generic_gemm",)


def _only_transposed() -> bool:
    from transformer_engine.pytorch.utils import is_non_tn_fp8_gemm_supported

    return not is_non_tn_fp8_gemm_supported()


def check_shape(kind: str, outer_a: int, outer_b: int, inner: int, out_bytes: int) -> None:
    """Hold the product [outer_b, inner] x [inner, outer_a] to the rules of FP8.

    Args:
        kind: "tensor", "block" or "mx".
        outer_a: columns of the result.
        outer_b: rows of the result.
        inner: the dimension that is summed over.
        out_bytes: size of an element of the result.

    Raises:
        RuntimeError: the shape has no FP8 kernel.
    """
    shape = f"rows {outer_b}, columns {outer_a}, inner {inner}"
    unit = MX_BLOCK if kind == "mx" else 16
    if inner % unit:
        raise RuntimeError(
            f"Leading dimension requirement on A for FP8 GEMM. Caller must pad: {shape}, the inner "
            f"one must be a multiple of {unit}"
        )
    if outer_a * out_bytes % 16:
        raise RuntimeError(
            f"Outer dimension requirement on A for FP8 GEMM. Caller must pad: {shape}, a row "
            "of the result must be a multiple of 16 bytes"
        )
    if kind == "block" and (outer_a % 8 or outer_b % 8):
        raise RuntimeError(
            f"Outer dimension requirement for NVTE_BLOCK_SCALING GEMM. Caller must pad: {shape}, "
            "the outer ones must be multiples of 8"
        )


def _kind_of_product(a: Any, b: Any) -> str:
    kinds = {kind_of(a), kind_of(b)}
    if len(kinds) != 1:
        raise RuntimeError(f"Inputs A and B to GEMM need compatible scaling modes, not {kinds}")
    return kinds.pop()


def _write(
    out: Tensor | None, product: Tensor, dtype: torch.dtype, shape: tuple[int, ...], add: bool
) -> Tensor:
    if out is None:
        return product.to(dtype).reshape(shape)
    if out.shape != product.shape or out.dtype != dtype:
        raise RuntimeError(
            f"GEMM output has invalid dims or dtype (expected {tuple(product.shape)} {dtype}, got "
            f"{tuple(out.shape)} {out.dtype})"
        )
    return out.add_(product.to(dtype)) if add else out.copy_(product)


def generic_gemm(
    A: Any,
    transa: bool,
    B: Any,
    transb: bool,
    D: Tensor | None,
    quantizer: Any,
    out_dtype: DType | None,
    bias: Tensor | None,
    bias_dtype: DType,
    gelu: bool,
    gelu_in: Tensor | None,
    grad: bool,
    workspace: Tensor,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    *,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
) -> tuple[Tensor, Tensor | None, None, None]:
    """D = op(B) op(A) in row-major terms, summed in float32; where `accumulate`, D += that.

    A [*, K] with `transa`, [K, *] without; B [*, K] without `transb`, [K, *] with it. With `grad`,
    a bias asks for its gradient, the sum of B's rows.
    """
    del bias_dtype, gelu_in, workspace, workspace_size, use_split_accumulator, extra_output
    if gelu or quantizer is not None or comm_overlap is not None or alpha != 1.0:
        raise NotImplementedError("fused GELU, FP8 results and overlap are not in the stand-in")
    del comm_type, bulk_overlap, beta
    kind = _kind_of_product(A, B)
    CALLS[f"gemm {kind}"] += 1
    transposed_only = _only_transposed()
    a = read(A, rowwise=transa, transposed_only=transposed_only)
    b = read(B, rowwise=not transb, transposed_only=transposed_only)
    left, right = b.T if transb else b, a.T if transa else a
    dtype = TORCH[out_dtype] if out_dtype is not None else B.dtype if D is None else D.dtype
    if kind != "plain":
        check_shape(kind, right.shape[1], left.shape[0], left.shape[1], dtype.itemsize)
    product = left @ right
    bias_gradient = None
    if bias is not None and grad:
        bias_gradient = b.sum(0).to(bias.dtype)
    elif bias is not None:
        product = product + bias.float()
    lead = product.shape[:1] if transb else B.size()[:-1]
    shape = (*lead, product.shape[1])
    return _write(D, product, dtype, shape, accumulate), bias_gradient, None, None
