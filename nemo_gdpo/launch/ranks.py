"""Local ranks: started as child processes, signals passed on, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR
from nemo_gdpo.launch.ports import free_port
from nemo_gdpo.launch.signals import ALL_SIGNALS, StopRequest

GRACE_SECONDS = 15.0
"""Time for the other ranks to notice that one failed, and then to obey SIGTERM."""
STOP_SECONDS = 120.0
"""Time for the other ranks to end after one that was stopped: loggers may have much to send."""
FAILURE = "failure.txt"
"""File beside the ranks' configuration in which a rank leaves the reason why they ended."""


def rank_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of `size` ranks of this machine, which meet at `port`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class _Ranks:
    """Local ranks as children of this process.

    Children rather than torchrun's: torchrun answers every failure with status 1 and its own
    traceback, and gives ranks 30 seconds after SIGTERM, which a checkpoint may exceed.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.forwarded: set[int] = set()

    def start(self, size: int, command: list[str]) -> None:
        port = free_port()
        for rank in range(size):
            environment = {**os.environ, **rank_variables(rank, size, port)}
            # A separate group: what the rank started can be stopped after the rank is gone.
            self.processes.append(subprocess.Popen(command, env=environment, process_group=0))

    def forward(self, number: int) -> None:
        """Pass a signal on; Ctrl-C and a lost terminal ask the ranks to stop as SIGTERM does."""
        number = signal.SIGTERM if number in (signal.SIGINT, signal.SIGHUP) else number
        self.forwarded.add(number)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Wait for all; when one fails, stop the others, which may wait for it for ever."""
        patience: float | None = None
        while True:
            statuses = [process.poll() for process in self.processes]
            if _failures(statuses):
                # Looked at again: what made one fail may have been seen alive a moment before.
                return self._stop_after_failure(_failures([p.poll() for p in self.processes]))
            if None not in statuses:
                return EXIT_REQUEUE if EXIT_REQUEUE in statuses else EXIT_DONE
            if EXIT_REQUEUE in statuses:
                if patience is None:  # the signal may have reached that one alone
                    self.forward(signal.SIGTERM)
                    patience = time.monotonic() + STOP_SECONDS
                elif time.monotonic() > patience:
                    _stop_ranks(self.processes, grace=0.0)
                    return EXIT_REQUEUE
            time.sleep(0.1)

    def _stop_after_failure(self, failed: Mapping[int, int]) -> int:
        _stop_ranks(self.processes, grace=GRACE_SECONDS)
        # A rank that found a mistake in the input takes others down with it; its word counts.
        if EXIT_USER_ERROR in [process.returncode for process in self.processes]:
            return EXIT_USER_ERROR
        # One that was killed is the cause: those that lost their connection to it exit by
        # themselves, perhaps before anybody has looked.
        number, status = min(failed.items(), key=lambda item: (item[1] >= 0, item[0]))
        if all(-s in self.forwarded for s in failed.values()):
            # Ranks answer a signal by themselves as soon as they have their handlers.
            if self.processes[0].returncode != EXIT_REQUEUE:  # it has not said so already
                print("nemo-gdpo: stopped by a signal before training began", file=sys.stderr)
            return EXIT_REQUEUE
        how = (
            f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed ({status})"
        )
        print(f"nemo-gdpo: rank {number} {how}; all ranks are stopped", file=sys.stderr)
        return EXIT_FAILED


def _failures(statuses: Sequence[int | None]) -> dict[int, int]:
    """Rank -> status of each that failed. One that asks to be requeued has written a checkpoint."""
    done = (EXIT_DONE, EXIT_REQUEUE)
    return {rank: s for rank, s in enumerate(statuses) if s is not None and s not in done}


def launch_ranks(size: int, command: list[str]) -> int:
    """Start `size` local ranks, pass signals on to them, and return the exit status of all."""
    ranks = _Ranks()

    def kill() -> None:
        _kill_process_groups(ranks.processes)

    def forward() -> None:
        if stop.received is not None:
            ranks.forward(stop.received)

    with StopRequest(ALL_SIGNALS) as stop:
        stop.notify(forward)
        stop.before_end(kill)
        try:
            # In groups of their own: a terminal's Ctrl-C reaches them only through this process.
            ranks.start(size, command)
            forward()  # once more: one may have come while they were being started
            return ranks.wait()
        finally:
            _stop_ranks(ranks.processes, grace=0.0)
            kill()


def _stop_ranks(ranks: list[subprocess.Popen[bytes]], *, grace: float) -> None:
    """Let ranks end by themselves for `grace` seconds, then ask them to, then kill them."""
    for request in (None, signal.SIGTERM, signal.SIGKILL):
        alive = [rank for rank in ranks if rank.poll() is None]
        if request is not None:
            for rank in alive:
                rank.send_signal(request)
        deadline = time.monotonic() + (60.0 if request is signal.SIGKILL else grace)
        while any(rank.poll() is None for rank in alive) and time.monotonic() < deadline:
            time.sleep(0.05)


def _kill_process_groups(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Kill helper processes that a rank which was killed could not end itself."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
