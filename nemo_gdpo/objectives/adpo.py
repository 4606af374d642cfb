"""Active-query DPO (Ji, He & Gu 2024, section on practical algorithms).

A label is asked for only where the model is unsure, |beta h| <= gamma; elsewhere the model's own
confident guess serves as the label. In simulation the oracle's answer is the data's orientation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from nemo_gdpo.objectives.pairwise import pair_sums, require, require_positive
from nemo_gdpo.objectives.types import ObjectiveOutput, PairLogps, PairTargets


@dataclass(frozen=True)
class ADPO:
    """-log sigma(o beta h), o = +1 where queried, otherwise sign(h).

    gamma is in units of beta h: changing beta changes how much is asked. Without `pseudo_labels`, a
    pair that is not asked about has no gradient and the constant loss log 2, as in the paper's
    ablation.
    """

    beta: float = 0.1
    gamma: float = 1.3
    pseudo_labels: bool = True
    needs_eos: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_positive("beta", self.beta)
        # Infinity is meaningful: everything is asked for, which is DPO.
        require(self.gamma >= 0, f"gamma must not be negative, not {self.gamma}")

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair; `targets` is not read.

        Metrics: `queried` is 1 where a label is asked for; `pseudo_label_agreement` is 1 where none
        is and the guess agrees with the data, so that the rate is its sum over that of 1 - queried.
        """
        del targets
        sums = pair_sums(policy, reference)
        margin = self.beta * sums.log_ratio_difference
        confidence = margin.detach()
        queried = confidence.abs() <= self.gamma
        guess = torch.sign(confidence) if self.pseudo_labels else torch.zeros_like(confidence)
        label = torch.where(queried, torch.ones_like(confidence), guess)
        loss = -logsigmoid(label * margin)
        agreement = ~queried & (confidence > 0)
        return ObjectiveOutput(
            loss,
            {
                **sums.metrics(self.beta),
                "queried": queried.to(confidence.dtype),
                "pseudo_label_agreement": agreement.to(confidence.dtype),
            },
        )
