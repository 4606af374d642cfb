"""A call of a process group, as plain data."""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """One collective, or one message."""

    kind: str
    """"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier", "send", "recv"."""
    ranks: tuple[int, ...]
    """Of the group, in its order; of a message (this rank, the other)."""
    sizes: tuple[int, ...]
    """Elements of each tensor."""
    dtype: str
    detail: str = ""
    """How is reduced, from which rank is broadcast; the number of a batch of messages."""
