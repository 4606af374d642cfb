"""The plain form: one matrix of logits, autograd throughout. Small inputs and tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.logprobs.types import SelectedLogprobs, check_arguments, wide_dtype


def selected_logprobs_reference(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    eos_id: int | None = None,
    eos_temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    logit_softcap: float | None = None,
    vocab_size: int | None = None,
) -> SelectedLogprobs:
    """As `selected_logprobs`, without chunks; a sharded head is gathered in full on every rank."""
    all_VH = weight_VH
    if tp_group is not None:
        all_VH = _GatherRows.apply(weight_VH, tp_group)  # type: ignore[no-untyped-call]
    size = check_arguments(
        hidden_TH,
        weight_VH,
        labels_T,
        all_rows=all_VH.shape[0],
        vocab_size=vocab_size,
        eos_id=eos_id,
        eos_temperature=eos_temperature,
        logit_softcap=logit_softcap,
    )
    wide = wide_dtype(hidden_TH, weight_VH)
    logits_TV = hidden_TH.to(wide) @ all_VH[:size].to(wide).T
    if logit_softcap is not None:
        logits_TV = logit_softcap * torch.tanh(logits_TV / logit_softcap)
    logps_TV = logits_TV.log_softmax(dim=-1)
    label_T = logps_TV.gather(1, labels_T[:, None]).squeeze(1)
    if eos_id is None:
        return SelectedLogprobs(label_T, None, None)
    eos_T = logps_TV[:, eos_id]
    if eos_temperature == 1.0:
        return SelectedLogprobs(label_T, eos_T, eos_T)
    tempered_TV = (logits_TV.detach() / eos_temperature).log_softmax(dim=-1)
    return SelectedLogprobs(label_T, eos_T, tempered_TV[:, eos_id])


class _GatherRows(torch.autograd.Function):
    """All ranks' rows in order of rank. Every rank computes the same loss from all of them, so that
    the gradient of its own rows is complete without a sum."""

    @staticmethod
    def forward(ctx: Any, weight_VH: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.rows = dist.get_rank(group), weight_VH.shape[0]
        shards = [torch.empty_like(weight_VH) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shards, weight_VH.contiguous(), group=group)
        return torch.cat(shards)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None
