"""This rank's part of the vocabulary, and what each token's scores are put together from.

Shapes: T tokens, C tokens of a chunk, V vocabulary rows on this rank, R of them not padding,
H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.logprobs.main_grad import MainGrad


@dataclass(frozen=True)
class Head:
    """The part of the vocabulary that this rank holds, and how its logits are made."""

    first_row: int
    real_rows: int
    """R: rows of the true vocabulary in this shard, 0 in a shard of padding alone."""
    eos_id: int | None
    eos_temperature: float
    softcap: float | None
    group: dist.ProcessGroup | None
    chunk_tokens: int
    wide: torch.dtype
    tiled: bool
    """Products of bfloat16 matrices, element-wise work in Triton: `tiles.py`, not `wide.py`."""
    main_grad: MainGrad | None

    @property
    def eos_row(self) -> int | None:
        """EOS's row in this shard; None when another rank holds it, or none is asked for."""
        if self.eos_id is None or not 0 <= self.eos_id - self.first_row < self.real_rows:
            return None
        return self.eos_id - self.first_row

    @property
    def tempers(self) -> bool:
        """A tempered EOS column is asked for that differs from the plain one."""
        return self.eos_id is not None and self.eos_temperature != 1.0

    def owned(self, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of this shard [T], bool [T]: this rank holds them); others point at row 0."""
        local_T = labels_T - self.first_row
        mine_T = (local_T >= 0) & (local_T < self.real_rows)
        return local_T.where(mine_T, 0), mine_T

    def reduce(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        """All-reduce over the vocabulary's shards, in place."""
        if self.group is not None and values.numel():
            dist.all_reduce(values, op=op, group=self.group)
        return values


class Scores(NamedTuple):
    """What one shard knows of each token, filled in place."""

    highest_T: Tensor
    """Its largest logit, -inf where it has none."""
    parts_4T: Tensor
    """Sum of exponentials above the highest, the same of tempered logits, the label's logit, EOS's
    logit: zero where another rank knows the number, so that one sum over ranks gives all four."""

    @classmethod
    def empty(cls, head: Head, hidden_TH: Tensor) -> Scores:
        tokens = hidden_TH.shape[0]
        return cls(
            hidden_TH.new_full((tokens,), -torch.inf, dtype=head.wide),
            hidden_TH.new_zeros((4, tokens), dtype=head.wide),
        )


class Saved(NamedTuple):
    """What the backward pass is given of the forward pass."""

    hidden_TH: Tensor
    weight_VH: Tensor
    labels_T: Tensor
    log_sum_exp_T: Tensor
    label_T: Tensor
    """Log-prob of the label."""
    eos_T: Tensor
    """Log-prob of EOS; without meaning when no EOS is asked for."""
