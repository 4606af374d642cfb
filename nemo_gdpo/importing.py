"""Importing large libraries in less time, in processes that this program is."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_owned = False


def own_process() -> None:
    """Say that this process is a command of the project, from its start to its end.

    In somebody else's, a notebook say, the collector and what it looks at are not ours to change.
    """
    global _owned
    _owned = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Import in this block, at the start of a process, before there is anything that may go again.

    An import makes a million objects that live as long as the process, and Python's collector
    walks through all of them again and again: while they come, and once more at the end of the
    process (measured: docs/platform.md, "Start"). In an own process it rests in this block, and
    does not look again at what is there when new modules have come. That holds for garbage too:
    hence not where models come and go.
    """
    if not _owned:
        yield
        return
    was_on, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if was_on:
            gc.enable()
