"""How far annotators agree: percent agreement, and Krippendorff's alpha for nominal data.

Source: Krippendorff, Computing Krippendorff's alpha-reliability (2011), sections C and D: any
number of annotators, answers missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_gdpo.labeling.state import State


@dataclass(frozen=True)
class Agreement:
    """Agreement over pairs that two annotators at least have judged; `skip` is no judgement."""

    pairs: int
    """Such pairs."""
    annotators: int
    """Who judged them."""
    percent: float | None
    """Share of equal answers among all pairs of answers to one pair; None without any."""
    alpha: float | None
    """1 is perfect, 0 what chance gives; None without such pairs, or where all answers are equal,
    which leaves no chance to compare with."""


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Nominal alpha of the values that each unit was given; None where it is not defined."""
    counted = [Counter(values) for values in units if len(values) > 1]
    totals: Counter[str] = sum(counted, Counter())
    n = totals.total()
    expected = n * n - sum(count * count for count in totals.values())
    if expected == 0:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count * count for count in unit.values())) / (unit.total() - 1)
        for unit in counted
    )
    return 1.0 - (n - 1) * observed / expected


def percent_agreement(units: Iterable[Sequence[str]]) -> float | None:
    """Share of equal values among all pairs of values of one unit; None without a pair."""
    equal = pairs = 0
    for values in units:
        equal += sum(count * (count - 1) for count in Counter(values).values())
        pairs += len(values) * (len(values) - 1)
    return equal / pairs if pairs else None


def agreement(state: State) -> Agreement:
    """Agreement of the annotators' latest answers."""
    units, annotators = list[list[str]](), set[str]()
    for pair in state.asked:
        given = {who: a.outcome for who, a in state.latest(pair).items() if a.outcome != "skip"}
        if len(given) > 1:
            units.append(list(given.values()))
            annotators |= given.keys()
    return Agreement(
        len(units), len(annotators), percent_agreement(units), krippendorff_alpha(units)
    )
