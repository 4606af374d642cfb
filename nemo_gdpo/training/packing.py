"""How long rows are: multiples, and the most that a packed row holds."""

from __future__ import annotations

import numpy as np

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.shapes import length_multiple, sequence_multiple
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.mesh import layout_of


def up_to(multiple: int, length: int) -> int:
    """The least multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


def row_multiple(layout: ParallelLayout, precision: str, rows: int) -> int:
    """See `length_multiple`."""
    return length_multiple(
        tensor=layout.tensor,
        context=layout.context,
        sequence_parallel=layout.sequence_parallel,
        precision=precision,
        rows=rows,
    )


def packed_row(config: RunConfig) -> int | None:
    """Positions of a packed row at most; None where rows are padded."""
    data, layout = config.data, layout_of(config)
    if not data.packing:
        return None
    multiple = row_multiple(layout, config.precision, 1)
    if data.pack_tokens is not None:
        return data.pack_tokens // multiple * multiple
    longest = up_to(sequence_multiple(layout.context), data.max_length)
    return up_to(multiple, 2 * config.model.micro_batch_size * longest)


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
