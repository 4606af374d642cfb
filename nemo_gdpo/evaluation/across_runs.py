"""Comparisons of runs that need no judge: similarity across models, diversity at matched length.

Infinity-Chat (arXiv 2510.22954) finds that different models answer open questions alike, which no
diversity figure of a single model shows. Diverse-NS (arXiv 2505.16245) finds that diversity metrics
favour short responses, so that a difference may be one of length; matching takes that away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from nemo_gdpo.config.evaluation import EvaluateConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.bootstrap import bootstrap_mean
from nemo_gdpo.evaluation.evaluator import Measured
from nemo_gdpo.evaluation.metrics.diversity import cross_similarity, semantic_diversity
from nemo_gdpo.evaluation.metrics.metric import Metric, PromptResponses
from nemo_gdpo.evaluation.metrics.per_prompt import length_words
from nemo_gdpo.evaluation.metrics.table import metrics_of
from nemo_gdpo.evaluation.metrics.words import words
from nemo_gdpo.evaluation.results import Interval, LengthMatched, MatchedMetric, Similarity
from nemo_gdpo.evaluation.rows import Generations
from nemo_gdpo.generation.types import SamplingPoint

AllMeasured = Mapping[str, Mapping[SamplingPoint, Measured]]
"""Run -> sampling point -> what was measured."""
Part = Callable[[PromptResponses, Sequence[int]], PromptResponses]
_ROUNDING = 1e-9


def _interval(values: Sequence[float | None], name: str, config: EvaluateConfig) -> Interval | None:
    bootstrap = config.evaluation.bootstrap
    return bootstrap_mean(
        values, resamples=bootstrap.resamples, level=bootstrap.level, seed=config.seed, name=name
    )


def _difference(own: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(own, other, strict=True)]


# --- similarity ---------------------------------------------------------------------------------


def similarities(measured: AllMeasured, config: EvaluateConfig) -> list[Similarity]:
    """Every two runs, and each with itself, at every sampling point that both have.

    Args:
        measured: of aligned runs. Without an encoder nothing is compared; nor is a single run.
        config: for the intervals.
    """
    if config.evaluation.encoder is None or len(measured) < 2:
        return []
    found = []
    for own, other in combinations_with_replacement(measured, 2):
        for sampling, ours in measured[own].items():
            theirs = measured[other].get(sampling)
            if theirs is None:
                continue
            pairs = zip(ours.prompts, theirs.prompts, strict=True)
            values = [_cosine(a, b, is_same=own == other) for a, b in pairs]
            found.append(Similarity(own, other, sampling, _interval(values, "similarity", config)))
    return found


def _cosine(own: PromptResponses, other: PromptResponses, *, is_same: bool) -> float | None:
    if own.embeddings_KD is None or other.embeddings_KD is None:
        return None
    if is_same:  # a response's cosine with itself says nothing
        return 1.0 - semantic_diversity(own.embeddings_KD)
    return cross_similarity(own.embeddings_KD, other.embeddings_KD)


# --- length -------------------------------------------------------------------------------------


def match_by_length(
    own: Sequence[int | None],
    other: Sequence[int | None],
    tolerance: float,
    generator: np.random.Generator,
) -> list[tuple[int, int]]:
    """Pairs (place in `own`, place in `other`), nearest first; each response is in one at most.

    Args:
        own, other: words of each response; None where they are not known: it finds no partner.
        tolerance: greatest difference, as a share of the longer response.
        generator: decides between pairs that are equally near.
    """
    pairs = [
        (abs(a - b), i, j)
        for i, a in enumerate(own)
        for j, b in enumerate(other)
        if a is not None and b is not None and abs(a - b) <= tolerance * max(a, b) + _ROUNDING
    ]
    order = [pairs[place] for place in generator.permutation(len(pairs))]
    left, right = set(range(len(own))), set(range(len(other)))
    found = []
    for _, i, j in sorted(order, key=lambda pair: pair[0]):
        if i in left and j in right:
            left.remove(i)
            right.remove(j)
            found.append((i, j))
    return sorted(found)


def check_matching(runs: Sequence[Generations], config: EvaluateConfig) -> None:
    """Refuse to match runs that were never sampled alike.

    Raises:
        UserError: naming the run.
    """
    if config.evaluation.length_tolerance is None:
        return
    first = runs[0]
    for run in runs[1:]:
        if not set(run.points) & set(first.points):
            raise UserError(
                f"evaluation.length_tolerance: {run.name} has no sampling point of {first.name}, "
                "so no two responses can be matched; sample it at one of them, or set null"
            )


@dataclass(frozen=True)
class _Sides:
    """Matched responses of two runs, for each prompt with two pairs at least, and their counts."""

    own: list[PromptResponses]
    other: list[PromptResponses]
    pairs: int
    dropped: int


def length_matched(
    measured: AllMeasured, config: EvaluateConfig, part: Part
) -> list[LengthMatched]:
    """Every run beside the first one, on responses of similar length to the same prompts.

    Args:
        measured: of aligned runs, the first one first.
        config: with the tolerance; nothing is compared without one.
        part: some responses to a prompt, with what their metrics need.
    """
    tolerance = config.evaluation.length_tolerance
    if tolerance is None:
        return []
    first, *others = measured
    return [
        _compare(name, first, sampling, measured, config, part)
        for name in others
        for sampling in measured[name]
        if sampling in measured[first]
    ]


def _compare(
    name: str,
    first: str,
    sampling: SamplingPoint,
    measured: AllMeasured,
    config: EvaluateConfig,
    part: Part,
) -> LengthMatched:
    tolerance = config.evaluation.length_tolerance
    assert tolerance is not None
    ours, theirs = measured[name][sampling], measured[first][sampling]
    seed = f"{config.seed}\0{name}\0{first}\0{sampling.label()}"
    sides = _match(ours.prompts, theirs.prompts, tolerance, seed, part)
    known = ours.values.keys() & theirs.values.keys()
    metrics = [
        metric
        for metric in metrics_of(config.evaluation)
        if metric.kind == "diversity" and metric.name in known
    ]
    raw = {m.name: _difference(ours.values[m.name], theirs.values[m.name]) for m in metrics}
    return LengthMatched(
        run=name,
        against=first,
        sampling=sampling,
        tolerance=tolerance,
        pairs=sides.pairs,
        dropped=sides.dropped,
        prompts=len(sides.own),
        words=_interval([length_words(p) for p in sides.own], "length_words", config),
        against_words=_interval([length_words(p) for p in sides.other], "length_words", config),
        metrics={m.name: _metric(m, sides, raw[m.name], config) for m in metrics},
    )


def _match(
    ours: Sequence[PromptResponses],
    theirs: Sequence[PromptResponses],
    tolerance: float,
    seed: str,
    part: Part,
) -> _Sides:
    own, other, count, dropped = [], [], 0, 0
    for a, b in zip(ours, theirs, strict=True):
        pairs = match_by_length(_lengths(a), _lengths(b), tolerance, _generator(seed, a.row.id))
        count += len(pairs)
        dropped += len(a.row.outputs) - len(pairs)
        if len(pairs) > 1:
            own.append(part(a, [i for i, _ in pairs]))
            other.append(part(b, [j for _, j in pairs]))
    return _Sides(own, other, count, dropped)


def _lengths(prompt: PromptResponses) -> list[int | None]:
    return [None if (own := words(text)) is None else len(own) for text in prompt.row.outputs]


def _generator(seed: str, prompt_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _metric(
    metric: Metric, sides: _Sides, raw: Sequence[float | None], config: EvaluateConfig
) -> MatchedMetric:
    own = [metric.function(prompt) for prompt in sides.own]
    other = [metric.function(prompt) for prompt in sides.other]
    return MatchedMetric(
        run=_interval(own, metric.name, config),
        against=_interval(other, metric.name, config),
        difference=_interval(_difference(own, other), metric.name, config),
        raw_difference=_interval(raw, metric.name, config),
    )
