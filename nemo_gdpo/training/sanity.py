"""The check at step 0: policy and reference must be the same model, and the loss must say so.

A policy that differs from its reference before the first update is the classical silent failure of
preference training (another template, another precision, a half-loaded layer). At equality most
objectives know their loss in closed form (`Objective.loss_at_reference`).

Tolerances. In float32 fixed ones, a hundred times what another order of sums gives. In other
precisions the noise of rounding is measured on this model and batch (`training/rounding.py`), as a
root mean square S for one response and token:

- over the batch, the root mean square of the gaps may be `OF_ALL` times S: with the smallest batch,
  one pair of normal errors, a sound run exceeds this once in 10^7.
- one response may be off by `OF_ONE` times S: a single wrong row drowns in the mean.
- the loss likewise, with the noise of the loss itself, whose tails are longer where it is a square.

A model with another rope base is 10 times S off, on two layers and a dozen tokens a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemo_gdpo.data.collate import given, labels_of
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.errors import RunError
from nemo_gdpo.objectives import Objective, Step0Inputs
from nemo_gdpo.training.rounding import Noise

OF_ALL, OF_ONE = 4.0, 8.0
"""Tolerances in units of the noise, see above."""


class Step0MismatchError(RunError):
    """The run's first losses are not those of a policy that equals its reference."""

    agreed = True  # every rank has the values of all pairs


def step0_inputs(
    pairs: Sequence[TokenizedPair], per_pair: dict[str, Tensor], *, together: int = 1
) -> Step0Inputs:
    """Inputs of the closed forms, from the first global batch.

    Args:
        pairs: of the batch, N.
        per_pair: the batch's metrics; `reference_logps/*` [N] are read.
        together: pairs of a group, which stand one after the other.
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
        chosen_length_N=torch.tensor([len(p.chosen.ids) for p in pairs]),
        group_N=torch.arange(len(pairs)) // together,
        weight_N=given([p.weight for p in pairs]),
        margin_N=given([p.margin for p in pairs]),
        chosen_complete_N=torch.tensor([p.chosen.complete for p in pairs]),
        chosen_label_N=labels_of(pairs, 0),
        rejected_label_N=labels_of(pairs, 1),
    )


def check_step0_loss(
    objective: Objective,
    pairs: Step0Inputs,
    per_pair: dict[str, Tensor],
    pair_ids: list[str],
    *,
    noise: Noise | None,
) -> None:
    """Stop a run whose step 0 shows two different models.

    Args:
        objective: the run's objective.
        pairs: of the first global batch.
        per_pair: `loss`, `logps/*`, `reference_logps/*` and the objective's own, float [N].
        pair_ids: of the same pairs.
        noise: of rounding; None: float32.

    Raises:
        Step0MismatchError: naming the worst pair.
    """
    excess = {}
    for side in ("chosen", "rejected"):
        policy, reference = per_pair[f"logps/{side}"], per_pair[f"reference_logps/{side}"]
        gap_N, allowed_N = (policy - reference).abs(), 1e-3 + 1e-5 * reference.abs()
        if noise is not None:
            lengths_N = pairs.chosen_length_N if side == "chosen" else pairs.rejected_length_N
            assert lengths_N is not None
            allowed_N = allowed_N + noise.logp * lengths_N.sqrt()
        excess[side] = (gap_N / allowed_N).double()
    _refuse(excess, per_pair, pair_ids, 1.0 if noise is None else OF_ONE)
    if (
        noise is not None
        and float(torch.cat(list(excess.values())).square().mean().sqrt()) > OF_ALL
    ):
        _refuse(excess, per_pair, pair_ids, 0.0)
    expected = objective.loss_at_reference(pairs)
    if expected is None:
        return
    gap = (per_pair["loss"].double() - expected).abs()
    # A squared residual moves by twice its root for every nat that the log-ratio is off.
    tolerance = 5e-3 * (2 * expected.abs().sqrt() + 1)
    if noise is not None:
        tolerance = tolerance + OF_ONE * noise.loss
    worst = int((gap - tolerance).argmax())
    if gap[worst] > tolerance[worst]:
        raise Step0MismatchError(
            f"step 0: the loss of pair {pair_ids[worst]} is {float(per_pair['loss'][worst]):.6f}, "
            f"but a policy equal to its reference gives {float(expected[worst]):.6f}"
        )
    for name, value in objective.metrics_at_reference().items() if noise is None else ():
        differing = int((per_pair[name] != value).sum())
        if differing:
            raise Step0MismatchError(
                f"step 0: {name} is {value:g} for every pair of a policy that equals its "
                f"reference, but not for {differing} of {len(pair_ids)} pairs"
            )


def _refuse(
    excess: Mapping[str, Tensor], per_pair: dict[str, Tensor], pair_ids: list[str], limit: float
) -> None:
    """Stop when a gap, in units of what is allowed, is above a limit; the worst pair is named.

    Raises:
        Step0MismatchError: see above.
    """
    side = max(excess, key=lambda name: float(excess[name].max()))
    worst = int(excess[side].argmax())
    if float(excess[side][worst]) > limit:
        raise Step0MismatchError(
            f"step 0: log p of the {side} response of pair {pair_ids[worst]} is "
            f"{float(per_pair[f'logps/{side}'][worst]):.4f} under the policy and "
            f"{float(per_pair[f'reference_logps/{side}'][worst]):.4f} "
            "under the reference, which must be the same model before the first update; "
            "check that the reference was computed from model.restore_from_path with this "
            "template and precision (trainer.check_initial_loss=false turns this check off)"
        )
