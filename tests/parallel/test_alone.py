"""What fails on one rank outside of any stage, or inside a stage's collectives, ends the run.

Nothing can be agreed upon there: that rank says why and goes, whichever it is, and the launcher
ends the others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.hurt import Ended, run_hurt, save_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("alone"), 8)


def _run(folder: Path, case: str, victim: int) -> Ended:
    return run_hurt("alone_main", folder, case, victim, "trainer.devices=2")


LAUNCHER = "nemo-gdpo: rank {} failed (1); all ranks are stopped"


def test_a_bug_in_the_middle_of_training(folder: Path) -> None:
    ended = _run(folder, "bug", 1)
    assert ended.status == 1, ended.err
    assert ended.lines[0] == "nemo-gdpo: rank 1: error: KeyError: 'injected'"
    # The other rank's broken connection is no failure of its own.
    assert set(ended.lines[1:]) <= {
        "nemo-gdpo: rank 1 failed and says why; all ranks end",
        LAUNCHER.format(0),
        LAUNCHER.format(1),
    }
    assert ended.err.count("Traceback (most recent call last)") == 1
    assert "in train_step" in ended.err or "in fail" in ended.err
    assert ended.seconds < 40


def test_a_mistake_that_one_rank_finds_while_training(folder: Path) -> None:
    ended = _run(folder, "mistake", 1)
    assert ended.status == 2, ended.err
    assert ended.lines[0] == "nemo-gdpo: rank 1: error: injected; mend it"
    assert "Traceback" not in ended.err
    assert ended.reason == "rank 1: injected; mend it"
    assert ended.seconds < 40


def test_the_disk_of_the_main_rank(folder: Path) -> None:
    ended = _run(folder, "disk", 0)
    assert ended.status == 1, ended.err
    assert ended.lines[0] == (
        "nemo-gdpo: rank 0: error: [Errno 28] injected; the newest checkpoint is complete: fix "
        "this and start again"
    )
    assert ended.seconds < 40


@pytest.mark.parametrize(
    ("case", "victim", "stage", "reason"),
    [
        ("before collectives", 1, "planning the checkpoint", "KeyError: 'injected'"),
        pytest.param(
            "between collectives",
            0,
            "finishing the checkpoint",
            "OSError: [Errno 28] injected",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_stage_that_the_others_cannot_leave(
    folder: Path, case: str, victim: int, stage: str, reason: str
) -> None:
    ended = _run(folder, case, victim)
    assert ended.status == 1, ended.err
    assert len([line for line in ended.lines if "injected" in line]) == 1, ended.err
    (line,) = [line for line in ended.lines if "injected" in line]
    assert line.startswith(f"nemo-gdpo: rank {victim}: error: {stage}: {reason}")
    assert "the other ranks did not come out of this within 2 s" in line
    assert ended.seconds < 40


@pytest.mark.parametrize(
    ("case", "victim", "status", "reason"),
    [
        ("no device", 1, 2, "injected; mend it"),
        pytest.param("no device", 0, 2, "injected; mend it", marks=pytest.mark.nightly),
        ("no import", 1, 1, "ModuleNotFoundError: "),
    ],
)
def test_a_rank_that_cannot_start_tells_those_that_can(
    folder: Path, case: str, victim: int, status: int, reason: str
) -> None:
    ended = _run(folder, case, victim)
    assert ended.status == status, ended.err
    (line,) = [line for line in ended.lines if "(starting)" in line]
    assert line.startswith(f"nemo-gdpo: error: rank {victim}: {reason}")
    assert ("Traceback" in ended.err) == (case == "no import")
    assert ended.reason is not None
    assert ended.reason.startswith(f"rank {victim}: {reason}")
