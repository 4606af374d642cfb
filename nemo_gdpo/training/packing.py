"""Pairs that no packed row holds."""

from __future__ import annotations

import numpy as np

from nemo_gdpo.config.packing import length_in_row, packed_row, row_multiple, up_to
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.errors import UserError


def refuse_long_pairs(config: RunConfig, data: PreferenceDataset) -> None:
    """Refuse a pair that no packed row holds.

    Raises:
        UserError: naming it, with both lengths.
    """
    capacity = packed_row(config)
    if capacity is None or not len(data):
        return
    _, chosen_B, rejected_B = data.lengths_B3().T
    first_B, second_B = data.prompt_lengths_B2().T
    pairs_B = length_in_row(
        (first_B, second_B), chosen_B, rejected_B,
        context=config.model.context_parallel_size, prefix_sharing=config.data.prefix_sharing,
    )  # fmt: skip
    longest = int(np.argmax(pairs_B))
    if pairs_B[longest] > capacity:
        multiple = row_multiple(config, rows=1)
        raise pair_too_long(data.arrays.ids[longest], int(pairs_B[longest]), capacity, multiple)


def pair_too_long(pair_id: str, length: int, capacity: int, multiple: int) -> UserError:
    """The error of a pair that no packed row can hold; rows are multiples of `multiple`."""
    return UserError(
        f"data.pack_tokens: pair {pair_id!r} takes {length} positions and a packed row has "
        f"{capacity}; set data.pack_tokens to {up_to(multiple, length)} or more, or lower "
        "data.max_length"
    )
