"""Words of a text, whatever its script.

White space separates words wherever a script writes it. Text of a script that does not (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) is cut by ICU's dictionaries, between its white space. For
another script without white space ICU has no dictionary: then the words are not known, and
whatever counts them has no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import regex

_SPACELESS = regex.compile(
    r"[\p{lb=SA}\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}\p{Tibetan}"
    r"\p{Javanese}\p{Balinese}\p{Buginese}\p{Egyptian_Hieroglyphs}\p{Cuneiform}]"
)
"""Characters of scripts that do not write white space between words. Line_Break=SA holds those of
South East Asia (UAX 14)."""
_WITHOUT_DICTIONARY = regex.compile(
    r"[[\p{lb=SA}--[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]\p{Javanese}\p{Balinese}\p{Buginese}"
    r"\p{Egyptian_Hieroglyphs}\p{Cuneiform}]",
    flags=regex.VERSION1,
)
_CACHED_TEXTS = 4096


@lru_cache(maxsize=_CACHED_TEXTS)
def words(text: str) -> tuple[str, ...] | None:
    """The words of a text; None where a script leaves them unknown.

    Words between white space keep their punctuation, as the papers have it. Of a word that ICU has
    to cut, the pieces without a letter or a digit are no words.
    """
    if _WITHOUT_DICTIONARY.search(text):
        return None
    found: list[str] = []
    for word in text.split():
        if _SPACELESS.search(word):
            found += [piece for piece in _pieces(word) if any(map(str.isalnum, piece))]
        else:
            found.append(word)
    return tuple(found)


def spaced(text: str) -> str:
    """A text with white space between the words that its script joins; others stay as they are."""
    if not _SPACELESS.search(text):
        return text
    parts = (" ".join(_pieces(w)) if _SPACELESS.search(w) else w for w in text.split())
    return " ".join(parts)


def have_words(texts: Iterable[str]) -> bool:
    """Whether the words of all of these texts are known."""
    return all(words(text) is not None for text in texts)


def _pieces(word: str) -> list[str]:
    from icu4py.breakers import WordBreaker

    return [piece for piece in WordBreaker(word, "root") if not piece.isspace()]
