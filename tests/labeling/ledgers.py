"""Questions and ledgers that the tests share."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.labeling.events import Answer, Identity, Outcome, Question
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.pairs import shown

IDENTITY = Identity("d" * 64, 9, "pairs.jsonl")


def question(number: int, margin: float | None = None) -> Question:
    """A pair of its own."""
    pair = shown(f"prompt {number}", f"good {number}", f"bad {number}", seed=7)
    return Question(pair.key, str(number), pair.prompt, pair.left, pair.right, 7, margin)


def begun(path: Path, count: int, *, budget: int | None = None) -> Ledger:
    """A ledger that has asked about `count` pairs in its first round."""
    ledger = Ledger(path, make=True)
    ledger.claim(IDENTITY)
    if count:
        ledger.ask([question(n) for n in range(count)], count, round=1, budget=budget)
    return ledger


def says(
    number: int, annotator: str, outcome: Outcome, *, time: str | None = None,
    strength: float | None = None,
) -> Answer:  # fmt: skip
    """A person's answer to a pair."""
    return Answer(question(number).pair, annotator, outcome, "person", strength, time)
