"""A rank that hangs ends all of them, with one line that names it and what it was doing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_gdpo.control.watch import Kind, Report, describe, missing_ranks
from tests.parallel.hurt import Ended, run_hurt, save_inputs
from tests.parallel.stuck_main import LIMIT_MINUTES, RANKS
from tests.support.tiers import usual


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("stuck"), 12)


def _run(folder: Path, case: str, victim: int) -> Ended:
    """Its lines are those of the ranks, without the launcher's."""
    given = (f"trainer.devices={RANKS}", "model.global_batch_size=6")
    ended = run_hurt("stuck_main", folder, case, victim, *given)
    own = [line for line in ended.lines if "all ranks are stopped" not in line]
    return replace(ended, lines=own)


WAITED = f"the other ranks have waited {LIMIT_MINUTES:g} minutes (trainer.collective_timeout_min"


STUCK = [
    ("computation", 1, "step 1: ", "for rank 1 in step 1, in hang (stuck_main.py:"),
    ("computation", 0, "step 1: ", "for rank 0 in step 1, in hang (stuck_main.py:"),
    ("stopped", 2, "step 1: ", "for rank 2 does not answer"),
    ("main stage", 0, "tokenising train: ", "for rank 0 in tokenising train, in hang (stuck_"),
    ("own stage", 1, "write a checkpoint: ", "for rank 1 in write a checkpoint, in hang (stu"),
    ("log", 0, "between steps: ", "for rank 0 in training, in hang (stuck_main.py:"),
]
"""What a rank is stuck in, which rank, and what is said of it."""


def _is_usual(case: tuple[str, int, str, str]) -> bool:
    return case[:2] in {("computation", 0), ("own stage", 1)}


@pytest.mark.parametrize(("case", "victim", "stage", "missing"), usual(STUCK, _is_usual))
def test_all_end_and_one_says_who_is_missing(
    folder: Path, case: str, victim: int, stage: str, missing: str
) -> None:
    ended = _run(folder, case, victim)
    assert ended.status == 1, ended.err
    assert len(ended.lines) == 1, ended.lines
    (line,) = ended.lines
    assert line.startswith(f"nemo-gdpo: error: {stage}{WAITED}"), ended.err
    assert missing in line
    assert "Traceback" not in ended.err
    assert "terminate" not in ended.err
    assert ended.seconds < 60


def test_rank_0_may_take_as_long_as_it_works(folder: Path) -> None:
    ended = _run(folder, "busy", 0)
    assert ended.status == 0, ended.err
    assert ended.lines == []


# -- what is made of the reports -------------------------------------------------------------------

IN_STEP = Report("step 7", Kind.COMPUTING.value, True, "train_step (trainer.py:1)", 30)
ELSEWHERE = Report("step 7", Kind.COMPUTING.value, False, "build (batches.py:80)", 30)
BEHIND = Report("step 7", Kind.COMPUTING.value, True, "train_step (trainer.py:1)", 29)
WAITING = Report("tokenising train", Kind.WAITING.value, True, "", 0)
ACTING = Report("tokenising train", Kind.ACTING.value, False, "read_pairs (readers.py:9)", 0)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({0: IN_STEP, 1: ELSEWHERE, 2: IN_STEP}, [1]),
        ({0: IN_STEP, 2: IN_STEP}, [1]),  # it does not answer
        ({0: IN_STEP, 1: IN_STEP, 2: BEHIND}, [2]),
        ({0: ACTING, 1: WAITING, 2: WAITING}, [0]),
        ({0: IN_STEP, 1: IN_STEP, 2: IN_STEP}, []),
        ({0: ELSEWHERE, 1: ELSEWHERE, 2: ELSEWHERE}, []),  # their frames do not tell
    ],
)
def test_who_is_missing(told: dict[int, Report], expected: list[int]) -> None:
    assert missing_ranks(told, 3) == expected


def test_one_line_says_it() -> None:
    told = {0: ACTING, 1: WAITING, 2: WAITING}
    assert describe(told, 3, 1800.0) == (
        "tokenising train: the other ranks have waited 30 minutes "
        "(trainer.collective_timeout_minutes) for rank 0 in tokenising train, in read_pairs "
        "(readers.py:9); look at its machine and its log, or allow more time; start again to resume"
    )
    nobody = describe(dict.fromkeys(range(3), IN_STEP), 3, 60.0)
    assert nobody.startswith("step 7: not ended within 1 minutes")
    assert "no rank is known to be behind" in nobody
