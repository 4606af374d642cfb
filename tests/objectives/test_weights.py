"""Weights and margins of pairs: figures by hand, identities, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nemo_gdpo.objectives import (
    ADPO,
    DPO,
    GDPO,
    IPO,
    ODPO,
    SPL,
    Objective,
    PairTargets,
    Step0Inputs,
)
from nemo_gdpo.objectives.pairwise import PairSums
from tests.objectives.synthetic import (
    NO_TARGETS,
    OBJECTIVES,
    pair_with_margin,
    random_batch,
    row,
    with_gradient,
)

WITHOUT_MARGIN = {
    *("cdpo", "adpo", "adpo-no-pseudo-labels"),
    *(name for name in OBJECTIVES if name.startswith("gflownet")),
}
WITH_MARGIN = sorted(OBJECTIVES.keys() - WITHOUT_MARGIN)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_weights_of_one_change_no_bit(name: str) -> None:
    policy, reference, targets = random_batch()
    plain, ones = (
        (with_gradient(policy), given)
        for given in (targets, replace(targets, weight_N=row(1.0, 1.0, 1.0, 1.0)))
    )
    losses = [OBJECTIVES[name](one, reference, given).loss_N for one, given in (plain, ones)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.sum().backward()
    for side in ("chosen", "rejected"):
        gradients = [getattr(one, side).label_NT.grad for one, _ in (plain, ones)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_weight_is_a_factor_and_nothing_is_renormalised(name: str) -> None:
    policy, reference, targets = random_batch()
    weight_N = row(0.0, 0.5, 1.0, 3.0)
    plain = OBJECTIVES[name](policy, reference, targets)
    weighted = OBJECTIVES[name](policy, reference, replace(targets, weight_N=weight_N))
    assert torch.equal(weighted.loss_N, plain.loss_N * weight_N)
    assert all(torch.equal(weighted.metrics[key], plain.metrics[key]) for key in plain.metrics)


@pytest.mark.parametrize("name", WITH_MARGIN)
def test_margins_of_zero_change_nothing(name: str) -> None:
    policy, reference, targets = random_batch()
    plain = OBJECTIVES[name](policy, reference, targets).loss_N
    given = replace(targets, margin_N=torch.zeros(4, dtype=torch.float64))
    assert torch.equal(OBJECTIVES[name](policy, reference, given).loss_N, plain)


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        # beta h = 0.5 * 4 = 2 and m = 1.5: log(1 + exp(-(2 - 1.5))) = log(1 + exp(-0.5)).
        (DPO(beta=0.5), math.log1p(math.exp(-0.5))),
        # (4 - 1 / (2 * 0.5) - 1.5 / 0.5)^2 = (4 - 1 - 3)^2 = 0.
        (IPO(beta=0.5), 0.0),
        # alpha = beta = 0.5: DPO.
        (SPL(alpha=0.5, beta=0.5), math.log1p(math.exp(-0.5))),
    ],
)
def test_by_hand(objective: Objective, loss: float) -> None:
    policy, reference = pair_with_margin(4.0)
    given = PairTargets(margin_N=row(1.5))
    assert objective(policy, reference, given).loss_N.item() == pytest.approx(loss, abs=1e-12)


def test_odpo_adds_the_margin_to_its_offset() -> None:
    """Offset 2 (identity of 3 - 1) and margin 0.5 are the offset 2.5 of scores 3.5 and 1."""
    policy, reference = pair_with_margin(4.0)
    objective = ODPO(beta=0.5, offset="identity")
    both = objective(policy, reference, PairTargets(row(3.0), row(1.0), margin_N=row(0.5)))
    one = objective(policy, reference, PairTargets(row(3.5), row(1.0)))
    assert torch.equal(both.loss_N, one.loss_N)


def test_dpo_with_the_offset_as_margin_is_odpo() -> None:
    policy, reference, targets = random_batch()
    offsets_N = ODPO(offset="log1p").offsets(targets)
    assert torch.equal(
        DPO()(policy, reference, PairTargets(margin_N=offsets_N)).loss_N,
        ODPO(offset="log1p")(policy, reference, targets).loss_N,
    )


@pytest.mark.parametrize("form", ["tb", "db", "subtb"])
def test_gdpo_lowers_the_log_reward_of_the_rejected_response(form: str) -> None:
    """A margin of 2 is a rejected log-reward of -5 instead of -3, of cut responses in neither."""
    policy, reference, _ = random_batch(cut_rejected=(1,))
    with_margin = GDPO(balance=form, rejected_log_reward=-3.0)(
        policy, reference, PairTargets(margin_N=torch.full((4,), 2.0, dtype=torch.float64))
    )
    lower = GDPO(balance=form, rejected_log_reward=-5.0)(policy, reference, NO_TARGETS)
    assert torch.equal(with_margin.loss_N, lower.loss_N)


@pytest.mark.parametrize("objective", [ADPO(), DPO(label_smoothing=0.1)])
def test_a_margin_without_a_meaning_is_refused(objective: Objective) -> None:
    policy, reference = pair_with_margin(4.0)
    with pytest.raises(ValueError, match="no margin is known"):
        objective(policy, reference, PairTargets(margin_N=row(1.0)))


@pytest.mark.parametrize("name", ["weight_N", "margin_N"])
def test_another_number_of_them_than_of_pairs_is_refused(name: str) -> None:
    """One number would be spread over all pairs."""
    policy, reference = pair_with_margin(4.0, 1.0)
    with pytest.raises(ValueError, match="not one a pair"):
        DPO()(policy, reference, PairTargets(**{name: row(1.0)}))


@pytest.mark.parametrize(
    "objective",
    [DPO(), IPO(), SPL(alpha=0.3), ODPO(), *(GDPO(balance=b) for b in ("tb", "db", "subtb"))],
)
def test_the_loss_at_the_reference_has_both(objective: Objective) -> None:
    _, reference, targets = random_batch(cut_rejected=(1,))
    targets = replace(targets, weight_N=row(0.5, 1.0, 2.0, 0.0), margin_N=row(1.0, 0.0, 2.0, 3.0))
    sums = [side.label_NT.where(side.mask_NT, 0.0).sum(dim=1)
            for side in (reference.chosen, reference.rejected)]  # fmt: skip
    expected = objective.loss_at_reference(
        Step0Inputs(
            rejected_length_N=reference.rejected.mask_NT.sum(dim=1),
            rejected_complete_N=torch.tensor([True, False, True, True]),
            chosen_logp_N=sums[0],
            rejected_logp_N=sums[1],
            chosen_score_N=targets.chosen_score_N,
            rejected_score_N=targets.rejected_score_N,
            weight_N=targets.weight_N,
            margin_N=targets.margin_N,
        )
    )
    assert expected is not None
    assert torch.allclose(objective(reference, reference, targets).loss_N, expected, atol=1e-9)


@pytest.mark.parametrize("form", ["db", "subtb"])
def test_unpaired_rows_have_the_loss_of_their_own_label(form: str) -> None:
    """Two rows in a place: the mean of both, of which each is a pair's half with that label."""
    policy, reference, _ = random_batch(cut_chosen=(0,), cut_rejected=(1,))
    objective = GDPO(balance=form, alpha=0.5)

    def losses(first: bool, second: bool) -> torch.Tensor:
        labels = [torch.full((4,), label) for label in (first, second)]
        targets = PairTargets(chosen_label_N=labels[0], rejected_label_N=labels[1])
        return objective(policy, reference, targets).loss_N

    pairs = objective(policy, reference, NO_TARGETS).loss_N
    assert torch.equal(losses(True, False), pairs)
    turned = objective(
        replace(policy, chosen=policy.rejected, rejected=policy.chosen),
        replace(reference, chosen=reference.rejected, rejected=reference.chosen),
        NO_TARGETS,
    ).loss_N
    assert torch.allclose(losses(False, True), turned)
    both = losses(True, True) + losses(False, False)
    assert torch.allclose(both, pairs + turned)
    assert not torch.allclose(losses(True, True), pairs)


