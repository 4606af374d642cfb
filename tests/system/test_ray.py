"""Two vLLM engines under Ray; one is killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.commands import DEADLINE

from .interrupted_runs import SLOW, Sampling, arguments, count_rows, logged, read_rows, same_samples

pytestmark = [pytest.mark.parallel, pytest.mark.nightly]


def _pid_of_engine(log: Path, number: int) -> int | None:
    found = re.search(rf"engine {number} of 2 is up on \S+, process (\d+)", log.read_text())
    return int(found[1]) if found else None


def test_a_killed_worker_loses_and_doubles_nothing(sampling: Sampling, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    overrides = arguments(
        sampling.model,
        sampling.prompts,
        output,
        "generation.backend=ray",
        "generation.ray.replicas=2",
        *SLOW,
    )
    with logged(log, "generate", *overrides) as process:
        limit = time.monotonic() + DEADLINE
        victim = None
        while victim is None or count_rows(output) < 50:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            victim = _pid_of_engine(log, 1)
            time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        before = count_rows(output)
        assert process.wait(timeout=DEADLINE) == 0, log.read_text()
    assert before < len(sampling.expected), "it was over before the engine was killed"
    lost = re.search(
        r"engine 1 on \S+ was lost .*; (\d+) rows are handed out again", log.read_text()
    )
    assert lost is not None, log.read_text()
    assert int(lost[1]) > 0
    found = read_rows(output)
    assert found.keys() == sampling.expected.keys()
    assert all(same_samples(row, sampling.expected[key]) for key, row in found.items())
