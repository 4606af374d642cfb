"""The rules that pick two answers, on four of them, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nemo_gdpo.config.pairs import PairsSection
from nemo_gdpo.pairing.methods import Candidates, NoPair, mean_distance, pick


def picked(
    scores: list[float],
    rarity: list[float] | None = None,
    words: list[int] | None = None,
    seed: int = 1,
    **settings: Any,
) -> tuple[int, int] | str:
    found = Candidates(
        np.array(scores, dtype=np.float64),
        np.array(words or [5] * len(scores), dtype=np.int64),
        None if rarity is None else np.array(rarity),
    )
    outcome = pick(found, PairsSection(**settings), seed=seed, prompt="p")
    return outcome.reason if isinstance(outcome, NoPair) else outcome


def test_best_against_worst() -> None:
    assert picked([0.2, 0.9, -0.5, 0.4]) == (1, 2)
    assert picked([0.2, 0.9, -0.5, 0.4], min_gap=1.5) == "no two scores are far enough apart"
    assert picked([1.0, 1.0]) == "no two scores are far enough apart"
    assert picked([1.0]) == "fewer than two different answers"


def test_divpo_takes_the_rarest_good_and_the_commonest_bad() -> None:
    """Good: 0 and 1, of which 1 is rarer; bad: 2 and 3, of which 3 is commoner."""
    scores, rarity = [0.9, 0.6, 0.4, 0.1], [0.2, 0.7, 0.9, 0.1]
    assert picked(scores, rarity, method="divpo", threshold=0.5) == (1, 3)
    assert picked(scores, rarity, method="divpo") == (1, 3)
    # A quarter of four is one: the best and the worst.
    assert picked(scores, rarity, method="divpo", share=0.25) == (0, 3)
    assert (
        picked(scores, rarity, method="divpo", threshold=1.0) == "no answer is above the threshold"
    )
    assert (
        picked(scores, rarity, method="divpo", threshold=0.0) == "no answer is below the threshold"
    )
    assert picked([1.0, 1.0], [0.1, 0.2], method="divpo") == "no two scores are far enough apart"


def test_redipo_takes_the_more_diverse_of_similar_score() -> None:
    """0 and 1 are 0.05 apart and 0.3 in distance, 2 and 3 0.02 and 0.1; others are not alike."""
    scores, rarity = [0.90, 0.85, 0.40, 0.42], [0.2, 0.5, 0.8, 0.9]
    assert picked(scores, rarity, method="redipo") == (1, 0)
    assert picked(scores, rarity, method="redipo", similar=0.03) == (3, 2)
    assert picked(scores, rarity, method="redipo", similar=1.0) == (3, 0)
    assert picked(scores, rarity, method="redipo", similar=1.0, threshold=0.5) == (1, 0)
    none = "no two of similar score differ in diversity"
    assert picked(scores, rarity, method="redipo", similar=0.01) == none
    few = "fewer than two answers are above the threshold"
    assert picked(scores, rarity, method="redipo", threshold=0.87) == few


@pytest.mark.parametrize(
    ("ratio", "expected"), [(None, (1, 2)), (2.0, (3, 2)), (1.0, "no two of similar length")]
)
def test_pairs_of_similar_length(ratio: float | None, expected: Any) -> None:
    words = [8, 20, 5, 10]
    assert picked([0.2, 0.9, -0.5, 0.4], words=words, length_ratio=ratio) == expected


def test_a_seed_decides_between_equals_and_nothing_else() -> None:
    found = {picked([1.0, 1.0, 0.0, 0.0], seed=seed) for seed in range(40)}
    assert found == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert picked([1.0, 1.0, 0.0, 0.0], seed=7) == picked([1.0, 1.0, 0.0, 0.0], seed=7)


def test_mean_distance() -> None:
    """Two equal vectors and one at a right angle: 1/2, 1/2 and 1."""
    similarity = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert mean_distance(similarity).tolist() == [0.5, 0.5, 1.0]
    assert mean_distance(np.ones((1, 1))).tolist() == [0.0]
