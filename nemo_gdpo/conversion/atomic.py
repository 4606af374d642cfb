"""Directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemo_gdpo.conversion.model_config import read_json_object
from nemo_gdpo.errors import UserError

MARKER = "nemo_gdpo_conversion.json"
"""Lists what a conversion wrote. A directory that holds nothing else may be replaced by another."""


def _files(directory: Path) -> list[str]:
    return sorted(
        p.relative_to(directory).as_posix()
        for p in directory.rglob("*")
        if not p.is_dir() and p != directory / MARKER
    )


def check_replaceable(destination: Path) -> None:
    """Refuse a destination that holds anything but an earlier conversion's files.

    Raises:
        UserError: it is a file, or has files that no conversion wrote.
    """
    if not destination.exists() and not destination.is_symlink():
        return
    if not destination.is_dir() or destination.is_symlink():
        raise UserError(f"{destination} exists and is no directory; choose another one")
    present = _files(destination)
    if not present and not (destination / MARKER).exists():
        return
    if not (destination / MARKER).is_file():
        raise UserError(
            f"{destination} is not empty and was not written by a conversion; choose another "
            "directory, or empty it"
        )
    own = read_json_object(destination / MARKER).get("files")
    foreign = sorted(set(present) - set(own if isinstance(own, list) else []))
    if foreign:
        raise UserError(
            f"{destination} has files that no conversion wrote ({', '.join(foreign[:3])}); "
            "move them away, or choose another directory"
        )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_space(parent: Path, expected_bytes: int, destination: Path) -> None:
    free = shutil.disk_usage(parent).free
    if free < expected_bytes:
        raise UserError(
            f"{destination}: {expected_bytes / 2**30:.2f} GiB are needed and "
            f"{free / 2**30:.2f} GiB are free; free space, or choose another disk"
        )


def _swap_in(temporary: Path, destination: Path) -> None:
    """Put `temporary` in the place of `destination`; on failure the old one is put back."""
    aside = destination.with_name(f".{destination.name}.old-{os.getpid()}")
    had_one = destination.exists()
    if had_one:
        destination.rename(aside)
    try:
        temporary.rename(destination)
    except OSError:
        if had_one:
            aside.rename(destination)
        raise
    _fsync(destination.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def new_directory(destination: Path, *, kind: str, expected_bytes: int = 0) -> Iterator[Path]:
    """A temporary directory that takes the place of `destination` when the block ends well.

    Args:
        destination: absent, empty, or written by an earlier conversion.
        kind: what the directory is, for the marker.
        expected_bytes: refused at once when the disk has less.

    Raises:
        UserError: `destination` holds something else, or the disk is full or read-only. What was
            there before is untouched.
    """
    destination = destination.absolute()
    check_replaceable(destination)
    temporary = destination.with_name(f".{destination.name}.tmp-{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _check_space(destination.parent, expected_bytes, destination)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        files = _files(temporary)
        marker = json.dumps({"kind": kind, "files": files}, indent=1) + "\n"
        (temporary / MARKER).write_text(marker)
        for name in (*files, MARKER):
            _fsync(temporary / name)
        _swap_in(temporary, destination)
    except OSError as error:
        raise UserError(
            f"{destination} could not be written ({error.strerror or error}); what was there "
            "before is untouched: free space or mend the permissions, then run it again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
