"""Small inputs for the objectives: numbers, random pairs, and an enumerable language."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from nemo_gdpo.objectives import (
    ADPO,
    DPO,
    GDPO,
    IPO,
    ODPO,
    SPL,
    GFlowNet,
    Objective,
    PairLogps,
    PairTargets,
    TokenLogps,
)

NO_TARGETS = PairTargets()

GDPO_FORMS: dict[str, GDPO] = {
    "gdpo-db": GDPO(balance="db", alpha=0.1),
    "gdpo-subtb": GDPO(balance="subtb", subtb_lambda=0.9, alpha=0.1),
    "gdpo-tb": GDPO(balance="tb", alpha=0.1),
    "gdpo-db-tempered": GDPO(balance="db", eos_temperature=0.1, alpha=0.1),
    "gdpo-subtb-tempered": GDPO(balance="subtb", eos_temperature=0.5, alpha=0.1),
    "gdpo-tb-tempered": GDPO(balance="tb", eos_temperature=0.5, alpha=0.1),
    "gdpo-db-tokenwise": GDPO(balance="db", reward="tokenwise", alpha=0.1),
    "gdpo-subtb-tokenwise": GDPO(
        balance="subtb", reward="tokenwise", eos_temperature=0.1, alpha=0.1
    ),
}

OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(),
    "cdpo": DPO(label_smoothing=0.1),
    "dpo-averaged": DPO(beta=5.0, average_log_probs=True),
    "ipo": IPO(),
    "spl": SPL(alpha=0.2, beta=0.1),
    "ipo-averaged": IPO(average_log_probs=True),
    "odpo-log": ODPO(),
    "odpo-identity": ODPO(offset="identity"),
    "odpo-log1p": ODPO(offset="log1p"),
    "odpo-ratio": ODPO(offset="ratio"),
    "adpo": ADPO(gamma=0.2),
    "adpo-no-pseudo-labels": ADPO(gamma=0.2, pseudo_labels=False),
    "gflownet-tb": GFlowNet(beta=0.5, reward_temperature=0.8),
    "gflownet-subtb": GFlowNet(balance="subtb", subtb_lambda=0.9),
    "gflownet-db": GFlowNet(balance="db", reward_temperature=1.5),
    **GDPO_FORMS,
}


def row(*values: float) -> Tensor:
    """Float64 [N]."""
    return torch.tensor(values, dtype=torch.float64)


def single(*sums: float) -> TokenLogps:
    """One response a number, of one position, so that its log-prob is the number."""
    label = row(*sums)[:, None]
    return TokenLogps(label, torch.ones_like(label, dtype=torch.bool))


def pair_with_margin(*h: float) -> tuple[PairLogps, PairLogps]:
    """(policy, reference) with log-ratio differences h; the reference is all -3."""
    level = row(*(-3.0 for _ in h))
    reference = PairLogps(single(*level.tolist()), single(*level.tolist()))
    return PairLogps(single(*(level + row(*h)).tolist()), reference.rejected), reference


def random_side(
    lengths: Sequence[int], seed: int, *, tempered: bool = False, cut: Sequence[int] = ()
) -> TokenLogps:
    """Log-probs of responses with these lengths; the rows in `cut` are incomplete.

    In a complete row the last label is EOS: both columns hold the same number there.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))

    def draw() -> Tensor:
        return -4.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1

    label, eos, tempered_eos = draw(), draw(), draw()
    size = torch.tensor(lengths)
    mask = torch.arange(shape[1]) < size[:, None]
    complete = torch.tensor([index not in cut for index in range(len(lengths))])
    last = torch.arange(shape[1]) == size[:, None] - 1
    label = torch.where(last & complete[:, None], eos, label)
    return TokenLogps(
        label, mask, eos, tempered_eos if tempered else None, complete if cut else None
    )


def random_batch(
    chosen: Sequence[int] = (4, 1, 6, 3),
    rejected: Sequence[int] = (5, 2, 3, 1),
    *,
    cut_chosen: Sequence[int] = (),
    cut_rejected: Sequence[int] = (),
) -> tuple[PairLogps, PairLogps, PairTargets]:
    """(policy, reference, targets) of pairs with these lengths."""
    policy = PairLogps(
        random_side(chosen, 1, cut=cut_chosen), random_side(rejected, 2, cut=cut_rejected)
    )
    reference = PairLogps(
        random_side(chosen, 3, tempered=True, cut=cut_chosen),
        random_side(rejected, 4, tempered=True, cut=cut_rejected),
    )
    lost = row(*(1.0 + 0.5 * index for index in range(len(chosen))))
    return policy, reference, PairTargets(lost + 0.75, lost)


