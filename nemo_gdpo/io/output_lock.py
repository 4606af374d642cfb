"""One job at a time in an output_dir: the second is refused at once, and told who is there.

`output_dir/.lock` is locked by its holder where the file system has locks. It also holds the
holder's record: host, process, Slurm job, since when, and a beat that is renewed every
`BEAT_SECONDS`. The record decides where a lock cannot:

* no locks at all: a holder is dead when its process is gone (on this machine), or its beat is older
  than `DEAD_SECONDS` (on another);
* locks that each node has for itself: the lock is free here, and a fresh record names another host.
  Then its beat is watched for a moment: if it moves, that job is alive;
* a requeued Slurm job: what an earlier start of the same job holds is taken over, since Slurm ends
  a job before it starts it again.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.files import own_name
from nemo_gdpo.io.locks import BusyError, hold_open_file
from nemo_gdpo.io.manifest import LOCK
from nemo_gdpo.io.processes import Process, this_process

BEAT_SECONDS = 15.0
DEAD_SECONDS = 120.0
"""A holder on another machine that has not renewed its beat for so long is dead."""
WATCH_SECONDS = 2.5 * BEAT_SECONDS
"""For a beat to move."""
SETTLE_SECONDS = 2.0
"""Where there are no locks: time in which two who come at once see who wrote last."""
_RECORD_BYTES = 1024
"""Records are padded to one length: one write replaces one by another."""


class InUseError(UserError):
    """Another job works in the output_dir."""


@dataclass(frozen=True)
class Holder:
    """Who holds an output_dir."""

    process: Process
    job: str | None
    """Slurm job."""
    restarts: int
    """How often Slurm has started that job again."""
    since: float
    """Seconds since the epoch."""
    beat: float = 0.0

    @classmethod
    def own(cls) -> Holder:
        """This process, from now on."""
        return cls(
            this_process(),
            os.environ.get("SLURM_JOB_ID"),
            int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            time.time(),
            time.time(),
        )

    @classmethod
    def parsed(cls, text: str) -> Holder | None:
        """The holder of a record; None for an empty or a torn one."""
        try:
            values = json.loads(text)
            return cls(**{**values, "process": Process(**values["process"])})
        except (ValueError, TypeError, KeyError):
            return None

    def record(self) -> bytes:
        """What stands in the file."""
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES - 1) + b"\n"

    def is_same(self, other: Holder) -> bool:
        """Whether both are one process's."""
        return self.process == other.process

    def is_earlier_start_of(self, other: Holder) -> bool:
        """Whether `other` is the same Slurm job, requeued since."""
        return self.job is not None and self.job == other.job and self.restarts < other.restarts

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).isoformat(" ", "seconds")
        job = "" if self.job is None else f", Slurm job {self.job}"
        return f"process {self.process.pid} on {self.process.host}{job}, since {since}"


