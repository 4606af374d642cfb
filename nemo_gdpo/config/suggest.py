"""Did you mean ...?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, known: Iterable[str]) -> str | None:
    """The name that `given` was probably meant to be, or None.

    Dotted keys are compared whole, then by their last part, so that a key in the wrong section
    (`trainer.lr`) is found, too.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.75)
    if near:
        return near[0]
    last = given.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], name)
    near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.75)
    if near:
        return by_last[near[0]]
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return near[0] if near else None


def hint(given: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing."""
    meant = closest(given, known)
    return f" (did you mean {meant}?)" if meant else ""
