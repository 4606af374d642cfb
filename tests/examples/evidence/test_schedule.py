"""The order of jobs, what fits, what fails, and a signal."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.film_reviews.evidence.arms import BY_NAME, Job
from examples.film_reviews.evidence.records import BASE
from examples.film_reviews.evidence.schedule import FIRST_GUESS, Children, Outcome, run_jobs
from nemo_gdpo.errors import EXIT_REQUEUE

BASE_1, DPO_1, ADPO_1, RANDOM_1 = (
    Job(BY_NAME[name], 1) for name in (BASE, "dpo-b0.1", "adpo-g0.3", "random-g0.3")
)


class Clock:
    """Every job takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        self.ran: list[Job] = []
        self.failing: set[Job] = set()
        self.said: list[str] = []
        self.stop_after: Job | None = None

    def __call__(self) -> float:
        return self.now

    def run(self, job: Job) -> str | None:
        self.ran.append(job)
        self.now += self.seconds
        return "status 1: it broke" if job in self.failing else None

    def go(self, todo: list[Job], done: list[Job], budget: float) -> Outcome:
        return run_jobs(
            todo, done, self.run, workers=1, budget=budget, say=self.said.append, clock=self,
            is_stopped=lambda: self.stop_after in self.ran,
        )  # fmt: skip


def test_all_in_order() -> None:
    clock = Clock(100)
    outcome = clock.go([BASE_1, DPO_1, ADPO_1, RANDOM_1], [], 10000)
    assert clock.ran == outcome.done == [BASE_1, DPO_1, ADPO_1, RANDOM_1]
    assert clock.said[0] == "base--seed-1: 100 s; 3 left, about 5 minutes"


def test_a_job_waits_for_what_it_needs() -> None:
    clock = Clock(100)
    clock.go([RANDOM_1, DPO_1, BASE_1, ADPO_1], [], 10000)
    assert clock.ran == [BASE_1, DPO_1, ADPO_1, RANDOM_1]
    again = Clock(100)
    again.go([RANDOM_1], [BASE_1, ADPO_1], 10000)
    assert again.ran == [RANDOM_1]


def test_what_does_not_fit_is_left_out_and_named() -> None:
    clock = Clock(100)
    outcome = clock.go([BASE_1, DPO_1, ADPO_1], [], FIRST_GUESS + 59)
    assert outcome.done == [BASE_1, DPO_1]
    assert outcome.left_out == [ADPO_1]


def test_a_failure_ends_only_what_needs_it() -> None:
    clock = Clock(100)
    clock.failing = {ADPO_1}
    outcome = clock.go([BASE_1, ADPO_1, RANDOM_1, DPO_1], [], 10000)
    assert outcome.done == [BASE_1, DPO_1]
    assert outcome.failed == {ADPO_1: "status 1: it broke"}
    assert outcome.left_out == [RANDOM_1]


def test_a_signal_starts_no_other_and_counts_none() -> None:
    clock = Clock(100)
    clock.stop_after = DPO_1
    outcome = clock.go([BASE_1, DPO_1, ADPO_1], [], 10000)
    assert outcome.stopped
    assert outcome.done == [BASE_1]
    assert clock.ran == [BASE_1, DPO_1]


def test_the_last_words_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    text = "import sys; print('experiment: error: no pairs'); print('x'); sys.exit(2)\n"
    (tmp_path / "breaks.py").write_text(text)
    log = tmp_path / "logs" / "x"
    said = Children().run(["breaks"], log)
    assert said == f"status 2: experiment: error: no pairs (complete output: {log})"


def test_a_stopped_child_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "stops.py").write_text(f"import sys; sys.exit({EXIT_REQUEUE})\n")
    children = Children()
    # Somebody else's signal: there is no record, and nobody asked for that.
    said = children.run(["stops"], tmp_path / "log")
    assert said is not None and said.startswith(f"status {EXIT_REQUEUE}: ")
    children.stop()
    assert children.run(["stops"], tmp_path / "log") is None
