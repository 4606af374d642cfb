"""Processes: by name across machines, is the one that a file names still there; and their ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """A process of some machine."""

    host: str
    pid: int
    started: str
    """When, in the kernel's ticks: numbers of processes are used again."""
    machine: str
    """The boot of its machine and its name space of processes; empty where that is unknown."""

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its number means something here."""
        return self.machine != "" and self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether it runs. Only for processes of this machine."""
        return _started(self.pid) == self.started != ""


def this_process() -> Process:
    """The one that asks."""
    pid = os.getpid()
    return Process(os.uname().nodename, pid, _started(pid), _machine())


def _machine() -> str:
    try:
        return f"{_BOOT.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Empty when there is no such process, or it has ended and is only waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its container."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        count = min(count, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(1, count)


def end_with_parent(number: signal.Signals) -> None:
    """Have Linux send this process a signal when the one that started it has ended.

    A launcher that is killed can stop nobody, and what it started would go on: with the lock on the
    output_dir, and with the GPUs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
