"""Scores and gradients from bfloat16 inputs: tensor-core products, one tile of logits at a time.

A tile is float32: C tokens by W rows of the vocabulary. Four products of bfloat16 matrices in all,
each accumulated and written in float32 (`products.py`): logits forward, logits again backward, and
both gradients. What is element-wise is one pass over a tile each way (`passes.py`).

Tiles run along the vocabulary, all tokens side by side (up to `TILE_TOKENS`), rather than along
the tokens: a sum in float32 is read and written once for every step along its other side, and the
weight's gradient is V / T times as large as the hidden states'. For 8,192 tokens of 4,096 x 131,072
that is 9 + 4 GB of traffic instead of 0.3 + 34 GB in chunks of 1,024 tokens. The weight's gradient
of a strip of the vocabulary is also finished with its strip: there is never one in float32 of the
whole shard.

The gradient of a logit, -g p, is rounded to bfloat16, since it is an operand of a product. That
errs by 2^-8 of itself at most, but not for the label's and EOS's columns, whose gradients are the
large ones (g - g p): they are left out of the tile and added in float32, as a row times a number.
Against the exact gradient of the same bfloat16 inputs the error is then 2e-5 to 1e-4 of its norm
(the flatter the distribution, the smaller), 1.7e-3 with both columns in the tile, and 1.7e-3 is
also what rounding a result to bfloat16 costs.

Shapes: T tokens, C tokens and W columns of a tile, V vocabulary rows on this rank, R of them not
padding, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.logprobs import passes
from nemo_gdpo.logprobs.products import add_product, product
from nemo_gdpo.logprobs.shard import Head, Saved, Scores

TILE_LOGITS = 2**25
"""128 MiB of logits. Backward at 8,192 x 4,096 x 131,072 that makes, in MiB: 128 logits, 64 their
gradient, 128 the hidden states' gradient, and without a main gradient 64 for a strip of the
weight's and 1,024 for the result: 1.4 GiB, or 0.3 GiB. A product of 8,192 x 4,096 x 4,096 still
fills a GPU for 0.4 ms."""
TILE_TOKENS = 8192
COLUMN_MULTIPLE = 128
"""Rows of a tile start at multiples of 512 bytes, their gradient's at 256."""


