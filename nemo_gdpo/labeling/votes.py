"""What answers come to: one label for each pair, by a rule that is stated here.

The rule `majority`: of each annotator the latest answer counts, `skip` does not; the outcome (left,
right, tie) with most votes is the label, and where two have equally many the pair is in conflict.
Persons, judges and others have one vote each; `sources` leaves some of them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nemo_gdpo.labeling.events import SOURCES, Answer, Outcome, Question, Source
from nemo_gdpo.labeling.pairs import Words
from nemo_gdpo.labeling.state import State

Verdict = Literal["left", "right", "tie", "conflict", "skipped", "open"]
"""`open`: asked about, and nobody has answered; `skipped`: those who answered passed it over."""


@dataclass(frozen=True)
class Label:
    """What is known of a pair that was asked about."""

    question: Question
    verdict: Verdict
    votes: Mapping[Outcome, int] = field(default_factory=dict)
    """Latest answers by outcome."""
    strength: float | None = None
    """Mean of the strengths that voters for the chosen side gave; None without any."""

    @property
    def chosen(self) -> Words | None:
        """The better response; None without one."""
        sides = {"left": self.question.left, "right": self.question.right}
        return sides.get(self.verdict)

    @property
    def rejected(self) -> Words | None:
        """The other response; None without a better one."""
        sides = {"left": self.question.right, "right": self.question.left}
        return sides.get(self.verdict)

    def sign(self, first: Words) -> int | None:
        """+1 where `first`, one of its responses, is the better one, -1 where it is the worse one,
        0 for a tie; None while there is no label (`conflict`, `skipped`, `open`).

        Raises:
            ValueError: it is no response of this pair.
        """
        if first not in (self.question.left, self.question.right):
            raise ValueError(f"pair {self.question.pair[:12]} has no such response")
        if self.verdict == "tie":
            return 0
        return None if self.chosen is None else (1 if first == self.chosen else -1)


def labels(state: State, *, sources: Collection[Source] = SOURCES) -> dict[str, Label]:
    """The label of every pair that was asked about, by its key.

    Args:
        state: of a ledger.
        sources: whose answers count.
    """
    return {
        pair: _label(
            asked.question, [a for a in state.latest(pair).values() if a.source in sources]
        )
        for pair, asked in state.asked.items()
    }


def _label(question: Question, latest: list[Answer]) -> Label:
    votes = Counter(answer.outcome for answer in latest)
    verdict = _verdict(votes)
    strengths = [a.strength for a in latest if a.outcome == verdict and a.strength is not None]
    mean = sum(strengths) / len(strengths) if strengths else None
    return Label(question, verdict, dict(votes), mean)


_VERDICTS: Mapping[Outcome, Verdict] = {"left": "left", "right": "right", "tie": "tie"}


def _verdict(votes: Mapping[Outcome, int]) -> Verdict:
    counted = {_VERDICTS[outcome]: n for outcome, n in votes.items() if outcome in _VERDICTS}
    if not counted:
        return "skipped" if votes else "open"
    most = max(counted.values())
    first, *others = [verdict for verdict, n in counted.items() if n == most]
    return "conflict" if others else first
