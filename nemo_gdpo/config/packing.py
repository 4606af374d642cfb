"""How long a packed row may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_gdpo.config.shapes import length_multiple, sequence_multiple

if TYPE_CHECKING:
    from nemo_gdpo.config.schema import RunConfig


def up_to(multiple: int, length: int) -> int:
    """The least multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


def packed_row(config: RunConfig) -> int | None:
    """Positions of a packed row at most; None where rows are padded."""
    data, model = config.data, config.model
    if not data.packing:
        return None
    multiple = length_multiple(
        tensor=model.tensor_model_parallel_size,
        context=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        precision=config.precision,
        rows=1,
    )
    if data.pack_tokens is not None:
        return data.pack_tokens // multiple * multiple
    longest = up_to(sequence_multiple(model.context_parallel_size), data.max_length)
    return up_to(multiple, 2 * model.micro_batch_size * longest)
