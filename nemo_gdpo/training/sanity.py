"""The check at step 0: policy and reference must be the same model, and the loss must say so.

A policy that differs from its reference before the first update is the classical silent failure of
preference training (another template, another precision, a half-loaded layer). At equality most
objectives know their loss in closed form (`Objective.loss_at_reference`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.errors import RunError
from nemo_gdpo.objectives import Objective, Step0Inputs


class Step0MismatchError(RunError):
    """The run's first losses are not those of a policy that equals its reference."""

    agreed = True  # every rank has the values of all pairs


def step0_inputs(pairs: Sequence[TokenizedPair], per_pair: dict[str, Tensor]) -> Step0Inputs:
    """Inputs of the closed forms, from the first global batch.

    Args:
        pairs: of the batch, N.
        per_pair: the batch's metrics; `reference_logps/*` [N] are read.
    """
    scores = [(p.chosen_score, p.rejected_score) for p in pairs]
    graded = all(chosen is not None and rejected is not None for chosen, rejected in scores)
    return Step0Inputs(
        rejected_length_N=torch.tensor([len(p.rejected.ids) for p in pairs]),
        rejected_complete_N=torch.tensor([p.rejected.complete for p in pairs]),
        chosen_logp_N=per_pair["reference_logps/chosen"],
        rejected_logp_N=per_pair["reference_logps/rejected"],
        chosen_score_N=torch.tensor([chosen for chosen, _ in scores]) if graded else None,
        rejected_score_N=torch.tensor([rejected for _, rejected in scores]) if graded else None,
    )


def check_step0_loss(
    objective: Objective,
    pairs: Step0Inputs,
    per_pair: dict[str, Tensor],
    pair_ids: list[str],
    *,
    exact: bool,
) -> None:
    """Stop a run whose step 0 shows two different models.

    Args:
        objective: the run's objective.
        pairs: of the first global batch.
        per_pair: `loss`, `logps/*`, `reference_logps/*` and the objective's own, float [N].
        pair_ids: of the same pairs.
        exact: float32; otherwise the tolerances are those of 8 or 16 bit matrix products.

    Raises:
        Step0MismatchError: naming the worst pair.
    """
    absolute, relative = (1e-3, 1e-5) if exact else (0.3, 1e-2)
    for side in ("chosen", "rejected"):
        policy, reference = per_pair[f"logps/{side}"], per_pair[f"reference_logps/{side}"]
        gap = (policy - reference).abs()
        excess = gap - (absolute + relative * reference.abs())
        worst = int(excess.argmax())
        if excess[worst] > 0:
            raise Step0MismatchError(
                f"step 0: log p of the {side} response of pair {pair_ids[worst]} is "
                f"{float(policy[worst]):.4f} under the policy and {float(reference[worst]):.4f} "
                "under the reference, which must be the same model before the first update; "
                "check that the reference was computed from model.restore_from_path with this "
                "template and precision (trainer.check_initial_loss=false turns this check off)"
            )
    expected = objective.loss_at_reference(pairs)
    if expected is None:
        return
    gap = (per_pair["loss"].double() - expected).abs()
    # A squared residual moves by twice its root for every nat that the log-ratio is off.
    tolerance = (5e-3 if exact else 1.0) * (2 * expected.abs().sqrt() + 1)
    worst = int((gap - tolerance).argmax())
    if gap[worst] > tolerance[worst]:
        raise Step0MismatchError(
            f"step 0: the loss of pair {pair_ids[worst]} is {float(per_pair['loss'][worst]):.6f}, "
            f"but a policy equal to its reference gives {float(expected[worst]):.6f}"
        )
    for name, value in objective.metrics_at_reference().items() if exact else ():
        differing = int((per_pair[name] != value).sum())
        if differing:
            raise Step0MismatchError(
                f"step 0: {name} is {value:g} for every pair of a policy that equals its "
                f"reference, but not for {differing} of {len(pair_ids)} pairs"
            )
