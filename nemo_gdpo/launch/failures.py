"""Report of known failures as one line and an exit status; others stay a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from nemo_gdpo.errors import EXIT_FAILED, RunError, Stopped, UserError

KNOWN = (UserError, RunError, Stopped)
"""Classes of error that `report` takes."""


def say(text: str) -> None:
    """Print a line of this program's own on stderr."""
    print(f"nemo-gdpo: {text}", file=sys.stderr, flush=True)


def report(error: UserError | RunError | Stopped, *, rank: int = 0) -> int:
    """Print what happened, once for all ranks; returns the exit status.

    Args:
        error: found, computed or agreed upon alike on every rank: rank 0 speaks for all.
        rank: of this process.
    """
    text = str(error)
    if rank == 0 and text:
        say(text if isinstance(error, Stopped) else f"error: {text}")
    return error.status


def report_alone(error: BaseException, *, rank: int, disk_remedy: str) -> int:
    """Print what ended one of several ranks, and no other knows of; returns the exit status.

    A fault of the program leaves its traceback as well.

    Args:
        error: of this rank.
        rank: of this process; it is named even if it is 0.
        disk_remedy: see `guarded`.
    """
    status, told = EXIT_FAILED, str(error)
    if isinstance(error, UserError | RunError):
        status = error.status
    elif isinstance(error, OSError):
        told = f"{error}; {disk_remedy}"
    else:
        traceback.print_exception(error, file=sys.stderr)
        told = f"{type(error).__name__}: {error}"
    say(f"rank {rank}: error: {told}")
    return status


def guarded(task: Callable[[], int], *, rank: int = 0, disk_remedy: str | None = None) -> int:
    """Run `task`; returns its exit status, or that of the failure that ended it.

    Args:
        task: returns an exit status.
        rank: of this process.
        disk_remedy: what is safe and what to do when the disk fails outside of what is guarded
            already. Such an `OSError` is this rank's alone, so each says its own; the launcher
            stops the others. None lets it pass.
    """
    try:
        return task()
    except KNOWN as error:
        return report(error, rank=rank)
    except OSError as error:
        if disk_remedy is None:
            raise
        where = "" if rank == 0 else f"rank {rank}: "
        say(f"{where}error: {error}; {disk_remedy}")
        return EXIT_FAILED
