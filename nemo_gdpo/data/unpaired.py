"""Unpaired rows, two to a place: what carries a pair carries them as well.

A pair is two sequences, and so are two rows. Objectives that take them read no pair, but the label
of each; which two rows share a place changes no loss, only which are in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from nemo_gdpo.data.types import RawPair


def two_by_two(rows: Iterable[RawPair]) -> Iterator[RawPair]:
    """Rows with their partner, the next in the file; pairs as they are.

    The last of an odd number has none.
    """
    first: RawPair | None = None
    for row in rows:
        if row.label is None:
            yield row
        elif first is None:
            first = row
        else:
            yield replace(first, partner=row)
            first = None
    if first is not None:
        yield first
