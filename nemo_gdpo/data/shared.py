"""Pairs as one row that holds each prompt once, for both responses.

First come prompt and chosen response of every pair, then the rejected ones. A rejected response is
a sequence that begins with the prompt's last token, whose label is its first. Its keys are those of
the prompt before that token, where they stand in front of the chosen response, and its own. So
labels have the order of an ordinary packed row, one at a position, and no response sees the other.
What a pair takes is P + C + 1 + R positions instead of 2 P + C + R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from nemo_gdpo.data.collate import (
    IGNORE,
    PackedBatch,
    SharedKeys,
    ids_and_labels,
    pack_sequences,
)
from nemo_gdpo.data.types import TokenizedPair


def share_batch(
    pairs: Sequence[TokenizedPair], total_length: int | None, pad_id: int
) -> PackedBatch:
    """Lay pairs out as one row; None for `total_length` is exactly as long as needed.

    Raises:
        UserError: the pairs do not fit.
    """
    sequences = [(*ids_and_labels(pair.prompt_ids, pair.chosen), 0) for pair in pairs]
    for pair in pairs:
        ids = [pair.prompt_ids[-1], *pair.rejected.ids]
        labels = [*pair.rejected.ids, IGNORE]
        sequences.append((ids, labels, len(pair.prompt_ids) - 1))
    row = pack_sequences(sequences, pairs, total_length, pad_id)
    return replace(row, shared=_keys(row.cu_seqlens.tolist(), pairs))


def _keys(bounds: Sequence[int], pairs: Sequence[TokenizedPair]) -> SharedKeys:
    keys: list[int] = []
    key_bounds = [0]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        pair = number - len(pairs)
        if 0 <= pair < len(pairs):  # a rejected response; behind them is what fills the row up
            first = bounds[pair]
            keys += range(first, first + len(pairs[pair].prompt_ids) - 1)
        keys += range(start, stop)
        key_bounds.append(len(keys))
    return SharedKeys(
        index_K=torch.tensor(keys),
        cu_seqlens=torch.tensor(key_bounds, dtype=torch.int32),
        max_seqlen=max(stop - start for start, stop in pairwise(key_bounds)),
    )
