"""JSON objects, one a line, appended one by one and read back after any end.

A line counts once it ends in a new line; what a crash left of the last one is cut away. A file has
one writer at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_gdpo.io.locks import hold_open_file

SYNC_SECONDS = 5.0
"""Seconds of rows that a machine may lose at most when it loses power."""
_BLOCK = 1 << 16


def encode_row(row: Mapping[str, Any]) -> bytes:
    """One line.

    Raises:
        ValueError: a number is not finite, which JSON does not have.
    """
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair, which JSON may hold and UTF-8 may not.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that was finished; a torn last one is left out."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield number, line


def repair(path: Path) -> int:
    """Cut a torn last line away; returns its length in bytes, 0 if there is none."""
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
        return size - end


class RowFile:
    """A file open for appending, made if needed."""

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        """Open it; whoever appends to what a killed run left calls `repair` first.

        Args:
            path: its directory exists.
            lock: hold the file's lock until it is closed.

        Raises:
            OSError: it cannot be written.
            BusyError: another process holds its lock.
        """
        # Unbuffered: what a failed write left in a buffer would be written later, unasked.
        self._file = path.open("ab", buffering=0)
        self._synced = time.monotonic()
        if lock:
            try:
                hold_open_file(self._file.fileno())
            except BaseException:
                self._file.close()
                raise

    def append(self, line: bytes) -> None:
        """Write a line, which ends in a new line: it is there, or nothing of it.

        It is safe from a crash of this process when this returns, and from a loss of power
        `SYNC_SECONDS` later, once the next one is written or the file is closed.

        Raises:
            OSError: the disk is full, or failed. Lines before it are intact.
        """
        start = self._file.seek(0, os.SEEK_END)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Sync everything that was appended to disk.

        Raises:
            OSError: the disk failed.
        """
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, close, and let go of the lock.

        Raises:
            OSError: the disk failed.
        """
        if self._file.closed:
            return
        try:
            self.sync()
        finally:
            self._file.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del error, trace
        if kind is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # the first failure is the one to report
            self.close()