def test_margins_and_accuracies_of_unpaired_rows() -> None:
    """By hand: log-ratios +2 (good) and +3 (bad) make 2 - 3 = -1, and one of two is right; which
    of them stands first changes nothing. Of two good ones: 5, and both."""
    sums = PairSums(*(torch.tensor([value] * 3) for value in (-10.0, -20.0, -12.0, -23.0)))
    first, second = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    found = sums.metrics_of_rows(first, second)
    assert found["rewards/margins"].tolist() == [-1.0, 1.0, 5.0]
    assert found["rewards/accuracies"].tolist() == [0.5, 0.5, 1.0]
    turned = PairSums(*(torch.tensor([value] * 3) for value in (-20.0, -10.0, -23.0, -12.0)))
    assert turned.metrics_of_rows(second, first)["rewards/margins"].tolist() == [-1.0, 1.0, 5.0]


@pytest.mark.parametrize("form", ["db", "subtb"])
def test_the_loss_of_unpaired_rows_at_the_reference(form: str) -> None:
    _, reference, _ = random_batch(cut_chosen=(0,), cut_rejected=(1,))
    labels = torch.tensor([False, False, True, False]), torch.tensor([True, False, False, False])
    objective = GDPO(balance=form, alpha=0.5)
    targets = PairTargets(chosen_label_N=labels[0], rejected_label_N=labels[1])
    expected = objective.loss_at_reference(
        Step0Inputs(
            rejected_length_N=reference.rejected.mask_NT.sum(dim=1),
            rejected_complete_N=torch.tensor([True, False, True, True]),
            chosen_logp_N=row(0, 0, 0, 0),
            rejected_logp_N=row(0, 0, 0, 0),
            chosen_length_N=reference.chosen.mask_NT.sum(dim=1),
            chosen_complete_N=torch.tensor([False, True, True, True]),
            chosen_label_N=labels[0],
            rejected_label_N=labels[1],
        )
    )
    assert expected is not None
    assert torch.allclose(objective(reference, reference, targets).loss_N, expected, atol=1e-9)


@pytest.mark.parametrize("objective", [DPO(), IPO(), ODPO(), ADPO(), SPL(), GDPO(balance="tb")])
def test_what_compares_two_responses_refuses_unpaired_rows(objective: Objective) -> None:
    policy, reference, targets = random_batch()
    good_N = torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match="unpaired rows"):
        objective(
            policy, reference, replace(targets, chosen_label_N=good_N, rejected_label_N=good_N)
        )
