"""The stop request: a signal from the scheduler or Ctrl-C, obeyed at the next good moment.

One mechanism for every verb. `nemo_gdpo.cli` begins a request for the whole command; what works
inside begins further ones, of which the innermost says what a signal does:

- it ends the work where it stands (`interrupts`): nothing is lost by that, since all that is worth
  keeping is written whole or not at all. A main thread that does not get to it, because it waits
  for other ranks in a collective, say, is ended after `PATIENCE_SECONDS`;
- it is remembered (`deferred`, or a request without `interrupts`): the work looks at `received` at
  its own step boundaries, and keeps what it has;
- somebody is told (`notify`): an engine, or child processes.

A second Ctrl-C ends the command at once.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from nemo_gdpo.errors import EXIT_INTERRUPTED, Stopped
from nemo_gdpo.launch.slurm import step_status
from nemo_gdpo.launch.time_limit import TimeLimit

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a scheduler sends before it kills."""
INTERACTIVE_SIGNALS = (*STOP_SIGNALS, signal.SIGINT)
"""The same and Ctrl-C."""
ALL_SIGNALS = (*INTERACTIVE_SIGNALS, signal.SIGHUP)
"""The same and a lost terminal, which is left alone where it is ignored: that is what nohup asks
for."""
PATIENCE_SECONDS = 5.0
"""For the main thread to come out of C code to a signal that is to end it."""
BEFORE_TRAINING = (
    "stopped by {signal} before training began; nothing is lost, and the same command starts again"
)
"""Message of a run's request while there is nothing more to say."""
SECOND = (
    "ended at once by a second Ctrl-C; what was complete on disk is kept, and the same command "
    "goes on from there"
)

_requests: list[StopRequest] = []
"""Of this process, the innermost last."""


def name_of(number: int) -> str:
    """`SIGTERM`; Ctrl-C by the name that people know."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class StopRequest:
    """Remembers a signal, and does what is asked of it. Requests nest."""

    def __init__(
        self,
        signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
        *,
        interrupts: str | None = None,
        error: type[Stopped] = Stopped,
        rank: int | None = None,
        limit: TimeLimit | None = None,
    ) -> None:
        """Handlers are set when the `with` block begins.

        Args:
            signals: to catch.
            interrupts: message of the `Stopped` that a signal raises while nobody is to be
                notified, with `{signal}` for its name; None only remembers it.
            error: class of that.
            rank: of a process whose end nobody else reports; a second Ctrl-C, and a main thread
                that does not come, are answered with the process's end, and rank 0 says so. None
                leaves both to whoever began the request around this one, if there is one.
            limit: the end of the job's time, which the work looks at as it does at `received`.
        """
        self.received: int | None = None
        self.limit = limit
        self._signals = signals
        self.interrupts = interrupts
        """As given; what is at work may say something better from now on."""
        self.error = error
        """As given."""
        self._rank = rank
        self._deferrals = 0
        self._obeyed = False
        self._notified: Callable[[], None] | None = None
        self._before_end: list[Callable[[], None]] = []
        self._previous: dict[signal.Signals, signal._HANDLER] = {}
        self._watch: _Watch | None = None
        self._begun = time.time()

    # -- what whoever is at work says ------------------------------------------------------------

    def notify(self, stop: Callable[[], None]) -> None:
        """Make every further signal call `stop`, which has to return at once."""
        self._notified = stop

    def before_end(self, action: Callable[[], None]) -> None:
        """Have `action` called before a second Ctrl-C ends the process; in any thread."""
        self._before_end.append(action)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the block a signal is remembered only; the work asks for `received` now and then.

        Processes that are started in the block do not get the terminal's Ctrl-C: it would end a
        checkpoint's helpers while they are needed to write it.
        """
        watched = bool(_requests) and _requests[0]._watch is not None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if watched else None
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # -- what a signal does ----------------------------------------------------------------------

    @property
    def _ends_the_work(self) -> bool:
        return self._notified is None and self.interrupts is not None and not self._deferrals

    def _message(self, number: int) -> str:
        assert self.interrupts is not None
        return self.interrupts.replace("{signal}", name_of(number))

    def _act(self, number: int) -> None:
        if self._notified is not None:
            self._notified()
        elif self._ends_the_work and not self._obeyed:
            obeyed()
            raise self.error(self._message(number))

    def __enter__(self) -> StopRequest:
        self.received = _requests[-1].received if _requests else None
        if threading.current_thread() is not threading.main_thread():
            return self  # Python leaves signals to the main thread
        _requests.append(self)
        if self._rank is not None:
            self._watch = _Watch(self._rank)
        for number in self._signals:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, _handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self in _requests:
            _requests.remove(self)


def begun_at() -> float:
    """Unix seconds: when the command began, as far as its requests tell."""
    return _requests[0]._begun if _requests else time.time()


def obeyed() -> None:
    """Note that the work ends because of a signal: a scheduler repeats itself, and what is being
    closed should be closed."""
    for request in _requests:
        request._obeyed = True


def was_asked_to_stop() -> bool:
    """Whether a signal has come to this process while a request was there to catch it."""
    return bool(_requests) and _requests[-1].received is not None


def _handle(number: int, frame: FrameType | None) -> None:
    """The handler of every signal here: tells all requests, and the innermost acts."""
    del frame
    for request in _requests:
        request.received = number
    if _requests:
        _requests[-1]._act(number)


_masks: list[set[signal.Signals]] = []
"""Of the thread that forks, from before."""


def _before_fork() -> None:
    """A signal that comes while the child is not itself yet waits until it is."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS))  # type: ignore[arg-type]


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _forget_in_child() -> None:
    """A forked child is not asked to stop: it would write into its parent's pipe."""
    if _requests:
        signal.set_wakeup_fd(-1)
        for request in _requests:
            for number in request._previous:
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _requests.clear()
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_forget_in_child
)


class _Watch:
    """A thread that learns of signals while the main thread is in C code."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._interrupts = 0
        self._is_over = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._not_raised
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def close(self) -> None:
        self._is_over = True
        sys.unraisablehook = self._unraisable
        signal.set_wakeup_fd(self._previous)
        os.close(self._write)

    def _run(self) -> None:
        while noted := os.read(self._read, 1):
            self._seen(noted[0])
        os.close(self._read)

    def _seen(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self._end(EXIT_INTERRUPTED, SECOND)
        timer = threading.Timer(PATIENCE_SECONDS, self._force, (number,))
        timer.daemon = True
        timer.start()

    def _force(self, number: int) -> None:
        """End a process whose main thread should have ended its work by now, and has not heard."""
        request = _requests[-1] if _requests and not self._is_over else None
        if request is not None and request._ends_the_work and not request._obeyed:
            self._end(request.error.status, request._message(number))

    def _end(self, status: int, message: str) -> None:
        for request in reversed(_requests):
            for action in request._before_end:
                action()
        if self._rank == 0:
            os.write(2, f"nemo-gdpo: {message}\n".encode())
        os._exit(step_status(status, os.environ))

    def _not_raised(self, unraisable: sys.UnraisableHookArgs) -> None:
        """A `Stopped` that came in a destructor, where nothing can be raised, comes again."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)
        elif _requests:
            _requests[-1]._obeyed = False
            # Not from here, where nothing can be raised either.
            threading.Timer(0.01, _thread.interrupt_main, (signal.SIGTERM,)).start()
