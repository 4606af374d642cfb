"""A failure of one rank in a form that can be sent, and the error that all ranks make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from nemo_gdpo.errors import EXIT_FAILED, EXIT_USER_ERROR, RunError, UserError

Wrap = Callable[[str], UserError | RunError]
"""Makes the error of what was told: `rank 1: No space left on device`."""
EXPECTED = (UserError, RunError, OSError, CheckpointException)
"""Errors whose message says all; any other is a fault of the program, and its place is wanted."""
WRITERS = (*EXPECTED, RuntimeError, SafetensorError)
"""What a full disk looks like to those who write: `torch.save` raises a RuntimeError."""
_DISK_REMEDY = "what was written completely stays: fix this and start again"
_UNKNOWN = "no reason given"


@dataclass(frozen=True)
class Failure:
    """What went wrong on one rank."""

    reason: str
    status: int
    """Exit status."""
    is_disk: bool = False
    """A file could not be read or written."""

    @classmethod
    def of(cls, error: BaseException, reason: Callable[[BaseException], str]) -> Failure:
        """The failure of an exception.

        Args:
            error: that was raised.
            reason: says in one line what it means. If that fails, too, the plain reason is told:
                the other ranks wait for it.
        """
        status = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED
        try:
            told = reason(error)
        except Exception:  # noqa: BLE001 - the disk that is full may be gone altogether
            told = describe(error)
        return cls(told, status, isinstance(error, OSError))


def describe(error: BaseException) -> str:
    """One line."""
    if isinstance(error, CheckpointException):
        # Rank 0 knows what failed where; to the others torch says only that something did.
        causes = [f"{cause} (on rank {rank})" for rank, (cause, _) in error.failures.items()]
        return first_line(causes[0]) if causes else _UNKNOWN
    if isinstance(error, EXPECTED):
        return str(error)
    return f"{type(error).__name__}: {first_line(str(error))}"


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line for line in text.splitlines() if line.strip()), _UNKNOWN)


def one_error(
    stage: str,
    failures: Sequence[Failure | None],
    wrap: Wrap | None = None,
    *,
    main_only: bool = False,
) -> UserError | RunError:
    """The error of a stage; every rank makes the same one.

    A mistake in the input comes first: the rest may follow from it.

    Args:
        stage: what was done, as in `reading the weights`.
        failures: of each rank, None where it succeeded; one at least failed.
        wrap: makes the error; None: a `UserError` or a `RunError` that names rank and stage.
        main_only: rank 0 acted for all.
    """
    failed = {rank: failure for rank, failure in enumerate(failures) if failure is not None}
    mistaken = [rank for rank, failure in failed.items() if failure.status == EXIT_USER_ERROR]
    rank = (mistaken or list(failed))[0]
    first = failed[rank]
    told = first.reason
    if first.is_disk and wrap is None:
        told = f"{told}; {_DISK_REMEDY}"
    if len(set(failures)) > 1:  # what all ranks say is not a matter of one of them
        who = f"rank {rank}" + (f" and {len(failed) - 1} more" if len(failed) > 1 else "")
        if wrap is not None:
            told = f"{who}: {told}"
        else:
            told = f"{told} ({who}, {stage})" if main_only else f"{who}: {told} ({stage})"
    kind: Wrap = UserError if first.status == EXIT_USER_ERROR else RunError
    error = (wrap or kind)(told)
    error.agreed = True
    return error
