"""DPO with an offset (Amini, Vieira & Cotterell 2024).

The stronger the preference, the larger the margin that is asked for: -log sigma(beta h - Delta).
The paper's offset, Delta = alpha log(s_c - s_r) with s_c the score of the chosen response and s_r
that of the rejected one, is negative for score gaps below 1, where it weakens the demand instead.
It depends on the units of the scores, and a tie would silently have no gradient: it is refused.
Label smoothing and IPO do not combine with it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from nemo_gdpo.config.objective import ODPOSettings
from nemo_gdpo.objectives.pairwise import (
    PairwiseObjective,
    at_least_float32,
    less_margin,
    pair_sums,
)
from nemo_gdpo.objectives.types import ObjectiveOutput, PairLogps, PairTargets, Step0Inputs


class ODPO(ODPOSettings, PairwiseObjective):
    """-log sigma(beta h - alpha f(s_c, s_r)).

    f is log(s_c - s_r) (`"log"`, the paper's), s_c - s_r (`"identity"`), log(1 + s_c - s_r)
    (`"log1p"`), or log(s_c / s_r) (`"ratio"`, for positive scores). alpha = 0 is DPO.
    """

    method: ClassVar[str] = "offset_dpo"
    citation: ClassVar[str] = (
        "Amini, Vieira & Cotterell, Direct Preference Optimization with an Offset, 2024"
    )

    def offsets(self, targets: PairTargets) -> Tensor:
        """Delta of each pair, [N].

        Raises:
            ValueError: scores are missing, tied, inverted, not finite, or not positive under
                `"ratio"`; the first such pair is named by its index.
        """
        if targets.chosen_score_N is None or targets.rejected_score_N is None:
            raise ValueError("ODPO needs chosen_score and rejected_score for every pair")
        won_N = at_least_float32(targets.chosen_score_N).detach()
        lost_N = at_least_float32(targets.rejected_score_N).detach()
        if won_N.dim() != 1 or won_N.shape != lost_N.shape:
            raise ValueError(
                f"scores have shapes {[*won_N.shape]} and {[*lost_N.shape]}, not one a pair"
            )
        finite_N = torch.isfinite(won_N) & torch.isfinite(lost_N)
        _refuse(~finite_N, "a score is not finite", won_N, lost_N)
        _refuse(won_N == lost_N, "the scores are tied (drop ties)", won_N, lost_N)
        _refuse(won_N < lost_N, "the chosen score is below the rejected one", won_N, lost_N)
        gap_N = won_N - lost_N
        if self.offset == "identity":
            scaled_N = gap_N
        elif self.offset == "log1p":
            scaled_N = torch.log1p(gap_N)
        elif self.offset == "ratio":
            _refuse(lost_N <= 0, "offset 'ratio' needs positive scores", won_N, lost_N)
            scaled_N = torch.log(won_N) - torch.log(lost_N)
        else:
            scaled_N = torch.log(gap_N)
        offset_N = self.alpha * scaled_N
        _refuse(~torch.isfinite(offset_N), "the offset is not finite", won_N, lost_N)
        return offset_N

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair; a given margin adds to the offset.

        Raises:
            ValueError: scores have no offset (see `offsets`), or the inputs do not fit together.
        """
        sums = pair_sums(policy, reference)
        margin_N = self.beta * sums.log_ratio_difference
        offset_N = self.offsets(targets)
        if offset_N.shape != margin_N.shape:
            raise ValueError(f"{offset_N.shape[0]} scores for {margin_N.shape[0]} pairs")
        # Scores of a wider type must not widen the loss.
        offset_N = offset_N.to(margin_N.dtype)
        loss_N = -logsigmoid(less_margin(margin_N - offset_N, targets.margin_N))
        return ObjectiveOutput(loss_N, {**sums.metrics(self.beta), "odpo/offset": offset_N})

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor:
        """The loss of the offsets alone, log(1 + exp(offset + m)); float64 [N]."""
        assert pairs.chosen_score_N is not None
        assert pairs.rejected_score_N is not None
        scores = PairTargets(pairs.chosen_score_N.double(), pairs.rejected_score_N.double())
        return softplus(-less_margin(-self.offsets(scores), pairs.margin_N))


def _refuse(bad_N: Tensor, reason: str, won_N: Tensor, lost_N: Tensor) -> None:
    if bool(bad_N.any()):
        index = int(bad_N.nonzero()[0, 0])
        raise ValueError(
            f"pair {index} of the batch: {reason} "
            f"(chosen {float(won_N[index])}, rejected {float(lost_N[index])})"
        )
