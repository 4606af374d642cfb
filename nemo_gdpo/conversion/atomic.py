"""Directories that a conversion writes: complete or absent; an interrupted one is continued."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of
from nemo_gdpo.io.locks import BusyError
from nemo_gdpo.io.manifest import LOCK
from nemo_gdpo.io.progress_file import PROGRESS, ProgressFile
from nemo_gdpo.io.remedies import remedy_of
from nemo_gdpo.io.staged import StagedDirectory, stage_resumable

MARKER = "nemo_gdpo_conversion.json"
"""Lists what a conversion wrote. A directory that holds nothing else may be replaced by another."""
_OWN = frozenset({MARKER, LOCK, PROGRESS})


@dataclass(frozen=True)
class Staging:
    """A directory in the making."""

    path: Path
    progress_file: ProgressFile
    """Files in it that are complete and need not be converted again."""


def _files(directory: Path) -> dict[str, int]:
    """Path within the directory -> size in bytes, of all but this module's own files."""
    return {
        p.relative_to(directory).as_posix(): p.lstat().st_size
        for p in sorted(directory.rglob("*"))
        if (p.is_symlink() or not p.is_dir()) and (p.parent != directory or p.name not in _OWN)
    }


def why_incomplete(directory: Path) -> str | None:
    """Why a directory is not as a conversion left it, by its files and their sizes; None if it is.

    Contents are not read.
    """
    if not (directory / MARKER).is_file():
        return f"it has no {MARKER}"
    try:
        wanted = dict(read_json_object(directory / MARKER)["files"])
    except (UserError, KeyError, TypeError, ValueError):
        return f"its {MARKER} is damaged"
    found = _files(directory)
    for name, size in wanted.items():
        if found.get(name) != size:
            return f"{name} has {found.get(name, 'no')} bytes instead of {size}"
    return None


def check_replaceable(destination: Path) -> None:
    """Refuse a destination that holds anything but an earlier conversion's files.

    Raises:
        UserError: it is a file, or has files that no conversion wrote.
    """
    if not destination.exists() and not destination.is_symlink():
        return
    if not destination.is_dir() or destination.is_symlink():
        raise UserError(f"{destination} exists and is not a directory; choose another one")
    present = _files(destination)
    if not present and not (destination / MARKER).exists():
        return
    if not (destination / MARKER).is_file():
        raise UserError(
            f"{destination} is not empty and was not written by a conversion; choose another "
            "directory, or empty it"
        )
    own = read_json_object(destination / MARKER).get("files")
    foreign = sorted(set(present) - set(own if isinstance(own, list | dict) else []))
    if foreign:
        raise UserError(
            f"{destination} has files that no conversion wrote ({', '.join(foreign[:3])}); "
            "move them away, or choose another directory"
        )


def check_space(parent: Path, expected_bytes: int, destination: Path) -> None:
    """Refuse a disk that has less room than is needed.

    Raises:
        UserError: with both numbers.
    """
    free = shutil.disk_usage(parent).free
    if free < expected_bytes:
        raise UserError(
            f"{destination}: {expected_bytes / 2**30:.2f} GiB are needed and "
            f"{free / 2**30:.2f} GiB are free; free space, or choose another disk"
        )


def _stage(destination: Path) -> StagedDirectory:
    """The directory to work in.

    Raises:
        UserError: another process works in it.
    """
    try:
        return stage_resumable(destination)
    except BusyError:
        raise UserError(
            f"{destination}: another conversion is writing it; wait for it, or stop it"
        ) from None


def _open_progress(staging: Path, key: str, destination: Path) -> ProgressFile:
    progress = ProgressFile(staging, key, kept=frozenset({LOCK}))
    if progress.is_afresh:
        print(
            f"{destination}: an interrupted conversion of another source, or with other settings, "
            "is dropped; starting afresh",
            file=sys.stderr,
        )
    elif len(progress):
        print(
            f"{destination}: continuing, {len(progress)} files "
            f"({progress.bytes_finished() / 2**30:.2f} GiB) were finished before",
            file=sys.stderr,
        )
    return progress


def _write_marker(staging: Path, kind: str) -> None:
    text = json.dumps({"kind": kind, "files": _files(staging)}, indent=1) + "\n"
    (staging / MARKER).write_text(text)


@contextlib.contextmanager
def staged_directory(
    destination: Path, *, kind: str, key: Mapping[str, Any], expected_bytes: int = 0
) -> Iterator[Staging]:
    """A directory beside `destination` that takes its place when the block ends well.

    When the process is stopped (a signal, Ctrl-C, a power cut), what it finished stays in
    `.NAME.partial` and the next call with the same key continues there. When the block fails,
    nothing stays. What was at `destination` before is there until the last moment.

    Args:
        destination: absent, empty, or written by an earlier conversion.
        kind: what the directory is, for the marker.
        key: everything that its files depend on, as plain JSON.
        expected_bytes: refused at once when the disk has less.

    Raises:
        UserError: `destination` holds something else, another process is writing it, or the disk is
            full or read-only. What was there before is untouched.
    """
    destination = destination.absolute()
    staged: StagedDirectory | None = None
    try:
        check_replaceable(destination)
        staged = _stage(destination)
        check_replaceable(destination)  # again: what a stopped writer had moved away is back
        staging = Staging(staged.path, _open_progress(staged.path, digest_of(key), destination))
        missing = expected_bytes - staging.progress_file.bytes_finished()
        check_space(destination.parent, missing, destination)
        yield staging
        _write_marker(staged.path, kind)
        staged.publish(replace=True)
    except Exception as error:
        if staged is not None:
            staged.discard()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{destination} could not be written ({error.strerror or error}); what was there "
            f"before is untouched: {remedy_of(error)}, then run it again"
        ) from error
    finally:
        if staged is not None:
            staged.leave()
