"""Soft preference learning: DPO with the pull to the reference split in two.

Slocum, Parker-Sartori & Hadfield-Menell (ICLR 2025; arXiv 2511.08594): the KL penalty is an entropy
bonus, weighed by alpha, and a cross-entropy to the reference, weighed by beta. The policy that it
asks for is pi(y) ~ pi_ref(y)^(beta / alpha) p(y)^(1 / alpha) with p the preference's own
distribution: beta < alpha flattens the reference, so that answers grow more diverse; beta = alpha
is DPO.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from nemo_gdpo.config.objective import SPLSettings
from nemo_gdpo.objectives.pairwise import PairwiseObjective, less_margin, pair_sums
from nemo_gdpo.objectives.types import ObjectiveOutput, PairLogps, PairTargets, Step0Inputs


class SPL(SPLSettings, PairwiseObjective):
    """-log sigma(alpha [log pi(y_w) - log pi(y_l)] - beta [log ref(y_w) - log ref(y_l)])."""

    method: ClassVar[str] = "soft_preference_learning"
    citation: ClassVar[str] = (
        "Slocum, Parker-Sartori & Hadfield-Menell, Diverse Preference Learning for Capabilities "
        "and Alignment, ICLR 2025"
    )

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair: -log sigma(margin - m) with a given margin m.

        Metrics: `rewards/*` are alpha log pi - beta log ref, whose difference is the margin.
        """
        sums = pair_sums(policy, reference)
        chosen_N = self.alpha * sums.policy_chosen - self.beta * sums.reference_chosen
        rejected_N = self.alpha * sums.policy_rejected - self.beta * sums.reference_rejected
        # Differences first: sums near -300 would leave their rounding in the margin.
        margin_N = self.alpha * (sums.policy_chosen - sums.policy_rejected) - self.beta * (
            sums.reference_chosen - sums.reference_rejected
        )
        metrics = sums.metrics(self.alpha) | {
            "rewards/chosen": chosen_N.detach(),
            "rewards/rejected": rejected_N.detach(),
            "rewards/margins": margin_N.detach(),
            "rewards/accuracies": (margin_N > 0).to(margin_N.dtype).detach(),
        }
        return ObjectiveOutput(-logsigmoid(less_margin(margin_N, targets.margin_N)), metrics)

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor:
        """-log sigma((alpha - beta) [log ref(y_w) - log ref(y_l)] - m); float64 [N].

        ln 2 at alpha = beta and without a margin only.
        """
        difference_N = (pairs.chosen_logp_N - pairs.rejected_logp_N).double()
        return softplus(-less_margin((self.alpha - self.beta) * difference_N, pairs.margin_N))
