"""Semantic diversity and the Vendi score against values worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from nemo_gdpo.evaluation.metrics.diversity import (
    cosine_similarity,
    cross_similarity,
    log_det_diversity,
    semantic_diversity,
    vendi_score,
)
from nemo_gdpo.evaluation.metrics.sentiment import vader_sentiment


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


# --- Vendi score ----------------------------------------------------------------------------


def test_vendi_by_hand() -> None:
    """Eigenvalues 2/3 and 1/3: exp of their entropy."""
    similarity = cosine_similarity([(1, 0, 0), (0, 1, 0), (1, 0, 0)])
    assert vendi_score(similarity) == pytest.approx(1.889882, abs=1e-6)


def test_vendi_counts_different_responses() -> None:
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1.0)
    assert vendi_score(np.kron(np.eye(3), np.ones((4, 4)))) == pytest.approx(3.0)


def test_vendi_cuts_what_rounding_makes_negative() -> None:
    """40 vectors of 3 dimensions: 37 eigenvalues are 0, some of them a little below."""
    vectors = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    similarity = cosine_similarity(vectors)
    assert np.linalg.eigvalsh(similarity / 40).min() < 0.0
    assert 1.0 < vendi_score(similarity) <= 3.0


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (np.eye(3)[:2], "shape"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
        (2 * np.eye(2), "has to be 1"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue"),
    ],
)
def test_vendi_refuses_a_non_similarity(bad: npt.NDArray[np.float64], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        vendi_score(bad)


# --- log-determinant ------------------------------------------------------------------------


def test_log_det_by_hand() -> None:
    """Eigenvalues 2, 1, 0: log(3 x 2 x 1). By subsets: 1 (none) + 3 (single ones) + 1 + 1 + 0
    (pairs) + 0 (all three) = 6."""
    similarity = cosine_similarity([(1, 0, 0), (0, 1, 0), (1, 0, 0)])
    assert log_det_diversity(similarity) == pytest.approx(1.791759, abs=1e-6)


def test_log_det_of_a_pair_by_hand() -> None:
    """Cosine 0.6: det [[2, 0.6], [0.6, 2]] = 4 - 0.36 = 3.64."""
    similarity = cosine_similarity([(1.0, 0.0), (0.6, 0.8)])
    assert log_det_diversity(similarity) == pytest.approx(np.log(3.64), abs=1e-12)


def test_log_det_from_equal_to_orthogonal() -> None:
    """All alike: one eigenvalue 5, log 6. Orthogonal: five of 1, 5 log 2. Between them, three
    kinds of two: 3 log 3."""
    assert log_det_diversity(np.ones((5, 5))) == pytest.approx(np.log(6.0))
    assert log_det_diversity(np.eye(5)) == pytest.approx(5 * np.log(2.0))
    assert log_det_diversity(np.kron(np.eye(3), np.ones((2, 2)))) == pytest.approx(3 * np.log(3.0))
    assert log_det_diversity(np.eye(1)) == pytest.approx(np.log(2.0))


def test_log_det_refuses_a_non_similarity() -> None:
    with pytest.raises(ValueError, match="eigenvalue"):
        log_det_diversity(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="shape"):
        log_det_diversity(np.zeros((0, 0)))


# --- similarity of two models ---------------------------------------------------------------


def test_cross_similarity_by_hand() -> None:
    """Cosines of (1,0) and (0,1) with (1,0), (0.6,0.8), (0,2): 1 + 0.6 + 0 + 0 + 0.8 + 1 of six."""
    own, other = [(1.0, 0.0), (0.0, 1.0)], [(1.0, 0.0), (0.6, 0.8), (0.0, 2.0)]
    assert cross_similarity(own, other) == pytest.approx(3.4 / 6)
    assert cross_similarity(other, own) == pytest.approx(3.4 / 6)


def test_cross_similarity_of_equal_and_of_opposite_models() -> None:
    same = [(1.0, 2.0), (2.0, 4.0)]
    assert cross_similarity(same, same) == pytest.approx(1.0)
    assert cross_similarity(same, [(-1.0, -2.0), (-3.0, -6.0)]) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="embedding"):
        cross_similarity(same, [(0.0, 0.0), (1.0, 0.0)])
