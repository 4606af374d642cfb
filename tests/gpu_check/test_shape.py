"""The arithmetic behind the numbers of the 8B stage, and one measurement at a tiny size."""

from __future__ import annotations

import dataclasses
import gc

import pytest
from megatron.core.models.gpt import GPTModel

from nemo_gdpo.gpu_check.findings import NotHereError
from nemo_gdpo.gpu_check.shape import (
    LLAMA3_8B,
    Workload,
    compare_precisions,
    equal_pairs,
    layers_that_fit,
    measure,
    model_flops,
    shape_of,
)
from nemo_gdpo.plan.shape import KNOWN

TINY = dataclasses.replace(
    LLAMA3_8B,
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=128,
)


def test_parameters_of_llama_3_8b() -> None:
    # 4096 x 4096 twice (query, output), 4096 x 1024 twice, three of 4096 x 14336, two norms.
    shape = shape_of(LLAMA3_8B)
    assert shape.matrices + shape.vectors == 218_112_000
    assert shape.parameters == 8_030_261_248  # the model card's 8.03 B
    assert shape == KNOWN["llama3_8b"]


def test_flops_by_hand() -> None:
    work = Workload(TINY, prompt=3, response=5, pairs=2)
    # 32 tokens; per layer: 32x32 twice, 32x16 twice, 3 x 32x48 = 7680 weights.
    weights = 2 * 7680
    # Scores and values: 2 x 8 positions x 32 channels a token and layer, half of them causal.
    attention = 2 * 2 * 8 * 32 / 2
    head = 20 * 128 * 32
    assert model_flops(work) == 6 * (32 * (weights + attention) + head)


def test_layers_that_fit() -> None:
    work = Workload()
    # GiB of both ends, 2 x 128256 x 4096 x 18 bytes: 17.6; of a layer 218.1 M x (18 + 2) = 4.06
    # and 4096 positions' activations, 0.53; of the head and the allowance 5.0. 90 % of 78 are 70.2.
    assert layers_that_fit(work, 78 * 2**30) == 10
    assert layers_that_fit(work, 139 * 2**30) == 22
    assert layers_that_fit(Workload(TINY), 8 * 2**30) == 2
    with pytest.raises(NotHereError, match="24 GiB of memory hold less than two such layers"):
        layers_that_fit(work, 24 * 2**30)


@pytest.mark.slow
@pytest.mark.usefixtures("_left_afterwards")
def test_a_measurement() -> None:
    work = Workload(TINY, prompt=4, response=8, pairs=2)
    rows = {row.name: row.value for row in compare_precisions(work, ["fp32", "bf16"])}
    assert float(rows["fp32 update"]) > 0
    assert float(rows["bf16 over fp32"]) == pytest.approx(
        float(rows["fp32 update"]) / float(rows["bf16 update"])
    )
    assert float(rows["fp32 speed"]) == pytest.approx(work.tokens / float(rows["fp32 update"]))


@pytest.mark.slow
@pytest.mark.usefixtures("_left_afterwards")
def test_the_memory_is_free_for_the_next_measurement() -> None:
    """A model holds itself: two of 5 billion weights did not fit, each of which fits alone."""

    def alive() -> int:
        return sum(isinstance(one, GPTModel) for one in gc.get_objects())

    pairs = equal_pairs(Workload(TINY, prompt=4, response=8, pairs=2))
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for precision in ("fp32", "bf16"):
            measure(TINY, pairs, f"precision={precision}")
            assert alive() <= before + 1
    finally:
        gc.enable()
