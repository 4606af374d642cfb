"""Checks of raw values and pairs: types, roles, scores, emptiness, identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_gdpo.data.columns import refuse_repeated_prompt, refuse_unread_columns
from nemo_gdpo.data.faults import BadPairError, EveryRowError
from nemo_gdpo.data.types import Message, Messages, RawPair, Row
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.text import half_characters, shown

ROLES = ("system", "user", "assistant", "tool")
"""Roles that chat templates know."""
ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "model": "assistant",
}
"""Names that data sets have for them, in lower case; capitals make no difference."""
INVERTED = "inverted scores"


def text_field(row: Row, key: str) -> str:
    value = field(row, key)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {key!r} is {_kind(value)}, not text; write it as a string")
    return value


def field(row: Row, key: str) -> Any:
    if key in row.nulls:
        raise BadPairError(row.where, f"no value for {key!r}", "the column is there and holds null")
    if key not in row.data:
        have = shown(row.data)
        raise UserError(f"{row.where}: no value for {key!r} (columns here: {have}); add the column")
    return row.data[key]


def refuse_half_characters(value: Any, where: str) -> None:
    """Refuse strings that UTF-8 cannot hold, anywhere in a JSON value.

    Raises:
        BadPairError: there is one; it is named.
    """
    for place in half_characters(value):
        raise BadPairError(
            where,
            "text that is no text",
            f"{place} holds half of a surrogate pair",
            remedy="write the whole character",
        )


def messages(value: Any, where: str, name: str) -> Messages:
    """Check a list of messages; extra keys of a message are refused, not ignored.

    Raises:
        BadPairError: there is no message, or a role that no template knows.
        UserError: it is no list of messages.
    """
    if isinstance(value, list | tuple) and not value:
        raise BadPairError(where, f"{name} is an empty list", remedy="write its messages")
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{where}: {name} is {_kind(value)}, not a list of messages; write role and content"
        )
    return [_message(item, where, f"{name}[{index}]") for index, item in enumerate(value)]


def _message(value: Any, where: str, name: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} is {_kind(value)}, not a message; write role and content")
    given = {key: item for key, item in value.items() if item is not None}
    if set(given) != {"role", "content"}:
        raise UserError(
            f"{where}: {name} has the keys {shown(given)}; a message has exactly role and content"
        )
    if not isinstance(given["role"], str) or not isinstance(given["content"], str):
        raise UserError(f"{where}: role and content of {name} must be text; write them as strings")
    return {"role": role_of(given["role"], where, name), "content": given["content"]}


def role_of(given: str, where: str, name: str) -> str:
    """The role that templates know; names of data sets are translated.

    Raises:
        BadPairError: it is none of them.
    """
    lower = given.strip().lower()
    role = ROLE_ALIASES.get(lower, lower)
    if role not in ROLES:
        raise BadPairError(
            where,
            "unknown role",
            f"{name} has {given!r}",
            remedy=f"use one of {', '.join(ROLES)}",
        )
    return role


def score(row: Row, key: str, what: str = "score") -> float | None:
    """A finite number or None; a bool or a numeral in quotes is refused.

    Args:
        row: of the file.
        key: its column.
        what: the number is.

    Raises:
        BadPairError: it is not finite in float32.
        UserError: it is no number.
    """
    value = row.data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{row.where}: {key!r} is {_kind(value)}, not a number; write it without quotes"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        said = f"{key!r} is {_digits(value)}; {what}s must be finite float32 numbers"
        raise BadPairError(row.where, f"a {what} that is not finite", said=said)
    return number


def explicit_id(row: Row) -> str:
    """The `id` column when there is one, else the row number: stable under moving the file."""
    value = row.data.get("id")
    if value is None:
        return str(row.number)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{row.where}: id is {_kind(value)}; use a non-empty text or an integer")
    return str(value)


def rest(row: Row, used: Sequence[str]) -> dict[str, Any]:
    """The columns nobody read, kept as `meta`."""
    return {key: value for key, value in row.data.items() if key not in used and key != "id"}


def response_text(response: str | Messages) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def check_pair(pair: RawPair, *, require_scores: bool) -> bool:
    """Check one pair; True if its scores tie in float32.

    Raises:
        BadPairError: an empty prompt, an empty response, identical responses or ones that repeat
            the prompt, half-given or inverted scores.
        UserError: missing scores, or a column that would change the prompt.
    """
    where = pair.place
    check_prompt(pair.prompt, where)
    refuse_unread_columns(pair, where)
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not response_text(response).strip():
            raise BadPairError(where, "empty response", name if pair.label is None else "")
    if pair.label is not None:
        return False
    if not pair.is_ordered:
        return False
    if response_text(pair.chosen) == response_text(pair.rejected):
        raise BadPairError(where, "identical chosen and rejected")
    refuse_repeated_prompt(pair, where)
    return _check_scores(pair, where, require_scores)


def check_prompt(prompt: str | Messages, where: str) -> None:
    """Refuse a prompt that says nothing, or that an answer cannot follow.

    Raises:
        BadPairError: no text, a user's message without any, or an assistant's message at the end.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadPairError(where, "empty prompt", remedy="write text, or remove the line")
        return
    for index, turn in enumerate(prompt):
        # Others may be empty: data sets write an empty system message where there is none.
        if turn["role"] == "user" and not turn["content"].strip():
            detail = f"prompt[{index}], of the user, has no text"
            raise BadPairError(
                where, "empty prompt", detail, remedy="write text, or remove the message"
            )
    if prompt[-1]["role"] == "assistant":
        raise BadPairError(
            where,
            "the prompt ends with an assistant message",
            remedy="end it with the user's turn",
        )


def _check_scores(pair: RawPair, where: str, require_scores: bool) -> bool:
    chosen, rejected = pair.chosen_score, pair.rejected_score
    if chosen is None and rejected is None:
        if require_scores:
            raise EveryRowError(
                f"{where}: no scores, and this objective needs them; add chosen_score and "
                "rejected_score (or margin), or train with objective=dpo"
            )
        return False
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise BadPairError(
            where,
            "half of the scores",
            said=f"the score of the {missing} response is missing",
            remedy="give both or none",
        )
    if chosen < rejected:
        raise BadPairError(
            where,
            INVERTED,
            said=f"the chosen response scores {chosen:g}, less than the rejected one's "
            f"{rejected:g}",
            remedy="swap the responses or correct the scores",
        )
    # The objective computes in float32, where nearby scores can become equal: log(0) there.
    return bool(np.float32(chosen) <= np.float32(rejected))


def _digits(value: Any) -> str:
    """A number that may have thousands of digits."""
    try:
        return str(value)[:40]
    except ValueError:
        return "an integer of thousands of digits"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        str: "text",
        bool: "true/false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
