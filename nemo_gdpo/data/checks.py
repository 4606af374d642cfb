"""Checks of raw values and pairs: types, scores, emptiness, identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_gdpo.data.types import Message, Messages, RawPair, Row
from nemo_gdpo.errors import UserError


class BadPairError(UserError):
    """A pair that reads well but cannot be learned from; `reason` is its name in the counts."""

    def __init__(self, where: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{where}: {reason}{f' ({detail})' if detail else ''}")
        self.reason = reason


def text_field(row: Row, key: str) -> str:
    value = field(row, key)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {key!r} is {_kind(value)}, not text; write it as a string")
    return value


def field(row: Row, key: str) -> Any:
    if key not in row.data:
        have = ", ".join(sorted(row.data)) or "none"
        raise UserError(f"{row.where}: no value for {key!r} (columns here: {have}); add the column")
    return row.data[key]


def messages(value: Any, where: str, name: str) -> Messages:
    """Check a list of messages; extra keys of a message are refused, not ignored."""
    if not isinstance(value, list | tuple) or not value:
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
            f"{where}: {name} has the keys {', '.join(sorted(given)) or 'none'}; "
            "a message has exactly role and content"
        )
    if not isinstance(given["role"], str) or not isinstance(given["content"], str):
        raise UserError(f"{where}: role and content of {name} must be text; write them as strings")
    return {"role": given["role"], "content": given["content"]}


def score(row: Row, key: str) -> float | None:
    """A finite number or None; a bool or a numeral in quotes is refused."""
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
        raise UserError(f"{row.where}: {key!r} is {value}; scores must be finite float32 numbers")
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
        BadPairError: an empty prompt, an empty response or identical responses.
        UserError: missing, half-given or inverted scores.
    """
    where = f"{pair.where}, pair {pair.id!r}" if pair.where else f"pair {pair.id!r}"
    if not pair.prompt:
        raise BadPairError(where, "empty prompt")
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not response_text(response).strip():
            raise BadPairError(where, "empty response", name)
    if response_text(pair.chosen) == response_text(pair.rejected):
        raise BadPairError(where, "identical chosen and rejected")
    return _check_scores(pair, where, require_scores)


def _check_scores(pair: RawPair, where: str, require_scores: bool) -> bool:
    chosen, rejected = pair.chosen_score, pair.rejected_score
    if chosen is None and rejected is None:
        if require_scores:
            raise UserError(
                f"{where}: no scores, and this objective needs them; add chosen_score and "
                "rejected_score (or margin), or train with objective=dpo"
            )
        return False
    if chosen is None or rejected is None:
        missing = "chosen" if chosen is None else "rejected"
        raise UserError(
            f"{where}: the score of the {missing} response is missing; give both or none"
        )
    if chosen < rejected:
        raise UserError(
            f"{where}: the chosen response scores {chosen:g}, less than the rejected one's "
            f"{rejected:g}; swap the responses or correct the scores"
        )
    # The objective computes in float32, where nearby scores can become equal: log(0) there.
    return bool(np.float32(chosen) <= np.float32(rejected))


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
