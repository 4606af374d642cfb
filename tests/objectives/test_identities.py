"""Objectives that are one another's special cases, and what holds where policy equals reference."""

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
    PairLogps,
    PairTargets,
    TokenLogps,
)

from .synthetic import (
    NO_TARGETS,
    gradients,
    pair_with_margin,
    random_batch,
    random_side,
    row,
    with_gradient,
)


def at_reference(tempered_is_plain: bool = True) -> PairLogps:
    """Random pairs to use as policy and reference at once."""

    def side(logps: TokenLogps) -> TokenLogps:
        return replace(logps, tempered_eos_NT=logps.eos_NT) if tempered_is_plain else logps

    return PairLogps(
        side(random_side((4, 1, 6), 1, tempered=True)),
        side(random_side((2, 5, 3), 2, tempered=True)),
    )


@pytest.mark.parametrize("kappa", [0.8, 2.0, 8.0])
def test_tb_is_summed_ipo(kappa: float) -> None:
    """(h - kappa)^2 with kappa = -alpha c equals IPO at beta = 1 / (2 kappa), gradients included.

    tb takes the last step from the EOS column and IPO from the label: gradients are compared where
    they add up, by column position.
    """
    policy, reference, targets = random_batch()
    tb = GDPO(alpha=0.1, rejected_log_reward=-kappa / 0.1, balance="tb")
    ipo = IPO(beta=1.0 / (2.0 * kappa))
    found, expected = with_gradient(policy), with_gradient(policy)
    loss = tb(found, reference, targets).loss_N
    loss_ipo = ipo(expected, reference, targets).loss_N
    torch.testing.assert_close(loss, loss_ipo, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    loss_ipo.sum().backward()
    label_w, eos_w, label_l, eos_l = gradients(found)
    ipo_label_w, _, ipo_label_l, _ = gradients(expected)
    torch.testing.assert_close(label_w + eos_w, ipo_label_w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(label_l + eos_l, ipo_label_l, rtol=1e-12, atol=1e-12)


def test_tb_residual_is_h_less_kappa() -> None:
    policy, reference, targets = random_batch()
    output = GDPO(alpha=0.5, rejected_log_reward=-4.0, balance="tb")(policy, reference, targets)
    torch.testing.assert_close(
        output.metrics["gdpo/tb_residual"], output.metrics["rewards/margins"] - 2.0
    )


@pytest.mark.parametrize("offset", ["log", "identity", "log1p", "ratio"])
def test_odpo_without_strength_is_dpo(offset: str) -> None:
    """Bit-equal in loss and gradient."""
    policy, reference, targets = random_batch()
    found, expected = with_gradient(policy), with_gradient(policy)
    odpo = ODPO(alpha=0.0, offset=offset)(found, reference, targets).loss_N
    dpo = DPO()(expected, reference, targets).loss_N
    assert torch.equal(odpo, dpo)
    odpo.sum().backward()
    dpo.sum().backward()
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pseudo_labels", [True, False])
def test_adpo_that_asks_for_everything_is_dpo(pseudo_labels: bool) -> None:
    """Bit-equal in loss and gradient."""
    policy, reference, targets = random_batch()
    found, expected = with_gradient(policy), with_gradient(policy)
    adpo = ADPO(gamma=math.inf, pseudo_labels=pseudo_labels)(found, reference, targets)
    dpo = DPO()(expected, reference, targets).loss_N
    assert torch.equal(adpo.loss_N, dpo)
    assert adpo.metrics["queried"].tolist() == [1.0] * 4
    adpo.loss_N.sum().backward()
    dpo.sum().backward()
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        assert torch.equal(one, other)


def test_adpo_at_gamma_zero_never_asks_off_zero() -> None:
    """Only m = 0 exactly is asked about."""
    policy, reference = pair_with_margin(1e-6, -1e-6, 3.0, -3.0, 0.0)
    queried = ADPO(gamma=0.0)(policy, reference, NO_TARGETS).metrics["queried"]
    assert queried.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_adpo_asks_at_the_threshold() -> None:
    """|m| = gamma is asked about, on both sides: m = 0.5 h exactly here."""
    policy, reference = pair_with_margin(2.0, -2.0, 2.25, -2.25)
    queried = ADPO(beta=0.5, gamma=1.0)(policy, reference, NO_TARGETS).metrics["queried"]
    assert queried.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_adpo_asks_more_at_a_smaller_beta() -> None:
    """gamma is in units of beta h."""
    policy, reference = pair_with_margin(5.0, 10.0, 20.0)
    asked = [
        float(ADPO(beta=b, gamma=1.3)(policy, reference, NO_TARGETS).metrics["queried"].sum())
        for b in (0.05, 0.1, 0.2, 0.5)
    ]
    assert asked == [3.0, 2.0, 1.0, 0.0]


def test_dpo_at_the_reference() -> None:
    pair = at_reference()
    output = DPO()(pair, pair, NO_TARGETS)
    torch.testing.assert_close(output.loss_N, row(*[math.log(2.0)] * 3), rtol=0, atol=1e-15)
    assert output.metrics["rewards/accuracies"].tolist() == [0.0, 0.0, 0.0]
    assert output.metrics["rewards/margins"].tolist() == [0.0, 0.0, 0.0]


def test_smoothed_dpo_at_the_reference() -> None:
    pair = at_reference()
    loss = DPO(label_smoothing=0.3)(pair, pair, NO_TARGETS).loss_N
    torch.testing.assert_close(loss, row(*[math.log(2.0)] * 3), rtol=0, atol=1e-15)


def test_adpo_asks_for_everything_at_the_reference() -> None:
    pair = at_reference()
    output = ADPO(gamma=0.0)(pair, pair, NO_TARGETS)
    assert output.metrics["queried"].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(output.loss_N, row(*[math.log(2.0)] * 3), rtol=0, atol=1e-15)


def test_odpo_at_the_reference() -> None:
    """-log sigma(-Delta) = log(1 + e^Delta); with Delta = log(s_w - s_l): log(1 + gap)."""
    pair = at_reference()
    targets = PairTargets(row(2.0, 3.0, 4.0), row(1.0, 1.0, 1.0))
    loss = ODPO(alpha=1.0)(pair, pair, targets).loss_N
    torch.testing.assert_close(loss, row(math.log(2.0), math.log(3.0), math.log(4.0)))


def test_db_at_the_reference() -> None:
    """Chosen 0; rejected (alpha c)^2 = 0.64 whatever its length, if it has a transition."""
    metrics = GDPO(balance="db", alpha=0.1)(at_reference(), at_reference(), NO_TARGETS).metrics
    torch.testing.assert_close(metrics["gdpo/chosen_loss"], row(0, 0, 0), rtol=0, atol=1e-28)
    torch.testing.assert_close(metrics["gdpo/rejected_loss"], row(0.64, 0.64, 0.64))


def test_subtb_at_the_reference() -> None:
    """Of n(n + 1) / 2 sub-trajectories of n transitions, the n that reach the end sum to 0.8."""
    metrics = GDPO(balance="subtb", alpha=0.1)(at_reference(), at_reference(), NO_TARGETS).metrics
    torch.testing.assert_close(metrics["gdpo/chosen_loss"], row(0, 0, 0), rtol=0, atol=1e-28)
    # Lengths 2, 5, 3: 1, 4, 2 transitions; 0.64 n / (n (n + 1) / 2) = 1.28 / (n + 1).
    expected = row(1.28 / 2, 1.28 / 5, 1.28 / 3)
    torch.testing.assert_close(metrics["gdpo/rejected_loss"], expected)


def test_tb_at_the_reference() -> None:
    """h = 0: kappa^2."""
    loss = GDPO(balance="tb", alpha=0.1)(at_reference(), at_reference(), NO_TARGETS).loss_N
    torch.testing.assert_close(loss, row(0.64, 0.64, 0.64))


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
def test_log_flow_at_the_reference_is_zero(balance: str) -> None:
    """F(s_0) = R(EOS) / pi(EOS) = 1, while state 0 is not the terminal state."""
    pair = PairLogps(random_side((4, 3), 1), random_side((2, 5), 2))
    output = GDPO(balance=balance, alpha=0.1)(pair, pair, NO_TARGETS)
    log_flow = output.metrics["gdpo/log_flow"]
    torch.testing.assert_close(log_flow, row(0.0, 0.0), rtol=0, atol=1e-14)


def test_subtb_at_a_vanishing_weight_is_mean_db() -> None:
    """lambda -> 0 keeps single transitions: db divided by their number."""
    policy, reference, _ = random_batch((4, 6), (5, 3))
    db = GDPO(balance="db", alpha=0.1)(policy, reference, NO_TARGETS).metrics
    subtb = GDPO(balance="subtb", subtb_lambda=1e-12, alpha=0.1)(
        policy, reference, NO_TARGETS
    ).metrics
    torch.testing.assert_close(subtb["gdpo/chosen_loss"], db["gdpo/chosen_loss"] / row(3, 5))
    torch.testing.assert_close(subtb["gdpo/rejected_loss"], db["gdpo/rejected_loss"] / row(4, 2))


def test_subtb_equals_the_double_sum() -> None:
    """Against the double sum over i < j, in loops, with weights lambda^(j-i-1)."""
    policy, reference, _ = random_batch((5,), (2,))
    decay = 0.7
    found = GDPO(balance="subtb", subtb_lambda=decay, alpha=0.1)(policy, reference, NO_TARGETS)
    chosen, fixed = policy.chosen, reference.chosen
    assert chosen.eos_NT is not None
    assert fixed.eos_NT is not None
    a, e = chosen.label_NT[0].tolist(), chosen.eos_NT[0].tolist()
    A, E = fixed.label_NT[0].tolist(), fixed.eos_NT[0].tolist()
    log_r = [sum(A[:t]) + E[t] for t in range(5)]
    delta = [log_r[t] + a[t] + e[t + 1] - log_r[t + 1] - e[t] for t in range(4)]
    total = weight = 0.0
    for i in range(5):
        for j in range(i + 1, 5):
            total += decay ** (j - i - 1) * sum(delta[i:j]) ** 2
            weight += decay ** (j - i - 1)
    assert float(found.metrics["gdpo/chosen_loss"]) == pytest.approx(total / weight, rel=1e-12)
    mean_residual = sum(abs(d) for d in delta) / 4
    db = GDPO(balance="db", alpha=0.1)(
        PairLogps(chosen, chosen), PairLogps(fixed, fixed), NO_TARGETS
    )
    assert float(db.metrics["gdpo/chosen_loss"]) == pytest.approx(sum(d * d for d in delta))
    # The rejected copy's last residual carries + 0.8; the metric is the mean over the pair.
    other = sum(abs(d) for d in [*delta[:-1], delta[-1] + 0.8]) / 4
    assert float(db.metrics["gdpo/db_residual"]) == pytest.approx((mean_residual + other) / 2)
    assert float(db.metrics["gdpo/eos_logp"]) == pytest.approx(sum(e) / 5)


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
def test_eos_temperature_one_reads_the_plain_column(balance: str) -> None:
    """A tempered column that is there is not read at temperature 1, and is read at any other."""
    policy, reference, _ = random_batch()
    plain = PairLogps(
        replace(reference.chosen, tempered_eos_NT=None),
        replace(reference.rejected, tempered_eos_NT=None),
    )
    objective = GDPO(balance=balance, alpha=0.1)
    with_column = objective(policy, reference, NO_TARGETS).loss_N
    assert torch.equal(with_column, objective(policy, plain, NO_TARGETS).loss_N)
    tempered = GDPO(balance=balance, eos_temperature=0.5, alpha=0.1)(
        policy, reference, NO_TARGETS
    ).loss_N
    assert (tempered != with_column).any()


def test_ipo_averaged_at_equal_lengths_scales_h() -> None:
    """Both of length 4: h / 4 against 1 / 0.8; the summed form with 1 / 0.2 is 16 times that."""
    policy, reference, _ = random_batch((4, 4), (4, 4))
    averaged = IPO(beta=0.4, average_log_probs=True)(policy, reference, NO_TARGETS).loss_N
    summed = IPO(beta=0.1)(policy, reference, NO_TARGETS).loss_N
    torch.testing.assert_close(averaged, summed / 16)


def test_spl_with_one_weight_is_dpo() -> None:
    policy, reference, _ = random_batch((2, 4), (4, 3))
    found = SPL(alpha=0.3, beta=0.3)(policy, reference, NO_TARGETS)
    expected = DPO(beta=0.3)(policy, reference, NO_TARGETS)
    torch.testing.assert_close(found.loss_N, expected.loss_N, rtol=1e-12, atol=1e-12)
    for name, values in expected.metrics.items():
        torch.testing.assert_close(found.metrics[name], values, rtol=1e-9, atol=1e-9)


def test_spl_without_the_reference_does_not_read_it() -> None:
    policy, reference, _ = random_batch((2, 4), (4, 3))
    objective = SPL(alpha=0.3, beta=0.0)
    one = objective(policy, reference, NO_TARGETS).loss_N
    torch.testing.assert_close(one, objective(policy, policy, NO_TARGETS).loss_N)


def test_dpo_averaged_at_equal_lengths_scales_beta() -> None:
    """Both of length 4: beta h / 4; the other lengths make another loss."""
    policy, reference, _ = random_batch((4, 4), (4, 4))
    averaged = DPO(beta=0.8, average_log_probs=True)(policy, reference, NO_TARGETS).loss_N
    torch.testing.assert_close(averaged, DPO(beta=0.2)(policy, reference, NO_TARGETS).loss_N)
    policy, reference, _ = random_batch((2, 4), (4, 3))
    averaged = DPO(beta=0.8, average_log_probs=True)(policy, reference, NO_TARGETS).loss_N
    assert not torch.allclose(averaged, DPO(beta=0.2)(policy, reference, NO_TARGETS).loss_N)


def test_common_metrics() -> None:
    """rewards = beta (log pi - log pi_ref), by hand."""
    policy, reference = pair_with_margin(1.5, -0.5)
    metrics = DPO(beta=0.2)(policy, reference, NO_TARGETS).metrics
    torch.testing.assert_close(metrics["rewards/chosen"], row(0.3, -0.1))
    torch.testing.assert_close(metrics["rewards/rejected"], row(0.0, 0.0))
    torch.testing.assert_close(metrics["rewards/margins"], row(0.3, -0.1))
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(metrics["logps/chosen"], row(-1.5, -3.5))
    torch.testing.assert_close(metrics["logps/rejected"], row(-3.0, -3.0))
    torch.testing.assert_close(metrics["reference_logps/chosen"], row(-3.0, -3.0))
    torch.testing.assert_close(metrics["reference_logps/rejected"], row(-3.0, -3.0))


@pytest.mark.parametrize("h", [2000.0, -2000.0])
def test_extreme_margins_stay_finite(h: float) -> None:
    policy, reference = pair_with_margin(h)
    for objective in (DPO(), DPO(label_smoothing=0.1), ADPO(), ODPO(), IPO()):
        label = policy.chosen.label_NT.clone().requires_grad_()
        pair = PairLogps(replace(policy.chosen, label_NT=label), policy.rejected)
        loss = objective(pair, reference, PairTargets(row(2.0), row(1.0))).loss_N
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert label.grad is not None
        assert torch.isfinite(label.grad).all()


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
@pytest.mark.parametrize("decay", [0.7, 1.0, 1.5])
def test_long_responses_at_the_reference_in_float32(balance: str, decay: float) -> None:
    """2000 tokens near -2 nats each: the balance of the chosen side is exact, not lost in rounding.

    The pair's loss at the reference is kappa^2 under tb, and the last transition's alone otherwise.
    """
    pair = PairLogps(random_side((2000,), 1), random_side((1500,), 2))

    def narrow(side: TokenLogps) -> TokenLogps:
        assert side.eos_NT is not None
        return replace(side, label_NT=side.label_NT.float(), eos_NT=side.eos_NT.float())

    pair = PairLogps(narrow(pair.chosen), narrow(pair.rejected))
    output = GDPO(balance=balance, subtb_lambda=decay if balance == "subtb" else 1.0, alpha=0.1)(
        pair, pair, NO_TARGETS
    )
    assert torch.isfinite(output.loss_N).all()
    if balance == "tb":
        assert float(output.loss_N) == pytest.approx(0.64, rel=1e-6)
    else:
        assert float(output.metrics["gdpo/chosen_loss"]) == 0.0
        assert float(output.metrics["gdpo/rejected_loss"]) > 0.0
