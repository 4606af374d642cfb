"""A rank that fails alone: it says why, leaves a note for the others, and ends its process at once.

The others wait for it in a collective, where nothing but the launcher reaches them: torchrun,
`srun --kill-on-bad-exit` and `nemo_gdpo.launch.ranks` end them. Those that notice by themselves,
because a connection is closed, find the note and do not report that as a failure of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NoReturn

import torch.distributed as dist

from nemo_gdpo.control.failure import Failure
from nemo_gdpo.control.world import rank_and_size
from nemo_gdpo.errors import RunError
from nemo_gdpo.launch.failures import say
from nemo_gdpo.launch.rank_log import record_failure
from nemo_gdpo.launch.slurm import step_status

PATIENCE_SECONDS = 60.0
"""For the other ranks to come out of a stage in which this one failed. Those whose own part takes
longer are ended with it: nothing that they do counts any more."""
_NOTE = "nemo_gdpo/failed_alone"
_NOTE_SECONDS = 5.0
"""For the store to take the note."""


@dataclass(frozen=True)
class Note:
    """What a rank that failed alone leaves in the store of the world."""

    rank: int
    status: int


def is_one_of_several() -> bool:
    """Whether this process has joined a world in which others may wait for it."""
    return dist.is_initialized() and dist.get_world_size() > 1


def note_of_another() -> Note | None:
    """The note of a rank that failed alone; None without one, or when the store is gone as well."""
    if not dist.is_initialized():
        return None
    with contextlib.suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        if store.check([_NOTE]):
            note = Note(**json.loads(store.get(_NOTE)))
            return None if note.rank == dist.get_rank() else note
    return None


def end_process(status: int) -> NoReturn:
    """Leave a note, and end this process without asking anyone.

    A normal exit may wait: for threads, for a communicator that hangs, for the other ranks. So may
    the store, where its host is gone.
    """
    noting = threading.Thread(target=_leave_note, args=(status,), daemon=True)
    noting.start()
    noting.join(_NOTE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(step_status(status, os.environ))


def _leave_note(status: int) -> None:
    with contextlib.suppress(RuntimeError, ValueError):  # no store any more, or no world yet
        note = json.dumps(asdict(Note(dist.get_rank(), status)))
        dist.distributed_c10d._get_default_store().set(_NOTE, note)


@contextlib.contextmanager
def unless_others_come(
    stage: str, failure: Failure | None, fault: BaseException | None
) -> Iterator[None]:
    """Inside the block this rank waits for the others: for `PATIENCE_SECONDS` after a failure.

    Then its reason is printed, with the traceback of a fault, and the process ends.
    """
    if failure is None:
        yield
        return
    timer = threading.Timer(PATIENCE_SECONDS, _give_up, (stage, failure, fault))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(stage: str, failure: Failure, fault: BaseException | None) -> None:
    if fault is not None:
        traceback.print_exception(fault, file=sys.stderr)
    rank = rank_and_size()[0]
    record_failure(fault or RunError(f"{stage}: {failure.reason}"))
    say(
        f"rank {rank}: error: {stage}: {failure.reason} (the other ranks did not come out of this "
        f"within {PATIENCE_SECONDS:g} s: this one ends, and the launcher ends them)"
    )
    end_process(failure.status)
