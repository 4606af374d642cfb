"""Several processes at one ledger, some of them killed: the budget holds, nothing is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemo_gdpo.labeling.agreement import agreement
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.state import State, replay
from tests.labeling.ledgers import begun

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.parallel]


def _started(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.labeling.writers", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def _state(path: Path) -> State:
    with Ledger(path) as ledger:
        events = ledger.events()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        return replay(events)


def _killed(processes: Sequence[subprocess.Popen[str]], within: float, seed: int) -> None:
    times = random.Random(seed)
    for process in processes:
        time.sleep(times.uniform(0.0, within))
        process.kill()
        process.wait()


def test_a_budget_holds_under_concurrent_and_killed_writers(tmp_path: Path) -> None:
    """Two askers at once, killed again and again, then two that may end: exactly the budget."""
    path, budget = tmp_path / "labels.sqlite", 60
    counts = []
    for turn in range(4):
        _killed([_started("ask", str(path), "-", str(budget)) for _ in range(2)], 0.05, turn)
        state = _state(path)
        counts.append(len(state.asked))
        assert len(state.asked) <= budget
    assert counts == sorted(counts), "what was asked is lost"
    last = [_started("ask", str(path), "-", str(budget)) for _ in range(2)]
    assert [process.wait(120) for process in last] == [0, 0]
    state = _state(path)
    assert len(state.asked) == state.budget == budget
    assert sorted(a.round for a in state.asked.values()) == list(range(1, budget + 1))


def test_two_annotators_at_once_and_one_that_is_killed_and_starts_again(tmp_path: Path) -> None:
    path, count = tmp_path / "labels.sqlite", 40
    begun(path, count, budget=count).close()
    both = [_started("answer", str(path), name, str(count)) for name in ("ann", "bo")]
    _killed(both[:1], 0.1, 1)
    assert both[1].wait(120) == 0
    before = _state(path)
    assert _started("answer", str(path), "ann", str(count)).wait(120) == 0
    state = _state(path)
    assert all(len(answers) == 2 for answers in state.answers.values())
    assert len(state.answers) == count
    for pair, answers in before.answers.items():
        assert set(answers) <= set(state.answers[pair])
    found = agreement(state)
    assert (found.pairs, found.percent, found.alpha) == (count, 1.0, 1.0)
