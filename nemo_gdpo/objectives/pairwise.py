"""Parts that objectives share: response log-probs, the log-ratio difference h, common metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_gdpo.config.objective import ObjectiveSettings
from nemo_gdpo.objectives.types import (
    ObjectiveOutput,
    PairLogps,
    PairTargets,
    Step0Inputs,
    TokenLogps,
)


def require(condition: bool, message: str) -> None:
    """Refuse a parameter.

    Raises:
        ValueError: with `message`, when `condition` does not hold.
    """
    if not condition:
        raise ValueError(message)


def at_least_float32(values: Tensor) -> Tensor:
    """float64 stays, every other type becomes float32: sums near -300 are 2 apart in bfloat16."""
    return values if values.dtype == torch.float64 else values.float()


def masked(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Values with padding set to zero; NaN in padding reaches neither sums nor gradients."""
    wide_NT = at_least_float32(values_NT)
    return wide_NT.where(mask_NT, wide_NT.new_zeros(()))


def response_logp(logps: TokenLogps) -> Tensor:
    """log p(y | x): sum over response positions, EOS included; [N]."""
    return masked(logps.label_NT, logps.mask_NT).sum(dim=1)


def less_margin(value_N: Tensor, margin_N: Tensor | None) -> Tensor:
    """What a preference's log-ratio exceeds the given margin by, [N]; itself without one."""
    return value_N if margin_N is None else value_N - margin_N.to(value_N.dtype)


def zeros_of(pairs: Step0Inputs) -> Tensor:
    """The log-ratio difference of a policy that equals its reference, float64 [N]."""
    return torch.zeros(pairs.rejected_length_N.shape, dtype=torch.float64)


