"""Where things stand first, for a million of them: texts by a number, without an object for each.

A slot takes 24 bytes and two to four slots are there for an entry; its text takes its own bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_LEAST = 1 << 10
_MASK = (1 << 63) - 1


class PlaceTable:
    """64-bit key -> text; a key keeps its first. Open addressing, at most half full."""

    def __init__(self) -> None:
        self._count = 0
        self._keys = array("q", bytes(8 * _LEAST))
        self._ends = array("q", bytes(8 * _LEAST))
        """Behind each key's text in `_texts`; 0: the slot is free."""
        self._starts = array("q", bytes(8 * _LEAST))
        self._texts = bytearray(b" ")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """The keys."""
        return (key for key, end in zip(self._keys, self._ends, strict=True) if end)

    def __contains__(self, key: int) -> bool:
        return self._ends[self._slot(key)] != 0

    def _slot(self, key: int) -> int:
        """Where a key is, or would be."""
        last = len(self._keys) - 1
        # The low bits alone would put keys that differ in the high ones side by side.
        slot = ((key & _MASK) ^ ((key & _MASK) >> 31)) & last
        while self._ends[slot] and self._keys[slot] != key:
            slot = (slot + 1) & last
        return slot

    def find(self, key: int) -> str | None:
        """The text of a key; None where it has none."""
        slot = self._slot(key)
        end = self._ends[slot]
        return self._texts[self._starts[slot] : end].decode("utf-8", "surrogatepass") or None

    def add(self, key: int, text: str) -> str | None:
        """Give a key its text, which is not empty; the one that it has already is returned."""
        slot = self._slot(key)
        if self._ends[slot]:
            return self.find(key)
        start = len(self._texts)
        self._texts += text.encode("utf-8", "surrogatepass")
        self._put(slot, key, start, len(self._texts))
        self._count += 1
        if 2 * self._count > len(self._keys):
            self._grow()
        return None

    def _put(self, slot: int, key: int, start: int, end: int) -> None:
        self._keys[slot], self._starts[slot], self._ends[slot] = key, start, end

    def _grow(self) -> None:
        rows = zip(self._keys, self._starts, self._ends, strict=True)
        size = 8 * 2 * len(self._keys)
        self._keys, self._starts, self._ends = (array("q", bytes(size)) for _ in range(3))
        for key, start, end in rows:
            if end:
                self._put(self._slot(key), key, start, end)


class UsedNames:
    """Names that were used, and where."""

    def __init__(self) -> None:
        self._table = PlaceTable()

    def add(self, name: str, where: str) -> str | None:
        """Note a name; where it was used before, if it was."""
        key = hash(name)
        while (known := self._table.add(key, f"{name}\0{where}")) is not None:
            other, _, place = known.rpartition("\0")
            if other == name:
                return place
            key = (key + 1) & _MASK  # another name of the same hash
        return None
