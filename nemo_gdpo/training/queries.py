"""ADPO's label queries: which pairs were asked about, counted once over all ranks and epochs."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from torch import Tensor


class QueryCount:
    """A bit for every pair. Every rank holds the same bits, because every rank sees the whole
    global batch's `queried` column; a pair asked about twice counts once.
    """

    def __init__(self, num_pairs: int) -> None:
        self._asked = np.zeros(num_pairs, dtype=bool)

    def record(self, indices: Sequence[int], queried: Tensor) -> None:
        """Note the pairs of a global batch whose label was asked for.

        Args:
            indices: data-set index of each pair of the global batch.
            queried: 1 or 0 for each of them.
        """
        asked = queried.numpy() > 0
        self._asked[np.asarray(indices)[asked]] = True

    @property
    def total(self) -> int:
        """Different pairs asked about so far."""
        return int(self._asked.sum())

    def state(self) -> str:
        """The bits, base64, for the checkpoint."""
        return base64.b64encode(np.packbits(self._asked).tobytes()).decode()

    def restore(self, state: str) -> None:
        """Put back what `state` returned for the same number of pairs."""
        packed = np.frombuffer(base64.b64decode(state), dtype=np.uint8)
        self._asked = np.unpackbits(packed, count=len(self._asked)).astype(bool)
