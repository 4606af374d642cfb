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
    together = config.data.pairs_of_group
    groups_G = np.add.reduceat(pairs_B, np.arange(0, len(pairs_B), together))
    longest = int(np.argmax(groups_G))
    if groups_G[longest] > capacity:
        first = data.arrays.ids[longest * together]
        multiple = row_multiple(config, rows=1)
        raise too_long(first, int(groups_G[longest]), capacity, multiple, together=together)


def too_long(
    pair_id: str, length: int, capacity: int, multiple: int, *, together: int = 1
) -> UserError:
    """The error of a pair, or of a group by its first, that no packed row can hold.

    Rows are multiples of `multiple`.
    """
    what = f"pair {pair_id!r} takes"
    if together > 1:
        what = (
            f"the group of {2 * together} answers that begins with {what.replace('takes', '')}takes"
        )
    return UserError(
        f"data.pack_tokens: {what} {length} positions and a packed row has "
        f"{capacity}; set data.pack_tokens to {up_to(multiple, length)} or more, or lower "
        "data.max_length"
    )