def with_gradient(pair: PairLogps) -> PairLogps:
    """A copy whose label and EOS columns are leaves that take gradients."""

    def leaf(side: TokenLogps) -> TokenLogps:
        eos = side.eos_NT
        return replace(
            side,
            label_NT=side.label_NT.clone().requires_grad_(),
            eos_NT=None if eos is None else eos.clone().requires_grad_(),
        )

    return PairLogps(leaf(pair.chosen), leaf(pair.rejected))


def gradients(pair: PairLogps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (chosen label, chosen EOS, rejected label, rejected EOS); zeros where none."""
    columns = (
        pair.chosen.label_NT,
        pair.chosen.eos_NT,
        pair.rejected.label_NT,
        pair.rejected.eos_NT,
    )
    found = []
    for column in columns:
        assert column is not None
        found.append(torch.zeros_like(column) if column.grad is None else column.grad)
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True)
class Language:
    """All strings over {a, b} of at most `max_length` letters; EOS is forced at the full length.

    A policy is a table [states, 3] of log-probs of (a, b, EOS), one row a prefix, `prefixes` first
    to last by length; full-length strings have no row.
    """

    max_length: int

    @property
    def strings(self) -> list[str]:
        """Every response, shortest first."""
        return [
            "".join(letters)
            for length in range(self.max_length + 1)
            for letters in product("ab", repeat=length)
        ]

    @property
    def prefixes(self) -> list[str]:
        """States where there is a choice."""
        return [string for string in self.strings if len(string) < self.max_length]

    @property
    def full(self) -> list[str]:
        """Full-length responses."""
        return [string for string in self.strings if len(string) == self.max_length]

    def _step(self, table: Tensor, prefix: str, column: int) -> Tensor:
        if len(prefix) == self.max_length:
            assert column == 2
            return table.new_zeros(())
        return table[self.prefixes.index(prefix), column]

    def responses(
        self, strings: Sequence[str], table: Tensor, tempered: Tensor | None = None
    ) -> TokenLogps:
        """Token log-probs of complete responses, in the order given."""
        width = self.max_length + 1
        label, eos, tempered_eos, mask = [], [], [], []
        for string in strings:
            states = [string[:end] for end in range(len(string) + 1)]
            labels = ["ab".index(letter) for letter in string] + [2]
            padding = [table.new_zeros(())] * (width - len(states))
            label += [
                self._step(table, s, c) for s, c in zip(states, labels, strict=True)
            ] + padding
            eos += [self._step(table, s, 2) for s in states] + padding
            if tempered is not None:
                tempered_eos += [self._step(tempered, s, 2) for s in states] + padding
            mask += [True] * len(states) + [False] * len(padding)
        shape = (len(strings), width)
        return TokenLogps(
            torch.stack(label).view(shape),
            torch.tensor(mask).view(shape),
            torch.stack(eos).view(shape),
            torch.stack(tempered_eos).view(shape) if tempered_eos else None,
        )

    def probabilities(self, table: Tensor) -> Tensor:
        """Probability of every response, in the order of `strings`."""
        side = self.responses(self.strings, table)
        return side.label_NT.sum(dim=1).exp()

    def target(self, reference: Tensor, bonus: dict[str, float]) -> tuple[Tensor, float]:
        """(R / Z over `strings`, Z) for R(y) = pi_ref(y) exp(bonus of y)."""
        weights = row(*(math.exp(bonus.get(string, 0.0)) for string in self.strings))
        reward = self.probabilities(reference) * weights
        return reward / reward.sum(), float(reward.sum())

    def conditionals(self, probabilities: Tensor) -> Tensor:
        """The table whose responses have these probabilities."""
        mass = dict(zip(self.strings, probabilities.tolist(), strict=True))

        def subtree(prefix: str) -> float:
            return sum(p for string, p in mass.items() if string.startswith(prefix))

        return torch.tensor(
            [
                [subtree(p + "a") / subtree(p), subtree(p + "b") / subtree(p), mass[p] / subtree(p)]
                for p in self.prefixes
            ],
            dtype=torch.float64,
        ).log()


TOY = Language(max_length=2)
TOY_REFERENCE = torch.tensor(
    [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.1, 0.5]], dtype=torch.float64
).log()
