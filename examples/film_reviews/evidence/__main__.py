"""The experiment: do GDPO, ODPO and ADPO do what their papers say?

A small writer of film snippets is made from scratch, preference pairs are sampled from it, and
every arm is trained on them and measured along its way. What is done is kept, one record a job: the
same command goes on where it was stopped, and jobs whose settings have changed run again. What is
asked of the records stands in protocol.yaml, which was committed before them.

    make experiment                    everything that fits into four hours
    make experiment HOURS=1 SEEDS=2    less
    make experiment QUICK=1            try the program, in minutes
    make experiment PROFILE=gpu        SmolLM2-135M on one GPU
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from examples.film_reviews.evidence.arms import ARMS, BY_NAME, Job, jobs
from examples.film_reviews.evidence.records import BASE
from examples.film_reviews.evidence.schedule import Children, Outcome, run_jobs
from examples.film_reviews.evidence.settings import SETTINGS
from examples.film_reviews.evidence.world import World, make_inputs
from examples.film_reviews.inputs import ROOT, say
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR, UserError

QUICK_ARMS = (BASE, "dpo-b0.1", "gdpo-tb-k5")
STOPPED = "stopped by a signal; the same command goes on"
RESERVE = 120.0
"""Seconds for the page at the end."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.film_reviews.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", choices=list(SETTINGS), default="cpu")
    parser.add_argument("--run-dir", type=Path, help="default: runs/evidence-PROFILE")
    parser.add_argument("--results-dir", type=Path, help="of records and page; default: run-dir")
    parser.add_argument(
        "--publish", action="store_true", help="write docs/evidence.md and benchmarks/evidence too"
    )
    parser.add_argument("--hours", type=float, default=4.0, help="time in all; default 4")
    parser.add_argument("--seeds", type=int, default=5, help="of the main arms; default 5")
    parser.add_argument("--arms", nargs="+", choices=list(BY_NAME), help="default: all")
    parser.add_argument("--workers", type=int, help="jobs at once; default: one a core, 2 at most")
    parser.add_argument(
        "--pilot", action="store_true", help="seeds and records of its own, for power.py"
    )
    parser.add_argument("--plan", action="store_true", help="print the jobs and end")
    parser.add_argument("--page-only", action="store_true", help="write the page from the records")
    return parser.parse_args(argv)


class _StoppedError(Exception):
    """A signal asked to stop."""


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """While inputs are made: each appears when it is whole, so nothing is lost but the one."""
    raise _StoppedError


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = arguments(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    try:
        world, todo = _asked(options)
    except UserError as error:
        print(f"experiment: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    done = [job for job in todo if world.known(job) is not None]
    if options.plan:
        for job in todo:
            say(f"{job.name:32}{'done' if job in done else ''}")
        return EXIT_DONE
    children = Children()
    try:
        outcome = Outcome(done=done)
        if not options.page_only:
            outcome = _run(world, todo, done, children, options, began)
        if outcome.stopped:
            raise _StoppedError
        return _finish(world, outcome, options)
    except _StoppedError:
        print(f"experiment: {STOPPED}", file=sys.stderr)
        return EXIT_REQUEUE
    except UserError as error:
        print(f"experiment: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _asked(options: argparse.Namespace) -> tuple[World, list[Job]]:
    workers = 1 if options.workers is None else options.workers
    if options.hours <= 0 or options.seeds < 1 or workers < 1:
        raise UserError("--hours, --seeds and --workers: must be positive")
    quick = options.profile == "quick"
    names = options.arms or list(QUICK_ARMS if quick else BY_NAME)
    for name in [BASE, *names]:
        source = BY_NAME[name].labels_of
        if name not in names:
            raise UserError(f"--arms: add {BASE}, which everything is compared with")
        if source is not None and source not in names:
            raise UserError(f"--arms {name}: takes its number of labels from {source}; add that")
    run_dir = (options.run_dir or ROOT / "runs" / f"evidence-{options.profile}").absolute()
    results = options.results_dir or (run_dir / "pilot" if options.pilot else run_dir)
    world = World(run_dir, results.absolute() / "records", options.profile)
    seeds = 1 if quick else options.seeds
    arms = tuple(arm for arm in ARMS if arm.name in names)
    return world, jobs(arms, seeds, pilot=options.pilot)


def _run(
    world: World,
    todo: list[Job],
    done: list[Job],
    children: Children,
    options: argparse.Namespace,
    began: float,
) -> Outcome:
    missing = [job for job in todo if job not in done]
    if not missing:
        return Outcome(done=done)
    _on_signals(_stop_at_once)
    selected = any(job.arm.data in ("divpo", "redipo") for job in missing)
    make_inputs(world, sorted({job.seed for job in missing}), selected)
    world.refuse_other_models(done)
    # From here on the jobs are asked to stop, which save what they have.
    _on_signals(lambda number, frame: children.stop())
    # What an arm is measured beside lies in the run's directory, not in the record.
    again = [j for j in done if j.arm.name == BASE and not world.kept(j.seed).is_file()]
    wanted = {job.seed for job in missing}
    again = [job for job in again if job.seed in wanted]

    def run(job: Job) -> str | None:
        words = ["--arm", job.arm.name, "--seed", str(job.seed), "--profile", world.profile]
        words += ["--run-dir", str(world.run_dir), "--records-dir", str(world.records_dir)]
        log = world.job_dir(job) / "log"
        return children.run(["examples.film_reviews.evidence.job", *words], log)

    return run_jobs(
        [*again, *missing],
        [job for job in done if job not in again],
        run,
        workers=options.workers or _workers(),
        budget=options.hours * 3600 - RESERVE - (time.monotonic() - began),
        is_stopped=lambda: children.stopped,
        say=say,
    )


def _workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _finish(world: World, outcome: Outcome, options: argparse.Namespace) -> int:
    """The page, from all records of this profile."""
    from examples.film_reviews.evidence.publish import publish, write

    if options.page_only and not outcome.done:
        raise UserError(
            f"{world.records_dir}: holds no record of these arms with the present settings; run "
            "without --page-only"
        )
    if not any(job.arm.name == BASE for job in outcome.done):
        print("experiment: the untouched model was not measured; see above", file=sys.stderr)
        return EXIT_FAILED
    if options.pilot:
        say(f"records of the pilot: {world.records_dir}")
        return EXIT_FAILED if outcome.failed else EXIT_DONE
    page = write(world, notes=_notes(outcome))
    if options.publish:
        page = publish(world, notes=_notes(outcome))
    say(f"page: {page}")
    return EXIT_FAILED if outcome.failed else EXIT_DONE


def _notes(outcome: Outcome) -> list[str]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    notes = [
        f"{device}, Python {platform.python_version()}, torch {torch.__version__}; "
        f"{len(outcome.done)} jobs."
    ]
    if outcome.left_out:
        counted = Counter(job.arm.name for job in outcome.left_out)
        names = ", ".join(f"{name} ({number})" for name, number in counted.items())
        notes.append(f"Left out for want of time, with their number of seeds: {names}.")
    if outcome.failed:
        names = "; ".join(f"{job.name} ({why})" for job, why in outcome.failed.items())
        notes.append(f"Failed: {names}.")
    return notes


if __name__ == "__main__":
    sys.exit(main())
