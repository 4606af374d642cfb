"""Text that is none: half of a surrogate pair, which JSON can spell and UTF-8 cannot hold.

`"\\ud83d"` in a JSON file, or in a server's answer, is such a half. Python keeps it in a string,
and whoever encodes the string later fails: a tokenizer, a file, a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it."""
    return value.isascii() or _HALF.search(value) is None


def half_characters(value: Any, place: str = "") -> Iterator[str]:
    """Where the strings of a JSON value, keys among them, are no text: `chosen[1].content`."""
    if isinstance(value, str):
        if not is_text(value):
            yield place or "the text"
    elif isinstance(value, dict):
        for key, item in value.items():
            name = str(key)
            if not is_text(name):
                yield f"the key {name!r}"
            yield from half_characters(item, f"{place}.{name}" if place else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from half_characters(item, f"{place}[{index}]")


def whole_characters(value: Any) -> Any:
    """A JSON value with U+FFFD in the place of halves, as detokenisers write cut characters."""
    if isinstance(value, str):
        return value if is_text(value) else _HALF.sub(REPLACEMENT, value)
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_characters(item) for item in value]
    return value


def shown(names: Any) -> str:
    """Names from a file, sorted, for one line of a message; `none` without any."""
    return ", ".join(n if n.isprintable() else repr(n) for n in sorted(map(str, names))) or "none"
