"""The regular expression: read in the dialect that vLLM shares, matched within a time limit."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import regex

from nemo_gdpo.errors import UserError

MATCH_SECONDS = 2.0
"""Longest that matching one answer may take, of the processor's time."""
PROBE_SECONDS = 0.5
PROBE_LENGTH = 1000
"""Characters of the texts that an expression is tried on before it is used."""
KEY = "constraints.regex"
_OTHERS = regex.compile(
    r"""(?P<escaped>\\(?P<code>.))|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"""
    r"""|(?P<group>\(\?(?!:).{0,2})|(?P<anchor>[\^$])|(?P<lazy>(?:[*+?}])[+?])"""
    r"""|(?P<brace>\{(?!\d+(?:,\d*)?\}))""",
    regex.DOTALL,
)
_CODES = {
    "b": "a word boundary", "B": "a word boundary", "A": "an anchor", "Z": "an anchor",
    "z": "an anchor", "G": "an anchor", "K": "a reset", "p": "a Unicode property",
    "P": "a Unicode property", "X": "a grapheme", "R": "a line break", "m": "a word boundary",
    "M": "a word boundary", "L": "a named list", "N": "a named character", "h": "a space",
    "g": "a reference",
}  # fmt: skip


def unshared(pattern: str) -> str | None:
    """The first thing in a pattern that vLLM does not read as Python does; None without one."""
    for match in _OTHERS.finditer(pattern):
        text = match[0]
        if match["escaped"] is not None:
            code = match["code"]
            if code in _CODES or (code.isdigit() and code != "0"):
                return f"{text} ({_CODES.get(code, 'a reference to a group')})"
        elif match["group"] is not None:
            return f"{text} (a group that is more than (...) or (?:...))"
        elif match["anchor"] is not None:
            return f"{text} (an anchor; the whole answer is matched anyway)"
        elif match["lazy"] is not None:
            return f"{text} (a lazy or possessive repetition, which changes no whole match)"
        elif match["brace"] is not None:
            return f"{text} (no repetition; write \\{{ for the character, {{0,n}} for up to n)"
        elif match["set"] is not None and _is_nested(text):
            return f"{text} (a set inside a set; write \\[, \\] and \\- for the characters)"
    return None


def _is_nested(text: str) -> bool:
    """Whether a set in brackets holds another, or an operation on sets."""
    plain = regex.sub(r"\\.", "", text, flags=regex.DOTALL)[1:]
    emptied = plain.removeprefix("^").startswith("]") and len(plain) > 1
    return emptied or any(sign in plain for sign in ("[", "&&", "||", "--", "~~"))


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """An expression as vLLM reads it: a dot is any character, letters and digits are ASCII."""
    return regex.compile(pattern, regex.VERSION0 | regex.DOTALL | regex.ASCII)


def expression_problem(pattern: str) -> tuple[str, str] | None:
    """(what is wrong with a pattern, what to do); None for one that can be used.

    A pattern that nests repetitions can take longer than the age of the universe. It is tried on
    long texts of its own characters, which finds the usual ones; `matches` has a limit for others.
    """
    other = unshared(pattern)
    if other is not None:
        return f"holds {other}", "write it with characters, sets, groups, | and repetitions only"
    try:
        compiled(pattern)
    except regex.error as error:
        return f"{pattern!r} is no regular expression ({error})", "correct it"
    for probe in _probes(pattern):
        try:
            compiled(pattern).fullmatch(probe, timeout=PROBE_SECONDS)
        except TimeoutError:
            return (
                f"{pattern!r} takes more than {PROBE_SECONDS:g} s to match a text of "
                f"{len(probe)} characters",
                "do not repeat what is itself a repetition, as (a+)+ does",
            )
    return None


def _probes(pattern: str) -> list[str]:
    """Long texts that nearly match: each of the pattern's characters, and all in turn, repeated."""
    own = list(dict.fromkeys(c for c in pattern if c not in "\\()[]{}|*+?.^$"))[:24]
    characters = list(dict.fromkeys([*own, "a", "0", " ", "é"]))
    texts = [character * PROBE_LENGTH for character in characters]
    joined = "".join(own) or "a"
    texts.append(joined * (PROBE_LENGTH // len(joined)))
    texts.append("aa " * (PROBE_LENGTH // 3))
    return [f"{text}\0" for text in texts]


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches.

    Raises:
        UserError: it took longer than `MATCH_SECONDS`.
    """
    try:
        return compiled(pattern).fullmatch(text, timeout=MATCH_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"{KEY}: {pattern!r} took more than {MATCH_SECONDS:g} s on an answer of {len(text)} "
            "characters; do not repeat what is itself a repetition, as (a+)+ does"
        ) from None
