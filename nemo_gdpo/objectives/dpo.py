"""Direct preference optimisation, its label-smoothed form, and IPO.

Rafailov et al. 2023 (DPO, equation 7); Mitchell 2023 (cDPO); Azar et al. 2023 (IPO, equation 17).
h is the difference of log-ratios; see `pairwise.PairSums`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from nemo_gdpo.objectives.pairwise import pair_sums, require, require_positive
from nemo_gdpo.objectives.types import ObjectiveOutput, PairLogps, PairTargets


@dataclass(frozen=True)
class DPO:
    """-(1 - eps) log sigma(beta h) - eps log sigma(-beta h); eps is `label_smoothing`."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs_eos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        require(
            0.0 <= self.label_smoothing < 0.5,
            f"label_smoothing must be in [0, 0.5), not {self.label_smoothing}",
        )

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair; `targets` is not read."""
        del targets
        sums = pair_sums(policy, reference)
        margin = self.beta * sums.log_ratio_difference
        loss = -logsigmoid(margin)
        if self.label_smoothing:
            eps = self.label_smoothing
            loss = (1 - eps) * loss - eps * logsigmoid(-margin)
        return ObjectiveOutput(loss, sums.metrics(self.beta))


@dataclass(frozen=True)
class IPO:
    """(h - 1 / (2 beta))^2. beta is the paper's tau: a large one means a small target gap.

    With `average_log_probs`, each response's log-prob is divided by its length first, as some
    trainers do; the paper's and the default form sums.
    """

    beta: float = 0.1
    average_log_probs: bool = False
    needs_eos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair; `targets` is not read."""
        del targets
        sums = pair_sums(policy, reference)
        h = sums.log_ratio_difference
        if self.average_log_probs:
            chosen = sums.policy_chosen - sums.reference_chosen
            rejected = sums.policy_rejected - sums.reference_rejected
            h = chosen / _length(policy.chosen.mask_NT) - rejected / _length(
                policy.rejected.mask_NT
            )
        loss = (h - 1.0 / (2.0 * self.beta)) ** 2
        return ObjectiveOutput(loss, sums.metrics(self.beta))


def _length(mask_NT: Tensor) -> Tensor:
    return mask_NT.sum(dim=1)
