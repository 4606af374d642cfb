"""One point of the sweep: a value for each metric and prompt, from its responses."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_gdpo.config.evaluation import EvaluationConfig
from nemo_gdpo.evaluation.diversity import (
    cosine_similarity,
    distinct_k,
    distinct_n,
    expectation_adjusted_distinct,
    self_bleu,
    semantic_diversity,
    utility_k,
    vendi_score,
)
from nemo_gdpo.evaluation.encoder import Encoder
from nemo_gdpo.evaluation.novelty import (
    Equivalence,
    by_classifier,
    by_cosine,
    partition,
    utility_score,
)
from nemo_gdpo.evaluation.rewards import Answer, Reward
from nemo_gdpo.evaluation.rows import Row
from nemo_gdpo.evaluation.validity import check_response, strange_words
from nemo_gdpo.io.arrays import Array, Cache, compute_cached, content_key, length_batches
from nemo_gdpo.progress import progress_bar

Values = dict[str, list[float | None]]
"""Metric -> one value a prompt; None where it is not defined."""


@dataclass
class Measured:
    """What is known about one point."""

    values: Values = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rewards: dict[str, list[list[float]]] = field(default_factory=dict)
    """Reward -> prompt -> response."""
    strange_words: float | None = None
    """See `nemo_gdpo.evaluation.validity.strange_words`."""

    def put(self, name: str, value: float | None) -> None:
        self.values.setdefault(name, []).append(value)


def measure_text(rows: Sequence[Row], into: Measured) -> None:
    """Length, validity and repetition, and the counts."""
    counts = into.counts
    for row in rows:
        checks = [check_response(text) for text in row.outputs]
        into.put("length_words", statistics.fmean(len(text.split()) for text in row.outputs))
        tokens = None if row.token_ids is None else statistics.fmean(map(len, row.token_ids))
        into.put("length_tokens", tokens)
        into.put("valid", statistics.fmean(check.valid for check in checks))
        into.put("finished", statistics.fmean(r == "stop" for r in row.finish_reasons))
        repeated = [check.repetition for check in checks if check.repetition is not None]
        into.put("repetition", statistics.fmean(repeated) if repeated else None)
        into.put("ascii", statistics.fmean(check.ascii for check in checks))
        counts["responses"] += len(row.outputs)
        counts["empty"] += sum(check.empty for check in checks)
        counts["unprintable"] += sum(check.unprintable for check in checks)
        counts["loop"] += sum(check.loop for check in checks)
        counts["invalid"] += sum(not check.valid for check in checks)
        counts.update(f"finish.{reason}" for reason in row.finish_reasons)
    into.strange_words = strange_words(text for row in rows for text in row.outputs)


def measure_rewards(rows: Sequence[Row], rewards: Sequence[Reward], into: Measured) -> None:
    """Mean, best, worst and spread of each reward."""
    answers = [
        Answer(row.prompt, text, f"{row.where}, response {number}")
        for row in rows
        for number, text in enumerate(row.outputs, start=1)
    ]
    for reward in rewards:
        flat = iter(reward(answers))
        scores = [[next(flat) for _ in row.outputs] for row in rows]
        into.rewards[reward.name] = scores
        name = f"reward.{reward.name}"
        for own in scores:
            into.put(name, statistics.fmean(own))
            into.put(f"{name}.best", max(own))
            into.put(f"{name}.worst", min(own))
            into.put(f"{name}.std", statistics.stdev(own) if len(own) > 1 else None)


def embed_rows(
    rows: Sequence[Row], encoder: Encoder, fingerprint: str, cache: Cache, batch_tokens: int
) -> list[npt.NDArray[np.float32]]:
    """[responses, D] for each prompt, from the cache or computed now."""
    texts = [text for row in rows for text in row.outputs]

    def embed(batch: Sequence[str]) -> list[Array]:
        return list(encoder(batch))

    vectors = compute_cached(
        cache,
        texts,
        lambda text: content_key("embedding", fingerprint, encoder.max_tokens, text),
        embed,
        length_batches(encoder.length, batch_tokens),
        label="embeddings",
    )
    flat = iter(vectors)
    return [np.stack([next(flat).astype(np.float32) for _ in row.outputs]) for row in rows]


def measure_diversity(
    rows: Sequence[Row],
    evaluation: EvaluationConfig,
    embeddings: Sequence[npt.NDArray[np.float32]] | None,
    classifier: Callable[[str, str], float] | None,
    into: Measured,
) -> None:
    """Every diversity figure; after `measure_rewards`, which utility_k needs.

    What compares responses with each other is None for a single one.
    """
    wanted = evaluation.novelty.utility_reward
    with progress_bar(total=len(rows), unit="prompt", label="diversity", enabled=True) as bar:
        for index, row in enumerate(rows):
            outputs = list(row.outputs)
            _lexical(outputs, evaluation, into)
            cosine_KK = None
            if embeddings is not None:
                several = len(outputs) > 1
                own = embeddings[index]
                cosine_KK = cosine_similarity(own) if several else None
                into.put("semantic_diversity", semantic_diversity(own) if several else None)
                into.put("vendi", None if cosine_KK is None else vendi_score(cosine_KK))
            equivalent = _equivalence(outputs, evaluation, cosine_KK, classifier)
            if embeddings is not None or classifier is not None:
                classes = None if equivalent is None else partition(len(outputs), equivalent)
                into.put("distinct_k", None if classes is None else distinct_k(classes))
                if wanted is not None:
                    into.put("utility_k", _utility(classes, index, evaluation, into))
            bar.update(1)


def _equivalence(
    outputs: list[str],
    evaluation: EvaluationConfig,
    cosine_KK: npt.NDArray[np.float64] | None,
    classifier: Callable[[str, str], float] | None,
) -> Equivalence | None:
    if len(outputs) < 2:
        return None
    if classifier is not None:
        return by_classifier(outputs, classifier)
    return None if cosine_KK is None else by_cosine(outputs, cosine_KK, evaluation.novelty.cosine)


def _lexical(outputs: list[str], evaluation: EvaluationConfig, into: Measured) -> None:
    for n in evaluation.distinct:
        defined = any(len(text.split()) >= n for text in outputs)
        into.put(f"distinct_{n}", distinct_n(outputs, n) if defined else None)
        size = evaluation.ead_vocabulary_size
        adjusted = expectation_adjusted_distinct(outputs, n, size) if defined else None
        into.put(f"ead_{n}", adjusted)
    comparable = len(outputs) > 1 and any(text.strip() for text in outputs)
    into.put("self_bleu", self_bleu(outputs) if comparable else None)


def _utility(
    classes: list[int] | None, index: int, evaluation: EvaluationConfig, into: Measured
) -> float | None:
    novelty = evaluation.novelty
    if classes is None or novelty.utility_reward is None:
        return None
    raw = into.rewards[novelty.utility_reward][index]
    scores = [utility_score(value, novelty.utility_thresholds) for value in raw]
    return utility_k(scores, classes, novelty.patience)


def cached_classifier(directory: Path, cache: Cache, device: str) -> Callable[[str, str], float]:
    """NoveltyBench's classifier, each pair of texts asked once.

    Raises:
        UserError: it cannot be loaded, or is no classifier of two texts.
    """
    from nemo_gdpo.evaluation.models import directory_fingerprint, resolve_device
    from nemo_gdpo.evaluation.novelty import PairClassifier

    model = PairClassifier(directory, resolve_device(device))
    fingerprint = directory_fingerprint(directory)

    def score(first: str, second: str) -> float:
        key = content_key("equivalence", fingerprint, first, second)
        found = cache.get([key])
        if key not in found:
            found = {key: np.array([model(first, second)], dtype=np.float64)}
            cache.put(found)
        return float(found[key][0])

    return score
