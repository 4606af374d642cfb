"""How long packed rows may be, and what a pair takes of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nemo_gdpo.config.shapes import length_multiple, sequence_multiple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from nemo_gdpo.config.schema import RunConfig

    Length = TypeVar("Length", int, npt.NDArray[np.int64])


def up_to(multiple: int, length: Length) -> Length:
    """The least multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


def row_multiple(config: RunConfig, *, rows: int) -> int:
    """See `length_multiple`; `rows` of a micro-batch, 1 when it is packed."""
    model = config.model
    return length_multiple(
        tensor=model.tensor_model_parallel_size,
        context=model.context_parallel_size,
        sequence_parallel=model.sequence_parallel,
        precision=config.precision,
        rows=rows,
    )


def packed_row(config: RunConfig) -> int | None:
    """Positions of a packed row at most; None where rows are padded."""
    data, model = config.data, config.model
    if not data.packing:
        return None
    multiple = row_multiple(config, rows=1)
    if data.pack_tokens is not None:
        return data.pack_tokens // multiple * multiple
    longest = up_to(sequence_multiple(model.context_parallel_size), data.max_length)
    return up_to(multiple, 2 * model.micro_batch_size * longest)


def length_in_row(
    prompts: tuple[Length, ...],
    chosen: Length,
    rejected: Length,
    *,
    context: int,
    prefix_sharing: bool,
) -> Length:
    """Positions that a pair takes in a packed row; of arrays, each pair's.

    Args:
        prompts: tokens of the prompt on either side, which differ in unpaired rows only.
        chosen, rejected: tokens.
        context: context-parallel ranks, for whose sake each sequence is filled up.
        prefix_sharing: the prompt stands once, but for its last token.
    """
    if prefix_sharing:
        return prompts[0] + chosen + 1 + rejected
    each = sequence_multiple(context)
    return up_to(each, prompts[0] + chosen) + up_to(each, prompts[1] + rejected)
