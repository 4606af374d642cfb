"""Whether this process, with what it has started, does anything: processor time, bytes moved."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LEAST_SHARE = 0.05
"""Of one processor: less is what waiting itself costs. The threads of gloo, the store and the watch
of a rank that hangs were seen to take 0.8 to 2.6 percent of a busy machine's processor."""
_LEAST_BYTES_PER_SECOND = 32768.0


@dataclass(frozen=True)
class Activity:
    """Of a process and its children, since they began."""

    seconds: float
    """Time of processors."""
    bytes: int
    """Read and written."""

    def is_more_than(self, before: Activity, elapsed: float) -> bool:
        """Whether something was done since `before`, `elapsed` seconds ago."""
        return (
            self.seconds - before.seconds > _LEAST_SHARE * elapsed
            or self.bytes - before.bytes > _LEAST_BYTES_PER_SECOND * elapsed
            # A child that has ended takes its numbers along.
            or self.seconds < before.seconds
            or self.bytes < before.bytes
        )


def activity_of_this_process() -> Activity | None:
    """What it has done so far, but for the calling thread; None where the kernel does not say."""
    own = os.getpid()
    try:
        ticks, moved = _of(own)
        ticks -= _ticks(own)
    except (OSError, ValueError, IndexError, KeyError):
        return None
    # Of itself more exactly: the kernel counts in hundredths of a second.
    seconds = time.process_time() - time.thread_time() + ticks / _TICKS_PER_SECOND
    return Activity(seconds, moved)


def _ticks(pid: int) -> int:
    """Time of processors of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _of(pid: int) -> tuple[int, int]:
    """Ticks and bytes of a process and its children."""
    folder = Path(f"/proc/{pid}")
    counts = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
    ticks, moved = _ticks(pid), int(counts["rchar"]) + int(counts["wchar"])
    for child in _children(folder):
        try:
            more, further = _of(child)
        except (OSError, ValueError, IndexError, KeyError):
            continue  # it has just ended
        ticks, moved = ticks + more, moved + further
    return ticks, moved


def _children(folder: Path) -> list[int]:
    found = []
    for thread in (folder / "task").iterdir():
        try:
            found += [int(pid) for pid in (thread / "children").read_text().split()]
        except OSError:
            continue  # the thread has just ended, or the kernel does not tell
    return found
