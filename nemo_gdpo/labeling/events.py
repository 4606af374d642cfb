"""What a ledger records: pairs that were asked about, and answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from nemo_gdpo.config.live_labels import LabelSource
from nemo_gdpo.labeling.pairs import Words

Outcome = Literal["left", "right", "tie", "skip"]
Source = LabelSource
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class Identity:
    """What a ledger is of; another data set is refused."""

    data: str
    """Fingerprint of the set of pairs (`pairs.data_fingerprint`)."""
    pairs: int
    """Different pairs in it."""
    name: str
    """Path of the data set, for messages."""


@dataclass(frozen=True)
class Question:
    """A pair that can be asked about."""

    pair: str
    id: str
    """The data set's own id."""
    prompt: Words
    left: Words
    right: Words
    order_seed: int
    """Seed that drew which response stands left."""
    margin: float | None = None
    """beta h under the model that asks, for left over right; None where nobody computed it."""
    model: str | None = None
    """Hash of the weights that the margin is of."""


@dataclass(frozen=True)
class Asked:
    """A pair that was asked about."""

    question: Question
    round: int
    time: str
    """ISO 8601 in UTC."""


@dataclass(frozen=True)
class Answer:
    """What one annotator says of one pair."""

    pair: str
    annotator: str
    outcome: Outcome
    source: Source
    strength: float | None = None
    """How much better, in the annotator's own positive units."""
    time: str | None = None
    """ISO 8601 in UTC, when it was given; None takes the time at which it is recorded."""

    @property
    def says(self) -> tuple[Outcome, float | None]:
        """What makes two answers the same."""
        return self.outcome, self.strength


def now() -> str:
    """The present time as events write it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def normal_time(value: Any) -> str:
    """A time as events write it, so that times compare as text.

    Raises:
        ValueError: it is no ISO 8601 time with a zone.
    """
    if not isinstance(value, str):
        raise ValueError("is not text")
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError("has no zone")
    return found.astimezone(UTC).isoformat(timespec="microseconds")


def normal_strength(value: Any) -> float | None:
    """A strength as events write it.

    Raises:
        ValueError: it is neither null nor a positive finite number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or found <= 0:
        raise ValueError("is not a positive finite number")
    return found


def asked_body(question: Question, round: int, time: str) -> dict[str, Any]:
    """An asked pair as plain JSON."""
    return {**asdict(question), "round": round, "time": time}


def asked_of(body: dict[str, Any]) -> Asked:
    """The reverse of `asked_body`."""
    rest = {name: value for name, value in body.items() if name not in ("round", "time")}
    return Asked(Question(**rest), body["round"], body["time"])


def answer_body(answer: Answer) -> dict[str, Any]:
    """An answer as plain JSON."""
    return asdict(answer)


def answer_of(body: dict[str, Any]) -> Answer:
    """The reverse of `answer_body`."""
    return Answer(**body)
