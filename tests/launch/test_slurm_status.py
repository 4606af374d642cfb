"""The status of a rank of an srun step, and the true one for the job's script."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nemo_gdpo import cli
from nemo_gdpo.control.alone import end_process
from nemo_gdpo.errors import EXIT_FAILED, EXIT_USER_ERROR
from nemo_gdpo.launch.slurm import STATUS_FILE, step_status


@pytest.mark.parametrize(
    ("status", "ended", "noted"),
    [(75, 0, "75\n"), (2, 2, "2\n"), (0, 0, None), (1, 1, None)],
    ids=["stopped", "mistake", "done", "failed"],
)
def test_what_srun_is_told_and_what_the_script_is(
    tmp_path: Path, status: int, ended: int, noted: str | None
) -> None:
    file = tmp_path / "status"
    assert step_status(status, {STATUS_FILE: str(file)}) == ended
    assert (file.read_text() if file.exists() else None) == noted


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_outside_of_such_a_step_nothing_changes(status: int) -> None:
    assert step_status(status, {}) == status


def test_the_first_rank_has_the_word(tmp_path: Path) -> None:
    """Those that are killed because of it are asked to stop first, and would say that they were."""
    environ = {STATUS_FILE: str(tmp_path / "status")}
    step_status(2, environ)
    assert step_status(75, environ) == 0
    assert (tmp_path / "status").read_text() == "2\n"


def test_the_command_line_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    assert cli.main(["train", "no.such=key"]) == EXIT_USER_ERROR
    assert (tmp_path / "status").read_text() == "2\n"


@pytest.mark.parametrize(("status", "noted"), [(EXIT_USER_ERROR, "2\n"), (EXIT_FAILED, None)])
def test_a_rank_that_fails_alone_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, noted: str | None
) -> None:
    """Its process ends before the command line could; srun then kills the others."""
    file = tmp_path / "status"
    monkeypatch.setenv(STATUS_FILE, str(file))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        end_process(status)
    assert ended.value.code == status
    assert (file.read_text() if file.exists() else None) == noted
