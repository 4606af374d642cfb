"""Global batches to micro-batches: who gets which pair, and how long the rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nemo_gdpo.config.shapes import length_multiple
from nemo_gdpo.data.collate import PackedBatch
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
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
    pack: int | None = None,
    share: bool = False,
    rank: int = 0,
    size: int = 1,
    micro: int = 2,
    precision: str = "fp32",
    together: int = 1,
    **sizes: int | bool,
) -> BatchBuilder:
    return BatchBuilder(
        PAIRS, PAD, layout(**sizes), precision, micro, pack, share, rank, size,
        torch.device("cpu"), together,
    )  # fmt: skip


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

    assert shape(precision="bf16", pack=48) == (1, 40)
    assert shape(precision="fp8_mxfp8", pack=64) == (1, 64)
    # Four rows of up to 20 tokens: 4 x 24 are 96, a multiple of 16; 4 x 64 / 2 are 128.
    assert shape(precision="fp8_tensorwise") == (4, 24)
    assert shape(precision="fp8_blockwise", tensor=2, sequence_parallel=True) == (4, 64)


def test_all_micro_batches_of_a_global_batch_have_one_length() -> None:
    first, second = builder().build([0, 2, 1, 3], None)
    assert first.inputs[0].shape == second.inputs[0].shape == (4, 24)
    assert builder().token_slots([0, 2, 1, 3]) == 8 * 24
    assert builder().token_slots([0, 2]) == 4 * 8


def test_packed_rows_are_few_and_level() -> None:
    # Pairs of 14, 7, 17 and 29 tokens in rows of up to 48: 29 + 7, and 17 + 14.
    packed = builder(pack=48)
    first, second = packed.build([0, 2, 1, 3], None)
    assert [batch.batch_index_B.tolist() for batch in (first, second)] == [[1, 3], [0, 2]]
    assert (first.inputs[0].shape, second.inputs[0].shape) == ((1, 40), (1, 32))
    assert packed.token_slots([0, 2, 1, 3]) == 40 + 32
    # Stages of a pipeline pass on buffers of one size.
    staged = builder(pack=48, pipeline=2)
    assert [b.inputs[0].shape for b in staged.build([0, 2, 1, 3], None)] == [(1, 40)] * 2
    assert staged.token_slots([0, 2, 1, 3]) == 2 * 40


def test_packed_rows_of_all_ranks_are_the_global_batch() -> None:
    for size in (1, 2, 3, 4):
        builders = [builder(pack=48, rank=rank, size=size) for rank in range(size)]
        ranks = [own.build([3, 1, -1, 2], None) for own in builders]
        assert len({len(batches) for batches in ranks}) == 1
        places = [place for own in ranks for b in own for place in b.batch_index_B.tolist()]
        assert sorted(place for place in places if place >= 0) == [0, 1, 3]
        if size < 4:  # a sentinel is left out
            assert len(places) == 3


def test_a_rank_without_a_pair_gets_one_that_weighs_nothing() -> None:
    (batch,) = builder(pack=48, rank=3, size=4).build([3, 1, -1, 2], None)
    assert batch.weight_B.tolist() == [0.0]
    assert batch.inputs[0].shape == (1, 8)  # of the shortest


def test_interleaved_stages_take_groups_of_micro_batches() -> None:
    def count(**sizes: int) -> int:
        return len(builder(pack=96, **sizes).build([0, 2, 1, 3], None))

    assert count() == 1
    assert count(pipeline=2) == 2  # or a stage would always wait
    assert count(pipeline=3) == 3
    assert count(pipeline=3, virtual_pipeline=2) == 3
    assert len(builder(pack=48, pipeline=3, virtual_pipeline=2).build([0, 1], None)) == 3


def test_sequences_are_filled_up_for_context_parallel_ranks() -> None:
    (batch,) = builder(pack=96, context=2).build([0, 2, 1, 3], None)
    assert isinstance(batch.rows, PackedBatch)
    # 6 12 3 20 and 8 5 4 9 tokens, each to whole fours; then the row to whole eights.
    bounds = [0, 8, 12, 24, 44, 52, 56, 64, 76, 80]
    assert batch.rows.cu_seqlens.tolist() == bounds
    tokens, labels, positions = (row[0].tolist() for row in batch.inputs)
    assert tokens[8:12] == [*PAIRS[2].prompt_ids, END, PAD]
    assert labels[8:12] == [-100, END, -100, -100]
    assert positions[6:12] == [6, 7, 0, 1, 2, 3]
    assert batch.rows.max_seqlen == 20


def test_shared_prompts_stand_once() -> None:
    packed = builder(pack=96, share=True)
    # 4 + 2 + 1 + 4, 3 + 9 + 1 + 2, 2 + 1 + 1 + 2 and 8 + 12 + 1 + 1 positions.
    assert [packed.packed_length(pair) for pair in PAIRS] == [11, 15, 6, 22]
    assert packed.token_slots([0, 1, 2, 3]) == 56
    (batch,) = packed.build([0, 3], None)
    assert isinstance(batch.rows, PackedBatch)
    tokens, labels, positions = (row[0].tolist() for row in batch.inputs)
    first, last = PAIRS[0], PAIRS[3]
    assert tokens == [
        *first.prompt_ids, *first.chosen.ids, *last.prompt_ids, *last.chosen.ids,
        first.prompt_ids[-1], *first.rejected.ids, last.prompt_ids[-1], *last.rejected.ids,
        *[PAD] * 7,
    ]  # fmt: skip
    said = [first.chosen, last.chosen, first.rejected, last.rejected]
    assert [label for label in labels if label != -100] == [t for s in said for t in s.ids]
    assert positions[26:33] == [3, 4, 5, 6, 7, 7, 8]
    assert batch.rows.cu_seqlens.tolist() == [0, 6, 26, 31, 33, 40]
    shared = batch.rows.shared
    assert shared is not None
    assert shared.cu_seqlens.tolist() == [0, 6, 26, 26 + 8, 34 + 9, 50]
    assert shared.index_K[26:34].tolist() == [0, 1, 2, 26, 27, 28, 29, 30]
    assert shared.index_K[34:43].tolist() == [*range(6, 13), 31, 32]
    assert shared.max_seqlen == 20


def test_a_pair_that_no_packed_row_holds_is_named() -> None:
    # 29 would be no multiple of 8, and rounded down to the 24 that are too few.
    with pytest.raises(UserError, match=r"pair 'p3' takes 29 .* has 24; set .* to 32"):
        builder(pack=24).build([0, 3], None)


@pytest.mark.parametrize("pack", [None, 48])
def test_labels_are_the_responses_in_order(pack: int | None) -> None:
    (batch,) = builder(pack=pack).build([1, 2], None)
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
    row_of_value = torch.repeat_interleave(torch.arange(8.0), torch.tensor(lengths))
    store = ReferenceStore(row_of_value[:, None], np.array(lengths))
    (batch,) = builder().build([3, 1], store)
    assert batch.reference_TC is not None
    # Chosen of pairs 3 and 1, then their rejected ones.
    assert batch.reference_TC[:, 0].tolist() == [6.0] * 12 + [2.0] * 9 + [7.0] + [3.0] * 2


@pytest.mark.parametrize("pack", [None, 64])
def test_groups_stay_in_one_micro_batch(pack: int | None) -> None:
    """Four pairs as two groups of four answers: rows of 14 + 17 and 7 + 29 tokens, on two ranks."""
    found = []
    for rank in range(2):
        built = builder(pack=pack, rank=rank, size=2, together=2).build([2, 3, 0, 1], None)
        for batch in built:
            group_B = batch.targets.group_N
            assert group_B is not None
            found.append((batch.batch_index_B.tolist(), group_B.tolist()))
    assert sorted(found) == [([0, 1], [0, 0]), ([2, 3], [1, 1])]


def test_pairs_that_are_no_groups_have_none() -> None:
    (batch,) = builder(pack=80).build([0, 1], None)
    assert batch.targets.group_N is None


def test_sentinels_are_in_no_answers_group() -> None:
    """A group, and one that only fills up the last batch of a validation."""
    (batch,) = builder(micro=4, together=2).build([0, 1, -1, -1], None)
    assert batch.targets.group_N is not None
    assert batch.targets.group_N.tolist() == [0, 0, -1, -1]


def test_a_group_that_no_row_holds_is_named() -> None:
    """31 positions are needed for the first group, and a row has 24."""
    with pytest.raises(UserError, match=r"the group of 4 answers that begins with pair 'p0' takes"):
        builder(pack=24, together=2).plan([0, 1])