class OutputLock:
    """An output_dir that this process holds. End it with `release`, or with `undo`."""

    def __init__(self, directory: Path, on_lost: Callable[[Holder], None] | None) -> None:
        """Prepare; `hold` takes it."""
        self.directory = directory
        self.path = directory / LOCK
        self._on_lost = on_lost
        self._descriptor: int | None = None
        self._made: list[Path] = []
        """What was not there before, the outermost first."""
        self._before: tuple[bytes, int, int] | None = None
        """Contents and times of the lock's file before."""
        self._times: tuple[int, int] | None = None
        """Times of the directory before."""
        self._names: set[str] = set()
        """What was in it."""
        self._own = Holder.own()
        self._ended = threading.Event()

    # -- taking it -----------------------------------------------------------------------------

    def _take(self) -> None:
        """Become the holder, or raise.

        Raises:
            InUseError: another job holds it.
            OSError: nothing can be written there.
        """
        self._note_what_is_there()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            has_locks = hold_open_file(self._descriptor)
        except BusyError:
            self._take_over_or_refuse()
            has_locks = True
        self._refuse_living(has_locks=has_locks)
        self._write()
        if not has_locks:
            time.sleep(SETTLE_SECONDS)
            found = self._read()
            if found is None or not found.is_same(self._own):
                self._close()
                raise _in_use(self.directory, found)
        threading.Thread(target=self._beat, name="output lock", daemon=True).start()

    def _note_what_is_there(self) -> None:
        missing = [p for p in (self.directory, *self.directory.parents) if not p.exists()]
        if missing:
            self.directory.mkdir(parents=True, exist_ok=True)
        else:
            found = self.directory.stat()
            self._times = found.st_atime_ns, found.st_mtime_ns
            self._names = {path.name for path in self.directory.iterdir()}
        with contextlib.suppress(FileNotFoundError):
            found = self.path.stat()
            self._before = self.path.read_bytes(), found.st_atime_ns, found.st_mtime_ns
        self._made = missing[::-1] + ([] if self._before is not None else [self.path])

    def _take_over_or_refuse(self) -> None:
        """The lock is held: only what an earlier start of this job holds is taken from it."""
        found = self._read()
        self._close()
        if found is None or not found.is_earlier_start_of(self._own):
            raise _in_use(self.directory, found)
        fresh = own_name(self.path)
        self._descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        hold_open_file(self._descriptor)
        fresh.replace(self.path)

    def _refuse_living(self, *, has_locks: bool) -> None:
        found = self._read()
        if found is None or found.is_same(self._own) or found.is_earlier_start_of(self._own):
            return
        alive = found.process.is_alive() if found.process.is_of_this_machine else None
        if alive is None:
            alive = time.time() - found.beat < DEAD_SECONDS
            if alive and has_locks:
                # The lock is free here. Perhaps each node has locks of its own.
                alive = self._moves(found)
        elif has_locks:
            alive = False  # on one machine a lock tells the truth
        if alive:
            self._close()
            raise _in_use(self.directory, found)

    def _moves(self, found: Holder) -> bool:
        print(
            f"nemo-gdpo: {self.directory} was last held by {found}; watching for "
            f"{WATCH_SECONDS:g} s whether that job is alive",
            file=sys.stderr,
            flush=True,
        )
        limit = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < limit:
            time.sleep(min(1.0, BEAT_SECONDS / 4))
            now = self._read()
            if now is not None and now.beat != found.beat:
                return True
        return False

    # -- holding it ----------------------------------------------------------------------------

    def _read(self) -> Holder | None:
        """The record, opened anew: a network file system shows others' writes then."""
        for _ in range(3):
            try:
                text = self.path.read_text()
            except (OSError, UnicodeDecodeError):
                return None
            found = Holder.parsed(text)
            if found is not None or not text.strip():
                return found
            time.sleep(0.05)  # torn: its holder is writing it
        return None

    def _write(self) -> None:
        assert self._descriptor is not None
        self._own = Holder(**{**vars(self._own), "beat": time.time()})
        if os.pwrite(self._descriptor, self._own.record(), 0) < _RECORD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            found = self._read()
            if found is not None and not found.is_same(self._own):
                if self._on_lost is not None and not self._ended.is_set():
                    self._on_lost(found)
                return
            with contextlib.suppress(OSError, AssertionError):  # a full disk; or just released
                self._write()

    def is_there(self) -> bool:
        """Whether the file that this process has locked is still the directory's."""
        try:
            own, found = os.fstat(self._descriptor or -1), self.path.stat()
        except OSError:
            return False
        return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)

    # -- letting go ----------------------------------------------------------------------------

    def release(self) -> None:
        """Let go of it; the file stays, empty."""
        self._end()
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._close()

    def undo(self) -> None:
        """Let go of it and leave everything as it was, times included, if nothing was written."""
        self._end()
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if self._before is not None:
                content, *times = self._before
                os.pwrite(self._descriptor, content, 0)
                os.ftruncate(self._descriptor, len(content))
                os.utime(self.path, ns=(times[0], times[1]))
            for path in reversed(self._made):
                path.rmdir() if path.is_dir() else path.unlink()
            if (
                self._times is not None
                and {path.name for path in self.directory.iterdir()} == self._names
            ):
                os.utime(self.directory, ns=self._times)
        self._close()

    def _end(self) -> None:
        self._ended.set()
        _held.pop(_key(self.directory), None)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.release()
        else:
            self.undo()


_held: dict[str, OutputLock] = {}
"""What this process holds; it may ask again."""


def _key(directory: Path) -> str:
    return os.path.realpath(directory)


def _in_use(directory: Path, holder: Holder | None) -> InUseError:
    who = "" if holder is None else f" ({holder})"
    return InUseError(
        f"output_dir: another run is writing into {directory}{who}; wait for it, or choose another "
        "output_dir"
    )


def hold(directory: Path, *, on_lost: Callable[[Holder], None] | None = None) -> OutputLock:
    """Hold an output_dir, which is made; or the lock on it that this process has already.

    Args:
        directory: that is written into.
        on_lost: called, in a thread, when another job has taken it over.

    Raises:
        InUseError: another job works there; nothing was written.
        RunError: nothing can be written there.
    """
    known = _held.get(_key(directory))
    if known is not None and known.is_there():
        return known
    lock = OutputLock(directory, on_lost)
    try:
        lock._take()
    except OSError as error:
        lock.undo()
        raise RunError(
            f"output_dir: {directory} cannot be written ({error.strerror or error}); free space, "
            "fix the permissions or choose another output_dir, then start again"
        ) from error
    _held[_key(directory)] = lock
    return lock


@atexit.register
def _release_all() -> None:
    for lock in list(_held.values()):
        lock.release()
