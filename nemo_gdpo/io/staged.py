"""Directories that appear complete or not at all, forced to disk before they do.

A directory in the making lies beside its destination and holds its writer's lock:

    .NAME.HOST-PID-RANDOM.tmp   of one writer; the next one removes it when its writer is dead
    .NAME.partial               resumable: shared by all writers of one destination, one at a time
    .NAME.old                   what was at the destination, for the moment of a replacement
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock

from nemo_gdpo.io.files import file_sha256, fsync_path, own_name, own_names
from nemo_gdpo.io.locks import BusyError, abandoned, acquire, held
from nemo_gdpo.io.manifest import LOCK
from nemo_gdpo.io.progress_file import PROGRESS

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_VANISHED = (FileNotFoundError, FileExistsError)
"""Errors of locking a file whose directory another process moves or removes meanwhile."""


@dataclass
class StagedDirectory:
    """A directory in the making. End it with `publish`, `discard` or `leave`."""

    destination: Path
    path: Path
    """Directory to write into. Other processes may, too, once they are told."""
    lock: BaseFileLock | None
    """Lock on it; None where the file system has none."""
    ended: bool = False
    """Published, discarded or left: its path may be another writer's by now."""

    def publish(self, *, replace: bool) -> bool:
        """Force everything to disk and put it at the destination, in one step.

        Args:
            replace: what is there, if anything; it stays until the last moment.

        Returns:
            False when something is there and `replace` is not set; this directory is still staged.

        Raises:
            OSError: it cannot be written or moved; what was there stays.
        """
        fsync_tree(self.path)
        with _publishing(self.destination):
            _recover(self.destination)
            if replace:
                _swap_in(self.path, self.destination)
            elif not _move_in(self.path, self.destination):
                return False
            self.ended = True
            for name in (PROGRESS, LOCK):
                (self.destination / name).unlink(missing_ok=True)
        self.leave()
        return True

    def discard(self) -> None:
        """Remove it, as far as that is possible; nothing once it has ended."""
        if not self.ended:
            # A shared name is free for the next writer at once, not file by file.
            aside = own_name(self.destination)
            try:
                self.path.rename(aside)
            except OSError:
                aside = self.path
            shutil.rmtree(aside, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Let go of it. A resumable one can be continued, another one be removed."""
        self.ended = True
        if self.lock is not None:
            self.lock.release()


def stage(destination: Path, *, also: str | None = None) -> StagedDirectory:
    """A new directory under a name of this writer's own.

    Args:
        destination: its parent is made.
        also: a glob of other destinations beside it of which dead writers' leftovers go, too.

    Raises:
        OSError: it cannot be made.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    for pattern in {glob.escape(destination.name), also} - {None}:
        _remove_abandoned(destination.parent, str(pattern))
    _recover_if_needed(destination)
    while True:
        path = own_name(destination)
        path.mkdir()
        # Another writer may take it for abandoned before it has its lock.
        with contextlib.suppress(*_VANISHED, BusyError):
            return StagedDirectory(destination, path, acquire(path / LOCK))


def stage_resumable(destination: Path) -> StagedDirectory:
    """The directory that an interrupted writer of the same destination left, or a new one.

    Without locks two processes could share it: each gets its own, which nobody can continue.

    Args:
        destination: its parent is made.

    Raises:
        BusyError: another process works in it.
        OSError: it cannot be made.
    """
    shared = destination.with_name(f".{destination.name}.partial")
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(destination.parent, glob.escape(destination.name))
    # While another writer publishes, its path holds for a moment what was at the destination.
    with _publishing(destination):
        _recover(destination)
        lock = _lock_shared(shared)
    if lock is not None:
        return StagedDirectory(destination, shared, lock)
    shutil.rmtree(shared, ignore_errors=True)
    return stage(destination)


def _lock_shared(shared: Path) -> BaseFileLock | None:
    while True:
        shared.mkdir(parents=True, exist_ok=True)
        try:
            return acquire(shared / LOCK)
        except _VANISHED:
            continue  # another writer has moved it into its place just now
        except BusyError:
            if (shared / LOCK).exists():
                raise


def fsync_tree(directory: Path) -> None:
    """Force every file and directory below, and itself, to disk."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if not path.is_symlink():
            fsync_path(path)
    fsync_path(directory)


def same_contents(first: Path, second: Path) -> bool:
    """Whether two directories hold the same files, byte by byte; a writer's lock is not counted."""

    def listed(directory: Path) -> dict[str, int]:
        found = (path for path in directory.rglob("*") if path.is_file())
        sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}
        return {name: size for name, size in sizes.items() if name != LOCK}

    names = listed(first)
    return names == listed(second) and all(
        file_sha256(first / name) == file_sha256(second / name) for name in names
    )


def _remove_abandoned(directory: Path, pattern: str) -> None:
    """Remove what dead writers left. A live writer's directory is empty, or has its lock in it."""
    for left in own_names(directory, pattern):
        with contextlib.suppress(OSError):
            is_empty = not any(left.iterdir())
            if (left / LOCK).exists():
                with abandoned(left / LOCK) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(left, ignore_errors=True)
            elif is_empty:
                left.rmdir()
            else:  # earlier contents that its writer had exchanged with its own
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _publishing(destination: Path) -> Iterator[None]:
    """One process at a time moves things to and from a destination."""
    lock = destination.with_name(f".{destination.name}.publishing")
    with held(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the kernel or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    status = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(status == 0)


def _backup_path(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.old")


def _move_in(staged: Path, destination: Path) -> bool:
    """Put `staged` where nothing, or an empty directory, is; False when something is there."""
    try:
        staged.rename(destination)
    except OSError as error:
        if error.errno in _THERE:
            return False
        raise
    fsync_path(destination.parent)
    return True


def _swap_in(staged: Path, destination: Path) -> None:
    """Put `staged` in the place of `destination`, whose earlier contents are removed."""
    backup = _backup_path(destination)
    if destination.exists():
        if _exchange(staged, destination):
            staged.rename(backup)
        else:
            destination.rename(backup)
            try:
                staged.rename(destination)
            except OSError:
                backup.rename(destination)
                raise
    else:
        staged.rename(destination)
    fsync_path(destination.parent)
    shutil.rmtree(backup, ignore_errors=True)


def _recover_if_needed(destination: Path) -> None:
    if _backup_path(destination).exists():
        with _publishing(destination):
            _recover(destination)


def _recover(destination: Path) -> None:
    """After a stop between the two renames of `_swap_in`: put the earlier contents back."""
    backup = _backup_path(destination)
    if not backup.exists():
        return
    if destination.exists():
        shutil.rmtree(backup, ignore_errors=True)
    else:
        backup.rename(destination)
