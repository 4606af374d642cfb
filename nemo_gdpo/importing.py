"""Importing large libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import in this block: nothing is searched for garbage meanwhile, nor is what it left ever.

    An import makes a million objects that live as long as the process, and Python's collector
    walks through all of them again and again: while they come, and once more at the end of the
    process (measured: docs/platform.md, "Start").
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
