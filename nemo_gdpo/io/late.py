"""Files that another machine has just written, and a network file system shows late."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from nemo_gdpo.errors import UserError

LIMIT_SECONDS = 120.0
"""NFS believes what it knows of a directory for up to a minute (its option `acdirmax`)."""
_POLL_SECONDS = 0.2


def sizes_of(directory: Path) -> dict[str, int]:
    """Bytes of every file below `directory`, by its path within; empty when there is none."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}


def wait_for_files(directory: Path, sizes: Mapping[str, int], remedy: str) -> None:
    """Wait until this machine shows a directory, and in it what rank 0 saw.

    Args:
        directory: that rank 0 has told of.
        sizes: bytes by path within; files that are not among them do not matter.
        remedy: what to do if they do not come.

    Raises:
        UserError: they are not all there after `LIMIT_SECONDS`; the first is named.
    """
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        missing = _first_missing(directory, sizes)
        if missing is None:
            return
        if time.monotonic() > limit:
            host = os.uname().nodename
            raise UserError(
                f"{missing}; {host} has waited {LIMIT_SECONDS:g} s for what rank 0 sees; {remedy}"
            )
        time.sleep(_POLL_SECONDS)


def _first_missing(directory: Path, sizes: Mapping[str, int]) -> str | None:
    if not directory.is_dir():
        return f"{directory} is missing"
    for name, expected in sizes.items():
        try:
            found = (directory / name).stat().st_size
        except OSError:
            return f"{directory / name} is missing"
        if found != expected:
            return f"{directory / name} has {found} bytes instead of {expected}"
    return None
