"""Checks, without a model, that a response is text and does not loop.

They are coarse on purpose: a model that samples noise, or one word for ever, must be seen even when
neither a reward nor a reference model is at hand. They say nothing about good answers, and assume
words with white space between them; text without any is judged by its characters alone. Noise that
is spelled in words passes for one response, and shows over many only (`high_type_token_ratio`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

REPEATED_N = 4
"""Length of the n-grams of `repetition`, as in seq-rep-4 (Welleck et al. 2020)."""
LOOP_TIMES = 4
LOOP_WORDS = 8
LOOP_LONGEST = 20
"""A loop: a block of at most 20 words, 4 times in a row at least, 8 words in all at least."""
PRINTABLE_SHARE = 0.95
_REPLACEMENT = "�"
_UNPRINTABLE = {"Cc", "Cn", "Co", "Cs"}
"""Unicode categories control, unassigned, private, surrogate. White space is excepted."""
_CHARACTER_LOOP = re.compile(r"(\w{1,8}?)\1{11,}")
TYPE_TOKEN_WORDS = 500
TYPE_TOKEN_LIMIT = 0.85
"""Greatest share of distinct words in 500 words of a language, whose function words recur. Words
drawn at random from a tokenizer's vocabulary hardly ever do."""
LONGEST_MEAN_WORD = 15.0
"""Characters of a word, in the mean. Above it, text has no white space between words."""


@dataclass(frozen=True)
class Validity:
    """Measurements of one response as text."""

    empty: bool
    """No visible character."""
    printable: float
    """Share of characters that are printable or white space; 1 for no text."""
    ascii: float
    """Share of ASCII characters; 1 for no text. English prose is near 1, other languages are not,
    so it is reported and not judged."""
    repetition: float | None
    """1 - unique / total 4-grams; None below four words."""
    loop: bool

    @property
    def unprintable(self) -> bool:
        """Whether more than 5 % of the characters are invisible to a reader."""
        return self.printable < PRINTABLE_SHARE

    @property
    def valid(self) -> bool:
        """Not empty, printable (95 % of its characters), and no loop."""
        return not (self.empty or self.unprintable or self.loop)


def check_response(text: str) -> Validity:
    """Judge one response."""
    words = text.split()
    # Format characters (zero-width spaces) are part of text, and nothing by themselves.
    visible = any(
        not c.isspace() and _printable(c) and unicodedata.category(c) != "Cf" for c in text
    )
    return Validity(
        empty=not visible,
        printable=sum(map(_printable, text)) / len(text) if text else 1.0,
        ascii=sum(c.isascii() for c in text) / len(text) if text else 1.0,
        repetition=_repetition(words),
        loop=_has_loop(words) or _CHARACTER_LOOP.search(text) is not None,
    )


def _printable(character: str) -> bool:
    if character.isspace():
        return True
    return character != _REPLACEMENT and unicodedata.category(character) not in _UNPRINTABLE


def _repetition(words: list[str]) -> float | None:
    grams = Counter(tuple(words[i : i + REPEATED_N]) for i in range(len(words) - REPEATED_N + 1))
    total = sum(grams.values())
    return 1.0 - len(grams) / total if total else None


def _has_loop(words: list[str]) -> bool:
    for period in range(1, min(LOOP_LONGEST, len(words) // LOOP_TIMES) + 1):
        needed = max(LOOP_TIMES * period, LOOP_WORDS) - period
        run = 0
        for index in range(period, len(words)):
            run = run + 1 if words[index] == words[index - period] else 0
            if run >= needed:
                return True
    return False


def high_type_token_ratio(responses: Iterable[str]) -> float | None:
    """Unique over all words, mean over blocks of 500, where that is too much for a language.

    Returns:
        The share, if there is a complete block and more than 85 % are unique; None otherwise, and
        where white space does not separate words.
    """
    words = [word for response in responses for word in response.lower().split()]
    blocks = [words[i : i + TYPE_TOKEN_WORDS] for i in range(0, len(words), TYPE_TOKEN_WORDS)]
    whole = [block for block in blocks if len(block) == TYPE_TOKEN_WORDS]
    if not whole or sum(map(len, words)) > LONGEST_MEAN_WORD * len(words):
        return None
    share = sum(len(set(block)) for block in whole) / (TYPE_TOKEN_WORDS * len(whole))
    return share if share > TYPE_TOKEN_LIMIT else None
