"""Movements of log-probs, margins, residuals and losses, from what the jobs found at step 0."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_gdpo.objectives import GDPO, AnyObjective, PairLogps, PairTargets, TokenLogps


@dataclass(frozen=True)
class Step0:
    """What one step-0 job found."""

    policy: PairLogps
    reference: PairLogps
    targets: PairTargets


def read_step0(path: Path) -> Step0:
    """The file of a step-0 job."""
    found = load_file(path)

    def side(whose: str, name: str) -> TokenLogps:
        label, eos, tempered = found[f"{whose}.{name}.values_NTC"].unbind(dim=-1)
        mask = found[f"{whose}.{name}.mask_NT"]
        complete = found[f"{whose}.{name}.complete_N"]
        return TokenLogps(label, mask, eos, tempered, complete)

    def pair(whose: str) -> PairLogps:
        return PairLogps(side(whose, "chosen"), side(whose, "rejected"))

    targets = PairTargets(found["chosen_score_N"], found["rejected_score_N"])
    return Step0(pair("policy"), pair("reference"), targets)


def _minus(one: TokenLogps, other: TokenLogps) -> TokenLogps:
    assert one.eos_NT is not None and other.eos_NT is not None
    assert one.tempered_eos_NT is not None and other.tempered_eos_NT is not None
    return replace(
        one,
        label_NT=one.label_NT - other.label_NT,
        eos_NT=one.eos_NT - other.eos_NT,
        tempered_eos_NT=one.tempered_eos_NT - other.tempered_eos_NT,
    )


def moved(one: PairLogps, other: PairLogps) -> PairLogps:
    """By how much every log-prob differs."""
    return PairLogps(_minus(one.chosen, other.chosen), _minus(one.rejected, other.rejected))


def token_movement(change: PairLogps) -> float:
    """Root mean square over the responses' tokens, nats."""
    parts = [side.label_NT[side.mask_NT] for side in (change.chosen, change.rejected)]
    return float(torch.cat(parts).square().mean().sqrt())


def margins(change: PairLogps) -> Tensor:
    """log p of chosen over rejected responses, [N]."""
    chosen, rejected = (
        side.label_NT.where(side.mask_NT, 0.0).sum(dim=1)
        for side in (change.chosen, change.rejected)
    )
    return chosen - rejected


def residual_movement(objective: AnyObjective, policy: PairLogps, reference: PairLogps) -> float:
    """Root mean square by which what the loss is made of moves, nats.

    That is the log-ratio of a pair (pairwise objectives, GDPO's `tb`), the sum of a
    sub-trajectory's residuals (`subtb`) or one transition's (`db`). All are linear in log-probs, so
    that their movement is GDPO's own residual, without preference, of the log-probs' movements.

    Args:
        objective: of the run.
        policy: by how much the policy's log-probs moved.
        reference: likewise.
    """
    if not isinstance(objective, GDPO):
        return float((margins(policy) - margins(reference)).square().mean().sqrt())
    without = replace(objective, alpha=0.0)
    squares = without(policy, reference, PairTargets()).loss_N.double()
    if objective.balance != "db":
        return float(squares.mean().sqrt())
    transitions = sum(
        int((side.mask_NT.sum(dim=1) - 1).clamp(min=0).sum())
        for side in (policy.chosen, policy.rejected)
    )
    return math.sqrt(2 * float(squares.sum()) / transitions)


def loss_movement(objective: AnyObjective, plain: Step0, other: Step0) -> float:
    """Root mean square of a pair's loss, policy in FP8 over policy in fp32; reference in fp32."""
    losses = [
        objective(policy, plain.reference, plain.targets).loss_N
        for policy in (other.policy, plain.policy)
    ]
    return float((losses[0] - losses[1]).square().mean().sqrt())


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
