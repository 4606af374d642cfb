"""Locks between processes, on `filelock`: held, busy, or not known to this file system.

A lock ends with its process, however that ends. Some network file systems have no locks; there a
lock is None, and work under it has to be safe without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout, lock_descriptor

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


class BusyError(Exception):
    """Another process holds the lock."""


def _lock(path: Path) -> BaseFileLock:
    # A lock that is only a file's existence would outlive a killed process: never fall back to it.
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def acquire(path: Path, *, wait: bool = False) -> BaseFileLock | None:
    """The lock on a file, which is made; `release()` it. None where there are no locks.

    Args:
        path: the lock's file; its directory exists.
        wait: until another process lets go.

    Raises:
        BusyError: another process holds it, and `wait` is not set.
        OSError: the file cannot be made.
    """
    lock = _lock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise BusyError(str(path)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return lock


@contextlib.contextmanager
def held(path: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Wait for, then hold, a lock; nothing where the file system has none.

    Args:
        path: the lock's file; its directory is made.
        waiting: printed when another process holds it; None where that takes a moment only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire(path)
    except BusyError:
        if waiting is not None:
            print(waiting, file=sys.stderr, flush=True)
        lock = acquire(path, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def hold_open_file(descriptor: int) -> bool:
    """Lock a file that is open for writing, until it is closed; False where there are no locks.

    Raises:
        BusyError: another process holds it.
    """
    try:
        if not lock_descriptor(descriptor, blocking=False):
            raise BusyError
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether a file that its writer keeps locked has provably lost its writer.

    Inside the block the lock is held, so that a writer that has just made the file, and not locked
    it yet, finds out.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)  # NFS locks nothing that is open for reading only
    except OSError:
        yield False
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