def mean_metrics(per_pair: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean over pairs of every metric [N], in float64."""
    return {name: float(values_N.double().mean()) for name, values_N in per_pair.items()}


class PairwiseObjective(ObjectiveSettings):
    """Defaults of `types.Objective` that most objectives use, and what weighs a pair.

    A paper's class states what differs: its loss, its loss at the reference, its columns, its
    citation. What it needs of the data stands with its settings.
    """

    needs_eos: ClassVar[bool] = False
    label_queries: ClassVar[str | None] = None
    method: ClassVar[str]
    """Unambiguous name of the method, for files that leave the project."""
    citation: ClassVar[str]

    def __call__(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss of each pair, times its weight; see `pair_losses` of the objective.

        Weights are not normalised: callers divide the sum by the number of pairs.

        Raises:
            ValueError: unpaired rows or a margin that this objective has no meaning for, or the
                inputs do not fit together.
        """
        refusal = self.margin_refusal()
        if targets.margin_N is not None and refusal is not None:
            raise ValueError(f"a given margin: {refusal}")
        if targets.chosen_label_N is not None and not self.takes_unpaired:
            raise ValueError("unpaired rows: this objective compares two responses to one prompt")
        output = self.pair_losses(policy, reference, targets)
        for name, given_N in (("weight", targets.weight_N), ("margin", targets.margin_N)):
            if given_N is not None and given_N.shape != output.loss_N.shape:
                raise ValueError(f"{name} of shape {[*given_N.shape]}, not one a pair")
        if targets.weight_N is None:
            return output
        weight_N = targets.weight_N.to(output.loss_N.dtype)
        return ObjectiveOutput(output.loss_N * weight_N, output.metrics)

    def pair_losses(
        self, policy: PairLogps, reference: PairLogps, targets: PairTargets
    ) -> ObjectiveOutput:
        """Loss and metrics of each pair, before its weight."""
        raise NotImplementedError

    def loss_at_reference(self, pairs: Step0Inputs) -> Tensor | None:
        """Loss of each pair, times its weight, when policy and reference are equal, float64 [N].

        None where it is not known.
        """
        loss_N = self.pair_losses_at_reference(pairs)
        if loss_N is None or pairs.weight_N is None:
            return loss_N
        return loss_N * pairs.weight_N.double()

    def pair_losses_at_reference(self, pairs: Step0Inputs) -> Tensor | None:
        """The same before the weight."""
        raise NotImplementedError

    @property
    def reference_eos_temperature(self) -> float:
        """1: the reference's end-token probability is read as it is, or not at all."""
        return 1.0

    def metrics_at_reference(self) -> Mapping[str, float]:
        """None is known but the loss."""
        return {}

    def reduce(self, per_pair: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean of every metric."""
        return mean_metrics(per_pair)


@dataclass(frozen=True)
class PairSums:
    """Response log-probs of a batch of pairs; all [N]."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    @property
    def log_ratio_difference(self) -> Tensor:
        """h = [log pi(y_w) - log pi(y_l)] - [log pi_ref(y_w) - log pi_ref(y_l)]."""
        return (self.policy_chosen - self.policy_rejected) - (
            self.reference_chosen - self.reference_rejected
        )

    def metrics_of_rows(
        self, first_is_good_N: Tensor, second_is_good_N: Tensor
    ) -> dict[str, Tensor]:
        """Margins and accuracies of unpaired rows, two of which stand in each place, [N].

        A row's reward counts as it is where the row is good, and turned round where it is bad: two
        rows with different labels have the margin of a pair. The accuracy is the share of rows
        whose reward has the sign of their label. Which two rows share a place changes no mean.
        """
        first = (self.policy_chosen - self.reference_chosen).detach()
        second = (self.policy_rejected - self.reference_rejected).detach()
        signed = [
            torch.where(is_good, reward, -reward)
            for is_good, reward in ((first_is_good_N, first), (second_is_good_N, second))
        ]
        right = [(reward > 0).to(reward.dtype) for reward in signed]
        return {
            "rewards/margins": signed[0] + signed[1],
            "rewards/accuracies": (right[0] + right[1]) / 2,
        }

    def metrics(self, beta: float) -> dict[str, Tensor]:
        """TRL's names; rewards are beta (log pi - log pi_ref)."""
        chosen = (beta * (self.policy_chosen - self.reference_chosen)).detach()
        rejected = (beta * (self.policy_rejected - self.reference_rejected)).detach()
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "logps/chosen": self.policy_chosen.detach(),
            "logps/rejected": self.policy_rejected.detach(),
            "reference_logps/chosen": self.reference_chosen.detach(),
            "reference_logps/rejected": self.reference_rejected.detach(),
        }


def pair_sums(policy: PairLogps, reference: PairLogps) -> PairSums:
    """Sum all four responses of each pair. The reference carries no gradient.

    Raises:
        ValueError: the inputs do not fit together (see `check_layout`).
    """
    check_layout("chosen", policy.chosen, reference.chosen)
    check_layout("rejected", policy.rejected, reference.rejected)
    chosen, rejected = policy.chosen.mask_NT.shape[0], policy.rejected.mask_NT.shape[0]
    require(chosen == rejected, f"{chosen} chosen responses for {rejected} rejected ones")
    return PairSums(
        policy_chosen=response_logp(policy.chosen),
        policy_rejected=response_logp(policy.rejected),
        reference_chosen=response_logp(reference.chosen).detach(),
        reference_rejected=response_logp(reference.rejected).detach(),
    )


def check_layout(side: str, policy: TokenLogps, reference: TokenLogps) -> None:
    """Refuse inputs of which an objective would make a number that means nothing.

    Broadcasting would let a wrong shape pass, and a reference of other responses than the policy's
    would pass too if their counts happened to agree.

    Raises:
        ValueError: naming the side, and the row where it is one row's fault.
    """
    mask_NT = policy.mask_NT
    for owner, logps in (("policy", policy), ("reference", reference)):
        columns = {
            "label_NT": logps.label_NT,
            "mask_NT": logps.mask_NT,
            "eos_NT": logps.eos_NT,
            "tempered_eos_NT": logps.tempered_eos_NT,
        }
        for name, column in columns.items():
            require(
                column is None or (column.dim() == 2 and column.shape == mask_NT.shape),
                f"{side}: {owner} {name} has shape {None if column is None else [*column.shape]}, "
                f"not {[*mask_NT.shape]} as the policy's mask",
            )
        require(logps.mask_NT.dtype == torch.bool, f"{side}: {owner} mask_NT is not bool")
        complete_N = logps.complete_N
        require(
            complete_N is None
            or (complete_N.dtype == torch.bool and complete_N.shape == mask_NT.shape[:1]),
            f"{side}: {owner} complete_N is not one bool a response",
        )
    differs_N = (mask_NT != reference.mask_NT).any(dim=1)
    empty_N = ~mask_NT.any(dim=1)
    gap_N = (mask_NT[:, 1:] & ~mask_NT[:, :-1]).any(dim=1)
    if bool((differs_N | empty_N | gap_N).any()):
        reasons = (
            (differs_N, "policy and reference have different response positions"),
            (empty_N, "the response has no position"),
            (gap_N, "the response's positions do not come first in its row"),
        )
        row, reason = next(
            (int(bad_N.nonzero()[0, 0]), reason) for bad_N, reason in reasons if bool(bad_N.any())
        )
        raise ValueError(f"{side} response {row} of the batch: {reason}")
