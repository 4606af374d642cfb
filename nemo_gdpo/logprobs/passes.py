"""Passes over a tile of logits, each one Triton kernel, and one over rows of the head's gradient.

A tile is a float32 matrix [C, W]: raw logits (before the soft-cap) of C tokens and W consecutive
rows of the shard's vocabulary. A label, or EOS, may lie outside it.
"""

from __future__ import annotations

import triton
from torch import Tensor

from nemo_gdpo.logprobs import kernels

SCORE_BLOCK = 4096
GRADIENT_BLOCK = 2048
ROW_BLOCK = 4096
"""Columns that one program holds at a time, at most; powers of two."""


def score(
    tile_CW: Tensor,
    labels_C: Tensor,
    highest_C: Tensor,
    parts_4C: Tensor,
    *,
    first_id: int,
    eos_id: int,
    softcap: float | None,
    eos_temperature: float,
) -> None:
    """Add a tile to the scores (`shard.Scores`) of its tokens, in place.

    Args:
        tile_CW: float32; rows may be further apart than W.
        labels_C: int64, global ids.
        first_id: global id of the tile's first column.
        eos_id: global id of EOS; negative for none.
        eos_temperature: of the tempered sum, which is left alone at 1.
    """
    tokens, columns = tile_CW.shape
    block = min(triton.next_power_of_2(columns), SCORE_BLOCK)
    kernels.score[(tokens,)](
        tile_CW,
        labels_C,
        highest_C,
        *parts_4C.unbind(),
        first_id,
        eos_id,
        columns,
        tile_CW.stride(0),
        1.0 if softcap is None else softcap,
        1.0 / eos_temperature,
        CAPPED=softcap is not None,
        TEMPERED=eos_temperature != 1.0,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
    )


def gradient(
    tile_CW: Tensor,
    grad_CW: Tensor,
    labels_C: Tensor,
    log_sum_exp_C: Tensor,
    grad_total_C: Tensor,
    *,
    first_id: int,
    eos_id: int,
    softcap: float | None,
) -> None:
    """Write the loss's derivative by each raw logit but the label's and EOS's, which become 0.

    Args:
        tile_CW: float32; rows may be further apart than W.
        grad_CW: bfloat16, written.
        grad_total_C: float32, the gradients of both columns' log-probs added up.
    """
    tokens, columns = tile_CW.shape
    block = min(triton.next_power_of_2(columns), GRADIENT_BLOCK)
    kernels.gradient[(tokens, triton.cdiv(columns, block))](
        tile_CW,
        grad_CW,
        labels_C,
        log_sum_exp_C,
        grad_total_C,
        first_id,
        eos_id,
        columns,
        tile_CW.stride(0),
        grad_CW.stride(0),
        1.0 if softcap is None else softcap,
        CAPPED=softcap is not None,
        BLOCK=block,
        num_warps=4,
    )


def add_rows(
    total_WH: Tensor,
    hidden_TH: Tensor,
    order_T: Tensor,
    rows_T: Tensor,
    factor_T: Tensor,
    *,
    first_row: int,
) -> None:
    """total[rows[i] - first_row] += factor[i] * hidden[order[i]], for the rows that are in `total`.

    A row's sum is taken by one program in the order of `order`: no atomic adds, whose order and
    thereby rounding would differ from run to run.

    Args:
        total_WH: float32, added to in place.
        hidden_TH: bfloat16, contiguous.
        order_T: int64, which token each entry belongs to.
        rows_T: int64, ascending.
        factor_T: float32, in the order of `order`.
    """
    rows, width = total_WH.shape
    tokens = rows_T.shape[0]
    block = min(triton.next_power_of_2(width), ROW_BLOCK)
    kernels.add_rows[(tokens, triton.cdiv(width, block))](
        total_WH,
        hidden_TH,
        order_T,
        rows_T,
        factor_T,
        first_row,
        first_row + rows,
        tokens,
        width,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
    )
