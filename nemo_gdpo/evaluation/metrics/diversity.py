"""Diversity of K responses to one prompt. A degenerate model maximises every figure here: always
report quality beside them.

Where a figure is not defined (one response has no pairs, no response has an n-gram) the functions
raise ValueError; they never give 0, which would say "no diversity at all".

Shapes: K responses, D embedding dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemo_gdpo.evaluation.metrics import words as segmentation

EIGENVALUE_TOLERANCE = 1e-6
"""Eigenvalues between minus this and 0 are rounding; below, it is not a similarity matrix."""


def _unit(embeddings_KD: npt.ArrayLike) -> npt.NDArray[np.float64]:
    vectors = np.asarray(embeddings_KD, dtype=np.float64)
    if vectors.ndim != 2 or vectors.shape[0] < 2:
        raise ValueError(f"need embeddings [K >= 2, D], got shape {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise ValueError("an embedding is zero or not finite, so its cosine is not defined")
    unit: npt.NDArray[np.float64] = vectors / norms
    return unit


def cosine_similarity(embeddings_KD: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Cosines [K, K] with an exact 1 on the diagonal, as `vendi_score` takes them.

    Raises:
        ValueError: fewer than two responses, or a vector that is zero or not finite.
    """
    unit = _unit(embeddings_KD)
    cosine_KK = unit @ unit.T
    np.fill_diagonal(cosine_KK, 1.0)
    return cosine_KK


def cross_similarity(first_KD: npt.ArrayLike, second_LD: npt.ArrayLike) -> float:
    """Mean cosine between the responses of two models to one prompt: every one of the first with
    every one of the second ("inter-model homogeneity", Infinity-Chat, arXiv 2510.22954).

    Args:
        first_KD, second_LD: one vector a response, by the same encoder; two or more of each.

    Raises:
        ValueError: fewer than two responses, or a vector that is zero or not finite.
    """
    return float((_unit(first_KD) @ _unit(second_LD).T).mean())


def semantic_diversity(embeddings_KD: npt.ArrayLike) -> float:
    """1 - mean cosine over all pairs of different responses (Kwon et al. 2024, diversity metric).

    Args:
        embeddings_KD: one vector a response, of any length but zero.

    Returns:
        0 when all responses point the same way; about 1 when they have nothing in common.

    Raises:
        ValueError: fewer than two responses, or a vector that is zero or not finite.
    """
    unit = _unit(embeddings_KD)
    count = unit.shape[0]
    cosine_KK = unit @ unit.T
    off_diagonal = cosine_KK.sum() - np.trace(cosine_KK)
    # Rounding makes equal responses a little more than equal.
    return max(0.0, float(1.0 - off_diagonal / (count * (count - 1))))


def _words(response: str) -> tuple[str, ...]:
    found = segmentation.words(response)
    if found is None:
        raise ValueError("the words of a response are not known: its script joins them")
    return found


def _ngrams(responses: Sequence[str], n: int) -> tuple[int, int]:
    """(unique, total) n-grams of all responses, case kept; see `words`."""
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n={n}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for response in responses:
        own = _words(response)
        grams = [own[i : i + n] for i in range(len(own) - n + 1)]
        seen.update(grams)
        total += len(grams)
    if total == 0:
        raise ValueError(f"no response has {n} words, so distinct-{n} is not defined")
    return len(seen), total


def distinct_n(responses: Sequence[str], n: int) -> float:
    """Unique over total n-grams of all responses together (Li et al. 2016).

    It falls with length by itself: a longer text repeats more. Compare at matched length, or take
    `expectation_adjusted_distinct`.

    Args:
        responses: texts; for their words see `nemo_gdpo.evaluation.metrics.words`.
        n: words in an n-gram.

    Raises:
        ValueError: no response has n words, or their words are not known.
    """
    unique, total = _ngrams(responses, n)
    return unique / total


def distinct_openings(responses: Sequence[str], words: int = 3) -> float:
    """Different openings over responses: 1 when no two begin alike, 1 / K when all do.

    A sampler whose prefixes have collapsed repeats its openings while its endings still differ,
    which n-grams of whole responses hardly show (RapTB, arXiv 2603.00454, on prefix collapse).

    Args:
        responses: K texts; upper and lower case are alike.
        words: of a response that make its opening; a shorter response is its own opening.

    Raises:
        ValueError: there is no response, or its words are not known.
    """
    if not responses:
        raise ValueError("there is no response")
    openings = {_words(text.lower())[:words] for text in responses}
    return len(openings) / len(responses)


def expectation_adjusted_distinct(responses: Sequence[str], n: int, vocabulary_size: int) -> float:
    """Unique n-grams over the number that uniform draws would give (Liu et al. 2022).

    N / (V (1 - ((V - 1) / V)^C)) with N unique of C n-grams. V is taken as given for every n: the
    number of n-grams one draws from is the caller's to say. The value can exceed 1 where V is
    smaller than what the responses use.

    Args:
        responses: texts; for their words see `nemo_gdpo.evaluation.metrics.words`.
        n: words in an n-gram.
        vocabulary_size: V, at least 1. Keep it the same for all that is compared.

    Raises:
        ValueError: no response has n words, their words are not known, or V is below 1.
    """
    if vocabulary_size < 1:
        raise ValueError(f"the vocabulary has at least one entry, got {vocabulary_size}")
    unique, total = _ngrams(responses, n)
    if vocabulary_size == 1:
        return float(unique)
    # 1 - (1 - 1/V)^C without losing digits for a large V.
    expected = -vocabulary_size * math.expm1(total * math.log1p(-1.0 / vocabulary_size))
    return unique / expected


