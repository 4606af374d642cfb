"""The stop request: a signal from the scheduler or Ctrl-C, obeyed at the next good moment."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

from nemo_gdpo.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a scheduler sends before it kills."""
INTERACTIVE_SIGNALS = (*STOP_SIGNALS, signal.SIGINT)
"""The same and Ctrl-C."""


class StopRequest:
    """Remembers a signal, and tells whoever is at work once there is somebody.

    Without `interrupts` the work looks at `received` at its own step boundaries. With it a signal
    ends the work where it stands until `notify` was called: nothing is lost by that, and loading a
    model may take longer than the scheduler waits.
    """

    def __init__(
        self,
        signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
        *,
        interrupts: str | None = None,
    ) -> None:
        """Handlers are set when the `with` block begins.

        Args:
            signals: to catch.
            interrupts: message of the `Stopped` that a signal raises while nobody is to be
                notified; None only remembers it.
        """
        self.received: int | None = None
        self._signals = signals
        self._interrupts = interrupts
        self._notified: Callable[[], None] | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        if self._notified is not None:
            self._notified()
        elif self._interrupts is not None:
            raise Stopped(self._interrupts)

    def notify(self, stop: Callable[[], None]) -> None:
        """Make every further signal call `stop`, which has to return at once."""
        self._notified = stop

    def __enter__(self) -> StopRequest:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
