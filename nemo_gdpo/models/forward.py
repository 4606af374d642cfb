"""One forward pass of the Megatron GPT: from a micro-batch to log-probs of its response tokens.

The language-model head is not megatron's: the model's `output_processor` hook hands over the last
stage's hidden states, response positions are picked out, and only those meet the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from nemo_gdpo.data.collate import PackedBatch, PaddedBatch
from nemo_gdpo.logprobs import MainGrad, selected_logprobs
from nemo_gdpo.models.attention import packed_positions, zigzag_positions
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.shared import SharedSeqParams


@dataclass(frozen=True)
class HeadOptions:
    """Options of the head: what it computes besides the label's log-prob."""

    vocab_size: int
    """True vocabulary; the rows that pad it are masked out."""
    eos_id: int | None = None
    eos_temperature: float = 1.0
    chunk_tokens: int = 1024
    logit_softcap: float | None = None


class _GatherTokens(torch.autograd.Function):
    """All-gather tokens [T_r, C] of unequal counts along dim 0; each rank's backward keeps its own.

    Every context-parallel rank computes the same loss from the gathered values, so the gradient of
    a rank's own part is already complete: summing over ranks would count it once per rank.
    """

    @staticmethod
    def forward(ctx: Any, x_TC: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
        rank = group.rank()
        ctx.start, ctx.count = sum(counts[:rank]), counts[rank]
        longest = max(counts)
        padded = x_TC.new_zeros(longest, x_TC.shape[1])
        padded[: x_TC.shape[0]] = x_TC
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][ctx.start : ctx.start + ctx.count].contiguous(), None, None


def _head(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    labels: Tensor,
    context: HeadOptions,
    config: Any,
    **_: Any,
) -> Tensor:
    """Megatron's `output_processor`: hidden [S, B, H] and labels [B, S] -> float32 [T, C].

    T runs over the labelled positions of row 0, then row 1, ...; C is the label's column, then EOS
    and tempered EOS when asked for.
    """
    if config.sequence_parallel:
        # The head's backward sums hidden gradients over the tensor-parallel ranks itself.
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False
        )
    # One wait for a GPU, where a mask as an index is one each time. The check of the labels in the
    # head is another, which finds nothing queued, and what follows takes milliseconds.
    chosen_T = (labels >= 0).flatten().nonzero().squeeze(1)
    rows, length = labels.shape
    place_T = chosen_T % length * rows + chosen_T // length
    weight = output_layer.weight if output_weight is None else output_weight
    tp_group = parallel_state.get_tensor_model_parallel_group()
    result = selected_logprobs(
        hidden_states.flatten(0, 1).index_select(0, place_T),
        weight,
        labels.flatten().index_select(0, chosen_T),
        eos_id=context.eos_id,
        eos_temperature=context.eos_temperature,
        tp_group=tp_group if tp_group.size() > 1 else None,
        chunk_tokens=context.chunk_tokens,
        vocab_size=context.vocab_size,
        logit_softcap=context.logit_softcap,
        main_grad=_main_grad(weight),
    )
    columns = [result.label_T, result.eos_T, result.tempered_eos_T]
    return torch.stack([column for column in columns if column is not None], dim=1)


def _main_grad(weight: Tensor) -> MainGrad | None:
    """Where the head's gradient is added; None to hand it to autograd.

    On a CPU always that: the sum over micro-batches in another order would differ in its last bits,
    and trajectories on a CPU are compared to the bit.
    """
    return MainGrad.of(weight) if weight.device.type == "cuda" else None


def _full_logits(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    context: HeadOptions,
    config: Any,
    **_: Any,
) -> Tensor:
    """Megatron's `output_processor`: hidden [S, B, H] -> logits float32 [B, S, V] on every rank."""
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states)
    weight = output_layer.weight if output_weight is None else output_weight
    local_SBV = hidden_states.float() @ weight.float().T
    logits_SBV = gather_from_tensor_model_parallel_region(local_SBV)[..., : context.vocab_size]
    if context.logit_softcap is not None:
        logits_SBV = context.logit_softcap * torch.tanh(logits_SBV / context.logit_softcap)
    logits_BSV: Tensor = logits_SBV.transpose(0, 1)
    return logits_BSV


