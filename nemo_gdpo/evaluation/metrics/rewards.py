"""Reward functions: sentiment, a classifier, a reward model, or a function of yours.

Each gives one number a response; higher is better. What a model would have to cut is refused: the
reward of half a response is another reward.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nemo_gdpo.config.evaluation import RewardConfig
from nemo_gdpo.data.clock import has_clock, stopped_clock
from nemo_gdpo.data.templates import default_template
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.sentiment import vader_sentiment
from nemo_gdpo.evaluation.metrics.unread import unread_by_tokenizer, unread_without_latin
from nemo_gdpo.evaluation.models import (
    directory_fingerprint,
    greatest_length,
    load_strictly,
    load_tokenizer,
)
from nemo_gdpo.generation.rows import StoredPrompt
from nemo_gdpo.io.arrays import Cache, compute_cached, content_key, length_batches


@dataclass(frozen=True)
class Answer:
    """One response, with its prompt."""

    prompt: StoredPrompt
    response: str
    where: str
    """File, line and number of the response, for messages."""


@dataclass(frozen=True)
class Unscored:
    """An answer without a value; the others of a call have theirs."""

    reason: str
    """One line, with the answer's place."""


class Reward(Protocol):
    """Scores responses."""

    @property
    def name(self) -> str: ...

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """One finite number an answer, or why there is none.

        Raises:
            UserError: no answer can be scored.
        """
        ...

    def unread(self, answers: Sequence[Answer]) -> list[bool]:
        """Whether each answer is written in characters that the reward does not know."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One finite number an answer.

        Raises:
            UserError: an answer cannot be scored.
        """
        ...


def _all_scored(found: Sequence[float | Unscored]) -> list[float]:
    values = []
    for value in found:
        if isinstance(value, Unscored):
            raise UserError(value.reason)
        values.append(value)
    return values


def _as_text(answer: Answer, with_prompt: bool) -> str:
    if not with_prompt:
        return answer.response
    if not isinstance(answer.prompt, str):
        raise UserError(
            f"{answer.where}: the prompt is a conversation, and with_prompt joins texts only; "
            "leave it out, or give a python reward"
        )
    return answer.prompt + answer.response


@dataclass(frozen=True)
class Vader:
    """See `vader_sentiment`."""

    name: str
    with_prompt: bool

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        return list(self(answers))

    def unread(self, answers: Sequence[Answer]) -> list[bool]:
        return [unread_without_latin(answer.response) for answer in answers]

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return vader_sentiment([_as_text(answer, self.with_prompt) for answer in answers])


@dataclass(frozen=True)
class PythonReward:
    """`function(prompts, responses) -> numbers`.

    `prompts` is a list of texts or lists of messages, `responses` one of texts, both of the same
    length; the function returns as many finite numbers. It is called once for each run and sampling
    point, and its values are not cached, since its code may change.
    """

    name: str
    entry_point: str
    function: Callable[[list[StoredPrompt], list[str]], Sequence[float]]

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        return list(self(answers))

    def unread(self, answers: Sequence[Answer]) -> list[bool]:
        return [False] * len(answers)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        try:
            values = list(self.function([a.prompt for a in answers], [a.response for a in answers]))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"evaluation.rewards: {self.entry_point} failed ({type(error).__name__}: {reason});"
                " fix the function"
            ) from error
        if len(values) != len(answers):
            raise UserError(
                f"evaluation.rewards: {self.entry_point} gave {len(values)} numbers for "
                f"{len(answers)} responses; return one for each"
            )
        for value, answer in zip(values, answers, strict=True):
            real = isinstance(value, int | float | np.integer | np.floating)
            if not real or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(
                    f"evaluation.rewards: {self.entry_point} gave {value!r} for {answer.where}; "
                    "return finite numbers"
                )
        return [float(value) for value in values]


def _python_reward(name: str, entry_point: str) -> PythonReward:
    where = "evaluation.rewards"
    module_name, _, function_name = entry_point.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UserError(f"{where}: {entry_point} is not an entry point; write module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{where}: the module {module_name} cannot be imported ({error}); install it, or put "
            "its directory on PYTHONPATH"
        ) from None
    function = vars(module).get(function_name)
    if not callable(function):
        raise UserError(f"{where}: {module_name} has no function {function_name}; correct the name")
    return PythonReward(name, entry_point, function)


