"""A new file that is hashed while it is written: nobody has to read it again for that."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_LARGE = 1 << 20
"""Bytes from which on a piece is hashed and written at the same time."""


class HashedFile(io.RawIOBase):
    """Written from its beginning to its end; `close` forces it to disk.

    Large pieces are hashed by a thread of its own while the kernel takes them: hashing costs time
    only where it is slower than the disk.
    """

    def __init__(self, path: Path) -> None:
        """Make the file.

        Raises:
            OSError: it cannot be made.
        """
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self.failure: OSError | None = None
        """The error of a write: libraries between tell only that there was one."""

    def write(self, piece: Any) -> int:
        """Append bytes, all of them.

        Raises:
            OSError: it cannot be written.
        """
        with memoryview(piece) as view, view.cast("B") as data:
            try:
                if len(data) < _LARGE:
                    self._sha256.update(data)
                    self._file.write(data)
                else:
                    hashing = self._hasher.submit(self._sha256.update, data)
                    try:
                        self._file.write(data)
                    finally:
                        hashing.result()
            except OSError as error:
                self.failure = error
                raise
            self._bytes += len(data)
            return len(data)

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._bytes

    def flush(self) -> None:
        """Nothing before `close`."""

    def close(self) -> None:
        """Force it to disk and close it; after a failed write, only close it.

        Raises:
            OSError: it cannot be written.
        """
        if self.closed:
            return
        super().close()
        self._hasher.shutdown()
        try:
            with self._file:
                if self.failure is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
        except OSError as error:
            if self.failure is None:
                self.failure = error
                raise

    @property
    def entry(self) -> dict[str, object]:
        """`bytes` and `sha256`, as in a manifest."""
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}
