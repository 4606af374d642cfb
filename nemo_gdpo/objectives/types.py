"""What goes into an objective and what comes out.

Shapes: N responses or pairs, T response positions.
"""

from __future__ import annotations

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
    """Graded preferences (ODPO); float [N], in the data's own units."""

    chosen_score_N: Tensor | None = None
    rejected_score_N: Tensor | None = None


@dataclass(frozen=True)
class ObjectiveOutput:
    """One loss a pair (callers reduce), and per-pair values [N] for the log, detached."""

    loss_N: Tensor
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """A preference objective: pure mathematics on token log-probabilities."""

    @property
    def needs_eos(self) -> bool:
        """Whether `eos_NT` of policy and reference is read."""

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss and metrics of N pairs; gradients flow to the policy only."""
