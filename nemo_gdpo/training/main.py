"""Known failures of a rank, translated into one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from nemo_gdpo.errors import (
    EXIT_FAILED,
    EXIT_USER_ERROR,
    UserError,
)


def _say(text: str) -> None:
    """One line on stderr; ranks other than 0 name themselves."""
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"nemo-gdpo: {where}error: {text}", file=sys.stderr, flush=True)


def _on_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def guarded(task: Callable[[], int]) -> int:
    """Run `task`; known failures become one line and an exit status instead of a traceback."""
    from nemo_gdpo.training.checkpoint import CheckpointError
    from nemo_gdpo.training.metrics import NotFiniteError
    from nemo_gdpo.training.reference import ReferenceWriteError
    from nemo_gdpo.training.sanity import Step0MismatchError

    try:
        return task()
    except UserError as error:
        # Mistakes in the input are found by the main rank and told to all: once is enough.
        if _on_main_rank():
            _say(str(error))
        return EXIT_USER_ERROR
    except (Step0MismatchError, NotFiniteError, CheckpointError, ReferenceWriteError) as error:
        # Computed alike, or agreed upon, on every rank.
        if _on_main_rank():
            _say(str(error))
        return EXIT_FAILED
    except OSError as error:
        # On this rank alone (a full disk under metrics.jsonl, say); the launcher stops the others.
        _say(f"{error}; the newest checkpoint is whole: mend this and start again")
        return EXIT_FAILED
