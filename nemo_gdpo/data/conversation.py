"""Text, messages and implicit prompts: what files hold, in one of RawPair's two shapes."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.data.checks import BadPairError, messages
from nemo_gdpo.data.types import Message, Messages, Row
from nemo_gdpo.errors import UserError


def split_prompt(
    row: Row, prompt: Any, chosen: Any, rejected: Any
) -> tuple[str | Messages, str | Messages, str | Messages]:
    """Bring the mixtures of text and messages into one of RawPair's two shapes.

    A missing prompt is the longest shared beginning: of messages, all but the last one; of text,
    up to the last white space that both share, so that no word is cut in two.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError(
            f"{row.where}: one response is text and the other messages; write both alike"
        )
    if isinstance(chosen, str):
        if prompt is None:
            shared = _shared_text(chosen, rejected)
            if not shared.strip():
                raise UserError(
                    f"{row.where}: no prompt column, and chosen and rejected share no beginning; "
                    "add a prompt"
                )
            return shared, chosen[len(shared) :], rejected[len(shared) :]
        if isinstance(prompt, str):
            return prompt, chosen, rejected
        return (
            _checked_prompt(messages(prompt, row.where, "prompt"), row),
            _as_messages(chosen),
            _as_messages(rejected),
        )
    chosen = messages(chosen, row.where, "chosen")
    rejected = messages(rejected, row.where, "rejected")
    if prompt is not None and not isinstance(prompt, str):
        turns = messages(prompt, row.where, "prompt")
        count = len(turns)
        if len(chosen) > count and chosen[:count] == rejected[:count] == turns:
            chosen, rejected = chosen[count:], rejected[count:]
    else:
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
            raise UserError(
                f"{row.where}: no prompt column, and chosen and rejected share no first message; "
                "add a prompt"
            )
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if len(response) != 1 or response[0]["role"] != "assistant":
            roles = ", ".join(turn["role"] for turn in response)
            raise BadPairError(
                row.where, "response is not one assistant message", f"{name} has {roles}"
            )
    return _checked_prompt(turns, row), chosen, rejected


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
    if turns[-1]["role"] == "assistant":
        raise UserError(
            f"{row.where}: the prompt ends with an assistant message; end it with the user's turn"
        )
    return turns
