"""Numbers in and out of Transformer Engine's FP8 storages.

Three kinds, told apart by the fields that Transformer Engine's Python gives them. `_rowwise` data
serve products along the last dimension, `_columnwise` data those along the rows:

- a whole tensor with one scale (delayed, current scaling): data [T, K] and a transposed copy [K,
  T];
- blocks of 128, or of 128 x 128: data [T, K], and [K, T] transposed, each with its own scales;
- microscaling blocks of 32: both data [T, K], scaled along their rows, or along their columns.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from tests.gpu_path.compiled.enums import TORCH

Kind = Literal["plain", "tensor", "block", "mx"]
BLOCK, MX_BLOCK = 128, 32
E8M0_BIAS = 127


def kind_of(x: Any) -> Kind:
    """How the numbers of a tensor or storage are kept."""
    fields = x.__dict__ if hasattr(x, "__dict__") else {}
    if "_is_2D_scaled" in fields:
        return "block"
    if "_with_gemm_swizzled_scales" in fields:
        return "mx"
    return "tensor" if "_fp8_dtype" in fields else "plain"


def as_matrix(x: Tensor) -> Tensor:
    """[..., K] -> [T, K]."""
    return x.reshape(-1, x.shape[-1])


def _numbers(data: Tensor, dtype: Any) -> Tensor:
    return data.view(TORCH[dtype]).float()


def expand_blocks(scales: Tensor, like: Tensor, block: tuple[int, int]) -> Tensor:
    """One scale a block -> one an element of a matrix; padding of the scales is cut off."""
    rows, columns = like.shape
    kept = scales[: math.ceil(rows / block[0]), : math.ceil(columns / block[1])]
    return kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]


def _tensor(x: Any, rowwise: bool, transposed_only: bool) -> Tensor:
    has_transpose = x._transpose is not None and not x._transpose_invalid
    if x._data is not None and (rowwise or not transposed_only):
        scaled: Tensor = as_matrix(_numbers(x._data, x._fp8_dtype)) * x._scale_inv
        return scaled
    if has_transpose and (not rowwise or not transposed_only):
        data_KT = _numbers(x._transpose, x._fp8_dtype).reshape(x._transpose.shape[0], -1)
        turned: Tensor = data_KT.T * x._scale_inv
        return turned
    raise RuntimeError(f"Input is missing {'row' if rowwise else 'column'}-wise usage")


def _block(x: Any, rowwise: bool) -> Tensor:
    data, scales = _parts(x, rowwise)
    data = as_matrix(data) if rowwise else data.reshape(data.shape[0], -1)
    numbers = _numbers(data, x._fp8_dtype)
    if x._is_2D_scaled:
        numbers = numbers * expand_blocks(scales, numbers, (BLOCK, BLOCK))
    else:  # scales of blocks along the last dimension stand in rows, one row a block
        numbers = numbers * expand_blocks(scales.T, numbers, (1, BLOCK))
    return numbers if rowwise else numbers.T


def _mx(x: Any, rowwise: bool) -> Tensor:
    data, exponents = _parts(x, rowwise)
    numbers = as_matrix(_numbers(data, x._fp8_dtype))
    scales = torch.exp2(exponents.float() - E8M0_BIAS)
    block = (1, MX_BLOCK) if rowwise else (MX_BLOCK, 1)
    return numbers * expand_blocks(scales, numbers, block)


def _parts(x: Any, rowwise: bool) -> tuple[Tensor, Tensor]:
    data, scales = (
        (x._rowwise_data, x._rowwise_scale_inv)
        if rowwise
        else (x._columnwise_data, x._columnwise_scale_inv)
    )
    if data is None or scales is None:
        raise RuntimeError(f"Input is missing {'row' if rowwise else 'column'}-wise usage")
    return data, scales


def read(x: Any, *, rowwise: bool, transposed_only: bool) -> Tensor:
    """The numbers of `x` as float32 [T, K].

    Args:
        x: a tensor or a storage.
        rowwise: whether the product runs along K; otherwise along T.
        transposed_only: products of whole-tensor FP8 take operands along K only (before Blackwell),
            so that those along T need the transposed copy.

    Raises:
        RuntimeError: the storage was not quantised for this use.
    """
    kind = kind_of(x)
    if kind == "tensor":
        return _tensor(x, rowwise, transposed_only)
    if kind == "block":
        return _block(x, rowwise)
    if kind == "mx":
        return _mx(x, rowwise)
    return as_matrix(x).float()
