"""Scored answers on disk: `answers.jsonl`, a line a prompt, written and read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.rows import StoredPrompt
from nemo_gdpo.io.jsonl import read_objects

ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Scored:
    """One sampled answer. Nothing here has a reward temperature."""

    text: str
    complete: bool
    """It ended by itself, and says something."""
    score: float | None
    """Reward and constraints together, in the reward's units; None where it is not complete."""
    reward: float | None
    """Of the reward alone; None without one, or where the answer is not complete."""
    broken: tuple[str, ...]
    """Constraints that it breaks."""
    log_prob: float | None
    """Under the model that sampled it, in nats; None where sampling kept none."""
    tokens: int | None
    """Sampled, an end token included."""
    temperature: float

    @classmethod
    def parsed(cls, plain: Any, where: str) -> Scored:
        """From one entry of a line.

        Raises:
            UserError: it is not what `asdict` of one gives.
        """
        if not isinstance(plain, dict) or set(plain) != set(cls.__dataclass_fields__):
            raise UserError(
                f"{where}: an answer does not hold exactly {', '.join(cls.__dataclass_fields__)}; "
                "score the round again"
            )
        text, complete, broken = plain["text"], plain["complete"], plain["broken"]
        numbers = (plain["reward"], plain["log_prob"], plain["score"])
        if not (
            isinstance(text, str)
            and isinstance(complete, bool)
            and isinstance(broken, list)
            and all(isinstance(name, str) for name in broken)
            and all(value is None or _is_finite(value) for value in numbers)
            and (plain["score"] is not None) is complete
        ):
            raise UserError(f"{where}: an answer's values are not those of one; score it again")
        return cls(**{**plain, "broken": tuple(broken)})


def _is_finite(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


@dataclass(frozen=True)
class PromptAnswers:
    """All answers to one prompt in one round, at all points of the sweep."""

    id: str
    prompt: StoredPrompt
    round: int
    staleness: int
    """Trainings between the model that sampled and the one that learned from it in this round."""
    answers: tuple[Scored, ...]

    def line(self) -> str:
        """As `answers.jsonl` holds it."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


def read_answers(directory: Path) -> Iterator[PromptAnswers]:
    """The lines of a directory of `rounds score`, each prompt once.

    Raises:
        UserError: no file, or a line that is not one of it; with file and line.
    """
    path = directory / ANSWERS
    if not path.is_file():
        raise UserError(f"{path} does not exist; score the round's samples first")
    seen: dict[str, str] = {}
    for where, _, plain in read_objects(path):
        found = _parsed(plain, where)
        if found.id in seen:
            raise UserError(f"{where}: the same id as {seen[found.id]}; score the round again")
        seen[found.id] = where
        yield found


def _parsed(plain: Mapping[str, Any], where: str) -> PromptAnswers:
    name, prompt, answers = plain.get("id"), plain.get("prompt"), plain.get("answers")
    numbers = plain.get("round"), plain.get("staleness")
    if (
        not isinstance(name, str)
        or not isinstance(prompt, str | list)
        or not isinstance(answers, list)
        or not all(type(number) is int and number >= 0 for number in numbers)
    ):
        raise UserError(
            f"{where}: id, prompt, round, staleness or answers is missing or not what it has to "
            "be; score the round again"
        )
    return PromptAnswers(
        name,
        prompt,
        int(plain["round"]),
        int(plain["staleness"]),
        tuple(Scored.parsed(answer, where) for answer in answers),
    )


def text_of(lines: Iterable[PromptAnswers]) -> str:
    """The whole file."""
    return "".join(line.line() for line in lines)
