"""A signal is remembered, told, or ends the work where it stands."""

from __future__ import annotations

import os
import signal

import pytest

from nemo_gdpo.errors import Stopped
from nemo_gdpo.launch.signals import INTERACTIVE_SIGNALS, STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_it_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", INTERACTIVE_SIGNALS)
def test_it_interrupts_until_there_is_somebody_to_notify(number: signal.Signals) -> None:
    told: list[int] = []
    with StopRequest(INTERACTIVE_SIGNALS, interrupts="before it began") as stop:
        with pytest.raises(Stopped, match="before it began"):
            os.kill(os.getpid(), number)
        stop.notify(lambda: told.append(1))
        os.kill(os.getpid(), number)
    assert told == [1]


def test_ctrl_c_stays_pythons_own_unless_it_is_asked_for() -> None:
    # A job in the background inherits that it ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _check_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)


def _check_ctrl_c() -> None:
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nothing_takes_a_stop_for_a_failure() -> None:
    assert not issubclass(Stopped, Exception)
