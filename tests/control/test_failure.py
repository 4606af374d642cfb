"""The one error that all ranks make of what failed on some of them."""

from __future__ import annotations

import pytest
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from nemo_gdpo.control.failure import Failure, describe, one_error
from nemo_gdpo.errors import EXIT_FAILED, EXIT_USER_ERROR, RunError, UserError


def failure(error: BaseException) -> Failure:
    return Failure.of(error, describe)


WRONG = failure(UserError("x is wrong; mend it"))
BROKEN = failure(RunError("x is broken"))
FULL = failure(OSError(28, "No space left on device"))


class WriteError(RunError):
    """Of a stage that writes."""


@pytest.mark.parametrize(
    ("failures", "main_only", "kind", "told"),
    [
        ([None, WRONG], False, UserError, "rank 1: x is wrong; mend it (doing)"),
        ([WRONG, None], True, UserError, "x is wrong; mend it (rank 0, doing)"),
        # What all say is not a matter of one of them.
        ([WRONG, WRONG], False, UserError, "x is wrong; mend it"),
        ([WRONG], True, UserError, "x is wrong; mend it"),
        # A broken rank may have followed from a wrong input elsewhere.
        ([BROKEN, None, WRONG], False, UserError, "rank 2 and 1 more: x is wrong; mend it (doing)"),
        ([None, BROKEN, BROKEN], False, RunError, "rank 1 and 1 more: x is broken (doing)"),
        (
            [None, FULL],
            False,
            RunError,
            "rank 1: [Errno 28] No space left on device; what was written completely stays: fix "
            "this and start again (doing)",
        ),
    ],
)
def test_rank_and_stage_are_named(
    failures: list[Failure | None], main_only: bool, kind: type[Exception], told: str
) -> None:
    error = one_error("doing", failures, main_only=main_only)
    assert type(error) is kind
    assert str(error) == told
    assert error.agreed


def test_a_stage_may_have_an_error_of_its_own() -> None:
    error = one_error("doing", [None, FULL], lambda told: WriteError(f"could not write ({told})"))
    assert type(error) is WriteError
    assert str(error) == "could not write (rank 1: [Errno 28] No space left on device)"
    assert error.agreed


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (UserError("a; b"), "a; b", EXIT_USER_ERROR),
        (RunError("a"), "a", EXIT_FAILED),
        (OSError(2, "No such file or directory", "f"), "[Errno 2] No such file or directory: 'f'",
         EXIT_FAILED),
        (KeyError("k"), "KeyError: 'k'", EXIT_FAILED),
        (RuntimeError("\nCUDA error\nwith advice"), "RuntimeError: CUDA error", EXIT_FAILED),
        (AssertionError(), "AssertionError: no reason given", EXIT_FAILED),
        (CheckpointException("write", {}), "no reason given", EXIT_FAILED),
        (
            CheckpointException("write", {3: _wrap_exception(OSError(28, "full\nto the brim"))}),
            "[Errno 28] full",
            EXIT_FAILED,
        ),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_and_a_status(error: BaseException, reason: str, status: int) -> None:
    found = failure(error)
    assert found.reason == reason
    assert found.status == status
    assert found.is_disk == isinstance(error, OSError)


def test_a_reason_that_cannot_be_told_is_told_plainly() -> None:
    def reason(error: BaseException) -> str:
        raise FileNotFoundError("the disk is gone")

    assert Failure.of(KeyError("k"), reason).reason == "KeyError: 'k'"
