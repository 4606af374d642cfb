"""The ledger: who asked what of whom, within a budget, and what was answered.

Rules:
* a pair is asked about once, and never beyond the budget, whoever writes at the same time;
* an answer is of a pair that was asked about. The same answer of an annotator again changes
  nothing, a different one is recorded beside it; which of them count is decided when they are read
  (`votes.py`);
* a ledger is of one data set, and of models that were trained from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.database import Database, Writer
from nemo_gdpo.labeling.events import (
    Answer,
    Identity,
    Question,
    answer_body,
    answer_of,
    asked_body,
    now,
)
from nemo_gdpo.labeling.state import Event, State, replay


@dataclass(frozen=True)
class AskedNow:
    """What `Ledger.ask` came to."""

    round: int
    asked: int
    """Pairs that were asked about now."""
    before: int
    """Pairs that the round had before."""
    left: int | None
    """What is left of the budget; None without one."""


@dataclass(frozen=True)
class Recorded:
    """What `Ledger.answer` came to, in answers."""

    new: int = 0
    changed: int = 0
    """Recorded beside an earlier, different one of the same annotator."""
    same: int = 0
    """There already."""

    def __add__(self, other: Recorded) -> Recorded:
        return Recorded(self.new + other.new, self.changed + other.changed, self.same + other.same)


class Ledger:
    """A ledger, open for reading and writing; a context manager.

    Args:
        path: of its file.
        make: make it where it is missing.

    Raises:
        UserError: there is none, it is something else, or it cannot be opened.
    """

    def __init__(self, path: str | Path, *, make: bool = False) -> None:
        self.path = Path(path)
        self._database = Database(self.path, make=make)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self) -> list[Event]:
        """All events, in their order."""
        return self._database.events()

    def state(self) -> State:
        """What the events come to."""
        return replay(self.events())

    def claim(self, identity: Identity, model: str | None = None) -> None:
        """Say what the ledger is of, or that it is of just that.

        Args:
            identity: of the data set.
            model: fingerprint of the weights that training starts from; None does not say.

        Raises:
            UserError: it is of another data set or another model.
        """
        with self._database.transaction() as writer:
            begun = [Identity(**event.body) for event in writer.events("begun")]
            if not begun:
                writer.append("begun", asdict(identity))
            elif begun[0].data != identity.data:
                raise UserError(
                    f"label.ledger={self.path}: is of another data set ({begun[0].name}, "
                    f"{begun[0].pairs} pairs, fingerprint {begun[0].data[:12]}), not of "
                    f"{identity.name} ({identity.pairs} pairs, {identity.data[:12]}); give the "
                    "ledger of this one, or a new file"
                )
            self._claim_model(writer, model)

    def _claim_model(self, writer: Writer, model: str | None) -> None:
        known = [event.body["model"] for event in writer.events("model")]
        if model is not None and not known:
            writer.append("model", {"model": model})
        elif model is not None and known[0] != model:
            raise UserError(
                f"label.ledger={self.path}: is of another model (fingerprint {known[0][:12]} of "
                f"the weights that training starts from, not {model[:12]}); give the ledger of "
                "this one, or a new file"
            )

    def ask(
        self,
        questions: Sequence[Question],
        count: int,
        *,
        round: int | None = None,
        budget: int | None = None,
    ) -> AskedNow:
        """Ask about the first `count` pairs that nobody was asked about yet.

        Args:
            questions: the most wanted first.
            count: pairs of the round; what the round has already counts, so that the same call
                again asks nothing more.
            round: from 1; None begins the next one.
            budget: pairs that this ledger may ever ask about; None leaves the limit as it is.

        Raises:
            UserError: the budget is below what was asked already, or used up; or the round is
                neither the newest nor the next one.
        """
        with self._database.transaction() as writer:
            limit = self._set_budget(writer, budget)
            state_rounds = [event.body["round"] for event in writer.events("asked")]
            newest = max(state_rounds, default=0)
            round = newest + 1 if round is None else round
            if round not in (newest, newest + 1):
                raise UserError(
                    f"label.round={round}: the newest round of {self.path} is {newest}; set "
                    f"{newest + 1} for the next one{f', or {newest}' if newest else ''}"
                )
            before = state_rounds.count(round)
            free = None if limit is None else limit - len(state_rounds)
            wanted = max(0, count - before)
            if free == 0 and wanted:
                raise UserError(
                    f"label.budget={limit}: is used up, {self.path} has asked about {limit} pairs; "
                    "raise it, or train on the labels that are there"
                )
            known = writer.asked()
            chosen = [q for q in questions if q.pair not in known]
            chosen = chosen[: wanted if free is None else min(wanted, free)]
            time = now()
            for question in chosen:
                writer.append("asked", asked_body(question, round, time), pair=question.pair)
            left = None if free is None else free - len(chosen)
            return AskedNow(round, len(chosen), before, left)

    def _set_budget(self, writer: Writer, budget: int | None) -> int | None:
        """The limit that holds from now on."""
        limits: list[int] = [event.body["budget"] for event in writer.events("budget")]
        present = limits[-1] if limits else None
        if budget is None or budget == present:
            return present
        asked = len(writer.asked())
        if budget < asked:
            raise UserError(
                f"label.budget={budget}: {self.path} has asked about {asked} pairs already; set "
                f"{asked} or more"
            )
        writer.append("budget", {"budget": budget})
        return budget

    def answer(self, answers: Iterable[Answer]) -> Recorded:
        """Record answers, all or none of them.

        Raises:
            UserError: one is of a pair that was not asked about.
        """
        with self._database.transaction() as writer:
            asked, time = writer.asked(), now()
            recorded = Recorded()
            for answer in answers:
                if answer.pair not in asked:
                    raise UserError(
                        f"pair {answer.pair[:12]}: {self.path} has not asked about it; give the "
                        "answers of this ledger"
                    )
                recorded += _record(writer, answer, time)
            return recorded


def _record(writer: Writer, answer: Answer, time: str) -> Recorded:
    before = [
        answer_of(event.body) for event in writer.events("answered", answer.pair, answer.annotator)
    ]
    present = max(enumerate(before), key=lambda item: (str(item[1].time), item[0]), default=None)
    again = present is not None and present[1].says == answer.says
    if again or any(a.says == answer.says and a.time == answer.time for a in before):
        return Recorded(same=1)
    body = answer_body(answer if answer.time is not None else replace(answer, time=time))
    writer.append("answered", body, pair=answer.pair, annotator=answer.annotator)
    return Recorded(changed=1) if before else Recorded(new=1)
