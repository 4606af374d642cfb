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
from nemo_gdpo.io.manifest import LOCK, Entry, Listed, describe
from nemo_gdpo.io.progress_file import PROGRESS, ProgressFile
from nemo_gdpo.io.remedies import remedy_of, unwritable
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


def _marked(directory: Path) -> dict[str, Listed]:
    """What the marker lists; a file without a hash is an earlier version's.

    Raises:
        UserError, KeyError, TypeError, ValueError: it is damaged.
    """
    content = read_json_object(directory / MARKER)
    files = dict(content["files"])
    if content.get("sha256", digest_of(files)) != digest_of(files):
        raise ValueError("it is not what was written")
    return {
        str(name): Listed(entry, "")
        if isinstance(entry, int)
        else Listed(int(entry["bytes"]), str(entry["sha256"]))
        for name, entry in files.items()
    }


def why_incomplete(directory: Path) -> str | None:
    """Why a directory is not as a conversion left it, by its files and their sizes; None if it is.

    Contents are not read.
    """
    if not (directory / MARKER).is_file():
        return f"it has no {MARKER}"
    try:
        wanted = _marked(directory)
    except (UserError, KeyError, TypeError, ValueError):
        return f"its {MARKER} is damaged"
    found = _files(directory)
    for name, entry in wanted.items():
        if found.get(name) != entry.bytes:
            return f"{name} has {found.get(name, 'no')} bytes instead of {entry.bytes}"
    unlisted = sorted(found.keys() - wanted.keys())
    return f"its {MARKER} does not list {unlisted[0]}" if unlisted else None


def listed_files(directory: Path) -> dict[str, Listed] | None:
    """Sizes and hashes of what a conversion wrote; None of an earlier version, without hashes.

    Raises:
        UserError, KeyError, TypeError, ValueError: the marker is damaged.
    """
    files = _marked(directory)
    return files if all(entry.sha256 for entry in files.values()) else None


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


def _write_marker(staging: Staging, kind: str) -> None:
    """Of all files: those that are known to be finished have been hashed already."""
    files: dict[str, Entry] = {}
    for name in _files(staging.path):
        known = staging.progress_file.get(name)
        if known is not None:
            files[name] = {"bytes": known.bytes, "sha256": known.sha256}
    files |= describe(staging.path, [name for name in _files(staging.path) if name not in files])
    content = {"kind": kind, "files": files, "sha256": digest_of(files)}
    (staging.path / MARKER).write_text(json.dumps(content, indent=1) + "\n")


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
        UserError: `destination` holds something else, another process is writing it, its disk has
            too little room, or it may not be written.
        RunError: the disk filled up or failed. In both cases what was there before is untouched.
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
        _write_marker(staging, kind)
        staged.publish(replace=True)
    except Exception as error:
        if staged is not None:
            staged.discard()
        if not isinstance(error, OSError):
            raise
        raise unwritable(
            error,
            f"{destination} could not be written ({error.strerror or error}); what was there "
            f"before is untouched: {remedy_of(error)}, then run it again",
        ) from error
    finally:
        if staged is not None:
            staged.leave()
