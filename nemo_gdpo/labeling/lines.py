"""Plain JSON lines: what is given to annotators, and the same lines with their answers.

An exported line has `annotator`, `outcome` and `strength` at null; whoever answers fills them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.events import (
    OUTCOMES,
    SOURCES,
    Answer,
    Asked,
    normal_strength,
    normal_time,
)
from nemo_gdpo.labeling.given_back import GIVEN, check_given, given
from nemo_gdpo.labeling.pairs import Words
from nemo_gdpo.labeling.state import State

ANNOTATOR, OUTCOME, STRENGTH, SOURCE, TIME = "annotator", "outcome", "strength", "source", "time"
_KNOWN = {*GIVEN, ANNOTATOR, OUTCOME, STRENGTH, SOURCE, TIME}


def _as_is(words: Words) -> Words:
    return words


def rows(asked: Iterable[Asked], state: State) -> list[dict[str, Any]]:
    """A line for each pair, without an answer."""
    return [
        {**given(one, state, _as_is), ANNOTATOR: None, OUTCOME: None, STRENGTH: None}
        for one in asked
    ]


def answer_in(row: Mapping[str, Any], state: State, where: str) -> Answer | None:
    """The answer in a line; None where it has none yet.

    Raises:
        UserError: the line is malformed, or of something else than what was given.
    """
    asked = check_given(row, state, _as_is, where)
    unknown = sorted(row.keys() - _KNOWN)
    if unknown:
        raise UserError(
            f"{where}: has fields that nothing reads ({', '.join(unknown)}); remove them"
        )
    outcome, annotator = row.get(OUTCOME), row.get(ANNOTATOR)
    if outcome is None:
        return None
    if outcome not in OUTCOMES:
        raise UserError(
            f"{where}: outcome is {outcome!r}; write one of {', '.join(OUTCOMES)}, or null"
        )
    if not isinstance(annotator, str) or not annotator.strip():
        raise UserError(f"{where}: annotator is {annotator!r}; write the name of who answered")
    source = row.get(SOURCE, "person")
    if source not in SOURCES:
        raise UserError(f"{where}: source is {source!r}; write one of {', '.join(SOURCES)}")
    try:
        strength = normal_strength(row.get(STRENGTH))
    except ValueError as error:
        raise UserError(f"{where}: strength {error}; write one, or null") from None
    try:
        time = None if row.get(TIME) is None else normal_time(row[TIME])
    except ValueError as error:
        raise UserError(f"{where}: time {error}; write 2026-01-31T12:00:00Z, or null") from None
    return Answer(asked.question.pair, annotator.strip(), outcome, source, strength, time)
