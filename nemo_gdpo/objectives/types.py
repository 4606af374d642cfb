"""Inputs and outputs of an objective.

Shapes: N responses or pairs, T response positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities along N responses, right-padded to T positions, float32.

    Position i scores y_{i+1} given s_i = (prompt, y_1..y_i). In a complete response the last True
    position scores EOS. What stands at masked positions is never read.
    """

    label_NT: Tensor
    """log p(y_{i+1} | s_i)."""
    mask_NT: Tensor
    """bool; True positions come first in every row."""
    eos_NT: Tensor | None = None
    """log p(EOS | s_i)."""
    tempered_eos_NT: Tensor | None = None
    """log softmax(z_i / gamma)[EOS]; of a reference only."""
    complete_N: Tensor | None = None
    """bool; None when all are. False: the response was cut, and no position scores its EOS."""


def joined(first: TokenLogps, second: TokenLogps) -> TokenLogps:
    """The responses of both, one after the other; a column that one of them lacks is left out."""
    width = max(first.mask_NT.shape[1], second.mask_NT.shape[1])

    def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        if one is None or other is None:
            return None
        return torch.cat([pad(one, (0, width - one.shape[1])) for one in (one, other)])

    sizes = first.mask_NT[:, 0], second.mask_NT[:, 0]
    complete = [
        torch.ones_like(size) if side.complete_N is None else side.complete_N
        for side, size in zip((first, second), sizes, strict=True)
    ]
    label_NT = both(first.label_NT, second.label_NT)
    mask_NT = both(first.mask_NT, second.mask_NT)
    assert label_NT is not None and mask_NT is not None
    return TokenLogps(
        label_NT,
        mask_NT,
        both(first.eos_NT, second.eos_NT),
        both(first.tempered_eos_NT, second.tempered_eos_NT),
        torch.cat(complete),
    )


@dataclass(frozen=True)
class PairLogps:
    """Two responses to the same prompt, row by row."""

    chosen: TokenLogps
    rejected: TokenLogps


UNKNOWN = 2
"""In `oracle_N`: there is no answer."""


@dataclass(frozen=True)
class GroupLogps:
    """N responses, several to a prompt."""

    responses: TokenLogps
    group_N: Tensor
    """int64: the responses of one prompt have one number; any numbers, in any order."""

    @classmethod
    def of_pairs(cls, pairs: PairLogps, group_N: Tensor | None = None) -> GroupLogps:
        """All chosen, then all rejected responses.

        Args:
            pairs: N, of one width.
            group_N: of each pair; None: every pair is a group of two.
        """
        chosen = pairs.chosen.mask_NT
        if group_N is None:
            group_N = torch.arange(chosen.shape[0], device=chosen.device)
        return cls(joined(pairs.chosen, pairs.rejected), group_N.repeat(2))


@dataclass(frozen=True)
class PairTargets:
    """What the data says of the pairs besides which response is preferred; float [N]."""

    chosen_score_N: Tensor | None = None
    """Graded preferences (ODPO), in the data's own units."""
    rejected_score_N: Tensor | None = None
    weight_N: Tensor | None = None
    """Factor of the pair's loss, not negative; None is 1."""
    margin_N: Tensor | None = None
    """How much more of the objective's own log-ratio is asked for, not negative; None is 0."""
    chosen_label_N: Tensor | None = None
    """bool, of unpaired rows, two of which stand in the places of chosen and rejected: whether the
    response is a good one. None: a pair."""
    rejected_label_N: Tensor | None = None
    group_N: Tensor | None = None
    """int64: pairs with one number are answers to one prompt, and one group; None: none are."""
    oracle_N: Tensor | None = None
    """int8: what somebody who was asked says of the pair: 1 for the chosen response, -1 for the
    rejected one, 0 for neither, `UNKNOWN` where nobody was. None: the chosen one, always."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """One loss a pair (callers reduce), and per-pair values [N] for the log, detached."""

    loss_N: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Step0Inputs:
    """Inputs of the loss of a policy that equals its reference; all [N]."""

    rejected_length_N: Tensor
    """Response positions of the rejected response, EOS included, int64."""
    rejected_complete_N: Tensor
    """bool; False: the response was cut."""
    chosen_logp_N: Tensor
    """log p(y_w | x) under the model that both are."""
    rejected_logp_N: Tensor
    """log p(y_l | x) under the model that both are."""
    chosen_score_N: Tensor | None = None
    """float, where the data has scores."""
    rejected_score_N: Tensor | None = None
    """float, where the data has scores."""
    chosen_length_N: Tensor | None = None
    """Response positions of the chosen response, where they are known."""
    chosen_complete_N: Tensor | None = None
    """bool; False: the response was cut. None where it is not known."""
    group_N: Tensor | None = None
    """int64, see `PairTargets`; None: every pair is a group."""
    weight_N: Tensor | None = None
    """float, where the data has weights."""
    margin_N: Tensor | None = None
    """float, where the data has margins."""
    chosen_label_N: Tensor | None = None
    """bool, of unpaired rows, as in `PairTargets`."""
    rejected_label_N: Tensor | None = None


class Objective(Protocol):
    """A preference objective: pure mathematics on token log-probabilities."""

    @property
    def needs_eos(self) -> bool:
        """Whether `eos_NT` of policy and reference is read."""

    @property
    def reference_eos_temperature(self) -> float:
        """Temperature of the reference's EOS column; 1 where no tempered column is read."""

    @property
    def label_queries(self) -> str | None:
        """Metric that is 1 where a pair's label is asked for; None when every label is used."""

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss and metrics of N pairs; gradients flow to the policy only."""

    def loss_at_reference(self, pairs: Step0Inputs) -> Tensor | None:
        """Loss of each pair when policy and reference are equal, float64 [N]; None if not known."""

    def metrics_at_reference(self) -> Mapping[str, float]:
        """Metrics that have one value for every pair when policy and reference are equal."""

    def reduce(self, per_pair: Mapping[str, Tensor]) -> dict[str, float]:
        """One number for the log from the per-pair values [N] of an update, by metric."""
