"""SIGTERM, SIGUSR1 and Ctrl-C: what is begun is finished, then the run ends and can go on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StoppedError(BaseException):
    """Asked to stop while there was nothing to finish."""


class StopRequest:
    """Remembers a signal, and tells the engine once there is one.

    Until then the signal ends the run where it stands: nothing is lost by that, and loading a model
    may take longer than the scheduler waits.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._tell: Callable[[], None] | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        if self._tell is None:
            raise StoppedError
        self._tell()

    def sampling(self, tell: Callable[[], None]) -> None:
        """From now on a signal calls `tell`, which has to return at once."""
        self._tell = tell

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
