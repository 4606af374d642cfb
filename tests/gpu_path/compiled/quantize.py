"""Quantisation of every recipe, into Transformer Engine's own storages; and what belongs to it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.gpu_path.compiled.calls import CALLS, counted
from tests.gpu_path.compiled.enums import TORCH, DType
from tests.gpu_path.compiled.storage import (
    BLOCK,
    E8M0_BIAS,
    MX_BLOCK,
    as_matrix,
    expand_blocks,
    read,
)

EXPORTED = (
    "bgrad_quantize",
    "dequantize",
    "fp8_transpose",
    "fused_amax_and_scale_update_after_reduction",
    "quantize",
    "swap_first_dims",
)
LARGEST = {DType.kFloat8E4M3: 448.0, DType.kFloat8E5M2: 57344.0}
QUANTIZED: set[int] = set()
"""Addresses of what was quantised since the last `clear`, to tell which weights were."""


def _rounded(x32: Tensor, dtype: DType) -> Tensor:
    """Saturating cast to FP8, as bytes."""
    top = LARGEST[dtype]
    return x32.clamp(-top, top).to(TORCH[dtype]).view(torch.uint8)


def _scale_of(amax: Tensor, dtype: DType, *, power_of_2: bool, epsilon: float) -> Tensor:
    """`compute_scale_from_amax` of recipe_common.cuh: 1 for what has no size."""
    amax = amax.clamp_min(epsilon)
    scale = (LARGEST[dtype] / amax).clamp_max(torch.finfo(torch.float32).max)
    if power_of_2:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return torch.where((amax > 0) & torch.isfinite(amax), scale, torch.ones_like(scale))


def _whole_tensor(x: Tensor, scale: Tensor, quantizer: Any, out: Any) -> None:
    data = _rounded(x.float() * scale, quantizer.dtype)
    if out._data is not None:
        out._data.copy_(data)
    if out._transpose is not None:
        out._transpose.copy_(as_matrix(data).T.reshape(out._transpose.shape))
        out._transpose_invalid = False
    out._scale_inv.copy_(1.0 / scale)


def _delayed(x: Tensor, quantizer: Any, out: Any) -> None:
    quantizer.amax.copy_(torch.maximum(quantizer.amax, x.abs().amax().float()))
    _whole_tensor(x, quantizer.scale, quantizer, out)


def _current(x: Tensor, quantizer: Any, out: Any) -> None:
    amax = x.abs().amax().float().reshape(1)
    if quantizer.with_amax_reduction:
        dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=quantizer.amax_reduction_group)
    scale = _scale_of(
        amax,
        quantizer.dtype,
        power_of_2=quantizer.force_pow_2_scales,
        epsilon=quantizer.amax_epsilon,
    )
    quantizer.amax.copy_(amax)
    quantizer.scale.copy_(scale)
    _whole_tensor(x, scale, quantizer, out)


def _block_amax(x_TK: Tensor, block: tuple[int, int]) -> Tensor:
    """Largest absolute value of every block, the last ones being smaller where need be."""
    rows, columns = x_TK.shape
    high, wide = (math.ceil(n / b) for n, b in zip((rows, columns), block, strict=True))
    padded = x_TK.new_zeros(high * block[0], wide * block[1])
    padded[:rows, :columns] = x_TK.abs()
    return padded.view(high, block[0], wide, block[1]).amax((1, 3))


def _put(target: Tensor, values: Tensor) -> None:
    """Fill the scales, which are padded for the kernels, from their first corner."""
    target.zero_()
    target[: values.shape[0], : values.shape[1]].copy_(values)


def _in_blocks(x_TK: Tensor, block: tuple[int, int], quantizer: Any) -> tuple[Tensor, Tensor]:
    """(bytes [T, K], scales of the blocks)."""
    scales = _scale_of(
        _block_amax(x_TK, block),
        quantizer.dtype,
        power_of_2=quantizer.force_pow_2_scales,
        epsilon=quantizer.amax_epsilon,
    )
    spread = expand_blocks(scales, x_TK, block)
    return _rounded(x_TK * spread, quantizer.dtype), 1.0 / scales


def _blockwise(x: Tensor, quantizer: Any, out: Any) -> None:
    x_TK = as_matrix(x).float()
    squares = quantizer.block_scaling_dim == 2
    for turned, data, scales in (
        (x_TK, out._rowwise_data, out._rowwise_scale_inv),
        (x_TK.T, out._columnwise_data, out._columnwise_scale_inv),
    ):
        if data is None:
            continue
        bytes_, found = _in_blocks(turned, (BLOCK, BLOCK) if squares else (1, BLOCK), quantizer)
        data.copy_(bytes_.reshape(data.shape))
        _put(scales, found if squares else found.T)


def _microscaling(x: Tensor, quantizer: Any, out: Any) -> None:
    x_TK = as_matrix(x).float()
    for block, data, scales in (
        ((1, MX_BLOCK), out._rowwise_data, out._rowwise_scale_inv),
        ((MX_BLOCK, 1), out._columnwise_data, out._columnwise_scale_inv),
    ):
        if data is None:
            continue
        amax = _block_amax(x_TK, block)
        exponent = torch.ceil(torch.log2(amax / LARGEST[quantizer.dtype]))
        exponent = exponent.clamp(-E8M0_BIAS, E8M0_BIAS)  # nothing but zeros: -inf
        spread = expand_blocks(torch.exp2(-exponent), x_TK, block)
        data.copy_(_rounded(x_TK * spread, quantizer.dtype).reshape(data.shape))
        _put(scales, (exponent + E8M0_BIAS).to(torch.uint8))


_RECIPES = {
    "Float8Quantizer": _delayed,
    "Float8CurrentScalingQuantizer": _current,
    "Float8BlockQuantizer": _blockwise,
    "MXFP8Quantizer": _microscaling,
}


def quantize(tensor: Tensor, quantizer: Any, output: Any = None, noop: Any = None) -> Any:
    """Quantise into `output`, or into a new tensor; into its bare storage for internal use."""
    del noop
    name = type(quantizer).__name__
    CALLS[f"quantize {name}"] += 1
    QUANTIZED.add(tensor.data_ptr())
    if output is None:
        output = quantizer.make_empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
        if quantizer.internal:
            output = type(output).__bases__[0](**output.get_metadata())
    _RECIPES[name](tensor.detach(), quantizer, output)
    return output


@counted
def dequantize(x: Any, dtype: DType) -> Tensor:
    """Back to a type of 16 or 32 bits, in the shape of the data."""
    return read(x, rowwise=True, transposed_only=True).reshape(x.size()).to(TORCH[dtype])


@counted
def fp8_transpose(data: Tensor, dtype: DType, *, out: Tensor | None = None) -> Tensor:
    """Bytes [..., K] -> [K, ...]."""
    del dtype
    turned = as_matrix(data).T.reshape(data.shape[-1], *data.shape[:-1]).contiguous()
    return turned if out is None else out.copy_(turned)


@counted
def swap_first_dims(tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
    """[A, B, ...] -> [B, A, ...]."""
    swapped = tensor.transpose(0, 1)
    return swapped.contiguous() if out is None else out.copy_(swapped)


@counted
def bgrad_quantize(grad: Tensor, quantizer: Any) -> tuple[Tensor, Any]:
    """(gradient of the bias, quantised gradient of the output)."""
    return as_matrix(grad).sum(0), quantizer.quantize_impl(grad)


@counted
def fused_amax_and_scale_update_after_reduction(
    amaxes: Tensor,
    histories: list[Tensor],
    scales: list[Tensor],
    algorithm: str,
    dtype: DType,
    margin: float,
) -> None:
    """Delayed scaling: note the last amaxes, and take new scales from the histories."""
    parts = torch.split(amaxes, [scale.numel() for scale in scales])
    for amax, history, scale in zip(parts, histories, scales, strict=True):
        history[0].copy_(amax)
        used = history.amax(0) if algorithm == "max" else history[0].clone()
        new = LARGEST[dtype] / used / 2.0**margin
        scale.copy_(torch.where((used > 0) & torch.isfinite(used), new, scale))
        history.copy_(history.roll(-1, 0))
        history[0].zero_()
