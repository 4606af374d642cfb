"""A signal is remembered, told, or ends the work where it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from nemo_gdpo.errors import Stopped
from nemo_gdpo.launch.signals import (
    ALL_SIGNALS,
    INTERACTIVE_SIGNALS,
    STOP_SIGNALS,
    StopRequest,
    obeyed,
)
from tests.support.ranks import ROOT


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


def raised(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_the_innermost_request_decides() -> None:
    with StopRequest(ALL_SIGNALS, interrupts="outer by {signal}") as outer:
        with StopRequest(ALL_SIGNALS) as inner:
            raised(signal.SIGUSR1)
            assert (outer.received, inner.received) == (signal.SIGUSR1, signal.SIGUSR1)
        with (
            StopRequest(ALL_SIGNALS, interrupts="inner by {signal}"),
            pytest.raises(Stopped, match=r"inner by Ctrl-C$"),
        ):
            raised(signal.SIGINT)
        with StopRequest() as later:
            assert later.received == signal.SIGINT  # it came before this one began


def test_a_deferred_signal_is_remembered_and_nothing_else() -> None:
    with StopRequest(ALL_SIGNALS, interrupts="stopped by {signal}") as stop:
        with stop.deferred():
            raised(signal.SIGTERM)
            assert stop.received == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped by SIGUSR1"):
            raised(signal.SIGUSR1)


def test_it_ends_the_work_once() -> None:
    """What is closed because of a signal is not disturbed by the scheduler's next one."""
    with StopRequest(ALL_SIGNALS, interrupts="once"):
        with pytest.raises(Stopped):
            raised(signal.SIGTERM)
        raised(signal.SIGTERM)
    with StopRequest(ALL_SIGNALS, interrupts="once"):
        obeyed()
        raised(signal.SIGTERM)


def test_a_lost_terminal_is_left_alone_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(ALL_SIGNALS, interrupts="lost"):
            raised(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(number) for number in ALL_SIGNALS]
    with StopRequest(ALL_SIGNALS, rank=0), StopRequest(ALL_SIGNALS):
        pass
    assert [signal.getsignal(number) for number in ALL_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


PROGRAM = """
import ctypes, os, signal, sys, time, threading
import nemo_gdpo.launch.signals as signals
from nemo_gdpo.errors import Stopped
from nemo_gdpo.launch.failures import report
signals.PATIENCE_SECONDS = 0.3
def send(number, after):
    threading.Timer(after, os.kill, (os.getpid(), number)).start()
try:
    with signals.StopRequest(signals.ALL_SIGNALS, interrupts="stopped by {signal}", rank=RANK) as s:
        BODY
except Stopped as error:
    sys.exit(report(error, rank=RANK))
"""


def program(body: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.replace("BODY", body).replace("RANK", str(rank))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize(("rank", "said"), [(0, "nemo-gdpo: stopped by SIGTERM\n"), (1, "")])
def test_a_main_thread_in_c_code_is_ended(rank: int, said: str) -> None:
    """A collective that waits for another rank does not come back to Python."""
    in_c = "send(signal.SIGTERM, 0.2); ctypes.PyDLL(None).sleep; ctypes.CDLL(None).pause()"
    done = program(f"{in_c}; ctypes.CDLL(None).pause(); ctypes.CDLL(None).pause()", rank)
    assert (done.returncode, done.stderr) == (75, said)


@pytest.mark.parametrize(
    "body", ["with s.deferred(): time.sleep(2)", "s.notify(print); time.sleep(2)"]
)
def test_a_second_ctrl_c_ends_the_process(body: str) -> None:
    said = "import atexit; s.before_end(lambda: print('closed', flush=True)); "
    done = program(f"{said}send(signal.SIGINT, 0.2); send(signal.SIGINT, 0.4)\n        {body}")
    assert done.returncode == 130
    assert "closed" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("nemo-gdpo: ended at once by a second Ctrl-C")


def test_a_stop_in_a_destructor_is_not_lost() -> None:
    body = """class Late:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(1000): pass
        late = Late()
        del late
        time.sleep(2)
        sys.exit(3)"""
    done = program(body)
    assert (done.returncode, done.stderr) == (75, "nemo-gdpo: stopped by SIGTERM\n")


def test_a_forked_child_does_not_speak_for_its_parent() -> None:
    body = """child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(9)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(0.6)
        print(os.WTERMSIG(status), s.received)"""
    done = program(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "15 None\n", "")
