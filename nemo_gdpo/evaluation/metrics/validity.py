"""Checks, without a model, that a response is text and does not loop.

They are coarse on purpose: a model that samples noise, or one word for ever, must be seen even when
neither a reward nor a reference model is at hand. They say nothing about good answers. Noise that
is spelled in words passes for one response, and shows over many only (`high_type_token_ratio`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_gdpo.evaluation.metrics.words import words as words_of

REPEATED_N = 4
"""Length of the n-grams of `repetition`, as in seq-rep-4 (Welleck et al. 2020)."""
LOOP_WORDS = 8
"""Words that a loop has at least."""
LOOP_TIMES = ((20, 4), (99, 3))
"""(longest block in words, times in a row that make it a loop); a longer block takes two."""
_REPEATED_LONG = 8
"""Words of an n-gram that occurs twice wherever a long block does."""
REPEATED_SHARE, REPEATED_WORDS = 0.6, 50
"""Blocks that are not quite alike (numbered ones) are a loop where more than this share of the
4-grams of at least so many words repeats earlier ones."""
PRINTABLE_SHARE = 0.95
_REPLACEMENT = "�"
_UNPRINTABLE = {"Cc", "Cn", "Co", "Cs"}
"""Unicode categories control, unassigned, private, surrogate. White space is excepted."""
_PIECES = re.compile(r"(\S{1,16}?)\1{11,}")
"""A short piece, twelve times in a row without white space."""
_RULES = frozenset("-=_*#~.+/|\\:<>^─━═—–…·•●■█▓▒░▬▀▄┄┅┈┉")
"""Characters of rules, leaders, blanks and bars, which repeat with good reason up to a line."""
_LONGEST_RULE = 160
_BLANK_LOOP = re.compile(r"\s{200,}")
_SIGNS = re.compile(r"(\S{1,4}?)\1{3,}")
"""A short piece, four times: a loop where it is all that a response holds, and no letter."""
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
    words = words_of(text)
    repetition = None if words is None else _repetition(words)
    # Format characters (zero-width spaces) are part of text, and nothing by themselves.
    visible = any(
        not c.isspace() and _printable(c) and unicodedata.category(c) != "Cf" for c in text
    )
    return Validity(
        empty=not visible,
        printable=sum(map(_printable, text)) / len(text) if text else 1.0,
        ascii=sum(c.isascii() for c in text) / len(text) if text else 1.0,
        repetition=repetition,
        loop=_repeats_characters(text)
        or (words is not None and _has_loop(words))
        or ((repetition or 0.0) > REPEATED_SHARE and len(words or ()) >= REPEATED_WORDS),
    )


def _printable(character: str) -> bool:
    if character.isspace():
        return True
    return character != _REPLACEMENT and unicodedata.category(character) not in _UNPRINTABLE


def _repetition(words: Sequence[str]) -> float | None:
    grams = Counter(tuple(words[i : i + REPEATED_N]) for i in range(len(words) - REPEATED_N + 1))
    total = sum(grams.values())
    return 1.0 - len(grams) / total if total else None


def _repeats_characters(text: str) -> bool:
    """Whether a response runs on one piece of text, on one sign, or on white space."""
    for match in _PIECES.finditer(text):
        if len(match[0]) > _LONGEST_RULE or not set(match[1]) <= _RULES:
            return True
    signs = "".join(text.split())
    only_signs = bool(signs) and all(unicodedata.category(c)[0] in "PS" for c in signs)
    # An answer of some emoji says something.
    if only_signs and not any(unicodedata.category(c) == "So" for c in signs):
        return _SIGNS.fullmatch(signs) is not None
    return _BLANK_LOOP.search(text) is not None


def _has_loop(words: Sequence[str]) -> bool:
    """Whether a block of words stands several times in a row, the more often the shorter it is."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    longest = len(ids) // 2 if _repeats_long(words) else LOOP_TIMES[0][0]
    for period in range(1, min(longest, len(ids) // 2) + 1):
        times = next((times for block, times in LOOP_TIMES if period <= block), 2)
        needed = max(times * period, LOOP_WORDS) - period
        if needed <= len(ids) - period and _longest_run(ids, period) >= needed:
            return True
    return False


def _repeats_long(words: Sequence[str]) -> bool:
    count = len(words) - _REPEATED_LONG + 1
    return count > len({tuple(words[i : i + _REPEATED_LONG]) for i in range(count)})


def _longest_run(ids: np.ndarray[tuple[int], np.dtype[np.int64]], period: int) -> int:
    """Most places in a row that hold what stands `period` places before them."""
    differs = np.flatnonzero(ids[period:] != ids[:-period])
    edges = np.concatenate(([-1], differs, [len(ids) - period]))
    return int(np.diff(edges).max()) - 1


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
