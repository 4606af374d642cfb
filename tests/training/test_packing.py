"""Pairs that no packed row holds are refused before anything is made; all others fit."""

from __future__ import annotations

import pytest
import torch

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.packing import packed_row
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.errors import UserError
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.mesh import layout_of
from nemo_gdpo.training.packing import refuse_long_pairs
from tests.support.datasets import dataset_of

SHARED, CP2 = "data.prefix_sharing=true", "model.context_parallel_size=2"


def pair(name: str, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    def response(count: int) -> TokenizedResponse:
        return TokenizedResponse((*(5,) * (count - 1), 2), complete=True)

    return TokenizedPair(name, (4,) * prompt, response(chosen), response(rejected))


# 5 + 3 and 5 + 2; 9 + 11 and 9 + 6; 1 + 1 and 1 + 2.
PAIRS = [pair("a", 5, 3, 2), pair("b", 9, 11, 6), pair("c", 1, 1, 2)]
DATA = dataset_of(PAIRS, end_token_id=2, pad_token_id=0)


def packed(*overrides: str) -> RunConfig:
    return TRAIN.parse(compose(["objective=dpo", "data.packing=true", *overrides], TRAIN).plain)


@pytest.mark.parametrize(
    ("overrides", "takes", "rounded"),
    [((), 35, 40), ((SHARED,), 27, 32), ((CP2,), 36, 40)],
)
def test_the_longest_pair_decides(overrides: tuple[str, ...], takes: int, rounded: int) -> None:
    refuse_long_pairs(packed(*overrides, f"data.pack_tokens={rounded}"), DATA)
    # A row is a multiple of 8, so that what the message names has to be one, too.
    said = rf"pair 'b' takes {takes} positions .* has {rounded - 8}; set .* to {rounded} or more"
    for short in (rounded - 8, rounded - 1):
        with pytest.raises(UserError, match=said):
            refuse_long_pairs(packed(*overrides, f"data.pack_tokens={short}"), DATA)


@pytest.mark.parametrize("overrides", [(), (SHARED,), (CP2,)])
def test_it_is_the_length_that_rows_are_laid_out_by(overrides: tuple[str, ...]) -> None:
    config = packed(*overrides, "data.pack_tokens=96")
    builder = BatchBuilder(
        pairs=DATA, pad_token_id=0, layout=layout_of(config), precision="fp32", micro_batch_size=1,
        pack_tokens=packed_row(config), prefix_sharing=config.data.prefix_sharing,
        data_rank=0, data_size=1, device=torch.device("cpu"),
    )  # fmt: skip
    for index in range(len(DATA)):
        (batch,) = builder.build([index], None)
        assert batch.inputs[0].shape[1] == -(-builder.packed_length(DATA[index]) // 8) * 8


def test_what_fits_padded_fits_packed() -> None:
    """Unless it is set, a row holds both of a pair's sequences at their longest."""
    assert packed_row(packed("data.max_length=100", "data.max_prompt_length=20")) == 200
    cut = packed("data.max_length=101", "data.max_prompt_length=20", CP2)
    assert packed_row(cut) == 2 * 104
    several = packed("data.max_length=100", "data.max_prompt_length=20", "model.micro_batch_size=3")
    assert packed_row(several) == 600
    assert packed_row(packed("data.packing=false")) is None
    refuse_long_pairs(packed("data.packing=false", "data.pack_tokens=null"), DATA)


def test_a_group_has_to_fit_as_a_whole() -> None:
    """Two pairs a group: 15 + 35 positions, and 5 + 5."""
    data = dataset_of([*PAIRS, pair("d", 1, 1, 2)], end_token_id=2, pad_token_id=0)
    grouped = [
        "objective=gflownet", "data.format=groups", "data.group_size=4",
        "model.global_batch_size=4", "model.micro_batch_size=2",
    ]  # fmt: skip
    refuse_long_pairs(packed(*grouped, "data.pack_tokens=56"), data)
    said = r"the group of 4 answers that begins with pair 'a' takes 50 positions .* 56 or more"
    with pytest.raises(UserError, match=said):
        refuse_long_pairs(packed(*grouped, "data.pack_tokens=48"), data)
