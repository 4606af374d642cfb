"""Metrics of a prompt's responses, None where they are not defined: functions of table rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from nemo_gdpo.evaluation.metrics.diversity import (
    distinct_n,
    distinct_openings,
    expectation_adjusted_distinct,
    self_bleu,
    utility_k,
)
from nemo_gdpo.evaluation.metrics.metric import PromptResponses
from nemo_gdpo.evaluation.metrics.novelty import utility_score
from nemo_gdpo.evaluation.metrics.words import have_words, words


def _has_ngrams(responses: Sequence[str], n: int) -> bool:
    return have_words(responses) and any(len(words(text) or ()) >= n for text in responses)


def distinct(prompt: PromptResponses, n: int) -> float | None:
    """Distinct-n, where a response has so many words."""
    outputs = prompt.row.outputs
    return distinct_n(outputs, n) if _has_ngrams(outputs, n) else None


def ead(prompt: PromptResponses, n: int, vocabulary_size: int) -> float | None:
    """Expectation-adjusted distinct-n, likewise."""
    outputs = prompt.row.outputs
    if not _has_ngrams(outputs, n):
        return None
    return expectation_adjusted_distinct(outputs, n, vocabulary_size)


def overlap(prompt: PromptResponses) -> float | None:
    """Self-BLEU, where there are two responses and a word."""
    outputs = prompt.row.outputs
    comparable = len(outputs) > 1 and any(text.strip() for text in outputs)
    return self_bleu(outputs) if comparable and have_words(outputs) else None


def openings(prompt: PromptResponses) -> float | None:
    """Distinct openings, where the words are known."""
    outputs = prompt.row.outputs
    return distinct_openings(outputs) if have_words(outputs) else None


def _rewards(prompt: PromptResponses, reward: str) -> list[float] | None:
    """Values of all responses; None where one of them has none: the others are not the prompt's."""
    values = prompt.rewards.get(reward, ())
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def reward_of(
    choose: Callable[[Sequence[float]], float], name: str = ""
) -> Callable[..., float | None]:
    """A metric of a reward's values over the responses of a prompt; of the one called `name`, or
    of that which the row's parameters name."""

    def function(prompt: PromptResponses, reward: str = name) -> float | None:
        values = _rewards(prompt, reward)
        return None if values is None else choose(values)

    return function


def reward_std(prompt: PromptResponses, reward: str) -> float | None:
    """Their standard deviation, where there are two."""
    values = _rewards(prompt, reward)
    return statistics.stdev(values) if values is not None and len(values) > 1 else None


def utility(
    prompt: PromptResponses, reward: str, thresholds: Sequence[float], patience: float
) -> float | None:
    """Utility, where there are classes and a value of every response."""
    values = _rewards(prompt, reward)
    if prompt.classes is None or values is None:
        return None
    scores = [utility_score(value, thresholds) for value in values]
    return utility_k(scores, prompt.classes, patience)


def repetition(prompt: PromptResponses) -> float | None:
    """Mean share of repeated 4-grams, over the responses that have one."""
    repeated = [check.repetition for check in prompt.checks if check.repetition is not None]
    return statistics.fmean(repeated) if repeated else None


def length_words(prompt: PromptResponses) -> float | None:
    """Mean length in words, where they are known."""
    outputs = prompt.row.outputs
    if not have_words(outputs):
        return None
    return statistics.fmean(len(words(text) or ()) for text in outputs)


def length_tokens(prompt: PromptResponses) -> float | None:
    """Mean length in tokens, where the rows have them."""
    ids = prompt.row.token_ids
    return None if ids is None else statistics.fmean(map(len, ids))
