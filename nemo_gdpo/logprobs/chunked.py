"""Label and EOS log-probs from one log-sum-exp, in chunks of tokens, over a sharded vocabulary.

Detailed balance needs, for every token, the log-prob of the label and of EOS. Both are columns of
the same log-softmax. Logits exist for one chunk of tokens at a time, in the forward pass and again
in the backward pass, which computes them anew; what is kept is the log-sum-exp of each token.

A vocabulary that is split over ranks costs two collectives forward (a maximum and a sum of a few
numbers a token) and one backward (the gradient of the hidden states), whatever the chunks.

Shapes: T tokens, C tokens of a chunk, V vocabulary rows on this rank, R of them not padding,
H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_gdpo.logprobs.types import SelectedLogprobs, check_arguments, wide_dtype


def selected_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    eos_id: int | None = None,
    eos_temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    chunk_tokens: int = 1024,
    logit_softcap: float | None = None,
    vocab_size: int | None = None,
) -> SelectedLogprobs:
    """Log-probs of each token's label and of EOS, from one log-sum-exp.

    Logits, sums and both gradients are computed and accumulated in float32, whatever the inputs'
    type and also under autocast (float64 for float64 inputs). The gradients are returned in the
    type of their inputs. Second derivatives are not available.

    Args:
        hidden_TH: the last hidden states; the same on every rank of `tp_group`.
        weight_VH: the head's rows on this rank: rank r holds rows r * V to (r + 1) * V.
        labels_T: global ids, int64, below `vocab_size`; the same on every rank of `tp_group`.
        eos_id: global id of the token that ends a response; None for the label's column only.
        eos_temperature: divides the logits of the tempered EOS column, which has no gradient
            (only the reference's is read, and it is constant).
        tp_group: ranks that share the vocabulary; None for a vocabulary in one piece.
        chunk_tokens: tokens whose logits exist at the same time.
        logit_softcap: c of c * tanh(z / c) (Gemma 2).
        vocab_size: true vocabulary over all ranks; later rows are padding, take no part in the sum
            and get a gradient of zero. None: all rows are real.

    Returns:
        The hidden states' gradient is summed over `tp_group`; the weight's is this rank's.

    Raises:
        ValueError: the shapes do not fit together, or an argument or a label is out of range.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    rows = weight_VH.shape[0]
    ranks = 1 if tp_group is None else dist.get_world_size(tp_group)
    first_row = 0 if tp_group is None else dist.get_rank(tp_group) * rows
    size = check_arguments(
        hidden_TH,
        weight_VH,
        labels_T,
        all_rows=ranks * rows,
        vocab_size=vocab_size,
        eos_id=eos_id,
        eos_temperature=eos_temperature,
        logit_softcap=logit_softcap,
    )
    head = _Head(
        first_row=first_row,
        real_rows=min(max(size - first_row, 0), rows),
        eos_id=eos_id,
        eos_temperature=eos_temperature,
        softcap=logit_softcap,
        group=tp_group if ranks > 1 else None,
        chunk_tokens=chunk_tokens,
        wide=wide_dtype(hidden_TH, weight_VH),
    )
    # Autocast would turn products of float32 matrices into bfloat16 ones, here and in the backward.
    with torch.autocast(hidden_TH.device.type, enabled=False):
        label_T, eos_T, tempered_T = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_TH, weight_VH, labels_T, head
        )
    if eos_id is None:
        return SelectedLogprobs(label_T, None, None)
    return SelectedLogprobs(label_T, eos_T, eos_T if eos_temperature == 1.0 else tempered_T)


