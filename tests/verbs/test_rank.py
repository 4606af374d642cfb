"""Known failures of a rank end in one line and an exit status."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.errors import EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR, Stopped, UserError
from nemo_gdpo.training.metrics import NotFiniteError
from nemo_gdpo.training.reference import ReferenceWriteError
from nemo_gdpo.training.sanity import Step0MismatchError
from nemo_gdpo.verbs import rank


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a task that ends in an error; returns the exit status."""

    def run(error: BaseException) -> int:
        def task(config: RunConfig) -> int:
            raise error

        monkeypatch.setitem(rank.TASKS, "train", task)
        return rank.run_task("train", RunConfig())

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("data.train_path=x: file not found"), EXIT_USER_ERROR),
        (Step0MismatchError("step 0: two models"), EXIT_FAILED),
        (NotFiniteError("step 3: pairs a, b"), EXIT_FAILED),
        (ReferenceWriteError("the reference cache r could not be written"), EXIT_FAILED),
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), EXIT_FAILED),
    ],
)
def test_one_line(
    raising: Callable[[BaseException], int],
    error: Exception,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert raising(error) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nemo-gdpo: error: ")
    assert str(error) in lines[0]


def test_a_bug_stays_a_traceback(raising: Callable[[BaseException], int]) -> None:
    with pytest.raises(KeyError):
        raising(KeyError("oops"))


def test_a_signal_asks_for_a_requeue(raising: Callable[[BaseException], int]) -> None:
    assert raising(Stopped()) == EXIT_REQUEUE
