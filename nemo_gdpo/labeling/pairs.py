"""A pair by its content: a key that knows no order, and the order in which it is shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Words = str | list[dict[str, str]]
"""Plain text, or messages of `role` and `content`."""


def _digest(*parts: Any) -> str:
    """Hash of JSON-like parts, their boundaries included."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def pair_key(prompt: Words, first: Words, second: Words) -> str:
    """Key of a pair: prompt and both responses, whichever of them is named first."""
    return _digest("pair", prompt, sorted([_digest(first), _digest(second)]))


def data_fingerprint(keys: Iterable[str]) -> str:
    """Fingerprint of a data set: of the set of its pairs, whatever their order in the file."""
    return _digest("pairs", sorted(set(keys)))


def draw(seed: int, *parts: str) -> int:
    """A number of 64 bits that `seed` and `parts` decide, on every machine alike."""
    return int(_digest("draw", seed, *parts)[:16], 16)


@dataclass(frozen=True)
class Shown:
    """A pair in the order in which an annotator sees it."""

    key: str
    prompt: Words
    left: Words
    right: Words


def shown(prompt: Words, first: Words, second: Words, seed: int) -> Shown:
    """The pair in the order that `seed` and its content draw, whichever response is named first.

    The order does not depend on which response the data prefers, so that it tells nothing of it.
    """
    key = pair_key(prompt, first, second)
    left, right = sorted([first, second], key=_digest)
    if draw(seed, "order", key) & 1:
        left, right = right, left
    return Shown(key, prompt, left, right)


def as_text(words: Words) -> str:
    """Text to read: messages as `role: content`, a response of one message as its content."""
    if isinstance(words, str):
        return words
    if len(words) == 1 and words[0].get("role") == "assistant":
        return words[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in words)
