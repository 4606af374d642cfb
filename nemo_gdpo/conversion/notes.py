"""What this user has found out about files by reading all of them, kept until one of them changes.

A note counts for the user who wrote it, as long as nobody else may change it, and while every file
has the size, times and inode that it had. The kernel sets the time of a file's last change of any
kind (`ctime`): whoever else may write to the file cannot set it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.io.files import digest_of, write_json

_SETTLED_NS = 2 * 10**9
"""A file younger than this may change without another time of change: nothing is noted of it."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Files:
    """Files as they were before they were read."""

    paths: tuple[Path, ...]
    stats: list[list[Any]]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Files:
        """As they are now.

        Raises:
            OSError: one is missing.
        """
        found = tuple(paths)
        return cls(found, [_stat(path) for path in found])

    def are_settled(self) -> bool:
        """Whether they have not changed since, nor in the moment before."""
        newest = max((mtime for _, _, mtime, _, _ in self.stats), default=0)
        return time.time_ns() - newest > _SETTLED_NS and Files.of(self.paths).stats == self.stats


def _stat(path: Path) -> list[Any]:
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def note_of(folder: Path, subject: Path) -> Path:
    """This user's note about `subject`."""
    name = digest_of({"source": str(subject.absolute())})[:32]
    return folder / f"{name}.{os.geteuid()}.json"


def recall(note: Path, files: Files) -> str | None:
    """What was noted of these files; None when there is nothing that still counts."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none, or cut off
        owner = note.lstat()
        is_own = owner.st_uid == os.geteuid() and not owner.st_mode & _OTHERS_WRITE
        known = json.loads(note.read_text())
        if is_own and known["files"] == files.stats:
            return str(known["sha256"])
    return None


def keep(note: Path, files: Files, sha256: str) -> None:
    """Note it; of files that are settled.

    Raises:
        OSError: it cannot be written.
    """
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"files": files.stats, "sha256": sha256})
    note.chmod(0o600)
