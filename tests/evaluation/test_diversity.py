"""Semantic diversity against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_gdpo.evaluation.diversity import semantic_diversity
from nemo_gdpo.evaluation.sentiment import vader_sentiment


def test_three_vectors_by_hand() -> None:
    """Pairs (1,2) and (2,3) are orthogonal, (1,3) equal: 1 - (0 + 0 + 1) / 3 = 2/3."""
    vectors = [(1, 0, 0), (0, 1, 0), (1, 0, 0)]
    assert semantic_diversity(vectors) == pytest.approx(0.666667, abs=1e-6)


def test_length_of_vectors_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(5, 7))
    scaled = vectors * np.array([[1.0], [10.0], [0.1], [3.0], [7.0]])
    assert semantic_diversity(scaled) == pytest.approx(semantic_diversity(vectors), abs=1e-12)


def test_opposite_vectors_exceed_one() -> None:
    assert semantic_diversity([(1.0, 0.0), (-1.0, 0.0)]) == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [[(1.0, 0.0)], [(1.0, 0.0), (0.0, 0.0)], [(1.0,), (np.nan,)]])
def test_undefined_is_refused(bad: list[tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="embedding"):
        semantic_diversity(bad)


def test_sentiment_has_the_right_sign() -> None:
    good, bad, empty = vader_sentiment(["a wonderful, moving film", "a terrible, dull mess", ""])
    assert good > 0.5
    assert bad < -0.5
    assert empty == 0.0
