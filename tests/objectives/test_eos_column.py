"""The EOS column: its gradient, that it is the one that is read, and responses that were cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import GDPO, PairLogps, TokenLogps

from .synthetic import (
    GDPO_FORMS,
    NO_TARGETS,
    OBJECTIVES,
    gradients,
    random_batch,
    random_side,
    row,
    with_gradient,
)

EVERY_FORM = pytest.mark.parametrize("name", list(GDPO_FORMS))
BALANCES = pytest.mark.parametrize("balance", ["db", "subtb", "tb"])


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("cut", [False, True])
def test_gradients_against_finite_differences(name: str, cut: bool) -> None:
    """By all four columns of the policy, in float64."""
    rows = {"cut_chosen": (1,), "cut_rejected": (0,)} if cut else {}
    policy, reference, targets = random_batch((3, 1), (2, 4), **rows)

    def loss(label_w: Tensor, eos_w: Tensor, label_l: Tensor, eos_l: Tensor) -> Tensor:
        pair = PairLogps(
            replace(policy.chosen, label_NT=label_w, eos_NT=eos_w),
            replace(policy.rejected, label_NT=label_l, eos_NT=eos_l),
        )
        return OBJECTIVES[name](pair, reference, targets).loss_N

    leaves = with_gradient(policy)
    columns = [
        leaves.chosen.label_NT,
        leaves.chosen.eos_NT,
        leaves.rejected.label_NT,
        leaves.rejected.eos_NT,
    ]
    assert torch.autograd.gradcheck(loss, columns, eps=1e-6, atol=1e-7, rtol=1e-6)


@EVERY_FORM
def test_every_eos_that_counts_has_a_gradient(name: str) -> None:
    """db and subtb read e at every state, tb at the last alone; the last label is never used.

    At the last position the EOS column carries the step, in cut and complete responses alike.
    """
    policy, reference, _ = random_batch((3, 5), (4, 2))
    leaves = with_gradient(policy)
    GDPO_FORMS[name](leaves, reference, NO_TARGETS).loss_N.sum().backward()
    label_w, eos_w, label_l, eos_l = gradients(leaves)
    for side, label, eos in ((policy.chosen, label_w, eos_w), (policy.rejected, label_l, eos_l)):
        last = side.mask_NT & ~torch.nn.functional.pad(side.mask_NT[:, 1:], (0, 1))
        assert torch.equal(label != 0, side.mask_NT & ~last)
        assert torch.equal(eos != 0, last if GDPO_FORMS[name].balance == "tb" else side.mask_NT)


@EVERY_FORM
def test_the_label_column_is_not_a_substitute(name: str) -> None:
    """With labels in place of the EOS column, on either side, the loss is another one."""
    policy, reference, _ = random_batch((3, 5), (4, 2))
    objective = GDPO_FORMS[name]
    loss = objective(policy, reference, NO_TARGETS).loss_N

    def labels_as_eos(pair: PairLogps) -> PairLogps:
        def side(logps: TokenLogps) -> TokenLogps:
            return replace(logps, eos_NT=logps.label_NT, tempered_eos_NT=logps.label_NT)

        return PairLogps(side(pair.chosen), side(pair.rejected))

    if objective.balance != "tb":
        assert (objective(labels_as_eos(policy), reference, NO_TARGETS).loss_N != loss).all()
    if objective.balance != "tb" or objective.eos_temperature != 1.0:
        assert (objective(policy, labels_as_eos(reference), NO_TARGETS).loss_N != loss).all()


def test_tb_reads_one_eos_of_a_complete_response() -> None:
    """EOS at earlier states does not enter; at the last state it is the label itself."""
    policy, reference, _ = random_batch((3, 5), (4, 2))
    loss = GDPO(balance="tb", alpha=0.1)(policy, reference, NO_TARGETS).loss_N

    def early_eos_changed(side: TokenLogps) -> TokenLogps:
        last = side.mask_NT & ~torch.nn.functional.pad(side.mask_NT[:, 1:], (0, 1))
        assert side.eos_NT is not None
        return replace(side, eos_NT=torch.where(last, side.eos_NT, side.eos_NT - 5.0))

    changed = PairLogps(early_eos_changed(policy.chosen), early_eos_changed(policy.rejected))
    found = GDPO(balance="tb", alpha=0.1)(changed, reference, NO_TARGETS).loss_N
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)


@EVERY_FORM
def test_the_last_label_of_a_cut_response_is_unused(name: str) -> None:
    """No effect on the loss, no gradient, whatever it is."""
    policy, reference, _ = random_batch(cut_chosen=(0, 2), cut_rejected=(1, 2))
    loss = GDPO_FORMS[name](policy, reference, NO_TARGETS).loss_N

    def other_last(side: TokenLogps) -> TokenLogps:
        assert side.complete_N is not None
        last = side.mask_NT & ~torch.nn.functional.pad(side.mask_NT[:, 1:], (0, 1))
        cut = last & ~side.complete_N[:, None]
        assert cut.any()
        return replace(side, label_NT=torch.where(cut, side.label_NT - 7.0, side.label_NT))

    changed = with_gradient(PairLogps(other_last(policy.chosen), other_last(policy.rejected)))
    found = GDPO_FORMS[name](changed, reference, NO_TARGETS).loss_N
    torch.testing.assert_close(found, loss, rtol=1e-14, atol=1e-13)
    found.sum().backward()
    label_w, _, label_l, _ = gradients(changed)
    for grad, side in ((label_w, policy.chosen), (label_l, policy.rejected)):
        last = side.mask_NT & ~torch.nn.functional.pad(side.mask_NT[:, 1:], (0, 1))
        assert (grad[last] == 0).all()


@EVERY_FORM
def test_a_cut_response_carries_no_preference(name: str) -> None:
    """Cut on the rejected side, the loss does not depend on c; complete, it does."""
    form = GDPO_FORMS[name]
    policy, reference, _ = random_batch((3, 4), (4, 3), cut_rejected=(1,))
    weak = replace(form, rejected_log_reward=-1.0)(policy, reference, NO_TARGETS).loss_N
    strong = replace(form, rejected_log_reward=-20.0)(policy, reference, NO_TARGETS).loss_N
    assert float(weak[0]) != float(strong[0])
    assert float(weak[1]) == float(strong[1])


@BALANCES
def test_a_cut_pair_at_the_reference_has_no_loss(balance: str) -> None:
    """A prefix of a response balances at the reference like any other."""
    chosen = random_side((4, 1, 6), 1, cut=(0, 1, 2))
    rejected = random_side((3, 5, 2), 2, cut=(0, 1, 2))
    pair = PairLogps(chosen, rejected)
    loss = GDPO(balance=balance, alpha=0.1)(pair, pair, NO_TARGETS).loss_N
    torch.testing.assert_close(loss, row(0.0, 0.0, 0.0), rtol=0, atol=1e-26)


def test_tb_of_a_cut_response_by_hand() -> None:
    """Chosen cut after y_1 (2 states): log pi = a_0 + e_1, log R = A_0 + E_1, no A_1, no c."""
    policy, reference, _ = random_batch((2,), (3,), cut_chosen=(0,))

    def columns(side: TokenLogps) -> tuple[list[float], list[float]]:
        assert side.eos_NT is not None
        return side.label_NT[0].tolist(), side.eos_NT[0].tolist()

    (a, e), (A, E) = columns(policy.chosen), columns(reference.chosen)
    (b, f), (B, F) = columns(policy.rejected), columns(reference.rejected)
    chosen = a[0] + e[1] - (A[0] + E[1])
    rejected = b[0] + b[1] + f[2] - (B[0] + B[1] + F[2] - 0.8)
    loss = GDPO(balance="tb", alpha=0.1)(policy, reference, NO_TARGETS).loss_N
    assert float(loss) == pytest.approx((chosen - rejected) ** 2, rel=1e-12)


@pytest.mark.parametrize("balance", ["db", "subtb"])
@pytest.mark.parametrize("reward", ["cumulative", "tokenwise"])
def test_one_position_has_no_transition(balance: str, reward: str) -> None:
    """The empty answer (EOS at once): loss and gradient 0, no NaN; its partner is not disturbed."""
    objective = GDPO(balance=balance, reward=reward, alpha=0.1)
    policy, reference, _ = random_batch((1, 3), (2, 1))
    leaves = with_gradient(policy)
    output = objective(leaves, reference, NO_TARGETS)
    assert float(output.metrics["gdpo/chosen_loss"][0]) == 0.0
    assert float(output.metrics["gdpo/rejected_loss"][1]) == 0.0
    assert (output.loss_N > 0).all()
    output.loss_N.sum().backward()
    label_w, eos_w, label_l, eos_l = gradients(leaves)
    assert label_w[0].tolist() == [0.0] * 3
    assert eos_w[0].tolist() == [0.0] * 3
    assert label_l[1].tolist() == [0.0] * 2
    assert eos_l[1].tolist() == [0.0] * 2
    assert all(torch.isfinite(g).all() for g in (label_w, eos_w, label_l, eos_l))


@pytest.mark.parametrize("name", list(GDPO_FORMS))
def test_a_batch_of_single_positions(name: str) -> None:
    """T = 1: db and subtb are 0; tb still compares the two EOS."""
    policy, reference, _ = random_batch((1, 1), (1, 1))
    leaves = with_gradient(policy)
    loss = GDPO_FORMS[name](leaves, reference, NO_TARGETS).loss_N
    loss.sum().backward()
    assert all(torch.isfinite(g).all() for g in gradients(leaves))
    if GDPO_FORMS[name].balance == "tb":
        assert (loss > 0).all()
    else:
        assert loss.tolist() == [0.0, 0.0]
