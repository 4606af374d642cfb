"""Text, messages and implicit prompts: what files hold, in one of RawPair's two shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nemo_gdpo.data.checks import check_prompt, messages
from nemo_gdpo.data.columns import no_prompt, prompt_columns
from nemo_gdpo.data.faults import BadPairError
from nemo_gdpo.data.types import Message, Messages, Row
from nemo_gdpo.errors import UserError

_COMPLETE = re.compile(r"[.?!:。？！：]['\"”’)\]]*\s|\n")
"""Where a sentence or a line ends."""


def split_prompt(
    row: Row, prompt: Any, chosen: Any, rejected: Any, *, read: Sequence[str] = ()
) -> tuple[str | Messages, str | Messages, str | Messages]:
    """Bring the mixtures of text and messages into one of RawPair's two shapes.

    A missing prompt is the longest shared beginning: of messages, all but the last one; of text,
    up to the last white space that both share, so that no word is cut in two.

    Args:
        row: of the file.
        prompt: None where the file has none.
        chosen, rejected: text, or messages.
        read: the columns that the format reads. Another one may hold the prompt.

    Raises:
        BadPairError: a prompt or a response that cannot be learned from.
        UserError: there is no prompt, or it is none of the shapes.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError(
            f"{row.where}: one response is text and the other messages; write both alike"
        )
    if isinstance(chosen, str):
        if prompt is None:
            return _split_text(row, chosen, rejected, read)
        if isinstance(prompt, str):
            return prompt, chosen, rejected
        return (
            _checked_prompt(messages(prompt, row.where, "prompt"), row),
            _as_messages(chosen),
            _as_messages(rejected),
        )
    chosen = messages(chosen, row.where, "chosen")
    rejected = messages(rejected, row.where, "rejected")
    turns, chosen, rejected = _split_messages(row, prompt, chosen, rejected, read)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if len(response) != 1 or response[0]["role"] != "assistant":
            roles = ", ".join(turn["role"] for turn in response)
            raise BadPairError(
                row.where, "response is not one assistant message", f"{name} has {roles}"
            )
    return _checked_prompt(turns, row), chosen, rejected


def _split_text(row: Row, chosen: str, rejected: str, read: Sequence[str]) -> tuple[str, str, str]:
    """The prompt that two texts begin with."""
    if "prompt" in row.nulls:
        raise BadPairError(row.where, "no value for 'prompt'", "the column is there and holds null")
    others = {key: value for key, value in row.data.items() if key not in read and key != "id"}
    shared = _shared_text(chosen, rejected)
    if prompt_columns(others):
        raise UserError(f"{row.where}: no prompt column; {no_prompt(others)}")
    if not shared.strip():
        raise UserError(
            f"{row.where}: no prompt column, and chosen and rejected share no beginning; add a "
            "prompt"
        )
    if not _COMPLETE.search(shared):
        raise BadPairError(
            row.where,
            "no prompt column",
            f"what chosen and rejected share, {shared[:40]!r}, ends in the middle of a sentence",
            remedy="add a prompt",
        )
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _split_messages(
    row: Row, prompt: Any, chosen: Messages, rejected: Messages, read: Sequence[str]
) -> tuple[Messages, Messages, Messages]:
    """The prompt's messages, and what is left of the responses without them."""
    if prompt is not None and not isinstance(prompt, str):
        turns = messages(prompt, row.where, "prompt")
        count = len(turns)
        if len(chosen) > count and chosen[:count] == rejected[:count] == turns:
            chosen, rejected = chosen[count:], rejected[count:]
        return turns, chosen, rejected
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    turns, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
    if isinstance(prompt, str):
        if not turns:
            turns = [{"role": "user", "content": prompt}]
        elif prompt not in [turn["content"] for turn in turns]:
            raise UserError(
                f"{row.where}: prompt is not among the messages that chosen and rejected "
                "share; leave the prompt column out, or give it as messages"
            )
    elif not turns:
        others = {key: value for key, value in row.data.items() if key not in read and key != "id"}
        raise UserError(
            f"{row.where}: no prompt column, and chosen and rejected share no first message; "
            f"{no_prompt(others)}"
        )
    return turns, chosen, rejected


def _shared_text(chosen: str, rejected: str) -> str:
    end = 0
    for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)):
        if a != b:
            break
        if a.isspace():
            end = index + 1
    return chosen[:end]


def _as_messages(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _checked_prompt(turns: Messages, row: Row) -> Messages:
    check_prompt(turns, row.where)
    return turns
