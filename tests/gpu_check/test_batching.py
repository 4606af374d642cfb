"""The pairs of the stage that times batching, and its modes at a tiny size."""

from __future__ import annotations

import pytest

from nemo_gdpo.gpu_check.batching import PACKED, PADDED, SHARED, unequal_pairs
from nemo_gdpo.gpu_check.lengths import INSTRUCTIONS, LONGEST, draw_lengths
from nemo_gdpo.gpu_check.shape import measure
from tests.gpu_check.test_shape import TINY


def test_useful_tokens_are_those_of_both_sequences() -> None:
    pairs, useful = unequal_pairs(TINY.vocab_size, 3)
    assert useful == sum(
        2 * len(pair.prompt_ids) + len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs
    )
    assert all(pair.chosen.ids[-1] == pair.rejected.ids[-1] == 2 for pair in pairs)


def test_lengths_are_as_said() -> None:
    drawn = draw_lengths(INSTRUCTIONS, 4000)
    assert drawn == draw_lengths(INSTRUCTIONS, 4000)
    assert sum(one.prompt for one in drawn) / len(drawn) == pytest.approx(190, rel=0.05)
    assert sum(one.chosen for one in drawn) / len(drawn) == pytest.approx(340, rel=0.05)
    assert max(one.prompt + max(one.chosen, one.rejected) for one in drawn) <= LONGEST


@pytest.mark.slow
@pytest.mark.usefixtures("_left_afterwards")
def test_every_mode_trains_the_same_pairs() -> None:
    pairs, _ = unequal_pairs(TINY.vocab_size, 4)
    for mode in (PADDED, PACKED, SHARED):
        found = measure(TINY, pairs, "precision=fp32", *mode)
        assert 0 < found.step_seconds <= found.slowest_seconds
