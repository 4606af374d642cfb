"""Direct preference optimisation, its label-smoothed form, and IPO.

Rafailov et al. 2023 (DPO, equation 7); Mitchell 2023 (cDPO); Azar et al. 2023 (IPO, equation 17).
h is the difference of log-ratios; see `pairwise.PairSums`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from nemo_gdpo.config.objective import DPOSettings, IPOSettings
from nemo_gdpo.objectives.pairwise import (
    PairSums,
    PairwiseObjective,
    less_margin,
    pair_sums,
    zeros_of,
)
from nemo_gdpo.objectives.types import ObjectiveOutput, PairLogps, PairTargets, Step0Inputs


class DPO(DPOSettings, PairwiseObjective):
    """-(1 - eps) log sigma(beta h) - eps log sigma(-beta h); eps is `label_smoothing`.

    With `average_log_probs`, h is the difference of the mean log-ratios a token (length-normalised
    DPO, as in Tulu 3; Lambert et al. 2024).
    """

    method: ClassVar[str] = "dpo"
    citation: ClassVar[str] = "Rafailov et al., Direct Preference Optimization, 2023"

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair: -log sigma(beta h - m) with a given margin m."""
        sums = pair_sums(policy, reference)
        margin = self.beta * _log_ratio_difference(sums, policy, average=self.average_log_probs)
        margin = less_margin(margin, targets.margin_N)
        loss = -logsigmoid(margin)
        if self.label_smoothing:
            eps = self.label_smoothing
            loss = (1 - eps) * loss - eps * logsigmoid(-margin)
        return ObjectiveOutput(loss, sums.metrics(self.beta))

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor:
        """ln 2, whatever the smoothing, or log(1 + exp(m)) with a margin m; float64 [N]."""
        return softplus(-less_margin(zeros_of(pairs), pairs.margin_N))


class IPO(IPOSettings, PairwiseObjective):
    """(h - 1 / (2 beta))^2. beta is the paper's tau: a large one means a small target gap.

    With `average_log_probs`, each response's log-prob is divided by its length first, as some
    trainers do; the paper's and the default form sums.
    """

    method: ClassVar[str] = "ipo"
    citation: ClassVar[str] = (
        "Azar et al., A General Theoretical Paradigm to Understand Learning from Human "
        "Preferences, 2023"
    )

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair: (h - 1 / (2 beta) - m / beta)^2 with a given margin m of beta h."""
        sums = pair_sums(policy, reference)
        h = _log_ratio_difference(sums, policy, average=self.average_log_probs)
        loss = (self._less_margin(h, targets.margin_N) - 1.0 / (2.0 * self.beta)) ** 2
        return ObjectiveOutput(loss, sums.metrics(self.beta))

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor:
        """The square of the whole target gap (1 / 2 + m) / beta; float64 [N]."""
        h = self._less_margin(zeros_of(pairs), pairs.margin_N)
        return (h - 1.0 / (2.0 * self.beta)).square()

    def _less_margin(self, h_N: Tensor, margin_N: Tensor | None) -> Tensor:
        return less_margin(h_N, None if margin_N is None else margin_N / self.beta)


def _log_ratio_difference(sums: PairSums, policy: PairLogps, *, average: bool) -> Tensor:
    """h of each pair, [N]; with `average` of means over a response instead of sums."""
    if not average:
        return sums.log_ratio_difference
    chosen = sums.policy_chosen - sums.reference_chosen
    rejected = sums.policy_rejected - sums.reference_rejected
    return chosen / _length(policy.chosen.mask_NT) - rejected / _length(policy.rejected.mask_NT)


def _length(mask_NT: Tensor) -> Tensor:
    return mask_NT.sum(dim=1)
