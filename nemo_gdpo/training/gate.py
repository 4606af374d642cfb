"""The gate at step 0: policy and reference must be the same model, and the loss must say so.

A policy that differs from its reference before the first update is the classical silent failure of
preference training (another template, another precision, a half-loaded layer). At equality every
loss is known in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.errors import RunError
from nemo_gdpo.objectives import ADPO, DPO, GDPO, IPO, ODPO, Objective


class GateError(RunError):
    """The run's first losses are not those of a policy that equals its reference."""


@dataclass(frozen=True)
class PairFacts:
    """What the closed forms need of each pair; all [N].

    Attributes:
        rejected_length_N: response positions of the rejected response, EOS included, int64.
        rejected_complete_N: bool.
        chosen_score_N: float, where the data has scores.
        rejected_score_N: float.
    """

    rejected_length_N: Tensor
    rejected_complete_N: Tensor
    chosen_score_N: Tensor | None = None
    rejected_score_N: Tensor | None = None


def _odpo_offset(objective: ODPO, facts: PairFacts) -> Tensor:
    assert facts.chosen_score_N is not None
    assert facts.rejected_score_N is not None
    won, lost = facts.chosen_score_N.double(), facts.rejected_score_N.double()
    scaled = {
        "log": lambda: (won - lost).log(),
        "identity": lambda: won - lost,
        "log1p": lambda: (won - lost).log1p(),
        "ratio": lambda: (won / lost).log(),
    }[objective.offset]()
    # At alpha 0 the offset is 0 whatever the scores are.
    return objective.alpha * scaled if objective.alpha else torch.zeros_like(scaled)


def _gdpo_rejected_loss(objective: GDPO, facts: PairFacts) -> Tensor:
    """Only the last transition of a complete rejected response misses balance, by alpha * c."""
    strength = (objective.alpha * objective.rejected_log_reward) ** 2
    counts = facts.rejected_complete_N.double()
    if objective.balance == "tb":
        return strength * counts
    transitions = facts.rejected_length_N - 1
    counts = counts * (transitions > 0)
    if objective.balance == "db":
        return strength * counts / 2
    shares = []
    for n in transitions.tolist():
        # Sub-trajectories of length m: n - m + 1 of them, exactly one of which ends at the end.
        weights = [objective.subtb_lambda ** (m - 1) for m in range(1, n + 1)]
        total = sum(w * (n - m) for m, w in enumerate(weights))
        shares.append(sum(weights) / total if n else 0.0)
    return strength * counts * torch.tensor(shares, dtype=torch.float64) / 2


def initial_loss(objective: Objective, facts: PairFacts) -> Tensor | None:
    """Loss of each pair when policy and reference are equal, float64 [N]; None if not known.

    Not known: GDPO with the release's token-wise reward, or with tempered EOS (eos_temperature
    other than 1), where equality does not mean balance.
    """
    n = facts.rejected_length_N.shape[0]
    if isinstance(objective, DPO | ADPO):
        return torch.full((n,), math.log(2.0), dtype=torch.float64)
    if isinstance(objective, IPO):
        return torch.full((n,), (1.0 / (2.0 * objective.beta)) ** 2, dtype=torch.float64)
    if isinstance(objective, ODPO):
        return torch.nn.functional.softplus(_odpo_offset(objective, facts))
    if isinstance(objective, GDPO):
        if objective.reward != "cumulative" or objective.eos_temperature != 1.0:
            return None
        return _gdpo_rejected_loss(objective, facts)
    return None


def check_initial_step(
    objective: Objective,
    facts: PairFacts,
    per_pair: dict[str, Tensor],
    pair_ids: list[str],
    *,
    exact: bool,
) -> None:
    """Stop a run whose step 0 shows two different models.

    Args:
        objective: the run's objective.
        facts: of the pairs of the first global batch.
        per_pair: `loss`, `logps/*`, `reference_logps/*` (and `queried` for ADPO), float [N].
        pair_ids: of the same pairs.
        exact: float32; otherwise the tolerances are those of 8 or 16 bit matrix products.

    Raises:
        GateError: naming the worst pair.
    """
    absolute, relative = (1e-3, 1e-5) if exact else (0.3, 1e-2)
    for side in ("chosen", "rejected"):
        policy, reference = per_pair[f"logps/{side}"], per_pair[f"reference_logps/{side}"]
        gap = (policy - reference).abs()
        excess = gap - (absolute + relative * reference.abs())
        worst = int(excess.argmax())
        if excess[worst] > 0:
            raise GateError(
                f"step 0: log p of the {side} response of pair {pair_ids[worst]} is "
                f"{float(policy[worst]):.4f} under the policy and {float(reference[worst]):.4f} "
                "under the reference, which must be the same model before the first update; "
                "check that the reference was computed from model.restore_from_path with this "
                "template and precision (trainer.check_initial_loss=false turns this gate off)"
            )
    expected = initial_loss(objective, facts)
    if expected is None:
        return
    gap = (per_pair["loss"].double() - expected).abs()
    # A squared residual moves by twice its root for every nat that the log-ratio is off.
    tolerance = (5e-3 if exact else 1.0) * (2 * expected.abs().sqrt() + 1)
    worst = int((gap - tolerance).argmax())
    if gap[worst] > tolerance[worst]:
        raise GateError(
            f"step 0: the loss of pair {pair_ids[worst]} is {float(per_pair['loss'][worst]):.6f}, "
            f"but a policy equal to its reference gives {float(expected[worst]):.6f}"
        )
    if isinstance(objective, ADPO) and objective.gamma > 0 and exact:
        asked = int(per_pair["queried"].sum())
        if asked != len(pair_ids):
            raise GateError(
                f"step 0: ADPO asked for {asked} of {len(pair_ids)} labels, not for all"
            )
