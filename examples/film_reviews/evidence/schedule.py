"""Running jobs in order, as many at once as there are cores, until they are done or time is up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from examples.film_reviews.evidence.arms import Job, needed
from nemo_gdpo.errors import EXIT_DONE

FIRST_GUESS = 240.0
"""Seconds of a job, before one was measured."""


@dataclass
class Outcome:
    """What became of the jobs."""

    done: list[Job] = field(default_factory=list)
    left_out: list[Job] = field(default_factory=list)
    """For want of time, or of a job that they need."""
    failed: dict[Job, str] = field(default_factory=dict)
    stopped: bool = False


def run_jobs(
    todo: Sequence[Job],
    done: Sequence[Job],
    run: Callable[[Job], str | None],
    *,
    workers: int,
    budget: float,
    is_stopped: Callable[[], bool],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run what fits into the time. A job that fails ends no other, but those that need it.

    Args:
        todo: the jobs that are not done, most important first.
        done: those that are.
        run: does one; returns why it failed, or None.
        workers: at once.
        budget: seconds in all.
        is_stopped: whether a signal came.
        say: a line for the reader.
    """
    outcome = Outcome(done=list(done))
    waiting = list(todo)
    running: dict[Future[tuple[str | None, float]], Job] = {}
    lasted: list[float] = []
    began = clock()

    def fits() -> bool:
        guess = sum(lasted) / len(lasted) if lasted else FIRST_GUESS
        return clock() - began + guess <= budget

    def next_job() -> Job | None:
        for job in waiting:
            if all(other in outcome.done for other in needed(job)):
                waiting.remove(job)
                return job
        return None

    with ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            while len(running) < workers and fits() and not is_stopped():
                job = next_job()
                if job is None:
                    break
                running[pool.submit(_timed, run, job, clock)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, (failure, seconds) = running.pop(future), future.result()
                if is_stopped():
                    continue
                if failure is not None:
                    outcome.failed[job] = failure
                    say(f"{job.name}: {failure}")
                    continue
                lasted.append(seconds)
                outcome.done.append(job)
                left = len(waiting) + len(running)
                rest = _left(lasted, left, workers)
                say(f"{job.name}: {seconds:.0f} s; {left} left, about {rest}")
    outcome.left_out = waiting
    outcome.stopped = is_stopped()
    return outcome


def _left(lasted: Sequence[float], left: int, workers: int) -> str:
    minutes = sum(lasted) / len(lasted) * left / workers / 60
    return f"{minutes:.0f} minutes"


def _timed(
    run: Callable[[Job], str | None], job: Job, clock: Callable[[], float]
) -> tuple[str | None, float]:
    began = clock()
    return run(job), clock() - began


class Children:
    """The jobs that are running, so that a signal reaches all of them."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """Ask every job to stop, and start no other."""
        self.stopped = True
        for child in list(self._running):
            child.terminate()

    def run(self, arguments: Sequence[str], log: Path) -> str | None:
        """A Python module with arguments, one thread; why it failed, or None when it is done or
        was stopped by `stop`.

        A job has a session of its own: Ctrl-C reaches it through `stop` alone, once.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as stream:
            child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )
            with self._lock:
                self._running.add(child)
            if self.stopped:
                child.terminate()
            status = child.wait()
            self._running.discard(child)
        if status == EXIT_DONE or self.stopped:
            return None
        return f"status {status}: {_last_words(log)} (complete output: {log})"


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if "error: " in line]
    return (said or lines or ["no output"])[-1][-400:]
