"""A verb in a process of its own: `python -m nemo_gdpo.rounds.child VERB ...`, and its starting.

It ends with the process that started it. A run of rounds that is killed would leave a training
behind that holds the round's directory.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_gdpo.io.processes import end_with_parent
from nemo_gdpo.launch.signals import StopRequest

MODULE = "nemo_gdpo.rounds.child"


def run_verb(verb: Sequence[str], file: Path, stop: StopRequest) -> int:
    """Run a verb on a configuration, pass signals on, return its exit status.

    Args:
        verb: `["rounds", "score"]`.
        file: given as --config.
        stop: of the caller, without `interrupts`.

    Returns:
        0 to 255, or the negative number of the signal that killed it.
    """
    child: subprocess.Popen[bytes] | None = None

    def forward() -> None:
        if stop.received is not None and child is not None and child.poll() is None:
            # Ctrl-C and a lost terminal ask the child to stop as SIGTERM does.
            as_term = stop.received in (signal.SIGINT, signal.SIGHUP)
            child.send_signal(signal.SIGTERM if as_term else stop.received)

    stop.notify(forward)
    # A separate group: a terminal's Ctrl-C reaches it only through this process.
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE, *verb, "--config", str(file)], process_group=0
    )
    stop.before_end(lambda: _kill(child))
    forward()  # what came before there was a child
    try:
        return _wait(child)
    finally:
        _kill(child)
        stop.notify(lambda: None)


def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:  # a wait without end may sleep through a signal
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=60.0)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # helpers of one that was killed


def main() -> None:
    """The verb, as the command line runs it."""
    end_with_parent(signal.SIGKILL)  # what it wrote is whole, and the next start goes on from there
    # By its name, as a user starts it: the command line imports this room, and not the reverse.
    runpy.run_module("nemo_gdpo.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
