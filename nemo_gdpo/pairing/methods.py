"""Which two answers to one prompt become a pair: plain numbers in, two positions out.

Every method is a rule of which pairs are allowed and a value that the best of them has most of.

- Best against worst score: what iterative DPO does (Yuan et al. 2024, arXiv:2401.10020).
- DivPO (Lanchantin et al. 2025, arXiv:2501.18101): the rarest of the answers above a threshold
  against the commonest of those below. The paper's rarity is a small log-prob; the mean distance of
  embeddings is ours.
- As in REDIPO (2026): of two answers with similar scores, the one that adds more diversity, here
  the one with the greater mean distance to the others. The score does not order them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.pairs import PairsSection

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """The different answers to one prompt; all [K]."""

    score_K: Floats
    """Higher is better."""
    words_K: npt.NDArray[np.int64]
    rarity_K: Floats | None = None
    """Larger is rarer; None where the method does not ask for it."""


@dataclass(frozen=True)
class NoPair:
    """A prompt without a pair."""

    reason: str
    """Its name in the counts."""


def pick(
    found: Candidates, settings: PairsSection, *, seed: int, prompt: str
) -> tuple[int, int] | NoPair:
    """(chosen, rejected) of one prompt's answers.

    Of pairs with the same value the one that a seeded order of the answers has first: it depends on
    the seed and the prompt's id alone.

    Args:
        found: answers.
        settings: method and limits.
        seed: of the order.
        prompt: id.
    """
    if len(found.score_K) < 2:
        return NoPair("fewer than two different answers")
    rule = {"best_worst": _best_worst, "divpo": _divpo, "redipo": _redipo}[settings.method]
    outcome = rule(found, settings)
    if isinstance(outcome, NoPair):
        return outcome
    allowed_KK, value_KK = outcome
    if settings.length_ratio is not None:
        allowed_KK = allowed_KK & _alike_in_length(found.words_K, settings.length_ratio)
        if not allowed_KK.any():
            return NoPair("no two of similar length")
    order = _order(len(found.score_K), seed, prompt)
    value_KK = np.where(allowed_KK, value_KK, -np.inf)[np.ix_(order, order)]
    chosen, rejected = np.unravel_index(int(np.argmax(value_KK)), value_KK.shape)
    return int(order[chosen]), int(order[rejected])


def _order(count: int, seed: int, prompt: str) -> npt.NDArray[np.int64]:
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, number]).permutation(count)


def _differences(values_K: Floats) -> Floats:
    """What the row's answer has more than the column's, [K, K]."""
    return values_K[:, None] - values_K[None, :]


def _gap(found: Candidates, least: float) -> tuple[Flags, Floats]:
    """Pairs whose scores are apart, and by how much."""
    gap_KK = _differences(found.score_K)
    return (gap_KK > 0) & (gap_KK >= least), gap_KK


def _best_worst(found: Candidates, settings: PairsSection) -> tuple[Flags, Floats] | NoPair:
    allowed_KK, gap_KK = _gap(found, settings.min_gap)
    if not allowed_KK.any():
        return NoPair("no two scores are far enough apart")
    return allowed_KK, gap_KK


def _divpo(found: Candidates, settings: PairsSection) -> tuple[Flags, Floats] | NoPair:
    assert found.rarity_K is not None
    score_K = found.score_K
    if settings.threshold is not None:
        good_K, bad_K = score_K >= settings.threshold, score_K < settings.threshold
    else:
        number = max(1, int(settings.share * len(score_K)))
        ranked_K = np.sort(score_K)
        good_K, bad_K = score_K >= ranked_K[-number], score_K <= ranked_K[number - 1]
    if not good_K.any():
        return NoPair("no answer is above the threshold")
    if not bad_K.any():
        return NoPair("no answer is below the threshold")
    apart_KK, _ = _gap(found, settings.min_gap)
    allowed_KK = apart_KK & good_K[:, None] & bad_K[None, :]
    if not allowed_KK.any():
        return NoPair("no two scores are far enough apart")
    return allowed_KK, _differences(found.rarity_K)


def _redipo(found: Candidates, settings: PairsSection) -> tuple[Flags, Floats] | NoPair:
    assert found.rarity_K is not None
    good_K = np.ones(len(found.score_K), dtype=np.bool_)
    if settings.threshold is not None:
        good_K = found.score_K >= settings.threshold
    similar_KK = np.abs(_differences(found.score_K)) <= settings.similar
    rarer_KK = _differences(found.rarity_K)
    if good_K.sum() < 2:
        return NoPair("fewer than two answers are above the threshold")
    allowed_KK = similar_KK & good_K[:, None] & good_K[None, :] & (rarer_KK > 0)
    if not allowed_KK.any():
        return NoPair("no two of similar score differ in diversity")
    return allowed_KK, rarer_KK


def _alike_in_length(words_K: npt.NDArray[np.int64], ratio: float) -> Flags:
    longer_KK = np.maximum(words_K[:, None], words_K[None, :])
    return longer_KK <= ratio * np.minimum(words_K[:, None], words_K[None, :])


def mean_distance(similarity_KK: Floats) -> Floats:
    """Mean of 1 - similarity to the other answers, [K]; 0 of a single one."""
    count = len(similarity_KK)
    others_K = similarity_KK.sum(axis=1) - np.diagonal(similarity_KK)
    return 1.0 - others_K / (count - 1) if count > 1 else np.zeros(count)
