"""The agreement of all ranks to stop at the same step: because of a signal, or of the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from nemo_gdpo.control.watch import waiting
from nemo_gdpo.control.world import control_group
from nemo_gdpo.errors import Stopped
from nemo_gdpo.launch.signals import StopRequest, name_of, obeyed

_TIME_IS_UP = 1 << 16
"""Greater than the number of any signal."""
_WEIGHT_BYTES, _CHECKPOINT_BYTES = 2, 14
"""A parameter in bf16; and in a checkpoint, with the optimizer's own in fp32 and two moments."""


def highest(*values: int) -> list[int]:
    """The greatest of each value over all ranks. Collective.

    Between two steps rank 0 alone writes logs, which may take long: the others wait for it here, in
    the control group.
    """
    found = torch.tensor(values, dtype=torch.int32, device="cpu")
    with waiting("between steps"):
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=control_group())
    return [int(value) for value in found.tolist()]


def stopped_together(message: str) -> Stopped:
    """The error of a stop that all ranks have agreed on."""
    error = Stopped(message)
    error.agreed = True
    return error


def first_save(loading_seconds: float, replicas: int) -> float:
    """Seconds that a run's first checkpoint may take, from those that the base weights took.

    The same disk has to take, once, what each of `replicas` data-parallel replicas read, and more.
    """
    return loading_seconds * max(1.0, _CHECKPOINT_BYTES / (_WEIGHT_BYTES * replicas))


class Stopping:
    """Tells a loop, on all ranks alike, when to end early.

    Ranks receive a signal at different moments, and their clocks differ; leaving the loop at
    different steps would hang. Before the end of the job's time the loop is left early enough for
    one more turn and one more checkpoint, each as long as the longest so far; before the first, as
    long as `expect_save` says.
    """

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._since = time.time()
        self._began: float | None = None
        self._longest_turn = 0.0
        self._longest_save: float | None = None
        self._expected_save = 0.0
        self.why: str | None = None
        """Why the loop ends, as in `stopped by SIGTERM`, once it does."""

    def turn(self, wish: bool = False) -> tuple[str | None, bool]:
        """Begin a turn of the loop: why all ranks leave it now, and whether any of them wishes so.

        Collective.

        Args:
            wish: of this rank.

        Returns:
            The reason, or None to go on; and whether `wish` is set on any rank.
        """
        self._end_turn()
        code, wished = highest(self._own_reason(), int(wish))
        self._began = time.time()
        if code:
            self.why = self._told(code)
            obeyed()
        return self.why, bool(wished)

    def due(self) -> str | None:
        """`turn` without a wish."""
        return self.turn()[0]

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a checkpoint: its time is its own, and no part of a turn."""
        self._end_turn()
        begun = time.time()
        try:
            yield
        finally:
            self._began = time.time()
            self._longest_save = max(self._longest_save or 0.0, self._began - begun)

    def expect_save(self, seconds: float) -> None:
        """The first checkpoint will take about so long."""
        self._expected_save = seconds

    def note_save(self, seconds: float) -> None:
        """A checkpoint took so long, also where training went on meanwhile."""
        self._longest_save = max(self._longest_save or 0.0, seconds)

    def _end_turn(self) -> None:
        if self._began is not None:
            self._longest_turn = max(self._longest_turn, time.time() - self._began)

    def _own_reason(self) -> int:
        limit = self._stop.limit
        if self._stop.received:
            return self._stop.received
        if limit is None:
            return 0
        save = self._longest_save
        if save is None:  # nothing was measured: no more than a tenth of the time is kept free
            save = max(limit.margin, min(self._expected_save, (limit.end - self._since) / 10))
        needed = self._longest_turn + save + limit.margin
        return _TIME_IS_UP if time.time() + needed > limit.end else 0

    def _told(self, code: int) -> str:
        if code < _TIME_IS_UP:
            return name_of(code)
        limit = self._stop.limit
        return "the end of its time" + (f" ({limit.key})" if limit is not None else "")
