"""Known failures become one line and their own status; a bug stays a traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from nemo_gdpo.errors import RunError, Stopped, UserError
from nemo_gdpo.evaluation.errors import EvaluationError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.launch.failures import guarded

Capture = pytest.CaptureFixture[str]


def _raises(error: BaseException) -> Callable[[], int]:
    def task() -> int:
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("key: wrong; do this"), 2, "nemo-gdpo: error: key: wrong; do this"),
        (RunError("disk: full"), 1, "nemo-gdpo: error: disk: full"),
        (GenerationError("the server is gone"), 1, "nemo-gdpo: error: the server is gone"),
        (EvaluationError("the judge is gone"), 1, "nemo-gdpo: error: the judge is gone"),
        (Stopped("stopped by a signal"), 75, "nemo-gdpo: stopped by a signal"),
    ],
)
def test_rank_0_speaks_for_all(
    error: BaseException, status: int, line: str, capsys: Capture
) -> None:
    assert guarded(_raises(error)) == status
    assert guarded(_raises(error), rank=3) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_stop_without_a_message_is_silent(capsys: Capture) -> None:
    assert guarded(_raises(Stopped())) == 75
    assert capsys.readouterr().err == ""


def test_the_disk_of_one_rank_is_named_by_that_rank(capsys: Capture) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    assert guarded(_raises(full), rank=2, disk_remedy="free space") == 1
    said = capsys.readouterr().err
    assert said == f"nemo-gdpo: rank 2: error: {full}; free space\n"
    with pytest.raises(OSError, match="No space left"):
        guarded(_raises(full))


@pytest.mark.parametrize("bug", [KeyError("oops"), RuntimeError("oops"), ValueError("oops")])
def test_a_bug_passes(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        guarded(_raises(bug), disk_remedy="x")


def test_a_status_is_passed_on() -> None:
    assert guarded(lambda: 75) == 75
