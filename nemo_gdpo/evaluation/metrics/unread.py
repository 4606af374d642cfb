"""Which texts a model of ours cannot read, so that what it says about them says nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

UNREAD_SHARE = 0.25
"""A text is unread when more than this share of its characters is unknown to the model."""
_LATIN = "LATIN "


def _visible(text: str) -> list[int]:
    """Places of the characters that a reader sees; marks belong to the letter before them."""
    return [
        place
        for place, character in enumerate(text)
        if not character.isspace() and unicodedata.category(character)[0] not in "CM"
    ]


def unread_by_tokenizer(tokenizer: Any, texts: Sequence[str]) -> list[bool]:
    """Whether each text is unread: its tokenizer writes the unknown token in place of it.

    Args:
        tokenizer: of transformers. One without an unknown token (of bytes) spells everything.
        texts: as the model gets them.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or not texts:
        return [False] * len(texts)
    if not tokenizer.is_fast:
        return [_unread_tokens(tokenizer, unknown, text) for text in texts]
    batch = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    found = []
    for text, ids, spans in zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True):
        read = {
            place
            for token, (start, end) in zip(ids, spans, strict=True)
            if token != unknown
            for place in range(start, end)
        }
        visible = _visible(text)
        lost = sum(place not in read for place in visible)
        found.append(lost > UNREAD_SHARE * len(visible))
    return found


def _unread_tokens(tokenizer: Any, unknown: int, text: str) -> bool:
    """The same by tokens, where a tokenizer does not tell what each of them stands for."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(bool(token == unknown) for token in ids) > UNREAD_SHARE * len(ids)


def unread_without_latin(text: str) -> bool:
    """Whether a text is unread by a list of English words: too few of its letters are Latin."""
    letters = [character for character in text if character.isalpha()]
    other = sum(not unicodedata.name(letter, "").startswith(_LATIN) for letter in letters)
    return other > UNREAD_SHARE * len(letters)