@dataclass(frozen=True)
class _Head:
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

    @property
    def eos_row(self) -> int | None:
        """EOS's row in this shard; None when another rank holds it, or none is asked for."""
        if self.eos_id is None or not 0 <= self.eos_id - self.first_row < self.real_rows:
            return None
        return self.eos_id - self.first_row

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices of at most `chunk_tokens`; none for a shard without rows, which adds nothing."""
        if self.real_rows:
            for start in range(0, tokens, self.chunk_tokens):
                yield slice(start, start + self.chunk_tokens)

    def real(self, weight_VH: Tensor) -> Tensor:
        """[R, H] in the type of the arithmetic. What stands in padded rows is never read."""
        return weight_VH[: self.real_rows].to(self.wide)

    def logits(self, hidden_CH: Tensor, weight_RH: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits [C, R], derivative of the soft-cap [C, R] or None)."""
        logits_CR = hidden_CH @ weight_RH.T
        if self.softcap is None:
            return logits_CR, None
        tanh_CR = logits_CR.div_(self.softcap).tanh_()
        slope_CR = 1.0 - tanh_CR.square()
        return tanh_CR.mul_(self.softcap), slope_CR

    def owned(self, labels_C: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of this shard [C, 1], bool [C]: this rank holds them); others point at row 0."""
        local_C = labels_C - self.first_row
        mine_C = (local_C >= 0) & (local_C < self.real_rows)
        return local_C.where(mine_C, 0)[:, None], mine_C

    def reduce(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        """All-reduce over the vocabulary's shards, in place."""
        if self.group is not None and values.numel():
            dist.all_reduce(values, op=op, group=self.group)
        return values


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, head: _Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens = labels_T.shape[0]
        weight_RH = head.real(weight_VH)
        highest_T = hidden_TH.new_full((tokens,), -torch.inf, dtype=head.wide)
        # Sum of exponentials, the same of tempered logits, the label's logit, EOS's logit: zero
        # where another rank knows the number, so that one sum over ranks gives all four.
        parts_4T = hidden_TH.new_zeros((4, tokens), dtype=head.wide)
        total_T, tempered_total_T, label_T, eos_T = parts_4T
        for chunk in head.chunks(tokens):
            logits_CR, _ = head.logits(hidden_TH[chunk].to(head.wide), weight_RH)
            rows_C1, mine_C = head.owned(labels_T[chunk])
            label_T[chunk] = logits_CR.gather(1, rows_C1).squeeze(1).where(mine_C, 0.0)
            if head.eos_row is not None:
                eos_T[chunk] = logits_CR[:, head.eos_row]
            highest_T[chunk] = logits_CR.amax(dim=1)
            logits_CR.sub_(highest_T[chunk, None])
            if head.eos_id is not None and head.eos_temperature != 1.0:
                tempered_total_T[chunk] = (logits_CR / head.eos_temperature).exp_().sum(dim=1)
            total_T[chunk] = logits_CR.exp_().sum(dim=1)

        if head.group is not None:
            own_highest_T = highest_T.clone()
            head.reduce(highest_T, dist.ReduceOp.MAX)
            # -inf, hence a factor of 0, in a shard of padding alone.
            lag_T = own_highest_T - highest_T
            total_T.mul_(lag_T.exp())
            tempered_total_T.mul_((lag_T / head.eos_temperature).exp())
            head.reduce(parts_4T, dist.ReduceOp.SUM)
        log_total_T = total_T.log()
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, highest_T + log_total_T)
        ctx.head = head
        eos_above_T = eos_T - highest_T
        tempered_T = eos_above_T / head.eos_temperature - tempered_total_T.log()
        ctx.mark_non_differentiable(tempered_T)
        return label_T - highest_T - log_total_T, eos_above_T - log_total_T, tempered_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TH = ctx.saved_tensors[0]
        with torch.autocast(hidden_TH.device.type, enabled=False):
            gradients = _gradients(
                ctx.head, *ctx.saved_tensors, *grads[:2], needed=ctx.needs_input_grad[:2]
            )
        return *gradients, None, None


def _gradients(
    head: _Head,
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    log_sum_exp_T: Tensor,
    grad_label_T: Tensor,
    grad_eos_T: Tensor,
    *,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(hidden gradient, weight gradient), None where it is not `needed`."""
    weight_RH = head.real(weight_VH)
    # Contiguous whatever the inputs' strides are: collectives ask for that.
    grad_hidden_TH = hidden_TH.new_zeros(hidden_TH.shape, dtype=head.wide) if needed[0] else None
    grad_weight_VH = weight_VH.new_zeros(weight_VH.shape, dtype=head.wide) if needed[1] else None
    # d log p(k) / d z_v = [v = k] - p_v, for the label and for EOS alike.
    grad_total_T = grad_label_T if head.eos_id is None else grad_label_T + grad_eos_T
    for chunk in head.chunks(labels_T.shape[0]):
        hidden_CH = hidden_TH[chunk].to(head.wide)
        logits_CR, slope_CR = head.logits(hidden_CH, weight_RH)
        probabilities_CR = logits_CR.sub_(log_sum_exp_T[chunk, None]).exp_()
        grad_CR = probabilities_CR.mul_(-grad_total_T[chunk, None])
        rows_C1, mine_C = head.owned(labels_T[chunk])
        grad_CR.scatter_add_(1, rows_C1, grad_label_T[chunk].where(mine_C, 0.0)[:, None])
        if head.eos_row is not None:
            grad_CR[:, head.eos_row] += grad_eos_T[chunk]
        if slope_CR is not None:
            grad_CR.mul_(slope_CR)
        if grad_hidden_TH is not None:
            torch.mm(grad_CR, weight_RH, out=grad_hidden_TH[chunk])
        if grad_weight_VH is not None:
            # In place: a fresh [V, H] matrix for every chunk would dwarf the chunk itself.
            grad_weight_VH[: head.real_rows].addmm_(grad_CR.T, hidden_CH)
    if grad_hidden_TH is not None:
        grad_hidden_TH = head.reduce(grad_hidden_TH, dist.ReduceOp.SUM).to(hidden_TH.dtype)
    if grad_weight_VH is not None:
        grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
    return grad_hidden_TH, grad_weight_VH
