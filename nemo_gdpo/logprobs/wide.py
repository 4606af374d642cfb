"""Scores and gradients in float32 or float64, in chunks of tokens, with torch's own operations.

Any device and any type of input: a copy of the shard in the type of the arithmetic is made.

Shapes: T tokens, C tokens of a chunk, V vocabulary rows on this rank, R of them not padding,
H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nemo_gdpo.logprobs.shard import Head, Saved, Scores


def wide_scores(head: Head, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Scores:
    """This shard's scores of every token."""
    scores = Scores.empty(head, hidden_TH)
    total_T, tempered_total_T, label_T, eos_T = scores.parts_4T
    weight_RH = _real(head, weight_VH)
    for chunk in _chunks(head, labels_T.shape[0]):
        logits_CR, _ = _logits(head, hidden_TH[chunk].to(head.wide), weight_RH)
        rows_C, mine_C = head.owned(labels_T[chunk])
        label_T[chunk] = logits_CR.gather(1, rows_C[:, None]).squeeze(1).where(mine_C, 0.0)
        if head.eos_row is not None:
            eos_T[chunk] = logits_CR[:, head.eos_row]
        highest_C1 = logits_CR.amax(dim=1, keepdim=True)
        scores.highest_T[chunk] = highest_C1.squeeze(1)
        logits_CR.sub_(highest_C1)
        if head.tempers:
            tempered_total_T[chunk] = (logits_CR / head.eos_temperature).exp_().sum(dim=1)
        total_T[chunk] = logits_CR.exp_().sum(dim=1)
    return scores


def wide_gradients(
    head: Head,
    saved: Saved,
    grad_label_T: Tensor,
    grad_eos_T: Tensor,
    *,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(hidden gradient of this shard, weight gradient), in the type of the arithmetic.

    None where it is not `needed`; the weight's is `head.main_grad`'s own total where there is one.
    """
    hidden_TH, weight_VH, labels_T = saved.hidden_TH, saved.weight_VH, saved.labels_T
    weight_RH = _real(head, weight_VH)
    # Contiguous whatever the inputs' strides are: collectives ask for that.
    grad_hidden_TH = hidden_TH.new_zeros(hidden_TH.shape, dtype=head.wide) if needed[0] else None
    grad_weight_VH = None
    if needed[1] and head.main_grad is not None:
        grad_weight_VH = head.main_grad.total_VH
    elif needed[1]:
        grad_weight_VH = weight_VH.new_zeros(weight_VH.shape, dtype=head.wide)
    # d log p(k) / d z_v = [v = k] - p_v, for the label and for EOS alike.
    grad_total_T = grad_label_T if head.eos_id is None else grad_label_T + grad_eos_T
    for chunk in _chunks(head, labels_T.shape[0]):
        hidden_CH = hidden_TH[chunk].to(head.wide)
        logits_CR, slope_CR = _logits(head, hidden_CH, weight_RH)
        probabilities_CR = logits_CR.sub_(saved.log_sum_exp_T[chunk, None]).exp_()
        grad_CR = probabilities_CR.mul_(-grad_total_T[chunk, None])
        rows_C, mine_C = head.owned(labels_T[chunk])
        own_grad_C = grad_label_T[chunk].where(mine_C, 0.0)
        grad_CR.scatter_add_(1, rows_C[:, None], own_grad_C[:, None])
        if head.eos_row is not None:
            grad_CR[:, head.eos_row] += grad_eos_T[chunk]
        if slope_CR is not None:
            grad_CR.mul_(slope_CR)
        if grad_hidden_TH is not None:
            torch.mm(grad_CR, weight_RH, out=grad_hidden_TH[chunk])
        if grad_weight_VH is not None:
            # In place: a fresh [V, H] matrix for every chunk would dwarf the chunk itself.
            grad_weight_VH[: head.real_rows].addmm_(grad_CR.T, hidden_CH)
    return grad_hidden_TH, grad_weight_VH


def _chunks(head: Head, tokens: int) -> Iterator[slice]:
    """Slices of at most `chunk_tokens`; none for a shard without rows, which adds nothing."""
    if head.real_rows:
        for start in range(0, tokens, head.chunk_tokens):
            yield slice(start, start + head.chunk_tokens)


def _real(head: Head, weight_VH: Tensor) -> Tensor:
    """[R, H] in the type of the arithmetic. What stands in padded rows is never read."""
    return weight_VH[: head.real_rows].to(head.wide)


def _logits(head: Head, hidden_CH: Tensor, weight_RH: Tensor) -> tuple[Tensor, Tensor | None]:
    """(logits [C, R], derivative of the soft-cap [C, R] or None)."""
    logits_CR = hidden_CH @ weight_RH.T
    if head.softcap is None:
        return logits_CR, None
    tanh_CR = logits_CR.div_(head.softcap).tanh_()
    slope_CR = 1.0 - tanh_CR.square()
    return tanh_CR.mul_(head.softcap), slope_CR
