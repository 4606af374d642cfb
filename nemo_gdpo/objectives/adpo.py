"""Active-query DPO (Ji, He & Gu 2024, section on practical algorithms).

A label is asked for only where the model is unsure, |beta h| <= gamma; elsewhere the model's own
confident guess serves as the label. In simulation the oracle's answer is the data's orientation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nemo_gdpo.config.objective import ADPOSettings
from nemo_gdpo.objectives.pairwise import PairwiseObjective, mean_metrics, pair_sums
from nemo_gdpo.objectives.types import (
    UNKNOWN,
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    Step0Inputs,
)

QUERIED, AGREEMENT, KNOWN = "queried", "pseudo_label_agreement", "label_known"


class ADPO(ADPOSettings, PairwiseObjective):
    """-log sigma(o beta h), o = the oracle's answer where queried, otherwise sign(h).

    gamma is in units of beta h: changing beta changes how much is asked. Without `pseudo_labels`, a
    pair that is not asked about has no gradient and the constant loss log 2, as in the paper's
    ablation. An answer that neither response is better is half of each: the mean of both losses.
    """

    method: ClassVar[str] = "active_dpo"
    citation: ClassVar[str] = (
        "Ji, He & Gu, Reinforcement Learning from Human Feedback with Active Queries, 2024"
    )
    label_queries: ClassVar[str | None] = QUERIED

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair; of `targets`, the oracle's answers are read.

        Metrics: `queried` is 1 where a label is asked for; `pseudo_label_agreement` is 1 where none
        is and the guess agrees with the oracle, and `label_known` where its answer is known.
        A pair within gamma without any answer is taken at the model's word: whoever chose the batch
        has found it sure a moment ago, and rounding has moved it.
        """
        sums = pair_sums(policy, reference)
        margin = self.beta * sums.log_ratio_difference
        confidence = margin.detach()
        queried, known = confidence.abs() <= self.gamma, torch.ones_like(confidence).bool()
        answer = torch.ones_like(confidence)
        if targets.oracle_N is not None:
            known = targets.oracle_N != UNKNOWN
            answer = targets.oracle_N.to(confidence.dtype).where(known, 0.0)
            queried = queried & known
        guess = torch.sign(confidence) if self.pseudo_labels else torch.zeros_like(confidence)
        label = torch.where(queried, answer, guess)
        loss = -logsigmoid(label * margin)
        if targets.oracle_N is not None:
            tie = queried & (answer == 0)
            loss = torch.where(tie, -(logsigmoid(margin) + logsigmoid(-margin)) / 2, loss)
        agreement = ~queried & known & (confidence * answer > 0)
        metrics = {
            **sums.metrics(self.beta),
            QUERIED: queried.to(confidence.dtype),
            AGREEMENT: agreement.to(confidence.dtype),
            KNOWN: known.to(confidence.dtype),
        }
        return ObjectiveOutput(loss, metrics)

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor:
        """ln 2: the margin is 0 and everything is asked for; float64 [N]."""
        return torch.full(pairs.rejected_length_N.shape, math.log(2.0), dtype=torch.float64)

    def metrics_at_reference(self) -> Mapping[str, float]:
        """Every label is asked for; at gamma 0 rounding decides, so nothing is said."""
        return {QUERIED: 1.0} if self.gamma > 0 else {}

    def reduce(self, per_pair: Mapping[str, Tensor]) -> dict[str, float]:
        """Means, the share of pairs asked about, and agreement over the others with a known label.

        Where no label is known, the agreement is 1.
        """
        rest = {n: v for n, v in per_pair.items() if n not in (QUERIED, AGREEMENT, KNOWN)}
        asked_N, known_N = per_pair[QUERIED].double(), per_pair[KNOWN].double()
        compared = float(((1 - asked_N) * known_N).sum())
        agreed = float(per_pair[AGREEMENT].double().sum())
        return {
            **mean_metrics(rest),
            "adpo/query_rate": float(asked_N.sum()) / len(asked_N),
            "adpo/pseudo_label_agreement": agreed / compared if compared else 1.0,
        }
