"""Label and EOS log-probs from one log-sum-exp, part by part, over a sharded vocabulary.

Detailed balance needs, for every token, the log-prob of the label and of EOS. Both are columns of
the same log-softmax. A part of the logits exists at a time, in the forward pass and again in the
backward pass, which computes them anew; what is kept is the log-sum-exp of each token.

A vocabulary that is split over ranks costs two collectives forward (a maximum and a sum of a few
numbers a token) and one backward (the gradient of the hidden states), whatever the parts.

Two ways lead to the numbers: `wide.py`, in float32 or float64 on any device, and `tiles.py`, for
bfloat16 inputs on a GPU.

Shapes: T tokens, V vocabulary rows on this rank, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_gdpo.logprobs.main_grad import MainGrad
from nemo_gdpo.logprobs.shard import Head, Saved, Scores
from nemo_gdpo.logprobs.types import SelectedLogprobs, check_arguments, wide_dtype
from nemo_gdpo.logprobs.wide import wide_gradients, wide_scores


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
    main_grad: MainGrad | None = None,
) -> SelectedLogprobs:
    """Log-probs of each token's label and of EOS, from one log-sum-exp.

    Logits, sums and both gradients are computed and accumulated in float32, whatever the inputs'
    type and also under autocast (float64 for float64 inputs). The gradients are returned in the
    type of their inputs. Second derivatives are not available.

    With bfloat16 inputs on a GPU the products run on bfloat16 operands, accumulated in float32, and
    so the gradient of each logit but the label's and EOS's is rounded to bfloat16 before it meets
    the inputs: an error of at most 2^-8 of itself (`tiles.py`).

    Args:
        hidden_TH: the last hidden states; the same on every rank of `tp_group`.
        weight_VH: the head's rows on this rank: rank r holds rows r * V to (r + 1) * V.
        labels_T: global ids, int64, below `vocab_size`; the same on every rank of `tp_group`.
        eos_id: global id of the token that ends a response; None for the label's column only.
        eos_temperature: divides the logits of the tempered EOS column, which has no gradient
            (only the reference's is read, and it is constant).
        tp_group: ranks that share the vocabulary; None for a vocabulary in one piece.
        chunk_tokens: at most the logits of this many tokens exist at the same time.
        logit_softcap: c of c * tanh(z / c) (Gemma 2).
        vocab_size: true vocabulary over all ranks; later rows are padding, take no part in the sum
            and get a gradient of zero. None: all rows are real.
        main_grad: where the weight's gradient is added; None to return it.

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
    wide = wide_dtype(hidden_TH, weight_VH)
    if main_grad is not None and main_grad.total_VH.dtype != wide:
        raise ValueError(f"main_grad is {main_grad.total_VH.dtype}, the arithmetic {wide}")
    head = Head(
        first_row=first_row,
        real_rows=min(max(size - first_row, 0), rows),
        eos_id=eos_id,
        eos_temperature=eos_temperature,
        softcap=logit_softcap,
        group=tp_group if ranks > 1 else None,
        chunk_tokens=chunk_tokens,
        wide=wide,
        tiled=runs_in_tiles(hidden_TH, weight_VH),
        main_grad=main_grad,
    )
    # Autocast would turn products of float32 matrices into bfloat16 ones, here and in the backward.
    with torch.autocast(hidden_TH.device.type, enabled=False):
        label_T, eos_T, tempered_T = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_TH, weight_VH, labels_T.contiguous(), head
        )
    if eos_id is None:
        return SelectedLogprobs(label_T, None, None)
    return SelectedLogprobs(label_T, eos_T, eos_T if eos_temperature == 1.0 else tempered_T)


def runs_in_tiles(hidden_TH: Tensor, weight_VH: Tensor) -> bool:
    """Whether `tiles.py` takes these inputs: bfloat16 on a GPU."""
    narrow = hidden_TH.dtype == weight_VH.dtype == torch.bfloat16
    return narrow and hidden_TH.device.type == "cuda"


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, head: Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        highest_T, parts_4T = _scores(head, hidden_TH, weight_VH, labels_T)
        total_T, tempered_total_T, label_T, eos_T = parts_4T
        if head.group is not None:
            own_highest_T = highest_T.clone()
            head.reduce(highest_T, dist.ReduceOp.MAX)
            # -inf, hence a factor of 0, in a shard of padding alone.
            lag_T = own_highest_T - highest_T
            total_T.mul_(lag_T.exp())
            tempered_total_T.mul_((lag_T / head.eos_temperature).exp())
            head.reduce(parts_4T, dist.ReduceOp.SUM)
        log_total_T = total_T.log()
        eos_above_T = eos_T - highest_T
        tempered_T = eos_above_T / head.eos_temperature - tempered_total_T.log()
        label_T = label_T - highest_T - log_total_T
        eos_T = eos_above_T - log_total_T
        ctx.save_for_backward(
            *Saved(hidden_TH, weight_VH, labels_T, highest_T + log_total_T, label_T, eos_T)
        )
        ctx.head = head
        ctx.mark_non_differentiable(tempered_T)
        return label_T, eos_T, tempered_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = Saved(*ctx.saved_tensors), ctx.needs_input_grad[:2]
        with torch.autocast(saved.hidden_TH.device.type, enabled=False):
            gradients = _gradients(ctx.head, saved, *grads[:2], needed=needed)
        return *gradients, None, None


def _scores(head: Head, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor) -> Scores:
    if not head.tiled:
        return wide_scores(head, hidden_TH, weight_VH, labels_T)
    # Imports Triton, which belongs to GPUs, and starts kernels on the current one.
    from nemo_gdpo.logprobs.tiles import tiled_scores

    with torch.cuda.device_of(hidden_TH):  # type: ignore[no-untyped-call]
        return tiled_scores(head, hidden_TH, weight_VH, labels_T)


def _gradients(
    head: Head,
    saved: Saved,
    grad_label_T: Tensor,
    grad_eos_T: Tensor,
    *,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """(hidden gradient, weight gradient) for autograd, None where it is not `needed`.

    Autograd calls this with the inputs' GPU as the current one.
    """
    gradients = wide_gradients
    if head.tiled:
        from nemo_gdpo.logprobs.tiles import tiled_gradients

        gradients = tiled_gradients
    grad_hidden_TH, grad_weight_VH = gradients(head, saved, grad_label_T, grad_eos_T, needed=needed)
    if grad_hidden_TH is not None:
        head.reduce(grad_hidden_TH, dist.ReduceOp.SUM)
        grad_hidden_TH = grad_hidden_TH.to(saved.hidden_TH.dtype)
    if grad_weight_VH is not None and head.main_grad is not None:
        grad_weight_VH = head.main_grad.added()
    elif grad_weight_VH is not None:
        grad_weight_VH = grad_weight_VH.to(saved.weight_VH.dtype)
    return grad_hidden_TH, grad_weight_VH
