"""A watch over all ranks: when one is stuck, all end with one line that names it and its stage.

Every rank says where it is: computing together with others (a step), acting (a stage), or waiting
for the others in the control group. A thread looks at it. A rank is stuck when for
`trainer.collective_timeout_minutes`

* it has been in one step, since its last micro-batch;
* or it has acted and neither computed, read nor written anything: what rank 0 does alone may take
  as long as it takes, but it does something meanwhile;
* or another rank's watch has said nothing while this one waits for it: its machine is gone.

Who notices asks all ranks, through the store of the world, where they are. Those that answer end
together, and the first of them says what is known. Torch's own limits of the groups come later, so
that NCCL's watchdog does not end the process with a C++ traceback instead.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from nemo_gdpo.control.activity import Activity, activity_of_this_process
from nemo_gdpo.control.alone import end_process
from nemo_gdpo.errors import EXIT_FAILED
from nemo_gdpo.launch.failures import say

GRACE = 1.5
"""Torch's limits are this many times the key's, and a minute more."""
_POLLS = 10
"""Looks within a limit."""
_LONGEST_POLL_SECONDS = 10.0
_STORE_SECONDS = 15.0
"""For the store to answer; it may be gone with its host."""
_COLLECTIVES = (
    "torch/distributed/",
    "pipeline_parallel/p2p_communication",
    "param_and_grad_buffer",
)
"""Files whose code waits for other ranks."""
_LIBRARIES = ("/torch/", "/megatron/", "/threading.py", "/contextlib.py")
_ASKED = "asked"


class Kind(Enum):
    """What a rank does where it is."""

    COMPUTING = "computing"
    """Together with others, in collectives."""
    ACTING = "acting"
    """By itself, or in a stage with collectives of its own."""
    WAITING = "waiting"
    """For what the others do."""


@dataclass
class _Place:
    name: str
    kind: Kind
    since: float = field(default_factory=time.monotonic)
    """When it was entered, or last moved on."""


@dataclass(frozen=True)
class Report:
    """Where a rank is."""

    name: str
    kind: str
    """Value of a `Kind`."""
    in_collective: bool
    """Its program waits for other ranks, as far as its Python frames show it."""
    where: str
    """Innermost function of this program: `build (batches.py:80)`."""
    moves: int
    """Micro-batches that it has begun."""


_places: list[_Place] = [_Place("between stages", Kind.WAITING)]
_moves = 0


def moved_on() -> None:
    """Note progress within a step: another micro-batch begins."""
    global _moves
    _moves += 1
    _places[-1].since = time.monotonic()


@contextlib.contextmanager
def _at(name: str, kind: Kind) -> Iterator[None]:
    _places.append(_Place(name, kind))
    try:
        yield
    finally:
        _places.pop()
        _places[-1].since = time.monotonic()


def computing(name: str) -> contextlib.AbstractContextManager[None]:
    """Inside the block all ranks compute together; `name` says what, as in `step 7`."""
    return _at(name, Kind.COMPUTING)


def acting(name: str) -> contextlib.AbstractContextManager[None]:
    """Inside the block this rank does something by itself."""
    return _at(name, Kind.ACTING)


def waiting(name: str) -> contextlib.AbstractContextManager[None]:
    """Inside the block this rank waits for the others, in the control group."""
    return _at(name, Kind.WAITING)


class Watch:
    """The thread that looks at this rank, and asks the others."""

    def __init__(self, store: Store, rank: int, size: int, limit: float) -> None:
        """Prepare; `start` begins.

        Args:
            store: of the world.
            rank: of this process.
            size: of the world.
            limit: seconds.
        """
        self._store = PrefixStore("nemo_gdpo/watch", store)
        self._rank, self._size, self._limit = rank, size, limit
        self._poll = min(_LONGEST_POLL_SECONDS, limit / _POLLS)
        self._ended = threading.Event()
        self._main = threading.main_thread().ident
        self._beats = 0
        self._heard: dict[int, tuple[str, float]] = {}
        """Rank -> its last beat, and when it came."""
        self._activity: Activity | None = None
        self._active = time.monotonic()
        """When this process last did something."""
        self.is_ending = False
        """All ranks end: what fails in this one from now on is a consequence."""

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._poll):
            with contextlib.suppress(RuntimeError):  # of the store, while a world ends
                self._look()

    def _look(self) -> None:
        place, now = _places[-1], time.monotonic()
        found = activity_of_this_process()
        if (
            found is None
            or self._activity is None
            or found.is_more_than(self._activity, self._poll)
        ):
            self._active = now
        self._activity = found
        self._beats += 1
        self._store.set(f"beat/{self._rank}", str(self._beats))
        if self._store.check([_ASKED]) or self._is_stuck(place, now):
            self._end_together()

    def _is_stuck(self, place: _Place, now: float) -> bool:
        for_long = now - place.since > self._limit
        if not for_long:
            return False
        if place.kind is Kind.COMPUTING:
            return True
        if place.kind is Kind.ACTING and now - self._active > self._limit:
            return True
        return bool(self._silent(now))

    def _silent(self, now: float) -> list[int]:
        """Ranks whose watch has said nothing for the limit."""
        for rank in range(self._size):
            key = f"beat/{rank}"
            beat = self._store.get(key).decode() if self._store.check([key]) else ""
            if self._heard.get(rank, (None, now))[0] != beat:
                self._heard[rank] = beat, now
        return [rank for rank, (_, when) in self._heard.items() if now - when > self._limit]

    def _report(self) -> Report:
        place = _places[-1]
        frames = _frames(sys._current_frames().get(self._main or 0))
        own = [f for f in frames if not any(part in f.f_code.co_filename for part in _LIBRARIES)]
        where = "" if not own else f"{own[0].f_code.co_name} ({_short(own[0])})"
        is_waiting = any(part in f.f_code.co_filename for f in frames[:6] for part in _COLLECTIVES)
        return Report(place.name, place.kind.value, is_waiting, where, _moves)

    def _end_together(self) -> None:
        """Tell where this rank is, hear where the others are, and end."""
        self.is_ending = True
        told: dict[int, Report] = {self._rank: self._report()}
        asking = threading.Thread(target=self._ask, args=(told,), daemon=True)
        asking.start()
        asking.join(2 * self._poll + _STORE_SECONDS)
        if self._ended.is_set():
            return
        if self._rank == min(told):
            say(f"error: {describe(told, self._size, self._limit)}")
        else:  # the speaker first: whoever loses its connection to this rank goes without a word
            self._ended.wait(self._poll + 2.0)
        end_process(EXIT_FAILED)

    def _ask(self, told: dict[int, Report]) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(f"report/{self._rank}", json.dumps(asdict(told[self._rank])))
            self._store.set(_ASKED, "")
            limit = time.monotonic() + 2 * self._poll + 1.0
            while len(told) < self._size and time.monotonic() < limit:
                for rank in set(range(self._size)) - set(told):
                    if self._store.check([f"report/{rank}"]):
                        told[rank] = Report(**json.loads(self._store.get(f"report/{rank}")))
                time.sleep(0.05)


def _frames(innermost: FrameType | None) -> list[FrameType]:
    found = []
    while innermost is not None:
        found.append(innermost)
        innermost = innermost.f_back
    return found


def _short(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


def missing_ranks(told: Mapping[int, Report], size: int) -> list[int]:
    """The ranks that the others wait for, as far as that can be told; none where it cannot.

    Args:
        told: rank -> where it is.
        size: of the world.
    """
    silent = [rank for rank in range(size) if rank not in told]
    if silent:
        return silent
    # Who waits for the others in the control group is not what they wait for.
    busy = [rank for rank in told if told[rank].kind != Kind.WAITING.value]
    alone = [rank for rank in busy if not told[rank].in_collective]
    if alone and len(alone) < size:
        return alone
    behind = min((told[rank].moves for rank in busy), default=0)
    late = [rank for rank in busy if told[rank].moves == behind]
    return late if len(late) < size else []


def describe(told: Mapping[int, Report], size: int, limit: float) -> str:
    """One line: what does not end, who is missing, and where.

    Args:
        told: rank -> where it is.
        size: of the world.
        limit: seconds.
    """
    minutes = f"{limit / 60:g} minutes (trainer.collective_timeout_minutes)"
    missing = missing_ranks(told, size)
    waiting_in = [r.name for rank, r in told.items() if rank not in missing] or [
        r.name for r in told.values()
    ]
    stage = waiting_in[0]
    if not missing:
        return (
            f"{stage}: not ended within {minutes}, and no rank is known to be behind; look at the "
            "network and the logs of all ranks, or allow more time; start again to resume"
        )
    who = "; ".join(f"rank {rank} {_whereabouts(told.get(rank))}" for rank in missing[:4])
    more = "" if len(missing) <= 4 else f" and {len(missing) - 4} more"
    return (
        f"{stage}: the other ranks have waited {minutes} for {who}{more}; look at its machine and "
        "its log, or allow more time; start again to resume"
    )


def _whereabouts(report: Report | None) -> str:
    if report is None:
        return "does not answer"
    where = "" if not report.where else f", in {report.where}"
    return f"in {report.name}{where}"


_watch: Watch | None = None
_limit_seconds = 30.0 * 60.0


def group_timeout() -> datetime.timedelta:
    """Torch's limit for the groups of the computation: later than the watch."""
    return datetime.timedelta(seconds=GRACE * _limit_seconds + 60.0)


def set_limit(minutes: float) -> None:
    """Set `trainer.collective_timeout_minutes`, before the world is joined."""
    global _limit_seconds
    _limit_seconds = 60.0 * minutes


def start_watch() -> None:
    """Watch over the world that was joined; nothing where this rank is its only one."""
    global _watch
    stop_watch()
    if dist.get_world_size() > 1:
        store: Any = dist.distributed_c10d._get_default_store()
        _watch = Watch(store, dist.get_rank(), dist.get_world_size(), _limit_seconds)
        _watch.start()


def stop_watch() -> None:
    """End the watch, where there is one."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def let_the_watch_end() -> None:
    """Where the watch is about to end this process, leave it to it.

    A rank that it has ended already closes its connections, and this one must not report that.
    """
    if _watch is not None and _watch.is_ending:
        time.sleep(3 * _watch._poll + _STORE_SECONDS + 2.0)
