"""The heads that are measured, each from hidden states to a loss: DPO's without a reference.

Shapes: S sequences, of which the first half was chosen, T tokens of each, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.logprobs import selected_logprobs

BETA = 0.1


@dataclass(frozen=True)
class Inputs:
    """Random numbers, the same each time; logits have a deviation of about 2."""

    hidden_STH: Tensor
    weight_VH: Tensor
    labels_ST: Tensor

    @classmethod
    def random(cls, sequences: int, length: int, hidden: int, vocabulary: int) -> Inputs:
        """Float32, with gradients."""
        draw = torch.Generator().manual_seed(0)
        hidden_STH = torch.randn(sequences, length, hidden, generator=draw)
        weight_VH = 2.0 / hidden**0.5 * torch.randn(vocabulary, hidden, generator=draw)
        labels_ST = torch.randint(vocabulary, (sequences, length), generator=draw)
        return cls(hidden_STH.requires_grad_(), weight_VH.requires_grad_(), labels_ST)


@dataclass(frozen=True)
class Scored:
    """What a head found."""

    loss: Tensor
    sums_S: Tensor
    """Log-prob of each sequence."""
    logps_ST: Tensor | None
    """Of each token; None of a head that has sums alone."""


Arm = Callable[[Inputs], Scored]


def from_logps(logps_ST: Tensor) -> Scored:
    """DPO's loss of the sums."""
    sums_S = logps_ST.sum(dim=1)
    chosen_N, rejected_N = sums_S.chunk(2)
    loss = -torch.nn.functional.logsigmoid(BETA * (chosen_N - rejected_N)).mean()
    return Scored(loss, sums_S, logps_ST)


def full_logits(inputs: Inputs) -> Scored:
    """One matrix of logits in float32, its log-softmax, and the labels' columns of it."""
    logits_STV = (inputs.hidden_STH @ inputs.weight_VH.T).float()
    logps_STV = logits_STV.log_softmax(dim=-1)
    return from_logps(logps_STV.gather(2, inputs.labels_ST[..., None]).squeeze(2))


def ours(inputs: Inputs) -> Scored:
    """`selected_logprobs` with its defaults."""
    found = selected_logprobs(
        inputs.hidden_STH.flatten(0, 1), inputs.weight_VH, inputs.labels_ST.flatten()
    )
    return from_logps(found.label_T.view_as(inputs.labels_ST))


def trl_arm(*outputs: str) -> Arm:
    """TRL's chunked head, as its `add_fused_lm_head` calls it, with these outputs."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def score(inputs: Inputs) -> Scored:
        hidden_TH, labels_T = inputs.hidden_STH.flatten(0, 1), inputs.labels_ST.flatten()
        logps_T, *_ = ChunkedLogProbFunction.apply(
            hidden_TH, inputs.weight_VH, None, labels_T, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE,
            None, 1.0, outputs,
        )  # fmt: skip
        return from_logps(logps_T.view_as(inputs.labels_ST))

    return score


def liger_arm() -> Arm:
    """Liger's fused DPO loss, a pair at a time, in plain torch.

    Its other heads are Triton kernels, which take a GPU. It computes gradients in its forward pass,
    and returns sums over sequences.
    """
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOLoss

    loss_of = LigerFusedLinearDPOLoss(beta=BETA, compiled=False, use_ref_model=False)

    def score(inputs: Inputs) -> Scored:
        loss, (chosen_N, rejected_N, *_) = loss_of(
            inputs.weight_VH, inputs.hidden_STH, inputs.labels_ST
        )
        return Scored(loss, torch.cat([chosen_N, rejected_N]), None)

    return score


FULL, OURS = "full logits", "ours"
ARMS: dict[str, Callable[[], Arm]] = {
    FULL: lambda: full_logits,
    OURS: lambda: ours,
    "TRL, log-probs alone": lambda: trl_arm("log_probs"),
    "TRL, as DPOTrainer": lambda: trl_arm("log_probs", "entropy", "mean_logits", "is_top1"),
    "Liger, DPO loss": liger_arm,
}
"""Name -> what imports it. The first is what the others are compared with."""
