"""How long rows are, and pairs that no packed row holds."""

from __future__ import annotations

import numpy as np

from nemo_gdpo.config.packing import packed_row
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.shapes import length_multiple, sequence_multiple
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout


def row_multiple(layout: ParallelLayout, precision: str, rows: int) -> int:
    """See `length_multiple`."""
    return length_multiple(
        tensor=layout.tensor,
        context=layout.context,
        sequence_parallel=layout.sequence_parallel,
        precision=precision,
        rows=rows,
    )


def refuse_long_pairs(config: RunConfig, data: PreferenceDataset) -> None:
    """Refuse a pair that no packed row holds.

    Raises:
        UserError: naming it, with both lengths.
    """
    capacity = packed_row(config)
    if capacity is None or not len(data):
        return
    each = sequence_multiple(config.model.context_parallel_size)
    prompt_B, chosen_B, rejected_B = data.lengths_B3().T
    pairs_B = np.zeros(len(data), dtype=np.int64)
    if config.data.prefix_sharing:
        pairs_B += prompt_B + chosen_B + 1 + rejected_B
    else:
        for response_B in (chosen_B, rejected_B):
            pairs_B += -(-(prompt_B + response_B) // each) * each
    longest = int(np.argmax(pairs_B))
    if pairs_B[longest] > capacity:
        raise pair_too_long(data.arrays.ids[longest], int(pairs_B[longest]), capacity)


def pair_too_long(pair_id: str, length: int, capacity: int) -> UserError:
    """The error of a pair that no packed row can hold."""
    return UserError(
        f"data.pack_tokens: pair {pair_id!r} takes {length} positions and a packed row has "
        f"{capacity}; set data.pack_tokens to {length} or more, or lower data.max_length"
    )
