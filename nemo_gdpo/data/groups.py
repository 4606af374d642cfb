"""Rows of several answers to one prompt, each with its score: `data.format=groups`.

What carries a pair carries two answers of a group; the next ones follow in the next pairs.
"""

from __future__ import annotations

from nemo_gdpo.data.checks import explicit_id, field, rest, score
from nemo_gdpo.data.conversation import split_prompt
from nemo_gdpo.data.types import RawPair, Row
from nemo_gdpo.errors import UserError

ANSWERS, SCORES = "responses", "scores"


def from_group(row: Row, size: int | None) -> list[RawPair]:
    """The answers of a row, two by two.

    Args:
        row: `prompt` (text or messages), `responses` (a list of texts, or of lists of one message)
            and `scores` (as many numbers).
        size: answers that a row has to have.

    Raises:
        BadPairError: a score that is not finite.
        UserError: another number of answers or scores, or not what they should be.
    """
    answers, scores = field(row, ANSWERS), field(row, SCORES)
    for name, values in ((ANSWERS, answers), (SCORES, scores)):
        if not isinstance(values, list):
            raise UserError(f"{row.where}: {name!r} is not a list; write one, an entry an answer")
    if len(answers) != len(scores):
        raise UserError(
            f"{row.where}: {len(answers)} responses and {len(scores)} scores; give each its own"
        )
    if size is not None and len(answers) != size:
        raise UserError(
            f"{row.where}: {len(answers)} responses, and data.group_size is {size}; give every row "
            "as many, or set data.group_size to what all rows have"
        )
    name, used, found = explicit_id(row), ("prompt", ANSWERS, SCORES), []
    for first in range(0, len(answers) - 1, 2):
        prompt, one, other = split_prompt(
            row, field(row, "prompt"), answers[first], answers[first + 1], read=used
        )
        found.append(
            RawPair(
                f"{name}#{first}",
                prompt,
                one,
                other,
                _score(row, scores, first),
                _score(row, scores, first + 1),
                rest(row, used),
                row.where,
                is_ordered=False,
            )
        )
    return found


def _score(row: Row, scores: list[object], place: int) -> float:
    inner = Row({"score": scores[place]}, f"{row.where}, scores[{place}]", row.number)
    found = None if scores[place] is None else score(inner, "score")
    if found is None:
        raise UserError(f"{inner.where}: is null; give every answer a score")
    return found
