"""What the jobs of `slurm/` share, slurm/job.sh: run by bash alone, with stand-ins for Slurm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Counted:
    """Starts of a job that goes back into the queue, in a directory."""

    directory: Path
    limit: int

    def start(self, number: int, before: str, after: str) -> tuple[int, str]:
        """One start: how far the job had come then, and at its end. Status and what was said."""
        own = os.environ | {
            "PATH": f"{self.directory}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(number),
            "NEMO_GDPO_MAX_RESTARTS": str(self.limit),
            "NEMO_GDPO_HOME": str(ROOT),
        }
        script = f"set -u; source {ROOT}/slurm/env.sh; count_start {before}; requeue {after}"
        done = subprocess.run(
            ["bash", "-c", script], env=own, cwd=self.directory, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    @property
    def requeued(self) -> int:
        called = self.directory / "called"
        return len(called.read_text().splitlines()) if called.exists() else 0


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\n[ "$*" = "requeue 7" ] && echo "$@" >>{tmp_path}/called\n')
    fake.chmod(0o755)
    return Counted(tmp_path, limit=2)


def test_a_job_that_brings_nothing_new_is_queued_again_as_often_as_allowed(
    counted: Counted,
) -> None:
    for number in range(2):
        assert counted.start(number, "40 3", "40 3")[0] == 0
        assert counted.requeued == number + 1
    status, said = counted.start(2, "40 3", "40 3")
    assert (status, counted.requeued) == (0, 2)
    assert "stopped after 2 restarts in a row that brought nothing new" in said


def test_what_gets_further_is_not_counted(counted: Counted) -> None:
    for number in range(9):
        step = 10 * number + 9  # not octal
        counted.start(number, f"{step} 0", f"{step + 10} 0")
    assert counted.requeued == 9


def test_the_count_begins_again_with_every_step_forward(counted: Counted) -> None:
    come = [40, 40, 50, 50, 50, 50, 50]
    for number, step in enumerate(come[:-1]):
        counted.start(number, f"{step} 0", f"{come[number + 1]} 0")
    # 40: 1, forward; 50: 1, 2 and no more.
    assert counted.requeued == 5


def test_fewer_shards_than_before_are_no_step_forward(counted: Counted) -> None:
    """A part of a cache that every start makes anew grows and shrinks."""
    for number, shards in enumerate((3, 2, 1)):
        counted.start(number, f"0 {shards}", f"0 {shards - 1}")
    assert counted.requeued == 2


def test_restarts_by_slurm_itself_count_too(counted: Counted) -> None:
    """After the loss of a node, or when it was preempted, no script has asked for it."""
    counted.start(0, "40 0", "50 0")
    for number in (1, 2):
        assert counted.start(number, "40 0", "50 0")[0] == 0
    status, said = counted.start(3, "40 0", "50 0")
    assert status == 1
    assert "stopped after 3 restarts" in said


@pytest.mark.parametrize(
    ("told", "variable", "expected"),
    [("1800000000", "1700000000", "1800000000"), ("N/A", "1700000000", "1700000000"), ("", "", "")],
    ids=["of Slurm", "of its variable", "unknown"],
)
def test_the_end_of_the_jobs_time(tmp_path: Path, told: str, variable: str, expected: str) -> None:
    fake = tmp_path / "squeue"
    fake.write_text(f'#!/bin/sh\n[ "$SLURM_TIME_FORMAT" = %s ] && echo {told}\n')
    fake.chmod(0o755)
    own = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    own |= {"SLURM_JOB_END_TIME": variable, "NEMO_GDPO_HOME": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f"set -u; source {ROOT}/slurm/env.sh; end_time"],
        env=own, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == expected
    assert (done.returncode == 0) == bool(expected)


def test_two_kinds_of_container_are_one_too_many(tmp_path: Path) -> None:
    own = os.environ | {"NEMO_GDPO_HOME": str(ROOT), "NEMO_GDPO_IMAGE": "a", "NEMO_GDPO_SIF": "b"}
    done = subprocess.run(
        ["bash", "-c", f"source {ROOT}/slurm/env.sh; use_container"],
        env=own, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NEMO_GDPO_IMAGE and NEMO_GDPO_SIF are both set; unset one" in done.stderr
