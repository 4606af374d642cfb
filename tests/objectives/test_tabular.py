"""Minimising the losses over an enumerable language gives the target R / Z, and when it does not.

The language has two letters and EOS, at most three letters, EOS forced at three: 15 responses. The
policy is a free table of logits, so that only the objective decides what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import GDPO, PairLogps

from .synthetic import NO_TARGETS, TOY, TOY_REFERENCE, Language, row

LANGUAGE = Language(max_length=3)
# kappa = -alpha c = 2 nats: the rejected responses keep e^-2 of their mass.
ALPHA, REJECTED = 0.5, -4.0


def random_reference() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (len(LANGUAGE.prefixes), 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(dim=1)


def minimise(loss_of_table: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """(table of log-probs, loss) after LBFGS from `start`."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of_table(logits.log_softmax(dim=1))
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        table = logits.log_softmax(dim=1)
        return table, float(loss_of_table(table))


def pair_loss(
    objective: GDPO,
    language: Language,
    reference: Tensor,
    chosen: Sequence[str],
    rejected: Sequence[str],
) -> Callable[[Tensor], Tensor]:
    """Mean loss of the pairs (chosen_i, rejected_i), of a table."""
    fixed = PairLogps(
        language.responses(chosen, reference, reference),
        language.responses(rejected, reference, reference),
    )

    def loss(table: Tensor) -> Tensor:
        policy = PairLogps(language.responses(chosen, table), language.responses(rejected, table))
        return objective(policy, fixed, NO_TARGETS).loss_N.mean()

    return loss


def total_variation(found: Tensor, target: Tensor) -> float:
    return float((found - target).abs().sum() / 2)


def train(
    balance: str, chosen: Sequence[str], rejected: Sequence[str], labelled: Sequence[str]
) -> tuple[float, float, float]:
    """(total variation to R / Z before, after, final loss)."""
    reference = random_reference()
    objective = GDPO(alpha=ALPHA, rejected_log_reward=REJECTED, balance=balance)
    target, _ = LANGUAGE.target(reference, dict.fromkeys(labelled, ALPHA * REJECTED))
    loss = pair_loss(objective, LANGUAGE, reference, chosen, rejected)
    table, final = minimise(loss, reference)
    before = total_variation(LANGUAGE.probabilities(reference), target)
    return before, total_variation(LANGUAGE.probabilities(table), target), final


def every_pair(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[list[str], list[str]]:
    return [c for c in chosen for _ in rejected], [r for _ in chosen for r in rejected]


@pytest.mark.parametrize("balance", ["db", "subtb"])
def test_full_length_labels_reach_the_target(balance: str) -> None:
    """All full-length responses are seen, those labelled rejected among them: R / Z, zero loss."""
    labelled = ["aba", "abb", "bbb"]
    others = [string for string in LANGUAGE.full if string not in labelled]
    before, after, loss = train(balance, *every_pair(others, labelled), labelled)
    assert before > 0.03
    assert after < 1e-3
    assert loss < 1e-8


@pytest.mark.parametrize("balance", ["db", "subtb"])
def test_labelled_prefixes_miss_the_target(balance: str) -> None:
    """A rejected response that others continue asks for two rewards of one state: no balance."""
    labelled = ["a", "b", "ab"]
    _, after, loss = train(balance, *every_pair(LANGUAGE.full, labelled), labelled)
    assert after > 0.05
    assert loss > 1e-2


@pytest.mark.parametrize("labelled", [["aba", "abb", "bbb"], ["a", "b", "ab"]])
def test_tb_reaches_the_target_whatever_is_labelled(labelled: list[str]) -> None:
    """tb compares whole responses: pairs that connect all of them pin every ratio, so R / Z.

    That a labelled response is another's prefix does not matter, as no flow passes through a state.
    """
    others = [string for string in LANGUAGE.strings if string not in labelled]
    before, after, loss = train("tb", *every_pair(others, labelled), labelled)
    assert before > 0.03
    assert after < 1e-3
    assert loss < 1e-8


def test_zero_loss_on_logged_pairs_does_not_certify_the_target() -> None:
    """Two letters at most, only ("ba", "ab") logged: zero loss, yet total variation is 0.030.

    "aa", which was never logged, should have 0.1 / 0.917399 = 0.109 and drops to 0.079.
    """
    target, _ = TOY.target(TOY_REFERENCE, {"ab": -0.8})
    table, loss = minimise(
        pair_loss(GDPO(alpha=0.1, balance="db"), TOY, TOY_REFERENCE, ["ba"], ["ab"]), TOY_REFERENCE
    )
    found = TOY.probabilities(table)
    assert loss < 1e-10
    assert total_variation(found, target) == pytest.approx(0.030, abs=2e-3)
    never_logged = TOY.strings.index("aa")
    assert float(target[never_logged]) == pytest.approx(0.109, abs=5e-4)
    assert float(found[never_logged]) == pytest.approx(0.079, abs=2e-3)


def test_conditionals_invert_probabilities() -> None:
    """The table rebuilt from the responses' probabilities is the table."""
    reference = random_reference()
    probabilities = LANGUAGE.probabilities(reference)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(LANGUAGE.conditionals(probabilities), reference)
    assert row(*LANGUAGE.target(reference, {})[0].tolist()).allclose(probabilities)
