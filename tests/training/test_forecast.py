"""The work of an update, counted by hand for padded and for packed rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_gdpo.config.recipes import change
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
from nemo_gdpo.plan.shape import Shape
from nemo_gdpo.training.forecast import (
    architecture_of,
    as_megatron,
    assumed_pairs,
    batches_of,
    work_of,
)
from nemo_gdpo.training.throughput import FlopCount, attended
from tests.support.datasets import dataset_of

LENGTHS = [(4, 2, 4), (3, 9, 2), (2, 1, 2), (8, 12, 1)]
"""Prompt, chosen, rejected: sequences of 6, 8 | 12, 5 | 3, 4 | 20, 9 tokens, 67 in all."""
SHAPE = Shape(layers=2, hidden=8, heads=2, groups=1, head=4, ffn=16, vocabulary=10)
FLOPS = FlopCount.of(as_megatron(SHAPE))


def pairs() -> PreferenceDataset:
    def response(tokens: int) -> TokenizedResponse:
        return TokenizedResponse((5,) * tokens, False)

    made = [
        TokenizedPair(f"p{i}", (1,) * prompt, response(chosen), response(rejected))
        for i, (prompt, chosen, rejected) in enumerate(LENGTHS)
    ]
    return dataset_of(made, end_token_id=2, pad_token_id=0)


def config(**changes: Any) -> RunConfig:
    given = {
        "model.global_batch_size": 4, "model.micro_batch_size": 2, "data.packing": False,
        "data.max_prompt_length": 12,
        "data.max_length": 24,
    }  # fmt: skip
    return change(RunConfig(), given | changes)


def attention(lengths: list[int]) -> int:
    return sum(FLOPS.per_position * SHAPE.layers * attended(n, None) for n in lengths)


def test_padded_rows() -> None:
    """8 rows as long as the longest, 20 in eights: 24."""
    one = config()
    data = pairs()
    work = work_of(one, data, batches_of(one, data, 9), FLOPS, 1)
    assert (work.pairs, work.tokens, work.labels, work.repeated) == (4, 67, 33, 17 - 4)
    assert (work.slots, work.busiest_slots, work.micro_batches) == (192, 192, 2)
    head = 33 * FLOPS.per_label
    assert work.flops == 67 * FLOPS.per_token + head + attention([6, 8, 12, 5, 3, 4, 20, 9])
    assert work.busiest_flops == 192 * FLOPS.per_token + head + attention([24] * 8)
    assert work.attention == attention([6, 8, 12, 5, 3, 4, 20, 9])
    assert work.busiest_attention == attention([24] * 8)


def test_packed_rows() -> None:
    """All of it in one row of 67, in eights 72; attention stays within a sequence."""
    one = config(**{"data.packing": True})
    data = pairs()
    work = work_of(one, data, batches_of(one, data, 9), FLOPS, 1)
    assert (work.slots, work.busiest_slots, work.micro_batches) == (72, 72, 1)
    assert work.busiest_flops == work.flops + 5 * FLOPS.per_token
    assert work.busiest_attention == work.attention == attention([6, 8, 12, 5, 3, 4, 20, 9])


def test_shared_prompts() -> None:
    """11, 15, 6 and 22 positions: 54, in eights 56. A prompt but for its last token is once."""
    one = config(**{"data.packing": True, "data.prefix_sharing": True})
    data = pairs()
    work = work_of(one, data, batches_of(one, data, 9), FLOPS, 1)
    assert (work.pairs, work.tokens, work.labels, work.repeated) == (4, 67, 33, 17 - 4)
    assert (work.slots, work.busiest_slots, work.micro_batches) == (56, 56, 1)
    once = attention([6, 8, 12, 5, 3, 4, 20, 9]) - attention([3, 2, 1, 7])
    assert work.attention == work.busiest_attention == once
    assert work.flops == 54 * FLOPS.per_token + 33 * FLOPS.per_label + once
    assert work.busiest_flops == work.flops + 2 * FLOPS.per_token


def test_the_busiest_copy_of_two_counts() -> None:
    """First-fit decreasing and levelling: pairs of 29 and 7 against 17 and 14 tokens."""
    one = config(**{"data.packing": True})
    data = pairs()
    work = work_of(one, data, batches_of(one, data, 9), FLOPS, 2)
    assert (work.slots, work.busiest_slots, work.micro_batches) == (40 + 32, 40, 1)


def test_batches_are_spread_over_the_epoch() -> None:
    one = config(**{"model.global_batch_size": 1})
    found = batches_of(one, pairs(), 2)
    whole = batches_of(one, pairs(), 9)
    assert sorted(index for batch in whole for index in batch) == [0, 1, 2, 3]
    assert found == [whole[0], whole[3]]


def test_the_mean_over_batches() -> None:
    one = config(**{"model.global_batch_size": 1, "model.micro_batch_size": 1})
    data = pairs()
    work = work_of(one, data, batches_of(one, data, 9), FLOPS, 1)
    assert (work.pairs, work.tokens) == (1, pytest.approx(67 / 4))
    # 2 rows of 8, of 16, of 8, of 24.
    assert work.slots == 2 * (8 + 16 + 8 + 24) / 4


def test_the_assumed_pairs() -> None:
    data = assumed_pairs(config())
    assert len(data) == 4
    assert (len(data[0].prompt_ids), len(data[0].chosen.ids), len(data[0].rejected.ids)) == (
        6,
        6,
        6,
    )


def test_the_architecture_of_a_preset() -> None:
    one = config(**{"model.architecture": "llama3_8b", "model.restore_from_path": None})
    found = architecture_of(one)
    assert found.shape.parameters == 8030261248
    assert found.source == "llama3_8b as published"
    unknown = config(**{"model.restore_from_path": "/nowhere"})
    with pytest.raises(UserError, match=r"model\.restore_from_path: no architecture .* /nowhere"):
        architecture_of(unknown)


def test_made_up_fields_do_not_change_the_count() -> None:
    model = replace(as_megatron(SHAPE), max_position_embeddings=64, rotary_base=1e4)
    assert FlopCount.of(model) == FLOPS
