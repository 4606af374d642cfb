"""How long it takes, what fits into the time, and running it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from examples.film_reviews.experiment.arms import Job, needed
from examples.film_reviews.experiment.settings import Settings

RESERVE = 240.0
"""Seconds for pooling, plots and the report at the end."""


@dataclass
class Costs:
    """Seconds of each stage: guesses for one CPU core, replaced by what was measured."""

    settings: Settings
    measured: dict[str, list[float]] = field(default_factory=dict)

    def guess(self, stage: str) -> float:
        """Before anything was measured."""
        s = self.settings
        responses = s.prompts * s.samples * len(s.temperatures)
        seconds = {
            "reference": 25.0 + 0.35 * s.pairs,
            "train": 45.0 + 1.0 * s.updates * s.batch,
            "generate": 25.0 + responses * s.max_tokens / 350.0,
            # Exact KL: one pass of the model and one of the reference; for the base one of both.
            "evaluate": 25.0 + responses * s.max_tokens / 80.0,
            "evaluate base": 25.0 + responses * s.max_tokens / 160.0,
        }
        return seconds[stage]

    def stage(self, stage: str) -> float:
        """The mean of what was measured, else the guess."""
        known = self.measured.get(stage)
        return sum(known) / len(known) if known else self.guess(stage)

    def of(self, job: Job, *, reference_known: bool) -> float:
        """Seconds of a job."""
        if not job.arm.objective:
            return self.stage("generate") + self.stage("evaluate base")
        stages = ["train", "generate", "evaluate"]
        stages += [] if reference_known else ["reference"]
        return sum(self.stage(stage) for stage in stages)

    def learn(self, noted: dict[str, Any]) -> None:
        """Take up what a finished job took."""
        for stage, seconds in noted["seconds"].items():
            # A reference that another job had made takes no time, which says nothing.
            if stage != "reference" or seconds > 5.0:
                self.measured.setdefault(stage, []).append(seconds)


def reference_key(job: Job) -> tuple[int, str] | None:
    """Jobs with the same key share the reference's log-probabilities; None needs none."""
    if not job.arm.objective:
        return None
    return job.seed, job.arm.name if job.arm.labels_of else job.arm.cache


@dataclass(frozen=True)
class Planned:
    """One line of the plan."""

    job: Job
    begin: float
    """Seconds from the start; the same for both when it is done already."""
    end: float
    fits: bool


def plan(
    todo: Sequence[Job], costs: Costs, *, workers: int, budget: float, done: frozenset[Job]
) -> list[Planned]:
    """Simulate the schedule: in order of importance, each on the next free worker.

    Args:
        todo: all jobs, most important first.
        costs: of the stages.
        workers: jobs at once.
        budget: seconds in all, the reserve for the end included.
        done: take no time.
    """
    free = [0.0] * workers
    ends: dict[Job, float] = dict.fromkeys(done, 0.0)
    known: set[tuple[int, str] | None] = {reference_key(job) for job in done}
    lines = []
    for job in todo:
        if job in done:
            lines.append(Planned(job, 0.0, 0.0, True))
            continue
        before = needed(job)
        if before is not None and before not in ends:
            lines.append(Planned(job, 0.0, 0.0, False))
            continue
        begin = max(heapq.heappop(free), ends[before] if before is not None else 0.0)
        end = begin + costs.of(job, reference_known=reference_key(job) in known)
        if end > budget - RESERVE:
            heapq.heappush(free, begin)
            lines.append(Planned(job, begin, end, False))
            continue
        heapq.heappush(free, end)
        known.add(reference_key(job))
        ends[job] = end
        lines.append(Planned(job, begin, end, True))
    return lines


@dataclass
class Outcome:
    """Result of a schedule."""

    done: dict[Job, dict[str, Any]]
    left_out: list[Job]
    """Jobs left out for want of time."""
    failed: dict[Job, str]


def execute(
    todo: Sequence[Job],
    costs: Costs,
    run: Callable[[Job], dict[str, Any]],
    *,
    workers: int,
    budget: float,
    done: dict[Job, dict[str, Any]],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Run what fits into the time. A job that fails ends neither the others nor the report.

    Raises:
        Whatever `run` raises that is not a RuntimeError of one job; jobs that were stopped by a
        signal raise it through.
    """
    from examples.film_reviews.experiment.stages import StageError

    begun = clock()
    outcome = Outcome(dict(done), [], {})
    waiting = [job for job in todo if job not in done]
    known = {reference_key(job) for job in done}
    running: dict[Future[dict[str, Any]], Job] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while waiting or running:
            ready = _next(waiting, outcome, running)
            while ready is not None and len(running) < workers:
                waiting.remove(ready)
                if needed(ready) in outcome.left_out:
                    outcome.left_out.append(ready)
                    ready = _next(waiting, outcome, running)
                    continue
                cost = costs.of(ready, reference_known=reference_key(ready) in known)
                if clock() - begun + cost > budget - RESERVE:
                    outcome.left_out.append(ready)
                    say(f"{ready.name}: left out, {cost / 60:.0f} min do not fit any more")
                else:
                    known.add(reference_key(ready))
                    say(f"{ready.name}: begun, about {cost / 60:.0f} min")
                    running[pool.submit(run, ready)] = ready
                ready = _next(waiting, outcome, running)
            if not running:
                outcome.left_out += waiting
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    noted = future.result()
                except StageError as error:
                    outcome.failed[job] = str(error)
                    say(f"{job.name}: FAILED, {error}")
                    continue
                costs.learn(noted)
                outcome.done[job] = noted
                took = sum(noted["seconds"].values())
                left = len(waiting) + len(running)
                say(f"{job.name}: done in {took / 60:.1f} min; {left} jobs to go")
    return outcome


def _next(
    waiting: Sequence[Job], outcome: Outcome, running: dict[Future[dict[str, Any]], Job]
) -> Job | None:
    """The most important job that need not wait for another one."""
    for job in waiting:
        before = needed(job)
        if before is None or before in outcome.done:
            return job
        if before not in running.values() and before not in waiting:
            return job  # its source failed or was left out; running it says so
    return None
