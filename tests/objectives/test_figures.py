"""Worked figures of the objectives, to 1e-5 in float64. Each docstring holds the arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

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
from nemo_gdpo.objectives.types import UNKNOWN

from .synthetic import NO_TARGETS, TOY, TOY_REFERENCE, pair_with_margin, row, single


def close(found: Tensor | float, expected: float) -> None:
    assert float(found) == pytest.approx(expected, abs=1e-5)


def worked_pair() -> tuple[PairLogps, PairLogps]:
    """log pi = (-10, -12), log pi_ref = (-11, -11.5): h = 2 - 0.5 = 1.5."""
    return PairLogps(single(-10.0), single(-12.0)), PairLogps(single(-11.0), single(-11.5))


def spread(total: float, length: int) -> TokenLogps:
    """A response of `length` positions whose log-probs add up to `total`."""
    label = torch.full((1, length), total / length, dtype=torch.float64)
    return TokenLogps(label, torch.ones_like(label, dtype=torch.bool))


def test_dpo_loss() -> None:
    """beta h = 0.15; -log sigma(0.15) = log(1 + e^-0.15) = log 1.860708 = 0.620957."""
    policy, reference = worked_pair()
    close(DPO(beta=0.1)(policy, reference, NO_TARGETS).loss_N, 0.620957)


def test_dpo_gradient() -> None:
    """dL/dh = -beta sigma(-beta h) = -0.1 * 0.462570 = -0.046257; dh/d log pi is 1 and -1."""
    policy, reference = worked_pair()
    label_w = policy.chosen.label_NT.requires_grad_()
    label_l = policy.rejected.label_NT.requires_grad_()
    DPO(beta=0.1)(policy, reference, NO_TARGETS).loss_N.sum().backward()
    assert label_w.grad is not None
    assert label_l.grad is not None
    close(label_w.grad, -0.046257)
    close(label_l.grad, 0.046257)


def test_cdpo_loss() -> None:
    """0.9 * 0.620957 + 0.1 * (-log sigma(-0.15) = 0.770957) = 0.558861 + 0.077096 = 0.635957."""
    policy, reference = worked_pair()
    close(DPO(beta=0.1, label_smoothing=0.1)(policy, reference, NO_TARGETS).loss_N, 0.635957)


def test_dpo_averaged() -> None:
    """Lengths 5 and 4: h = 1 / 5 - (-0.5) / 4 = 0.325 nats a token; -log sigma(5 * 0.325)."""
    policy = PairLogps(spread(-10.0, 5), spread(-12.0, 4))
    reference = PairLogps(spread(-11.0, 5), spread(-11.5, 4))
    output = DPO(beta=5.0, average_log_probs=True)(policy, reference, NO_TARGETS)
    close(output.loss_N, 0.179745)


def test_spl() -> None:
    """0.2 (-10 + 12) - 0.1 (-11 + 11.5) = 0.35; -log sigma(0.35) = 0.533382.

    At the reference 0.2 (0.5) - 0.1 (0.5) = 0.05, so that the loss is not ln 2 but 0.668460.
    """
    policy = PairLogps(spread(-10.0, 5), spread(-12.0, 4))
    reference = PairLogps(spread(-11.0, 5), spread(-11.5, 4))
    objective = SPL(alpha=0.2, beta=0.1)
    output = objective(policy, reference, NO_TARGETS)
    close(output.loss_N, 0.533382)
    close(output.metrics["rewards/margins"], 0.35)
    close(objective(reference, reference, NO_TARGETS).loss_N, 0.668460)


def test_ipo_summed() -> None:
    """(1.5 - 1 / 0.2)^2 = (-3.5)^2 = 12.25."""
    policy, reference = worked_pair()
    close(IPO(beta=0.1)(policy, reference, NO_TARGETS).loss_N, 12.25)


def test_ipo_averaged() -> None:
    """Lengths 5 and 4: h = 1 / 5 - (-0.5) / 4 = 0.325; (0.325 - 5)^2 = 21.855625."""
    policy = PairLogps(spread(-10.0, 5), spread(-12.0, 4))
    reference = PairLogps(spread(-11.0, 5), spread(-11.5, 4))
    output = IPO(beta=0.1, average_log_probs=True)(policy, reference, NO_TARGETS)
    close(output.loss_N, 21.855625)


BONUS = {"ab": -0.8}


def test_toy_normaliser() -> None:
    """R: end .2, a .25, b .15, aa .1, ab .15 e^-.8 = .067399, ba .12, bb .03; Z = 0.917399.

    P*(ab) = 0.067399 / 0.917399 = 0.073468.
    """
    probabilities, normaliser = TOY.target(TOY_REFERENCE, BONUS)
    close(normaliser, 0.917399)
    close(probabilities[TOY.strings.index("ab")], 0.073468)


def test_toy_optimal_policy() -> None:
    """Mass below each prefix: a 0.417399, b 0.3, so pi*(start) = (0.417399, 0.3, 0.2) / 0.917399.

    pi*(a) = (0.1, 0.067399, 0.25) / 0.417399. Below b nothing changed.
    """
    probabilities, _ = TOY.target(TOY_REFERENCE, BONUS)
    optimum = TOY.conditionals(probabilities).exp()
    expected = torch.tensor(
        [[0.454981, 0.327011, 0.218008], [0.239579, 0.161474, 0.598947], [0.4, 0.1, 0.5]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(optimum, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("balance", ["db", "subtb", "tb"])
def test_toy_residuals_vanish_at_the_optimum(balance: str) -> None:
    """pi* = R / Z balances all six transitions: every loss is 0 and log F(start) = log Z.

    Four full-length paths, "ab" rejected with alpha c = 0.1 * -8 = -0.8, cover the six transitions.
    """
    probabilities, normaliser = TOY.target(TOY_REFERENCE, BONUS)
    optimum = TOY.conditionals(probabilities)
    chosen, rejected = ["aa", "ba", "bb"], ["ab", "ab", "ab"]
    policy = PairLogps(TOY.responses(chosen, optimum), TOY.responses(rejected, optimum))
    reference = PairLogps(
        TOY.responses(chosen, TOY_REFERENCE), TOY.responses(rejected, TOY_REFERENCE)
    )
    output = GDPO(balance=balance, alpha=0.1)(policy, reference, NO_TARGETS)
    torch.testing.assert_close(output.loss_N, torch.zeros_like(output.loss_N), atol=1e-20, rtol=0)
    log_z = torch.full_like(output.loss_N, math.log(normaliser))
    torch.testing.assert_close(output.metrics["gdpo/log_flow"], log_z)


def toy_at_reference(objective: GDPO) -> dict[str, Tensor]:
    """Metrics of ("ba" chosen, "ab" rejected) where the policy equals the reference."""
    tempered = (TOY_REFERENCE / objective.eos_temperature).log_softmax(dim=1)
    pair = PairLogps(
        TOY.responses(["ba"], TOY_REFERENCE, tempered),
        TOY.responses(["ab"], TOY_REFERENCE, tempered),
    )
    return objective(pair, pair, NO_TARGETS).metrics


@pytest.mark.parametrize(("balance", "expected"), [("db", 0.64), ("subtb", 0.426667)])
def test_toy_at_the_reference(balance: str, expected: float) -> None:
    """Path "ab": delta = (0, 0.8). db: 0 + 0.64. subtb: (0 + 0.8^2 + (0 + 0.8)^2) / 3 = 1.28 / 3.

    Path "ba" is unlabelled: delta = (0, 0).
    """
    metrics = toy_at_reference(GDPO(balance=balance, alpha=0.1))
    close(metrics["gdpo/rejected_loss"], expected)
    close(metrics["gdpo/chosen_loss"], 0.0)


def test_subtb_weights() -> None:
    """lambda 0.5, delta (0, 0.8): (0 + 0.64 + 0.5 * 0.64) / (1 + 1 + 0.5) = 0.96 / 2.5 = 0.384."""
    close(
        toy_at_reference(GDPO(balance="subtb", subtb_lambda=0.5, alpha=0.1))["gdpo/rejected_loss"],
        0.384,
    )


@pytest.mark.parametrize(
    ("temperature", "chosen", "rejected"),
    [(1.0, 5.583389, 2.618730), (0.1, 94.517255, 71.895112)],
)
def test_tokenwise_reward_at_the_reference(
    temperature: float, chosen: float, rejected: float
) -> None:
    """Temperature 1: delta_t = 2 A_t - A_{t+1}, and + 0.8 on the last of the rejected.

    "ba": (2 log .3 - log .4)^2 + (2 log .4)^2 = (-1.491655)^2 + (-1.832581)^2 = 5.583389.
    "ab": (2 log .5 - log .3)^2 + (2 log .3 + .8)^2 = (-0.182322)^2 + (-1.607946)^2 = 2.618730.

    Temperature 0.1 raises every probability to the 10th power. Tempered log p(EOS): at the start
    log(.2^10 / (.5^10 + .3^10 + .2^10)) = -9.169040, after a -0.006133, after b -0.101992, at full
    length 0. Less log p(EOS): k = -7.559602, 0.687015, 0.591155, 0; delta_t gains k_t - k_{t+1}.
    "ba": (-1.491655 - 8.150757)^2 + (-1.832581 + 0.591155)^2 = 92.976117 + 1.541138 = 94.517255.
    "ab": (-0.182322 - 8.246617)^2 + (-1.607946 + 0.687015)^2 = 71.046998 + 0.848114 = 71.895112.
    """
    metrics = toy_at_reference(
        GDPO(reward="tokenwise", eos_temperature=temperature, alpha=0.1, balance="db")
    )
    close(metrics["gdpo/chosen_loss"], chosen)
    close(metrics["gdpo/rejected_loss"], rejected)


@pytest.mark.parametrize(("string", "expected"), [("ba", 0.3), ("ab", 0.5)])
def test_tokenwise_flow_depends_on_the_next_token(string: str, expected: float) -> None:
    """log F(start) = A_0 + E_0 - e_0 = A_0: log .3 = -1.203973 by "ba", log .5 = -0.693147."""
    side = TOY.responses([string], TOY_REFERENCE)
    pair = PairLogps(side, side)
    output = GDPO(reward="tokenwise", alpha=0.1, balance="db")(pair, pair, NO_TARGETS)
    close(output.metrics["gdpo/log_flow"], math.log(expected))


ODPO_TABLE = [
    # s_w, s_l, alpha, beta, offset, loss, DPO's loss
    (1.9, 0.4, 0.5, 0.7, 0.202733, 0.356684, 0.300058),
    (1.90, 1.89, 0.5, 0.7, -2.302585, 0.034395, 0.300058),
    (6.0, 4.0, 1.0, 0.5, 0.693147, 0.665125, 0.386871),
    (5.0, 4.0, 1.0, 0.5, 0.0, 0.386871, 0.386871),
]


@pytest.mark.parametrize(("won", "lost", "alpha", "beta", "offset", "loss", "dpo"), ODPO_TABLE)
def test_odpo_table(
    won: float, lost: float, alpha: float, beta: float, offset: float, loss: float, dpo: float
) -> None:
    """h = 1.5 throughout; loss = log(1 + e^-(beta h - Delta)), Delta = alpha log(s_w - s_l).

    0.5 log 1.5 = 0.202733: log(1 + e^-(1.05 - 0.202733)) = 0.356684; without: 0.300058.
    0.5 log 0.01 = -2.302585: log(1 + e^-3.352585) = 0.034395.
    log 2 = 0.693147: log(1 + e^-(0.75 - 0.693147)) = 0.665125; without: 0.386871.
    log 1 = 0: as DPO, 0.386871.
    """
    policy, reference = pair_with_margin(1.5)
    output = ODPO(beta=beta, alpha=alpha)(policy, reference, PairTargets(row(won), row(lost)))
    close(output.metrics["odpo/offset"], offset)
    close(output.loss_N, loss)
    close(DPO(beta=beta)(policy, reference, NO_TARGETS).loss_N, dpo)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("log", 0.810930), ("identity", 3.0), ("log1p", 1.832581), ("ratio", 1.386294)],
)
def test_odpo_offsets(form: str, expected: float) -> None:
    """Scores 3 and 1.5, alpha 2: 2 log 1.5, 2 * 1.5, 2 log 2.5, and 2 log(3 / 1.5) = 2 log 2."""
    found = ODPO(alpha=2.0, offset=form).offsets(PairTargets(row(3.0), row(1.5)))
    close(found, expected)


def test_adpo_with_pseudo_labels() -> None:
    """beta h = (0.5, -0.5, 2, -2), gamma 1.3: asked (1, 1, 0, 0), labels (+, +, +, -).

    log(1 + e^-0.5) = 0.474077; log(1 + e^0.5) = 0.974077; log(1 + e^-2) = 0.126928 twice, as the
    last pair's own guess agrees with itself. Mean 1.702010 / 4 = 0.425502. Of the two guesses, the
    first agrees with the data.
    """
    policy, reference = pair_with_margin(5.0, -5.0, 20.0, -20.0)
    output = ADPO(beta=0.1, gamma=1.3)(policy, reference, NO_TARGETS)
    expected = row(0.474077, 0.974077, 0.126928, 0.126928)
    torch.testing.assert_close(output.loss_N, expected, atol=1e-6, rtol=0)
    close(output.loss_N.mean(), 0.425502)
    assert output.metrics["queried"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert output.metrics["pseudo_label_agreement"].tolist() == [0.0, 0.0, 1.0, 0.0]
    close(DPO(beta=0.1)(policy, reference, NO_TARGETS).loss_N[3], 2.126928)


def test_adpo_targets_by_the_sign_of_the_gradient() -> None:
    """dL / dm = -o sigma(-o m): negative for label +, positive for -; labels are (+, +, +, -)."""
    policy, reference = pair_with_margin(5.0, -5.0, 20.0, -20.0)
    label = policy.chosen.label_NT.requires_grad_()
    ADPO(beta=0.1, gamma=1.3)(policy, reference, NO_TARGETS).loss_N.sum().backward()
    assert label.grad is not None
    assert torch.sign(label.grad[:, 0]).tolist() == [-1.0, -1.0, -1.0, 1.0]
    # 0.1 sigma(-0.5), 0.1 sigma(0.5), 0.1 sigma(-2) twice.
    expected = row(-0.0377541, -0.0622459, -0.0119203, 0.0119203)
    torch.testing.assert_close(label.grad[:, 0], expected, atol=1e-6, rtol=0)


def test_adpo_with_people_who_answer() -> None:
    """beta 0.1, gamma 1.3, h = (5, 5, 5, -20, 5), m = (.5, .5, .5, -2, .5).

    They say chosen, rejected, neither; -20 is sure whatever they say; of the last nobody was asked.
    Losses .474077, .974077, their mean .724077, .126928, and .474077 at the model's word.
    """
    policy, reference = pair_with_margin(5.0, 5.0, 5.0, -20.0, 5.0)
    said = PairTargets(oracle_N=torch.tensor([1, -1, 0, 1, UNKNOWN], dtype=torch.int8))
    output = ADPO(beta=0.1, gamma=1.3)(policy, reference, said)
    for found, expected in zip(
        output.loss_N, (0.474077, 0.974077, 0.724077, 0.126928, 0.474077), strict=True
    ):
        close(found, expected)
    assert output.metrics["queried"].tolist() == [1, 1, 1, 0, 0]
    assert output.metrics["label_known"].tolist() == [1, 1, 1, 1, 0]
    assert output.metrics["pseudo_label_agreement"].tolist() == [0, 0, 0, 0, 0]


def test_adpo_without_pseudo_labels() -> None:
    """(0.474077 + 0.974077 + 2 log 2) / 4 = 2.834448 / 4 = 0.708612; over asked ones 0.724077."""
    policy, reference = pair_with_margin(5.0, -5.0, 20.0, -20.0)
    label = policy.chosen.label_NT.requires_grad_()
    output = ADPO(beta=0.1, gamma=1.3, pseudo_labels=False)(policy, reference, NO_TARGETS)
    close(output.loss_N.mean(), 0.708612)
    queried = output.metrics["queried"]
    close((output.loss_N * queried).sum() / queried.sum(), 0.724077)
    output.loss_N.sum().backward()
    assert label.grad is not None
    assert label.grad[2:].tolist() == [[0.0], [0.0]]
    assert (label.grad[:2] != 0).all()
