"""All or none: nobody continues, or waits, when somebody has failed.

Whatever can fail on one rank is a stage: it is run by `on_every_rank`, or by `from_main_rank` where
rank 0 acts for all. Every rank then raises the same error, and rank 0 prints it once.

A stage that has collectives of its own can fail on one rank in the middle of them, and leave the
others waiting there. That rank waits `PATIENCE_SECONDS` for them, then says why and ends its
process, see `nemo_gdpo.control.alone`; the launcher ends the others.
"""

from __future__ import annotations

import sys
import traceback
import zlib
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from nemo_gdpo.control.alone import unless_others_come
from nemo_gdpo.control.failure import EXPECTED, WRITERS, Failure, Wrap, describe, one_error
from nemo_gdpo.control.watch import acting, waiting
from nemo_gdpo.control.world import control_group, rank_and_size

T = TypeVar("T")


def on_every_rank(
    stage: str,
    action: Callable[[], T],
    *,
    wrap: Wrap | None = None,
    reason: Callable[[BaseException], str] = describe,
) -> T:
    """Run `action` here; raise on every rank if it failed on any. Collective.

    Args:
        stage: what it does, as in `reading the weights`; the same on all ranks.
        action: of this rank.
        wrap: makes the error; None: one that names rank and stage.
        reason: says what an exception means, in one line.

    Raises:
        UserError: the input is wrong on a rank, which is named unless all say the same.
        RunError: it failed in another way. A fault of the program leaves its traceback on stderr.
    """
    return _together(stage, action, wrap, reason, main_only=False)


def from_main_rank(
    stage: str,
    action: Callable[[], T],
    *,
    wrap: Wrap | None = None,
    reason: Callable[[BaseException], str] = describe,
) -> T:
    """Rank 0's result of `action`, which it alone runs, on every rank. Collective.

    The others wait in the control group, for as long as it takes. Arguments and errors are those of
    `on_every_rank`; the result is pickled.
    """
    rank, size = rank_and_size()

    def on_main() -> T | None:
        return action() if rank == 0 else None

    shared = [_together(stage, on_main, wrap, reason, main_only=True)]
    if size > 1:
        with waiting(stage):
            dist.broadcast_object_list(shared, src=0, group=control_group())
    return shared[0]  # type: ignore[return-value]


def _together(
    stage: str,
    action: Callable[[], T],
    wrap: Wrap | None,
    reason: Callable[[BaseException], str],
    *,
    main_only: bool,
) -> T:
    result: list[T] = []
    failure: Failure | None = None
    cause: BaseException | None = None
    try:
        with acting(stage):
            result.append(action())
    except (Exception, CheckpointException) as error:  # noqa: BLE001 - the others wait for this rank
        # The second one is no Exception: torch's collective writer and reader raise it.
        failure, cause = Failure.of(error, reason), error
    known = EXPECTED if wrap is None else WRITERS
    fault = None if isinstance(cause, known) else cause
    failures = _failures(stage, failure, fault)
    if not any(failures):
        return result[0]
    if fault is not None:
        if len(failures) == 1 and wrap is None:
            raise fault
        if failures.index(failure) == rank_and_size()[0]:  # the first that says this
            traceback.print_exception(fault, file=sys.stderr)
    raise one_error(stage, failures, wrap, main_only=main_only) from cause


def gathered(value: T) -> list[T]:
    """The value of every rank, by rank. Collective."""
    size = rank_and_size()[1]
    if size == 1:
        return [value]
    values: list[T | None] = [None] * size
    with waiting("comparing what ranks have"):
        dist.all_gather_object(values, value, group=control_group())
    return values  # type: ignore[return-value]


def _failures(
    stage: str, failure: Failure | None, fault: BaseException | None
) -> list[Failure | None]:
    """What failed on each rank.

    Args:
        stage: that this rank has left.
        failure: of this rank.
        fault: of the program, that led to it.

    Raises:
        RuntimeError: the ranks are in different stages: a fault of the program.
    """
    if rank_and_size()[1] == 1:
        return [failure]
    word = zlib.crc32(stage.encode())
    # One small sum where all is well: (failed, greatest stage, least stage).
    flags = torch.tensor([failure is not None, word, -word], dtype=torch.int64, device="cpu")
    with waiting(stage), unless_others_come(stage, failure, fault):
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=control_group())
    failed, greatest, least = flags.tolist()
    if not failed and greatest == -least:
        return [None] * rank_and_size()[1]
    told = gathered((stage, failure))
    if greatest != -least:
        where = "; ".join(f"rank {rank}: {name}" for rank, (name, _) in enumerate(told))
        raise RuntimeError(f"the ranks are out of step ({where})")
    return [found for _, found in told]
