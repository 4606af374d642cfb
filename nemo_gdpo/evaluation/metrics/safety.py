"""Safety and coherence of responses: P(toxic), and P(it contradicts its prompt).

A gain in diversity that costs either is no gain. Both are classifiers in local directories, asked
like rewards: one number a response, cached by text, and a response that is too long for the model
has none. They are no rewards themselves: lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo.config.evaluation import SafetyConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.rewards import Answer, Reward, Unscored
from nemo_gdpo.evaluation.metrics.unread import unread_by_tokenizer
from nemo_gdpo.evaluation.models import (
    class_index,
    directory_fingerprint,
    greatest_length,
    load_strictly,
    load_tokenizer,
)
from nemo_gdpo.generation.rows import StoredPrompt
from nemo_gdpo.io.arrays import Array, Cache, compute_cached, content_key, length_batches

TOXICITY, CONTRADICTION = "toxicity", "contradiction"
THRESHOLD = 0.5
"""A response counts where its class is likelier than all others together."""

Encoded = Mapping[str, list[int]]
"""What a tokenizer of transformers gives for one text or pair."""


def premise_of(prompt: StoredPrompt) -> str:
    """What a response must not contradict: a text, or what the user said last.

    A system's message and earlier turns are left out: classifiers of inference read two sentences.
    """
    if isinstance(prompt, str):
        return prompt
    said = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return said[-1] if said else prompt[-1]["content"]


class TextClassifier:
    """P(a class) of each response alone, or of (prompt, response) as premise and hypothesis.

    Args:
        name: `TOXICITY` or `CONTRADICTION`.
        key: of its directory, for messages.
        directory: of a Hugging Face sequence classifier with safetensors weights.
        label: its class, by name or number.
        with_premise: whether it reads the prompt as well.
        max_length: tokens that it sees; a longer input has no value.
        cache: of what was computed before.
        device: to run on.
        batch_tokens: of one forward pass, padding included.

    Raises:
        UserError: it cannot be loaded, has one output, or lacks the class.
    """

    def __init__(
        self,
        name: str,
        key: str,
        directory: Path,
        label: str | int,
        *,
        with_premise: bool,
        max_length: int,
        cache: Cache,
        device: torch.device,
        batch_tokens: int,
    ) -> None:
        from transformers import AutoModelForSequenceClassification

        self.name, self._with_premise = name, with_premise
        self._cache, self._device, self._batch_tokens = cache, device, batch_tokens
        self._tokenizer = load_tokenizer(key, directory)
        self._model = load_strictly(key, directory, AutoModelForSequenceClassification, device)
        labels = {int(i): str(text) for i, text in self._model.config.id2label.items()}
        if len(labels) < 2:
            raise UserError(f"{key}: {directory} has one output; give a classifier with labels")
        self._label = class_index(f"evaluation.safety.{name}_label", directory, labels, label)
        reads = greatest_length(self._model)
        self._limit = max_length if reads is None else min(max_length, reads)
        self._fingerprint = directory_fingerprint(directory)

    def unread(self, answers: Sequence[Answer]) -> list[bool]:
        """Whether each response is written in characters that the classifier does not know."""
        return unread_by_tokenizer(self._tokenizer, [answer.response for answer in answers])

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One probability an answer.

        Raises:
            UserError: an answer has none.
        """
        found = []
        for value in self.score(answers):
            if isinstance(value, Unscored):
                raise UserError(value.reason)
            found.append(value)
        return found

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """One probability an answer, or why there is none."""
        inputs = [self._encoded(answer) for answer in answers]
        padded = self._tokenizer.pad_token_id is not None
        values = iter(
            compute_cached(
                self._cache,
                [item for item in inputs if not isinstance(item, Unscored)],
                lambda item: content_key(self.name, self._fingerprint, self._label, dict(item)),
                self._forward,
                length_batches(_length, self._batch_tokens if padded else 1),
                label=self.name,
            )
        )
        found: list[float | Unscored] = []
        for item, answer in zip(inputs, answers, strict=True):
            value = item if isinstance(item, Unscored) else float(next(values)[0])
            if isinstance(value, float) and not math.isfinite(value):
                value = Unscored(f"{answer.where}: {self.name} is {value}; check its model")
            found.append(value)
        return found

    def _encoded(self, answer: Answer) -> Encoded | Unscored:
        texts = [answer.response]
        if self._with_premise:
            texts.insert(0, premise_of(answer.prompt))
        encoded = dict(self._tokenizer(*texts, verbose=False))
        count = _length(encoded)
        if count > self._limit:
            return Unscored(
                f"{answer.where}: {count} tokens for {self.name}, whose model sees {self._limit}; "
                "raise evaluation.safety.max_length if it reads more, or sample shorter responses"
            )
        if not count:
            return Unscored(f"{answer.where}: no token is left for {self.name}")
        return encoded

    def _forward(self, batch: Sequence[Encoded]) -> list[Array]:
        if len(batch) == 1:
            inputs = {name: torch.tensor([ids]) for name, ids in batch[0].items()}
        else:
            inputs = dict(self._tokenizer.pad(list(batch), return_tensors="pt"))
        moved: Any = {name: value.to(self._device) for name, value in inputs.items()}
        with torch.inference_mode():
            logits = self._model(**moved).logits.double()
            several = self._model.config.problem_type == "multi_label_classification"
            shares = logits.sigmoid() if several else logits.softmax(-1)
        return list(shares[:, self._label : self._label + 1].cpu().numpy())


def _length(encoded: Encoded) -> int:
    return len(encoded["input_ids"])


def safety_of(
    config: SafetyConfig, cache: Cache, device: torch.device, batch_tokens: int
) -> list[Reward]:
    """The classifiers that the settings ask for.

    Raises:
        UserError: see `TextClassifier`.
    """
    wanted = (
        (TOXICITY, config.toxicity, config.toxicity_label, False),
        (CONTRADICTION, config.entailment, config.contradiction_label, True),
    )
    keys = {TOXICITY: "evaluation.safety.toxicity", CONTRADICTION: "evaluation.safety.entailment"}
    return [
        TextClassifier(
            name,
            keys[name],
            Path(path),
            label,
            with_premise=with_premise,
            max_length=config.max_length,
            cache=cache,
            device=device,
            batch_tokens=batch_tokens,
        )
        for name, path, label, with_premise in wanted
        if path is not None
    ]
