"""A signal that comes at a chosen place of the program, however busy the machine is."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest import mock

PACKAGE = "nemo_gdpo"


@contextlib.contextmanager
def signal_at(name: str, place: str, call: int = 1, *, after: bool = False) -> Iterator[None]:
    """This process gets a signal when a function is called.

    Args:
        name: `SIGTERM`.
        place: `module:name` below the package; the name may be that of a method.
        call: which call of it.
        after: when it returns instead.
    """
    module, _, path = place.partition(":")
    *owners, last = path.split(".")
    owner: Any = importlib.import_module(f"{PACKAGE}.{module}")
    for step in owners:
        owner = vars(owner)[step]
    original, calls = getattr(owner, last), 0

    def signalled(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(*arguments, **named) if after else None
        if calls == call:
            os.kill(os.getpid(), signal.Signals[name])
        return found if after else original(*arguments, **named)

    with mock.patch.object(owner, last, signalled):
        yield
    assert calls >= call, f"{place} was called {calls} times"
