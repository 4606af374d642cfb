"""Which cases a run of the tests has: `make test` the usual ones, `make test-all` every one.

What is left to `test-all`, every night, is breadth that the usual ones have once: the same mesh
with one more family, the same installer with one more broken image. Importable without pytest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

VARIABLE = "NEMO_GDPO_TESTS"
EVERYTHING = os.environ.get(VARIABLE) == "all"
T = TypeVar("T")


def usual(cases: Iterable[T], is_usual: Callable[[T], bool]) -> list[T]:
    """The cases of this run: those that are usual, or all of them."""
    return [case for case in cases if EVERYTHING or is_usual(case)]
