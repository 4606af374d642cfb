"""The state of a ledger: its events, folded in their order. The same events give the same state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_gdpo.labeling.events import Answer, Asked, Identity, answer_of, asked_of

Kind = Literal["begun", "model", "budget", "asked", "answered"]


@dataclass(frozen=True)
class Event:
    """One row of a ledger."""

    seq: int
    kind: Kind
    body: dict[str, Any]


@dataclass
class State:
    """What a ledger holds."""

    identity: Identity | None = None
    model: str | None = None
    """Fingerprint of the weights that the asking models were trained from; None: not said yet."""
    budget: int | None = None
    """Pairs that may be asked about at most; None: no limit was set."""
    asked: dict[str, Asked] = field(default_factory=dict)
    """By pair, in the order of asking."""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """By pair, all that were ever recorded, in their order."""

    @property
    def last_round(self) -> int:
        """Newest round; 0 before the first."""
        return max((asked.round for asked in self.asked.values()), default=0)

    def asked_in(self, round: int | None) -> list[Asked]:
        """Pairs of a round, or of all, in the order of asking."""
        return [a for a in self.asked.values() if round in (None, a.round)]

    def latest(self, pair: str) -> dict[str, Answer]:
        """Each annotator's latest answer: by its time, and of equal times the one recorded last."""
        found: dict[str, Answer] = {}
        for answer in self.answers.get(pair, []):
            before = found.get(answer.annotator)
            if before is None or str(answer.time) >= str(before.time):
                found[answer.annotator] = answer
        return found


def replay(events: Iterable[Event]) -> State:
    """The state after `events`."""
    state = State()
    for event in events:
        body = event.body
        if event.kind == "begun":
            state.identity = Identity(**body)
        elif event.kind == "model":
            state.model = body["model"]
        elif event.kind == "budget":
            state.budget = body["budget"]
        elif event.kind == "asked":
            asked = asked_of(body)
            state.asked[asked.question.pair] = asked
        else:
            answer = answer_of(body)
            state.answers.setdefault(answer.pair, []).append(answer)
    return state
