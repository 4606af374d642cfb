"""The GFlowNet on groups: figures by hand, its identities, and R / Z with a hard constraint.

The language is that of `test_tabular.py`: two letters and EOS, at most three letters.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nemo_gdpo.objectives import (
    GDPO,
    GFlowNet,
    GroupLogps,
    PairLogps,
    PairTargets,
    Step0Inputs,
    TokenLogps,
)

from .synthetic import random_batch, row
from .test_tabular import LANGUAGE, minimise, random_reference, total_variation

FORBIDDEN = -20.0
"""Log-reward of an answer that breaks the constraint: e^-20 of its mass, 0 to nine places."""


def forbidden(string: str) -> bool:
    return "bb" in string


def scores(strings: list[str]) -> Tensor:
    """A constraint and a soft score: no "bb", and 0.5 nats for each a."""
    return row(*(FORBIDDEN if forbidden(s) else 0.5 * s.count("a") for s in strings))


def constrained_target(reference: Tensor, temperature: float = 1.0) -> Tensor:
    """R / Z with nothing at all on forbidden strings."""
    weight = row(*(0.0 if forbidden(s) else 1.0 for s in LANGUAGE.strings))
    bonus = scores(LANGUAGE.strings).where(weight > 0, 0.0)
    reward = LANGUAGE.probabilities(reference).pow(1 / temperature) * bonus.exp() * weight
    return reward / reward.sum()


def answers(logps: list[float]) -> TokenLogps:
    """Answers of one position, EOS alone: both columns are their log-prob."""
    column_NT = row(*logps)[:, None]
    return TokenLogps(column_NT, torch.ones_like(column_NT, dtype=torch.bool), column_NT)


def test_by_hand() -> None:
    """Three answers with log pi = (-1, -2, -3), log p_ref = (-2, -2, -2), T = 1, beta = 2.

    Scores (2, 0, -4) give bonuses (1, 0, -2), log R = (-1, -2, -4), r = (0, 0, 1), mean 1/3.
    Losses 2 * 3 / 2 * (1/9, 1/9, 4/9) = (1/3, 1/3, 4/3). Their mean, 2/3, is that over the pairs
    (1, 2), (1, 3), (2, 3): (0 + 1 + 1) / 3.
    """
    policy, reference = answers([-1.0, -2.0, -3.0]), answers([-2.0] * 3)
    group_N = torch.tensor([5, 5, 5])
    loss_N = GFlowNet(beta=2.0).group_loss(
        GroupLogps(policy, group_N), GroupLogps(reference, group_N), row(2.0, 0.0, -4.0)
    )
    torch.testing.assert_close(loss_N, row(1 / 3, 1 / 3, 4 / 3))


def test_temperature_by_hand() -> None:
    """T = 0.5 doubles log p_ref: log R = (-2, -6), log pi = (-1, -3), r = (1, 3), pair loss 4."""
    group_N = torch.tensor([0, 0])
    loss_N = GFlowNet(reward_temperature=0.5).group_loss(
        GroupLogps(answers([-1.0, -3.0]), group_N),
        GroupLogps(answers([-1.0, -3.0]), group_N),
        row(0.0, 0.0),
    )
    torch.testing.assert_close(loss_N, row(4.0, 4.0))


def test_groups_do_not_see_each_other() -> None:
    """Two groups, interleaved and numbered at will, give what each gives alone."""
    policy, reference = answers([-1.0, -4.0, -2.5, -0.5]), answers([-2.0, -1.0, -3.0, -2.0])
    score_N, objective = row(0.3, -1.0, 0.0, 2.0), GFlowNet()

    def loss(rows: list[int], groups: list[int]) -> Tensor:
        def picked(side: TokenLogps) -> TokenLogps:
            return TokenLogps(side.label_NT[rows], side.mask_NT[rows], side.label_NT[rows])

        group_N = torch.tensor(groups)
        return objective.group_loss(
            GroupLogps(picked(policy), group_N),
            GroupLogps(picked(reference), group_N),
            score_N[rows],
        )

    both = loss([0, 1, 2, 3], [9, 2, 9, 2])
    torch.testing.assert_close(both[[0, 2]], loss([0, 2], [0, 0]))
    torch.testing.assert_close(both[[1, 3]], loss([1, 3], [0, 0]))


def test_two_answers_are_the_contrastive_pair() -> None:
    """K = 2 with scores (0, alpha c) is GDPO's tb: the same losses, and the same gradients."""
    policy, reference, _ = random_batch()
    size = len(policy.chosen.mask_NT)
    targets = PairTargets(torch.zeros(size), torch.full((size,), -0.8))
    pair = GDPO(alpha=0.1, rejected_log_reward=-8.0, balance="tb")
    found = []
    for objective in (GFlowNet(), pair):
        label_NT = policy.chosen.label_NT.clone().requires_grad_()
        chosen = TokenLogps(label_NT, policy.chosen.mask_NT, policy.chosen.eos_NT)
        loss_N = objective(PairLogps(chosen, policy.rejected), reference, targets).loss_N
        loss_N.sum().backward()
        assert label_NT.grad is not None
        found.append((loss_N.detach(), label_NT.grad))
    torch.testing.assert_close(found[0], found[1])
    assert float(found[0][1].abs().max()) > 1e-3


@pytest.mark.parametrize("balance", ["db", "subtb"])
def test_single_answers_are_balanced_as_gdpos(balance: str) -> None:
    policy, reference, _ = random_batch(cut_rejected=(1,))
    size = len(policy.chosen.mask_NT)
    targets = PairTargets(torch.zeros(size), torch.full((size,), -0.8))
    ours = GFlowNet(balance=balance)(policy, reference, targets).loss_N
    theirs = GDPO(alpha=0.1, balance=balance)(policy, reference, targets).loss_N
    torch.testing.assert_close(ours, theirs)


