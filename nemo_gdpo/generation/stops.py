"""Texts that end an answer, told apart from tokens that do.

The text of an answer never holds a special token: the engine leaves them out. A stop text that is
one would never be found, so it becomes a stop token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nemo_gdpo.errors import UserError


@dataclass(frozen=True)
class Stops:
    """What ends an answer, beside the model's own end tokens."""

    texts: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()


def split_stops(given: Collection[str], special_tokens: Mapping[str, int]) -> Stops:
    """Texts and tokens of `generation.stop`.

    Args:
        given: the setting.
        special_tokens: text -> id of the tokenizer's.

    Raises:
        UserError: a text holds a special token and more.
    """
    texts, ids = [], []
    for text in given:
        if text in special_tokens:
            ids.append(special_tokens[text])
            continue
        held = next((token for token in special_tokens if token in text), None)
        if held is not None:
            raise UserError(
                f"generation.stop: {text!r} holds {held!r}, a special token, which no answer's "
                "text holds; give the token alone, or the text without it"
            )
        texts.append(text)
    return Stops(tuple(dict.fromkeys(texts)), tuple(dict.fromkeys(ids)))