def self_bleu(responses: Sequence[str]) -> float:
    """Mean BLEU of each response against all others (Zhu et al. 2018); lower is more diverse.

    sacrebleu's sentence BLEU with its `13a` tokeniser, `exp` smoothing and case kept. The effective
    order is on: without it a response of fewer than four words has BLEU 0 whatever it says, and a
    model of one-word answers looks perfectly diverse. An empty response shares nothing with others:
    it scores 0, and sacrebleu leaves it out of the references of the others. Words that a script
    joins are cut apart first.

    Args:
        responses: at least two.

    Returns:
        0 (nothing shared) to 100 (all alike).

    Raises:
        ValueError: fewer than two responses, all of them empty, or words that are not known.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(responses) < 2:
        raise ValueError(f"need two responses at least, got {len(responses)}")
    if not any(response.strip() for response in responses):
        raise ValueError("all responses are empty, so their BLEU is not defined")
    for response in responses:
        _words(response)
    texts = [segmentation.spaced(response) for response in responses]
    bleu = BLEU(tokenize="13a", smooth_method="exp", effective_order=True)
    scores = [
        min(100.0, bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score)
        for i, text in enumerate(texts)
    ]
    return float(np.mean(scores))


def _eigenvalues(similarity_KK: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Of a similarity matrix; what rounding makes negative is 0.

    Raises:
        ValueError: not square, not symmetric, another diagonal than 1, or an eigenvalue that is
            clearly negative.
    """
    similarity = np.asarray(similarity_KK, dtype=np.float64)
    count = similarity.shape[0]
    if similarity.ndim != 2 or similarity.shape != (count, count) or count == 0:
        raise ValueError(f"need a similarity matrix [K, K], got shape {similarity.shape}")
    if not np.allclose(similarity, similarity.T, atol=1e-6):
        raise ValueError("the similarity matrix is not symmetric")
    if not np.allclose(np.diag(similarity), 1.0, atol=1e-6):
        raise ValueError("a response's similarity with itself has to be 1")
    eigenvalues = np.linalg.eigvalsh((similarity + similarity.T) / 2.0)
    if eigenvalues.min() < -EIGENVALUE_TOLERANCE * count:
        raise ValueError(
            f"the similarity matrix has an eigenvalue of {eigenvalues.min():.2e}, so it is not one"
        )
    cut: npt.NDArray[np.float64] = np.maximum(eigenvalues, 0.0)
    return cut


def log_det_diversity(similarity_KK: npt.ArrayLike) -> float:
    """log det(I + S), in nats, of determinantal point processes (Kulesza & Taskar 2012).

    det(I + S) is the sum of det(S_A) over all sets A of responses (their theorem 2.1), and det(S_A)
    is the squared volume that the responses of A span, 0 as soon as one of them repeats another.
    log det(S) itself is minus infinity where two responses are equal, and with S + eps I its value
    is mostly that of eps; the identity leaves nothing to choose.

    Args:
        similarity_KK: symmetric, 1 on the diagonal.

    Returns:
        log(1 + K) when all responses are alike; K log 2 when no two have anything in common.

    Raises:
        ValueError: it is not a similarity matrix.
    """
    return float(np.log1p(_eigenvalues(similarity_KK)).sum())


def vendi_score(similarity_KK: npt.ArrayLike) -> float:
    """exp(-sum l log l) over the eigenvalues l of similarity / K (Friedman & Dieng 2023).

    The effective number of different responses: 1 to K. The formula is our own rather than the
    package's: `vendi_score.score_X` there takes an order q and does not use it, and eigenvalues
    that rounding makes a little negative have to be cut to 0 before the logarithm.

    Args:
        similarity_KK: symmetric, 1 on the diagonal.

    Raises:
        ValueError: not square, not symmetric, another diagonal, or a matrix with an eigenvalue that
            is clearly negative and so no similarity.
    """
    eigenvalues = _eigenvalues(similarity_KK)
    eigenvalues = eigenvalues / eigenvalues.size
    positive = eigenvalues[eigenvalues > 0.0]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def distinct_k(classes: Sequence[int]) -> int:
    """NoveltyBench's number of classes among K responses (Zhang et al. 2025).

    The benchmark takes K = 10; figures for another K are not comparable with its own.

    Args:
        classes: one number a response; see `nemo_gdpo.evaluation.metrics.novelty.partition`.

    Raises:
        ValueError: no response is given.
    """
    if not classes:
        raise ValueError("no response, so no classes")
    return len(set(classes))


def utility_k(scores: Sequence[float], classes: Sequence[int], patience: float = 0.8) -> float:
    """NoveltyBench's utility: what a reader gains who reads the next with probability `patience`.

    sum p^(i-1) u_i [class i is new] / sum p^(i-1): the repetition of a class is worth nothing.

    Args:
        scores: u, one a response; 1 to 10 in the benchmark, from a 27B reward model.
        classes: one number a response.
        patience: p, 0 to 1, both excluded.

    Raises:
        ValueError: lengths differ, no response is given, or p is out of range.
    """
    if len(scores) != len(classes) or not classes:
        raise ValueError(f"{len(scores)} scores for {len(classes)} classes")
    if not 0.0 < patience < 1.0:
        raise ValueError(f"patience is between 0 and 1, got {patience}")
    seen: set[int] = set()
    gained = whole = 0.0
    weight = 1.0
    for score, label in zip(scores, classes, strict=True):
        if label not in seen:
            gained += weight * score
            seen.add(label)
        whole += weight
        weight *= patience
    return gained / whole
