"""The first stages of a run on several ranks: all that comes before the world is joined.

Checking the configuration and its files, importing what training needs, choosing the device: a node
can fail at any of it alone, and the others would wait for it in the rendezvous. There is no process
group yet, so the ranks tell each other through the store that the rendezvous is about to use.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import traceback
from dataclasses import asdict

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from nemo_gdpo.control.failure import EXPECTED, Failure, describe, first_line, one_error
from nemo_gdpo.errors import RunError
from nemo_gdpo.launch.slurm import WORLD, is_invited

STAGE = "starting"
PATIENCE_SECONDS = 180.0
"""For the other ranks to start and hear that this one cannot: imports from a cold network file
system take minutes."""
_LAST_READ = datetime.timedelta(seconds=10)
"""For the other ranks to read what rank 0 is about to leave."""

_kept: list[Store] = []
"""The stores of all starts of this process: each is read under its number, and the rendezvous that
follows uses the newest one's server."""


class NotAllCameError(RunError):
    """Not all ranks of the world came to where they meet."""


def start_together(*, timeout_minutes: float) -> None:
    """Tell the other ranks that this one is ready, and wait until all are. Collective.

    Raises:
        UserError: the input is wrong on a rank.
        RunError: a rank failed in another way.
        NotAllCameError: on this rank, when it has waited long enough.
    """
    if not is_invited(os.environ):
        return
    try:
        words = _words(None, datetime.timedelta(minutes=timeout_minutes))
    except RuntimeError as error:  # of the store
        rank, size, host, port = (os.environ[name] for name in WORLD)
        raise NotAllCameError(
            f"{size} ranks did not meet at {host}:{port} within {timeout_minutes:g} minutes (rank "
            f"{rank}: {first_line(str(error))}); start all of them, see that every node reaches "
            "that address, or raise trainer.collective_timeout_minutes"
        ) from error
    if any(words):
        raise one_error(STAGE, words, None)


def refuse_to_start(error: Exception) -> Exception | None:
    """Tell the other ranks that this one cannot start. A fault leaves its traceback on stderr.

    Returns:
        The error that every rank raises; `error` itself if there are no others; None if the others
        did not hear it in time.
    """
    if not is_invited(os.environ):
        return error
    if isinstance(error, NotAllCameError):
        return None
    try:
        words = _words(Failure.of(error, describe), datetime.timedelta(seconds=PATIENCE_SECONDS))
    except RuntimeError:  # of the store: nobody listens, or not everyone came
        return None
    if not isinstance(error, EXPECTED):
        traceback.print_exception(error, file=sys.stderr)
    return one_error(STAGE, words, None)


def _words(failure: Failure | None, timeout: datetime.timedelta) -> list[Failure | None]:
    """What every rank says; a rank that is ready says nothing.

    Raises:
        RuntimeError: of the store, when not all ranks came.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    _kept.append(store)
    said = PrefixStore(f"nemo_gdpo/start/{len(_kept)}", store)
    said.set(f"{rank}", json.dumps(failure and asdict(failure)))
    keys = [f"{other}" for other in range(size)]
    said.wait(keys, timeout)
    told = [json.loads(word) for word in said.multi_get(keys)]
    words = [None if word is None else Failure(**word) for word in told]
    if any(words):
        said.set(f"read/{rank}", "")
        if rank == 0:  # the store may end with this process
            with contextlib.suppress(RuntimeError):
                said.wait([f"read/{key}" for key in keys], _LAST_READ)
    return words