class ModelReward:
    """P(label) of a sequence classifier, or the scalar of a reward model; cached by text.

    A classifier reads the response (or prompt and response as one text). A reward model reads the
    conversation in its own chat template, or, for text prompts, prompt and response as one text.
    """

    def __init__(
        self, config: RewardConfig, cache: Cache, device: torch.device, batch_tokens: int, date: str
    ) -> None:
        """Load the model; `date` is the day that a template with a clock writes.

        Raises:
            UserError: it is not such a model, or lacks the label.
        """
        from transformers import AutoModelForSequenceClassification

        assert config.path is not None
        self.name = config.title
        self._config, self._cache, self._device = config, cache, device
        self._batch_tokens, self._date = batch_tokens, date
        path = Path(config.path)
        self._key = f"evaluation.rewards: {self.name}"
        scalar = config.kind == "hf_reward_model"
        self._tokenizer = load_tokenizer(self._key, path)
        self._model = load_strictly(
            self._key,
            path,
            AutoModelForSequenceClassification,
            device,
            # A reward model may have billions of weights: it runs as it is stored.
            dtype="auto" if scalar else torch.float32,
        )
        self._label = self._find_label(path)
        self._reads = greatest_length(self._model)
        self._fingerprint = directory_fingerprint(path)

    def _find_label(self, path: Path) -> int:
        labels = dict(self._model.config.id2label)
        if self._config.kind == "hf_reward_model":
            if len(labels) != 1:
                raise UserError(
                    f"{self._key}: {path} has {len(labels)} outputs, a reward model has one; give "
                    "kind=hf_classifier with a label"
                )
            return 0
        if len(labels) < 2:
            raise UserError(f"{self._key}: {path} has one output; give kind=hf_reward_model")
        for index, label in labels.items():
            if label == self._config.label:
                return int(index)
        raise UserError(
            f"{self._key}: {path} has no label {self._config.label}; its labels are "
            f"{', '.join(str(label) for label in labels.values())}"
        )

    @property
    def has_clock(self) -> bool:
        """Whether its template writes the day."""
        return self._config.kind == "hf_reward_model" and has_clock(self._tokenizer.chat_template)

    @cached_property
    def _template(self) -> str:
        """The chat template, whose clock shows the evaluation's day."""
        try:
            template = default_template(self._tokenizer)
            if template is not None:
                return stopped_clock(template, self._date)
        except UserError as error:
            raise UserError(f"{self._key}: {error}") from None
        raise UserError(
            f"{self._key}: its tokenizer has no chat template, and the prompts are "
            "conversations; add chat_template.jinja to its directory"
        )

    def _ids(self, answer: Answer) -> list[int] | Unscored:
        text = self._text(answer)
        if isinstance(text, Unscored):
            return text
        written, special = text
        ids: list[int] = self._tokenizer(written, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        asked, reads = self._config.max_length, self._reads
        if len(ids) > asked and (reads is None or asked <= reads):
            return Unscored(
                f"{answer.where}: {len(ids)} tokens for the reward {self.name}, whose max_length "
                f"is {asked}; raise it if the model reads more, or sample shorter responses"
            )
        if reads is not None and len(ids) > reads:
            return Unscored(
                f"{answer.where}: {len(ids)} tokens for the reward {self.name}, whose model reads "
                f"{reads} (max_position_embeddings); sample shorter responses, or give another "
                "reward"
            )
        if not ids:
            return Unscored(f"{answer.where}: no token is left for the reward {self.name}")
        return ids

    def _text(self, answer: Answer) -> tuple[str, bool] | Unscored:
        """(text, whether the tokenizer is to add its special tokens)."""
        if self._config.kind == "hf_classifier":
            return _as_text(answer, self._config.with_prompt), True
        if isinstance(answer.prompt, str):
            return answer.prompt + answer.response, True
        template = self._template
        conversation = [*answer.prompt, {"role": "assistant", "content": answer.response}]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                chat_template=template,
                tokenize=False,
            )
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            roles = ", ".join(turn["role"] for turn in conversation)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return Unscored(
                f"{answer.where}: the chat template of the reward {self.name} refuses this "
                f"conversation (roles {roles}; {reason}); leave it out, or give the reward model's "
                "directory a template that takes it"
            )
        return str(text), False

    def unread(self, answers: Sequence[Answer]) -> list[bool]:
        return unread_by_tokenizer(self._tokenizer, [answer.response for answer in answers])

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return _all_scored(self.score(answers))

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        ids = [self._ids(answer) for answer in answers]
        readable = [item for item in ids if not isinstance(item, Unscored)]
        # Without a padding token the model itself cannot tell where a padded text ends.
        padded = self._model.config.pad_token_id is not None
        values = iter(
            compute_cached(
                self._cache,
                readable,
                lambda item: content_key("reward", self._fingerprint, self._label, item),
                self._forward,
                length_batches(len, self._batch_tokens if padded else 1),
                label=f"reward {self.name}",
            )
        )
        found: list[float | Unscored] = []
        for item, answer in zip(ids, answers, strict=True):
            if isinstance(item, Unscored):
                found.append(item)
                continue
            score = float(next(values)[0])
            if math.isfinite(score):
                found.append(score)
                continue
            reason = f"{answer.where}: the reward {self.name} is {score}; check it"
            found.append(Unscored(reason))
        return found

    def _forward(self, batch: Sequence[list[int]]) -> list[Any]:
        longest = max(map(len, batch))
        pad = self._model.config.pad_token_id or 0
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits.double()
            if self._config.kind == "hf_classifier":
                several = self._model.config.problem_type == "multi_label_classification"
                logits = logits.sigmoid() if several else logits.softmax(-1)
            column: list[Any] = list(logits[:, self._label : self._label + 1].cpu().numpy())
        return column


def build_reward(
    config: RewardConfig, cache: Cache, device: torch.device, batch_tokens: int, date: str
) -> Reward:
    """The reward that a section describes.

    Args:
        config: the section.
        cache: of what was computed before.
        device: of its model.
        batch_tokens: of one forward pass.
        date: ISO date that its model's template writes, if it has a clock.

    Raises:
        UserError: its model or its function cannot be had.
    """
    if config.kind == "vader":
        return Vader(config.title, config.with_prompt)
    if config.kind == "python":
        assert config.entry_point is not None
        return _python_reward(config.title, config.entry_point)
    return ModelReward(config, cache, device, batch_tokens, date)
