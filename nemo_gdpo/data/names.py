"""Ids and meta of pairs in a file of JSON lines, read one by one through an index.

In memory are eight bytes a pair; everything else stays in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np

from nemo_gdpo.io.tensor_file import map_numbers

BLOCK = 1 << 20
"""Bytes that are looked through at once for the ends of lines."""


def line_of(name: str, meta: str) -> bytes:
    """One line of the file; it is ASCII, and holds no line feed but its own."""
    return (json.dumps({"id": name, "meta": meta}) + "\n").encode()


class NameFile:
    """The lines of a file, mapped; the file may have no name any more."""

    def __init__(self, file: IO[bytes]) -> None:
        """Find the lines.

        Raises:
            OSError: it cannot be read.
        """
        ends = [np.zeros(1, dtype=np.int64)]
        size = 0
        file.seek(0)
        while block := file.read(BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + size + 1)
            size += len(block)
            complete = block.endswith(b"\n")
        if size and not complete:
            ends.append(np.array([size], dtype=np.int64))
        self._bounds = np.concatenate(ends)
        self._bytes = map_numbers(file, np.uint8, (size,), 0, size)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def field(self, index: int, key: str) -> str:
        """A value of a line.

        Raises:
            ValueError: the line is no JSON.
            KeyError: it has no such key.
        """
        start, end = self._bounds[index], self._bounds[index + 1]
        found: str = json.loads(self._bytes[start:end].tobytes())[key]
        return found


class NameColumn(Sequence[str]):
    """The values of one key in all lines; none of them is kept."""

    def __init__(self, names: NameFile, key: str) -> None:
        self._names = names
        self._key = key

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._names.field(i, self._key) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        return self._names.field(int(index) % len(self), self._key)

    def __iter__(self) -> Iterator[str]:
        return (self._names.field(index, self._key) for index in range(len(self)))


def read_names(path: Path) -> NameFile:
    """The lines of a prepared data set's `pairs.jsonl`.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return NameFile(file)
