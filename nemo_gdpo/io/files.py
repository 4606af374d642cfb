"""Single files: on disk, hashed, written completely or not at all.

A file in the making has a name of its writer's own, `.NAME.HOST-PID-RANDOM.tmp`, and is locked by
its writer. What a killed writer left is removed by the next writer of the same file, once the lock
shows that nobody works on it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.locks import BusyError, abandoned, hold_open_file
from nemo_gdpo.io.remedies import remedy_of, unwritable

_OWN = re.compile(r"\..+\.[^/]+-\d+-[0-9a-f]{8}\.tmp")


def fsync_path(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(key: Mapping[str, Any]) -> str:
    """SHA-256, hex, of plain JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def own_name(path: Path) -> Path:
    """A name beside `path` that no other writer has, on this machine or another."""
    own = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{own}.tmp")


def own_names(directory: Path, pattern: str) -> list[Path]:
    """Unfinished entries of writers in `directory`, by a glob of the names it will get."""
    return [path for path in directory.glob(f".{pattern}.*.tmp") if _OWN.fullmatch(path.name)]


def _remove_abandoned(path: Path) -> None:
    for left in own_names(path.parent, glob.escape(path.name)):
        if left.is_file():
            with abandoned(left) as is_abandoned, contextlib.suppress(OSError):
                if is_abandoned:
                    left.unlink()


def _open_own(path: Path) -> tuple[Path, BinaryIO]:
    """A new file that is this writer's own, locked."""
    while True:
        temporary = own_name(path)
        file = temporary.open("xb")
        with contextlib.suppress(BusyError):
            hold_open_file(file.fileno())
            # Another writer may have found it between its making and its locking.
            if os.fstat(file.fileno()).st_nlink:
                return temporary, file
        file.close()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; when the block ends well it is forced to disk and takes `path`'s place.

    Args:
        path: its directory exists. What was there stays when the block fails.

    Raises:
        OSError: it cannot be written.
    """
    _remove_abandoned(path)
    temporary, file = _open_own(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        fsync_path(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file by one that is complete and on the disk; what was there stays if that fails.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_file` of a JSON object.

    Raises:
        OSError: it cannot be written.
        ValueError: a number is not finite.
    """
    write_file(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_output(path: Path, content: str | bytes) -> Path:
    """`write_file` of a result that the user asked for; its directory is made. Returns the path.

    Raises:
        UserError: it cannot be written.
        RunError: the disk is full, or fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        raise unwritable(
            error,
            f"{path} could not be written ({error.strerror or error}); {remedy_of(error)}, then "
            "run it again",
        ) from error
    return path


def read_json_object(path: Path, *, missing: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        missing: what to do when there is none.

    Raises:
        UserError: the file is missing, cannot be read, is not JSON, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {missing}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; restore the file")
    return found