@dataclass(frozen=True)
class Tiling:
    """How T x R logits are cut: never more than `TILE_LOGITS`, or `chunk_tokens` tokens' worth.

    A tile that small has 128 columns nevertheless.
    """

    tokens: int
    rows: int
    tile_tokens: int
    tile_columns: int

    @classmethod
    def of(cls, head: Head, tokens: int) -> Tiling:
        rows = head.real_rows
        logits = min(head.chunk_tokens * rows, TILE_LOGITS)
        tile_tokens = _even_part(tokens, TILE_TOKENS, 8)
        columns = max(logits // tile_tokens // COLUMN_MULTIPLE, 1) * COLUMN_MULTIPLE
        return cls(tokens, rows, tile_tokens, _even_part(rows, columns, COLUMN_MULTIPLE))

    def strips(self) -> Iterator[slice]:
        """Rows of the vocabulary; none when there is nothing to compute."""
        return _slices(self.rows if self.tokens else 0, self.tile_columns)

    def chunks(self) -> Iterator[slice]:
        return _slices(self.tokens, self.tile_tokens)

    def buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Room for a tile."""
        return like.new_empty((self.tile_tokens, self.tile_columns), dtype=dtype)


def _even_part(total: int, most: int, multiple: int) -> int:
    """`total` in as few equal parts as `most` allows, rounded up to a multiple."""
    parts = max(math.ceil(total / most), 1)
    return max(math.ceil(total / parts / multiple), 1) * multiple


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def tiled_scores(head: Head, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Scores:
    """This shard's scores of every token."""
    scores = Scores.empty(head, hidden_TH)
    tiling = Tiling.of(head, hidden_TH.shape[0])
    buffer = tiling.buffer(hidden_TH, torch.float32)
    for strip in tiling.strips():
        for chunk in tiling.chunks():
            tile_CW = _logits(hidden_TH[chunk], weight_VH[strip], buffer)
            passes.score(
                tile_CW,
                labels_T[chunk],
                scores.highest_T[chunk],
                scores.parts_4T[:, chunk],
                first_id=head.first_row + strip.start,
                eos_id=_eos(head),
                softcap=head.softcap,
                eos_temperature=head.eos_temperature if head.tempers else 1.0,
            )
    return scores


def tiled_gradients(
    head: Head,
    saved: Saved,
    grad_label_T: Tensor,
    grad_eos_T: Tensor,
    *,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(hidden gradient of this shard, float32; weight gradient, bfloat16).

    None where it is not `needed`; the weight's is `head.main_grad`'s own total where there is one.
    """
    hidden_TH = saved.hidden_TH.contiguous()
    columns = _Columns.of(head, saved, grad_label_T, grad_eos_T)
    tiling = Tiling.of(head, hidden_TH.shape[0])
    grad_hidden_TH = columns.hidden_gradient(saved) if needed[0] else None
    weight = _WeightGradient(head, saved.weight_VH, hidden_TH, columns) if needed[1] else None
    buffer, grad_buffer = (tiling.buffer(hidden_TH, t) for t in (torch.float32, torch.bfloat16))
    for strip in tiling.strips():
        for chunk in tiling.chunks():
            tile_CW = _logits(hidden_TH[chunk], saved.weight_VH[strip], buffer)
            grad_CW = grad_buffer[: tile_CW.shape[0], : tile_CW.shape[1]]
            passes.gradient(
                tile_CW,
                grad_CW,
                saved.labels_T[chunk],
                saved.log_sum_exp_T[chunk],
                columns.total_T[chunk],
                first_id=head.first_row + strip.start,
                eos_id=_eos(head),
                softcap=head.softcap,
            )
            if grad_hidden_TH is not None:
                add_product(grad_hidden_TH[chunk], grad_CW, saved.weight_VH[strip])
            if weight is not None:
                weight.add_tile(strip, chunk, grad_CW)
        if weight is not None:
            weight.finish(strip)
    return grad_hidden_TH, None if weight is None else weight.result_VH


def _logits(hidden_CH: Tensor, weight_WH: Tensor, buffer: Tensor) -> Tensor:
    """Raw logits [C, W] of a tile, in `buffer`."""
    tile_CW = buffer[: hidden_CH.shape[0], : weight_WH.shape[0]]
    product(hidden_CH, weight_WH.T, out_MN=tile_CW)
    return tile_CW


def _eos(head: Head) -> int:
    return -1 if head.eos_id is None else head.eos_id


@dataclass(frozen=True)
class _Columns:
    """The loss's derivatives by the raw logits of the label and of EOS, exact, and what gives the
    others."""

    head: Head
    rows_T: Tensor
    """The label's row of this shard, where it is held here."""
    mine_T: Tensor
    label_T: Tensor
    """float32, 0 where another rank holds the label."""
    eos_T: Tensor
    """float32, 0 where EOS is the label, whose entry then has both."""
    total_T: Tensor
    """float32, both columns' gradients together."""

    @classmethod
    def of(cls, head: Head, saved: Saved, grad_label_T: Tensor, grad_eos_T: Tensor) -> _Columns:
        """d log p(k) / d z_v = [v = k] - p_v; -expm1 is 1 - p without loss near p = 1."""
        rows_T, mine_T = head.owned(saved.labels_T)
        label_T = grad_label_T * -saved.label_T.expm1()
        if head.eos_id is None:
            eos_T = torch.zeros_like(label_T)
            total_T = grad_label_T
        else:
            p_label_T, p_eos_T = saved.label_T.exp(), saved.eos_T.exp()
            both_T = saved.labels_T == head.eos_id
            label_T += grad_eos_T * torch.where(both_T, -saved.label_T.expm1(), -p_label_T)
            eos_T = grad_eos_T * -saved.eos_T.expm1() - grad_label_T * p_eos_T
            eos_T = torch.where(both_T, 0.0, eos_T)
            total_T = grad_label_T + grad_eos_T
        if head.softcap is not None:
            label_T *= 1.0 - ((saved.label_T + saved.log_sum_exp_T) / head.softcap).square()
            eos_T *= 1.0 - ((saved.eos_T + saved.log_sum_exp_T) / head.softcap).square()
        return cls(head, rows_T, mine_T, label_T.where(mine_T, 0.0), eos_T, total_T.contiguous())

    def hidden_gradient(self, saved: Saved) -> Tensor:
        """What these columns add to the hidden states' gradient: float32 [T, H]."""
        if not self.head.real_rows:
            # Padding is never read, whatever stands in it.
            return torch.zeros_like(saved.hidden_TH, dtype=torch.float32).contiguous()
        grad_TH = saved.weight_VH[self.rows_T] * self.label_T[:, None]
        if self.head.eos_row is not None:
            grad_TH.addr_(self.eos_T, saved.weight_VH[self.head.eos_row].float())
        return grad_TH


class _WeightGradient:
    """The head's gradient, strip by strip: added to its main gradient, or in bfloat16."""

    def __init__(self, head: Head, weight_VH: Tensor, hidden_TH: Tensor, columns: _Columns) -> None:
        self.hidden_TH = hidden_TH
        self.eos_row = head.eos_row
        # Labels of other shards come last, at a row that no strip has.
        rows_T = columns.rows_T.where(columns.mine_T, head.real_rows)
        self.rows_T, self.order_T = rows_T.sort(stable=True)
        self.factor_T = columns.label_T[self.order_T]
        self.eos_H = _weighted_sum(columns.eos_T, hidden_TH)
        self.into_main_grad = head.main_grad is not None
        if head.main_grad is not None:
            self.result_VH = head.main_grad.total_VH
        else:
            self.result_VH = torch.empty_like(weight_VH)
            # Strips write the rest, if there are tokens to make strips of.
            self.result_VH[head.real_rows if hidden_TH.numel() else 0 :] = 0.0
        self.scratch_WH: Tensor | None = None

    def _total(self, strip: slice) -> Tensor:
        """float32 [W, H]: what a strip's gradient is added to."""
        if self.into_main_grad:
            return self.result_VH[strip]
        rows = strip.stop - strip.start
        if self.scratch_WH is None:
            shape = (rows, self.hidden_TH.shape[1])
            self.scratch_WH = self.hidden_TH.new_empty(shape, dtype=torch.float32)
        return self.scratch_WH[:rows]

    def add_tile(self, strip: slice, chunk: slice, grad_CW: Tensor) -> None:
        total_WH = self._total(strip)
        if chunk.start == 0 and not self.into_main_grad:
            product(grad_CW.T, self.hidden_TH[chunk], out_MN=total_WH)
        else:
            add_product(total_WH, grad_CW.T, self.hidden_TH[chunk])

    def finish(self, strip: slice) -> None:
        """Add the label's and EOS's columns, once all tokens are in."""
        total_WH = self._total(strip)
        passes.add_rows(
            total_WH,
            self.hidden_TH,
            self.order_T,
            self.rows_T,
            self.factor_T,
            first_row=strip.start,
        )
        if self.eos_row is not None and strip.start <= self.eos_row < strip.stop:
            total_WH[self.eos_row - strip.start] += self.eos_H
        if not self.into_main_grad:
            self.result_VH[strip] = total_WH


def _weighted_sum(factor_T: Tensor, hidden_TH: Tensor) -> Tensor:
    """sum over t of factor[t] * hidden[t], float32 [H]; a float32 copy of a part at a time."""
    sum_H = hidden_TH.new_zeros(hidden_TH.shape[1], dtype=torch.float32)
    for chunk in _slices(hidden_TH.shape[0], TILE_TOKENS):
        sum_H += factor_T[chunk] @ hidden_TH[chunk].float()
    return sum_H
