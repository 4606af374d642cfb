"""Words in a text: case folded, at word boundaries, in any script."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import regex

_UNSPACED = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}"
    r"\p{Script=Khmer}\p{Script=Myanmar}]"
)
"""Characters of scripts that put no spaces between words, so that nothing marks a word's end."""
_WORD = regex.compile(r"\w")
_SPACE = regex.compile(r"\s")
_PIECE = regex.compile(r"\S*\w\S*")


def folded(text: str) -> str:
    """A text as words are compared: composed (NFC) and case folded (the German sharp s is ss)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def plural(form: str) -> str | None:
    """The regular English plural of a case-folded word or phrase; None for other scripts."""
    if not ("a" <= form[-1] <= "z"):
        return None
    if form.endswith(("s", "x", "z", "ch", "sh")):
        return f"{form}es"
    if form.endswith("y") and form[-2:-1] not in ("", "a", "e", "i", "o", "u"):
        return f"{form[:-1]}ies"
    return f"{form}s"


def forms_of(words: Iterable[str], *, plurals: bool) -> tuple[str, ...]:
    """The case-folded forms of words or phrases, one space between words, each once."""
    found: dict[str, None] = {}
    for word in words:
        form = " ".join(folded(word).split())
        found[form] = None
        more = plural(form) if plurals else None
        if more is not None:
            found[more] = None
    return tuple(found)


def is_word(character: str) -> bool:
    """Whether a character can be inside a word: a letter, a mark, a digit, an underscore."""
    return _WORD.match(character) is not None


def is_space(character: str) -> bool:
    """Whether a character is white space."""
    return _SPACE.match(character) is not None


def asks_boundary(character: str) -> bool:
    """Whether a word that begins or ends with it has to begin or end there in a text.

    Beside a character that belongs to no word (an emoji), or to a script without spaces, there is
    no boundary to ask for.
    """
    return is_word(character) and _UNSPACED.match(character) is None


def _bounded(form: str) -> str:
    """A pattern of a form that does not begin or end inside a word."""
    body = r"\s+".join(regex.escape(part) for part in form.split(" "))
    before = r"(?<!\w)" if asks_boundary(form[0]) else ""
    after = r"(?!\w)" if asks_boundary(form[-1]) else ""
    return f"{before}{body}{after}"


class WordSet:
    """Forms of which a text may hold one."""

    def __init__(self, forms: Iterable[str]) -> None:
        self.forms = tuple(forms)
        self._pattern = regex.compile("|".join(map(_bounded, self.forms)))

    def found_in(self, text: str) -> bool:
        """Whether the text holds one of the forms as whole words."""
        return self._pattern.search(folded(text)) is not None


def word_count(text: str) -> int:
    """Pieces between white space that hold a letter, a digit or an underscore."""
    return len(_PIECE.findall(text))