@torch.no_grad()
def forward_logits(model: Any, tokens_NS: Tensor, options: HeadOptions) -> Tensor:
    """Logits of complete rows, to compare models by; training never makes them.

    Args:
        model: a chunk. Under pipeline parallelism megatron's schedule has to call this stage by
            stage.
        tokens_NS: int64, no padding in between; no context parallelism.
        options: vocabulary and soft-cap.

    Returns:
        On the last stage float32 [N, S, V], soft-capped, without the vocabulary's padding; on
        other stages the hidden states for the next.
    """
    positions_NS = torch.arange(tokens_NS.shape[1], device=tokens_NS.device).expand_as(tokens_NS)
    output: Tensor = model(
        input_ids=tokens_NS,
        position_ids=positions_NS,
        attention_mask=None,
        output_processor=_full_logits,
        output_processor_context=options,
    )
    return output


def _columns(rows: PaddedBatch | PackedBatch, rank: int, world: int) -> Tensor:
    """Columns of the rows that a context-parallel rank holds, int64."""
    if isinstance(rows, PackedBatch):
        # Bounds are read on the host, once a rank: they lie where the batch is.
        return packed_positions(rows.cu_seqlens, rank, world)
    return zigzag_positions(rows.tokens_NS.shape[1], rank, world, rows.tokens_NS.device)


def _gather_context(
    values_TC: Tensor, labels_NS: Tensor, rows: PaddedBatch | PackedBatch
) -> Tensor:
    """Put the context-parallel ranks' tokens back into the order of the complete rows."""
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return values_TC
    order, counts = [], []
    flat_index_NS = torch.arange(labels_NS.numel(), device=labels_NS.device).view_as(labels_NS)
    for rank in range(group.size()):
        columns = _columns(rows, rank, group.size())
        mine = flat_index_NS[:, columns][labels_NS[:, columns] >= 0]
        order.append(mine)
        counts.append(mine.numel())
    gathered: Tensor = _GatherTokens.apply(values_TC, counts, group)  # type: ignore[no-untyped-call]
    return gathered[torch.cat(order).argsort()]


def packed_params(rows: PaddedBatch | PackedBatch, context: int) -> PackedSeqParams | None:
    """Bounds of the sequences for megatron's layers; None for padded rows."""
    if not isinstance(rows, PackedBatch):
        return None
    if rows.shared is not None:
        return SharedSeqParams.of(rows)
    bounds = rows.cu_seqlens
    # Under context parallelism Transformer Engine asks for the bounds with the filling, too. What
    # fills a sequence up belongs to it here; said so, it need not compare them, which waits.
    filled = {"cu_seqlens_q_padded": bounds, "cu_seqlens_kv_padded": bounds}
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=rows.max_seqlen,
        max_seqlen_kv=rows.max_seqlen,
        pad_between_seqs=False,
        **(filled if context > 1 else {}),
    )


def forward_logprobs(
    model: Any, batch: PreferenceMicroBatch, options: HeadOptions, *, is_last_stage: bool
) -> Tensor:
    """Run `model` (a chunk, as megatron's schedule hands it over) on one micro-batch.

    Returns:
        On the last stage float32 [T, C]: T response tokens of the micro-batch in row order,
        C = label, EOS, tempered EOS. On other stages the hidden states for the next stage.
    """
    rows, group = batch.rows, parallel_state.get_context_parallel_group()
    tokens, labels, position_ids = batch.inputs
    own = slice(None) if group.size() == 1 else _columns(rows, group.rank(), group.size())
    output: Tensor = model(
        input_ids=tokens[:, own],
        position_ids=position_ids[:, own],
        # None: rows are padded on the right, where causality hides the padding.
        attention_mask=None,
        labels=labels[:, own],
        packed_seq_params=packed_params(rows, group.size()),
        output_processor=_head,
        output_processor_context=options,
    )
    return _gather_context(output, labels, rows) if is_last_stage else output
