"""Global batches to micro-batches: who gets which pair, and how long the rows are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_gdpo.config.shapes import length_multiple
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.reference import response_lengths
from nemo_gdpo.training.reference_store import ReferenceStore

END, PAD = 99, 0
# (prompt, chosen, rejected) tokens; rows of 6, 8 | 12, 5 | 3, 4 | 20, 9.
LENGTHS = [(4, 2, 4), (3, 9, 2), (2, 1, 2), (8, 12, 1)]


def pair(number: int) -> TokenizedPair:
    prompt, chosen, rejected = LENGTHS[number]

    def ids(count: int, start: int) -> tuple[int, ...]:
        return tuple(range(start, start + count))

    return TokenizedPair(
        f"p{number}",
        ids(prompt, 1),
        TokenizedResponse((*ids(chosen - 1, 20), END), True),
        TokenizedResponse((*ids(rejected - 1, 50), END), True),
    )


PAIRS = [pair(number) for number in range(4)]


def layout(**sizes: int | bool) -> ParallelLayout:
    settings = {
        "tensor": 1,
        "pipeline": 1,
        "virtual_pipeline": None,
        "context": 1,
        "sequence_parallel": False,
        "recompute": None,
        "vocab_divisible_by": 128,
    }
    return ParallelLayout(**(settings | sizes))  # type: ignore[arg-type]


def builder(
    *,
    packing: bool = False,
    rank: int = 0,
    size: int = 1,
    micro: int = 2,
    precision: str = "fp32",
    **sizes: int | bool,
) -> BatchBuilder:
    return BatchBuilder(
        PAIRS, PAD, layout(**sizes), precision, micro, packing, rank, size, torch.device("cpu")
    )


def chosen_pairs(batch: PreferenceMicroBatch) -> list[str]:
    """Ids of the pairs whose chosen responses are the first half of the padded rows."""
    names = {(*pair.prompt_ids, *pair.chosen.ids): pair.id for pair in PAIRS}
    tokens = batch.inputs[0]
    rows = [tuple(row[row != PAD].tolist()) for row in tokens[: len(tokens) // 2]]
    return [names[row] for row in rows]


def multiple_of(precision: str, rows: int, **sizes: int | bool) -> int:
    cut = layout(**sizes)
    return length_multiple(
        tensor=cut.tensor,
        context=cut.context,
        sequence_parallel=cut.sequence_parallel,
        precision=precision,
        rows=rows,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 2, 12])
@pytest.mark.parametrize(
    ("sizes", "multiple"),
    [
        ({}, 8),
        ({"tensor": 4}, 8),
        ({"tensor": 16, "sequence_parallel": True}, 16),
        ({"context": 2}, 8),
        ({"context": 4, "tensor": 4, "sequence_parallel": True}, 32),
        ({"context": 3}, 24),
    ],
)
def test_rows_can_be_cut_evenly(
    sizes: dict[str, int | bool], multiple: int, rows: int, precision: str
) -> None:
    assert multiple_of(precision, rows, **sizes) == multiple


SP4: dict[str, int | bool] = {"tensor": 4, "sequence_parallel": True}


@pytest.mark.parametrize(
    ("precision", "rows", "sizes", "multiple"),
    [
        # One packed row: all tokens of a rank are its.
        ("fp8_tensorwise", 1, {}, 16),
        ("fp8_tensorwise", 1, {"tensor": 4}, 16),
        ("fp8_tensorwise", 1, SP4, 64),
        ("fp8_mxfp8", 1, {}, 32),
        ("fp8_mxfp8", 1, SP4, 128),
        ("fp8_blockwise", 1, {"tensor": 4}, 16),
        ("fp8_blockwise", 1, SP4, 512),
        ("fp8_blockwise", 1, SP4 | {"context": 2}, 1024),
        # Two rows of a pair: 2 x 8 are 16, 2 x 16 are 32; under TP4 and SP, 2 x 256 / 4 are 128.
        ("fp8_tensorwise", 2, {}, 8),
        ("fp8_mxfp8", 2, {}, 16),
        ("fp8_mxfp8", 2, SP4, 64),
        ("fp8_blockwise", 2, SP4, 256),
        # Six rows have one factor of two only; 12 have two.
        ("fp8_mxfp8", 6, {}, 16),
        ("fp8_mxfp8", 12, {"context": 2}, 16),
    ],
)
def test_every_rank_has_as_many_tokens_as_fp8_kernels_take(
    precision: str, rows: int, sizes: dict[str, int | bool], multiple: int
) -> None:
    assert multiple_of(precision, rows, **sizes) == multiple


def test_rows_are_as_long_as_the_precision_asks() -> None:
    def shape(**settings: Any) -> tuple[int, ...]:
        first, _ = builder(**settings).build([0, 2, 1, 3], None)
        return tuple(first.inputs[0].shape)

    assert shape(precision="bf16", packing=True) == (1, 48)
    assert shape(precision="fp8_mxfp8", packing=True) == (1, 64)
    # Four rows of up to 20 tokens: 4 x 24 are 96, a multiple of 16; 4 x 64 / 2 are 128.
    assert shape(precision="fp8_tensorwise") == (4, 24)
    assert shape(precision="fp8_blockwise", tensor=2, sequence_parallel=True) == (4, 64)


def test_all_micro_batches_of_a_global_batch_have_one_length() -> None:
    first, second = builder().build([0, 2, 1, 3], None)
    assert first.inputs[0].shape == second.inputs[0].shape == (4, 24)
    assert builder().token_slots([0, 2, 1, 3]) == 8 * 24
    assert builder().token_slots([0, 2]) == 4 * 8


def test_packed_rows_have_one_length_too() -> None:
    first, second = builder(packing=True).build([0, 2, 1, 3], None)
    # 6 + 8 + 3 + 4 = 21 and 12 + 5 + 20 + 9 = 46 tokens.
    assert first.inputs[0].shape == second.inputs[0].shape == (1, 48)
    assert builder(packing=True).token_slots([0, 2, 1, 3]) == 2 * 48


@pytest.mark.parametrize("packing", [False, True])
def test_labels_are_the_responses_in_order(packing: bool) -> None:
    (batch,) = builder(packing=packing).build([1, 2], None)
    _, labels, _ = batch.inputs
    said = [PAIRS[1].chosen, PAIRS[2].chosen, PAIRS[1].rejected, PAIRS[2].rejected]
    assert labels[labels != -100].tolist() == [token for s in said for token in s.ids]
    assert batch.rows.response_lengths_N.tolist() == [9, 1, 2, 2]


def test_data_parallel_ranks_share_a_global_batch() -> None:
    seen = []
    for rank in range(2):
        for batch in builder(rank=rank, size=2, micro=1).build([3, 1, 0, 2], None):
            (slot,) = batch.batch_index_B.tolist()
            seen.append((slot, *chosen_pairs(batch)))
            # Rank 0 has short pairs only in some batches; the length is the batch's nonetheless.
            assert batch.inputs[0].shape[1] == 24
    assert sorted(seen) == [(0, "p3"), (1, "p1"), (2, "p0"), (3, "p2")]


def test_a_sentinel_is_laid_out_but_weighs_nothing() -> None:
    (first, second) = builder().build([2, 0, 1, -1], None)
    assert first.batch_index_B.tolist() == [0, 1]
    assert second.batch_index_B.tolist() == [2, -1]
    assert second.weight_B.tolist() == [1.0, 0.0]
    # Any real pair of the batch stands in.
    assert chosen_pairs(second) == ["p1", "p2"]


def test_reference_values_follow_their_rows() -> None:
    lengths = response_lengths(PAIRS)
    assert lengths == [2, 4, 9, 2, 1, 2, 12, 1]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    row_of_value = torch.repeat_interleave(torch.arange(8.0), torch.tensor(lengths))
    store = ReferenceStore(row_of_value[:, None], offsets)
    (batch,) = builder().build([3, 1], store)
    assert batch.reference_TC is not None
    # Chosen of pairs 3 and 1, then their rejected ones.
    assert batch.reference_TC[:, 0].tolist() == [6.0] * 12 + [2.0] * 9 + [7.0] + [3.0] * 2
