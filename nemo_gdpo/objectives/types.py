"""Inputs and outputs of an objective.

Shapes: N responses or pairs, T response positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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


@dataclass(frozen=True)
class PairLogps:
    """Two responses to the same prompt, row by row."""

    chosen: TokenLogps
    rejected: TokenLogps


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
    weight_N: Tensor | None = None
    """float, where the data has weights."""
    margin_N: Tensor | None = None
    """float, where the data has margins."""
    chosen_complete_N: Tensor | None = None
    """bool; None: all are complete."""
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