def test_cut_answers_are_left_out_of_their_group() -> None:
    """Of four answers in two pairs one was cut: its loss is 0, and the others' mean is of three."""
    policy, reference, _ = random_batch((3, 3), (3, 3), cut_rejected=(1,))
    score_N = row(0.5, -0.5)
    targets = PairTargets(score_N, row(1.0, 100.0), group_N=torch.tensor([0, 0]))
    losses = GFlowNet()(policy, reference, targets)
    score_of_cut = PairTargets(score_N, row(1.0, -7.0), group_N=torch.tensor([0, 0]))
    torch.testing.assert_close(losses.loss_N, GFlowNet()(policy, reference, score_of_cut).loss_N)
    torch.testing.assert_close(losses.metrics["gflownet/cut"], row(0.0, 0.5))


def group_of_all(
    objective: GFlowNet, reference: Tensor, strings: list[str]
) -> Callable[[Tensor], Tensor]:
    group_N = torch.zeros(len(strings), dtype=torch.int64)
    fixed = GroupLogps(LANGUAGE.responses(strings, reference), group_N)

    def loss(table: Tensor) -> Tensor:
        ours = GroupLogps(LANGUAGE.responses(strings, table), group_N)
        return objective.group_loss(ours, fixed, scores(strings)).mean()

    return loss


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_tb_reaches_the_constrained_target(temperature: float) -> None:
    """Every string in one group: R / Z of the constraint, and log Z is the group's estimate."""
    reference = random_reference()
    objective = GFlowNet(reward_temperature=temperature)
    target = constrained_target(reference, temperature)
    table, loss = minimise(group_of_all(objective, reference, LANGUAGE.strings), reference)
    assert total_variation(LANGUAGE.probabilities(reference), target) > 0.1
    assert total_variation(LANGUAGE.probabilities(table), target) < 1e-3
    assert loss < 1e-8


@pytest.mark.parametrize("balance", ["subtb", "db"])
def test_transitions_reach_the_constrained_target(balance: str) -> None:
    """Where only full-length answers are scored, every single transition can balance."""
    reference = random_reference()
    objective = GFlowNet(balance=balance)
    full = LANGUAGE.full
    table, loss = minimise(lambda table: group_of_all(objective, reference, full)(table), reference)
    bonus = {s: float(scores([s])) for s in full}
    target, _ = LANGUAGE.target(reference, bonus)
    assert total_variation(LANGUAGE.probabilities(table), target) < 1e-3
    assert loss < 1e-8


def sampled(table: Tensor, count: int, generator: torch.Generator) -> list[str]:
    probabilities = LANGUAGE.probabilities(table)
    picked = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    return [LANGUAGE.strings[index] for index in picked.tolist()]


def test_samples_that_are_a_round_old_will_do() -> None:
    """Each round trains on groups of eight that the policy of the round before has sampled.

    Half of a group comes from the flat table: what the old policy never says is seen, too.
    """
    reference, generator = random_reference(), torch.Generator().manual_seed(3)
    objective, target = GFlowNet(), constrained_target(random_reference())
    flat = torch.zeros_like(reference).log_softmax(dim=1)
    present, before = reference, reference
    distances = []
    for _ in range(6):
        losses = []
        for _ in range(24):
            strings = sampled(before, 4, generator) + sampled(flat, 4, generator)
            losses.append(group_of_all(objective, reference, strings))
        trained, _ = minimise(
            lambda table, losses=losses: torch.stack([loss(table) for loss in losses]).mean(),
            present,
        )
        before, present = present, trained
        distances.append(total_variation(LANGUAGE.probabilities(present), target))
    assert distances[-1] < 1e-3


@pytest.mark.parametrize(
    "objective",
    [
        GFlowNet(),
        GFlowNet(beta=0.5, reward_temperature=0.8),
        GFlowNet(balance="subtb", subtb_lambda=0.9),
        GFlowNet(balance="db"),
    ],
    ids=repr,
)
def test_loss_at_the_reference(objective: GFlowNet) -> None:
    """The closed form is the loss of a policy that is its reference, in groups of four."""
    policy, _, _ = random_batch(cut_rejected=(1,))
    targets = PairTargets(
        row(0.5, -1.0, 2.0, 0.0), row(1.5, 0.0, 3.0, -2.0), group_N=torch.tensor([4, 4, 7, 7])
    )
    logps = [(side.label_NT * side.mask_NT).sum(dim=1) for side in (policy.chosen, policy.rejected)]
    assert policy.rejected.complete_N is not None
    expected = objective.loss_at_reference(
        Step0Inputs(
            rejected_length_N=policy.rejected.mask_NT.sum(dim=1),
            rejected_complete_N=policy.rejected.complete_N,
            chosen_logp_N=logps[0],
            rejected_logp_N=logps[1],
            chosen_score_N=targets.chosen_score_N,
            rejected_score_N=targets.rejected_score_N,
            chosen_length_N=policy.chosen.mask_NT.sum(dim=1),
            chosen_complete_N=torch.ones(4, dtype=torch.bool),
            group_N=targets.group_N,
        )
    )
    assert expected is not None
    torch.testing.assert_close(expected, objective(policy, policy, targets).loss_N)


def test_scores_are_needed() -> None:
    policy, reference, _ = random_batch()
    with pytest.raises(ValueError, match="needs chosen_score_N and rejected_score_N"):
        GFlowNet()(policy, reference, PairTargets())
