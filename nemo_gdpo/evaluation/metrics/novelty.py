"""NoveltyBench's greedy partition of responses into classes (Zhang et al. 2025).

A response joins the first class whose *first member* it is equivalent to, otherwise it opens a new
one. So the result depends on the order of the responses, and equivalence is not carried over from
member to member; both are the benchmark's own rules, and figures are comparable only with them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.evaluation.metrics.words import words
from nemo_gdpo.evaluation.models import (
    directory_fingerprint,
    greatest_length,
    load_strictly,
    load_tokenizer,
)
from nemo_gdpo.io.arrays import Cache, content_key

KEY = "evaluation.novelty.classifier"
SHORT_WORDS = 5
"""Two responses of at most so many words are compared by the words they share."""
CLASSIFIER_THRESHOLD = 0.102
CLASSIFIER_TOKENS = 128
"""Tokens of each response that the classifier sees."""

Equivalence = Callable[[int, int], bool]
"""(index of a response, index of a class's first member) -> the same to a reader?"""


def partition(count: int, equivalent: Equivalence) -> list[int]:
    """Class of each response, numbered from 0 in the order of appearance.

    Args:
        count: of the responses.
        equivalent: asked for a response and the first member of each class in turn.
    """
    heads: list[int] = []
    classes: list[int] = []
    for index in range(count):
        found = next((c for c, head in enumerate(heads) if equivalent(index, head)), len(heads))
        if found == len(heads):
            heads.append(index)
        classes.append(found)
    return classes


def short_answers_equal(first: str, second: str) -> bool | None:
    """Whether short responses share at least half of the longer one's words; None if long.

    Case is ignored. Two empty responses are equal. None as well where the words are not known.
    """
    one, two = words(first.lower()), words(second.lower())
    if one is None or two is None:
        return None
    longest = max(len(one), len(two))
    if longest > SHORT_WORDS:
        return None
    return 2 * len(set(one) & set(two)) >= longest


def by_cosine(
    responses: Sequence[str], cosine_KK: npt.NDArray[np.float64], threshold: float
) -> Equivalence:
    """Equivalence by shared words for short responses, by the encoder's cosine for others."""

    def equivalent(index: int, head: int) -> bool:
        short = short_answers_equal(responses[index], responses[head])
        return bool(cosine_KK[index, head] >= threshold) if short is None else short

    return equivalent


def by_classifier(responses: Sequence[str], score: Callable[[str, str], float]) -> Equivalence:
    """Equivalence by shared words for short responses, by a classifier's score for others."""

    def equivalent(index: int, head: int) -> bool:
        short = short_answers_equal(responses[index], responses[head])
        if short is not None:
            return short
        return score(responses[index], responses[head]) > CLASSIFIER_THRESHOLD

    return equivalent


def utility_score(reward: float, thresholds: Sequence[float]) -> int:
    """A raw reward on the benchmark's scale of 1 to 10: 1 + thresholds that lie below it."""
    return bisect.bisect_left(thresholds, reward) + 1


class PairClassifier:
    """A Hugging Face sequence classifier of two texts: P(they are equivalent), label 1.

    Args:
        directory: with safetensors weights, two labels, and a tokenizer that has cls and sep.
        device: to run on.

    Raises:
        UserError: it cannot be loaded, has other labels, or lacks those tokens.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        from transformers import AutoModelForSequenceClassification

        self._tokenizer = load_tokenizer(KEY, directory)
        self._model = load_strictly(KEY, directory, AutoModelForSequenceClassification, device)
        self._device = device
        reads = greatest_length(self._model)
        if reads is not None and reads < 2 * CLASSIFIER_TOKENS + 3:
            raise UserError(
                f"{KEY}: {directory} reads {reads} tokens, and two responses with their marks have "
                f"{2 * CLASSIFIER_TOKENS + 3}; give a classifier of a longer context"
            )
        labels = self._model.config.num_labels
        if labels != 2:
            raise UserError(f"{KEY}: {directory} has {labels} labels instead of 2")
        if None in (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id):
            raise UserError(f"{KEY}: the tokenizer of {directory} has no cls and sep tokens")

    def __call__(self, first: str, second: str) -> float:
        """P(label 1) of `[cls] first [sep] second [sep]`, each text cut to 128 tokens.

        Raises:
            EvaluationError: it is not a number.
        """
        one, two = (
            self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][
                :CLASSIFIER_TOKENS
            ]
            for text in (first, second)
        )
        cls, sep = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        inputs = {"input_ids": torch.tensor([[cls, *one, sep, *two, sep]])}
        if "token_type_ids" in self._tokenizer.model_input_names:
            kinds = [0] * (len(one) + 2) + [1] * (len(two) + 1)
            inputs["token_type_ids"] = torch.tensor([kinds])
        inputs = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            score = float(self._model(**inputs).logits.softmax(-1)[0, 1])
        if not math.isfinite(score):
            raise EvaluationError(
                f"{KEY}: it gives {score} for two responses; its weights are broken"
            )
        return score


def cached_classifier(
    directory: Path, cache: Cache, device: torch.device
) -> Callable[[str, str], float]:
    """NoveltyBench's classifier, each pair of texts asked once.

    Raises:
        UserError: it cannot be loaded, or is not a classifier of two texts.
    """
    model = PairClassifier(directory, device)
    fingerprint = directory_fingerprint(directory)

    def score(first: str, second: str) -> float:
        key = content_key("equivalence", fingerprint, first, second)
        found = cache.get([key])
        if key not in found:
            found = {key: np.array([model(first, second)], dtype=np.float64)}
            cache.put(found)
        return float(found[key][0])

    return score
