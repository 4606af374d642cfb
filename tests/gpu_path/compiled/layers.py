"""RMSNorm, rotary embeddings and the two layouts of packed rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.gpu_path.compiled.calls import counted
from tests.gpu_path.compiled.enums import TORCH, DType

EXPORTED = (
    "convert_bshd_to_thd",
    "convert_thd_to_bshd",
    "fused_rope_backward",
    "fused_rope_forward",
    "rmsnorm_bwd",
    "rmsnorm_fwd",
)


def _gain(weight_H: Tensor, zero_centered: bool) -> Tensor:
    return weight_H.float() + (1.0 if zero_centered else 0.0)


@counted
def rmsnorm_fwd(
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    out: Tensor | None,
    quantizer: Any,
    dtype: DType,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Any, None, Tensor]:
    """(normalised [T, H], quantised where a quantiser is given; no mean; 1 / rms [T], float32)."""
    del sm_margin
    x32_TH = x_TH.float()
    rsigma_T = torch.rsqrt(x32_TH.pow(2).mean(-1) + eps)
    y_TH = (x32_TH * rsigma_T[:, None] * _gain(weight_H, zero_centered)).to(TORCH[dtype])
    if quantizer is not None:
        return quantizer.quantize_impl(y_TH), None, rsigma_T
    if out is not None:
        return out.copy_(y_TH), None, rsigma_T
    return y_TH, None, rsigma_T


@counted
def rmsnorm_bwd(
    dy_TH: Tensor,
    x_TH: Tensor,
    rsigma_T: Tensor,
    weight_H: Tensor,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight."""
    del sm_margin
    normalised_TH = x_TH.float() * rsigma_T[:, None]
    dy32_TH = dy_TH.float()
    scaled_TH = dy32_TH * _gain(weight_H, zero_centered)
    along_T = (scaled_TH * normalised_TH).mean(-1, keepdim=True)
    dx_TH = rsigma_T[:, None] * (scaled_TH - normalised_TH * along_T)
    return dx_TH.to(x_TH.dtype), (dy32_TH * normalised_TH).sum(0).to(weight_H.dtype)


def _angles(freqs: Tensor, tokens: int, cu_seqlens: Tensor | None) -> Tensor:
    """Angles [S, 1, 1, D]; packed [T, 1, D], where positions begin anew with every sequence."""
    if cu_seqlens is None:
        return freqs[:tokens]
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
    return torch.cat([freqs[:length, 0] for length in lengths])


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotate(
    x: Tensor,
    freqs: Tensor,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    *,
    sign: int,
) -> Tensor:
    if interleaved or cp_size > 1:
        raise NotImplementedError("interleaved or context-parallel rope is not in the stand-in")
    angles = _angles(freqs, x.shape[0], cu_seqlens)
    width = freqs.shape[-1]
    turned, rest = x[..., :width].float(), x[..., width:]
    # Both halves have the same angles, so that the transpose of the rotation turns back.
    turned = turned * angles.cos() + sign * _half_turned(turned * angles.sin())
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


@counted
def fused_rope_forward(
    x: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    layout: Any,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Rotate x: [S, B, heads, D], or packed [T, heads, D]."""
    del start_positions, layout, cp_rank
    return _rotate(x, freqs, interleaved, cu_seqlens, cp_size, sign=1)


@counted
def fused_rope_backward(
    grad: Tensor,
    freqs: Tensor,
    start_positions: Tensor | None,
    layout: Any,
    interleaved: bool,
    cu_seqlens: Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> Tensor:
    """Rotate a gradient back."""
    del start_positions, layout, cp_rank
    return _rotate(grad, freqs, interleaved, cu_seqlens, cp_size, sign=-1)


@counted
def convert_thd_to_bshd(x_THD: Tensor, cu_seqlens: Tensor, rows: int, longest: int) -> Tensor:
    """Packed sequences as padded rows."""
    out = x_THD.new_zeros(rows, longest, *x_THD.shape[1:])
    for row, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        out[row, : stop - start] = x_THD[start:stop]
    return out


@counted
def convert_bshd_to_thd(x_BSHD: Tensor, cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Padded rows as packed sequences."""
    out = x_BSHD.new_zeros(tokens, *x_BSHD.shape[2:])
    for row, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        out[start:stop] = x_BSHD[row, : stop - start]
    return out
