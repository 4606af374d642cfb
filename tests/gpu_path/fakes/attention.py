"""The kernels of fused attention, as far as shapes go: what cuDNN's would give, without numbers.

A GPU computes attention with these where no flash-attention package is installed, and what they
keep for the backward pass is a number a row instead of the scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tests.gpu_path.compiled.calls import counted

LAYOUTS = {"sbhd_sbhd_sbhd", "thd_thd_thd"}


@counted
def fused_attn_fwd(*args: Any) -> list[Tensor]:
    """`attention.cpp` of 2.12: [output, log-sum-exps [B, heads, S, 1] float32, random state]."""
    query, key, value = args[14:17]
    heads, groups = query.shape[-2], key.shape[-2]
    if heads % groups or key.shape != value.shape or len({t.dtype for t in args[14:17]}) > 1:
        raise RuntimeError(f"{query.shape} {query.dtype}, {key.shape}, {value.shape}")
    longest, rows = (query.shape[0], query.shape[1]) if query.ndim == 4 else (args[0], 1)
    stats = query.new_empty((rows, heads, longest, 1), dtype=torch.float32)
    return [torch.empty_like(query), stats, query.new_empty(2, dtype=torch.int64)]


@counted
def fused_attn_bwd(*args: Any) -> list[Tensor | None]:
    """Gradients of query, key and value; none of a bias, none of an offset."""
    query, key, value, output, grad = args[14:19]
    if grad.shape != output.shape or output.shape != query.shape:
        raise RuntimeError(f"gradient {grad.shape} of {output.shape} from {query.shape}")
    return [*(torch.empty_like(tensor) for tensor in (query, key, value)), None, None]


def _backend(*_: Any, **__: Any) -> Any:
    import transformer_engine_torch as tex

    return tex.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen


def install() -> None:
    """Put the kernels into the stand-in for the compiled module."""
    import transformer_engine_torch as tex
    from transformer_engine.pytorch.attention.dot_product_attention import utils

    tex.get_fused_attn_backend = _backend
    tex.fused_attn_fwd = fused_attn_fwd
    tex.fused_attn_bwd = fused_attn_bwd
    choose = utils.get_attention_backend

    def of_plain_tensors(params: Any) -> Any:
        # Kernels are for torch.Tensor itself, which a fake tensor stands for.
        return choose(dataclasses.replace(params, qkv_type=Tensor))

    utils.get_attention_backend = of_plain_tensors
