"""Counts of what a run asked of the GPU."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
CALLS: Counter[str] = Counter()
"""Kind of call -> how many there were since the last `clear`."""


def counted(function: Callable[P, R]) -> Callable[P, R]:
    """Count every call under the function's name."""

    @functools.wraps(function)
    def count(*args: P.args, **kwargs: P.kwargs) -> R:
        CALLS[function.__name__] += 1
        return function(*args, **kwargs)

    return count
