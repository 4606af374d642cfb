"""Memory against sums by hand, on a model whose sizes are small numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_gdpo.plan.disk import disk_of
from nemo_gdpo.plan.memory import (
    RESERVE,
    Setup,
    fullest,
    held_parameters,
    layer_bytes,
    layers_in_flight,
    memory_of_stages,
)
from nemo_gdpo.plan.shape import KNOWN, Shape, read_shape

TINY = Shape(layers=4, hidden=8, heads=4, groups=2, head=2, ffn=16, vocabulary=100)
# A layer: query and output 8 x 8, key and value 8 x 4, gate, up and down 8 x 16; two norms of 8.
MATRICES = 2 * 64 + 2 * 32 + 3 * 128
LAYER = MATRICES + 16
END = 128 * 8  # 100 rows are padded to 128


def setup(**changes: Any) -> Setup:
    return replace(Setup(positions=10, row=5), **changes)


def test_parameters_by_hand() -> None:
    assert (TINY.matrices, TINY.vectors) == (576, 16) == (MATRICES, 16)
    assert TINY.parameters == 4 * LAYER + 2 * 800 + 8
    assert held_parameters(TINY, setup(), 0) == 4 * LAYER + 2 * END + 8


def test_tensor_parallel_ranks_share_matrices_and_not_norms() -> None:
    # 100 rows are padded to 2 x 128, of which a rank has 128.
    assert held_parameters(TINY, setup(tensor=2), 0) == 4 * (288 + 16) + 2 * END + 8


def test_stages_of_a_pipeline() -> None:
    held = [held_parameters(TINY, setup(pipeline=4), stage) for stage in range(4)]
    assert held == [LAYER + END, LAYER, LAYER, LAYER + END + 8]
    tied = replace(TINY, tied=True)
    assert held_parameters(tied, setup(), 0) == 4 * LAYER + END + 8
    # The first and the last stage both have the one matrix.
    assert held_parameters(tied, setup(pipeline=2), 1) == 2 * LAYER + END + 8


@pytest.mark.parametrize(
    ("changes", "weights", "optimizer"),
    [
        ({}, 2, 12),
        ({"distributed_optimizer": True, "data": 4}, 2, 3),
        # Context-parallel ranks share it out, too.
        ({"distributed_optimizer": True, "data": 2, "context": 2}, 2, 3),
        ({"precision": "fp32"}, 4, 8),
        ({"precision": "fp32", "distributed_optimizer": True, "data": 4}, 4, 2),
    ],
)
def test_bytes_a_parameter(changes: dict[str, Any], weights: int, optimizer: int) -> None:
    held = 4 * LAYER + 2 * END + 8
    (found,) = memory_of_stages(TINY, setup(**changes))
    assert (found.weights, found.gradients, found.optimizer) == (
        weights * held, 4 * held, optimizer * held,
    )  # fmt: skip
    assert found.reference == found.fp8_copies == 0
    (resident,) = memory_of_stages(TINY, setup(resident=True, **changes))
    assert resident.reference == weights * held


def test_fp8_keeps_two_more_bytes_of_the_layers_matrices() -> None:
    (found,) = memory_of_stages(TINY, setup(precision="fp8_tensorwise"))
    assert found.fp8_copies == 2 * 4 * MATRICES


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        # Two norms' inputs and outputs, queries 8, keys 4, values 4, attention's output 8, 3 x 16.
        ({}, 32 + 24 + 48),
        ({"recompute": "selective"}, 24 + 24),
        ({"recompute": "full"}, 8),
        ({"tensor": 2}, 32 + 12 + 24),
        # Norms: 4 bytes x 8 each; 2 x 16 and the queries, keys and values once more.
        ({"fused": False}, 32 + 24 + 48 + 32 + 32 + 12),
        ({"fused": False, "precision": "fp32", "recompute": "selective"}, 104 + 16 + 32 + 12),
        ({"tensor": 2, "sequence_parallel": True}, 16 + 12 + 24),
        ({"tensor": 2, "sequence_parallel": True, "recompute": "full"}, 4),
    ],
)
def test_what_a_layer_keeps(changes: dict[str, Any], numbers: int) -> None:
    one = setup(**changes)
    assert layer_bytes(TINY, one) == one.width * numbers


def test_the_formula_of_a_llama_layer() -> None:
    """12 h + 4 h groups / heads + 6 ffn bytes of a token, over TP with sequence parallelism."""
    shape = KNOWN["llama3_8b"]
    told = (12 * 4096 + 4 * 4096 * 8 / 32 + 6 * 14336) / 4
    assert layer_bytes(shape, Setup(tensor=4, sequence_parallel=True)) == told


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, [4]),
        ({"pipeline": 4, "micro_batches": 8}, [4, 3, 2, 1]),
        ({"pipeline": 4, "micro_batches": 2}, [2, 2, 2, 1]),
        # Chunks of one layer: 2 x 1 + 1 x 2 + 1 of them on the first stage, 3 on the last.
        ({"pipeline": 2, "chunks": 2, "micro_batches": 8}, [5, 3]),
    ],
)
def test_layers_in_flight(changes: dict[str, Any], layers: list[int]) -> None:
    one = setup(**changes)
    assert [layers_in_flight(TINY, one, stage) for stage in range(one.pipeline)] == layers


def test_activations_of_a_run() -> None:
    (found,) = memory_of_stages(TINY, setup())
    assert found.activations == 10 * 4 * 208
    (half,) = memory_of_stages(TINY, setup(context=2))
    assert half.activations == found.activations / 2
    # One layer is there whole while it is computed again.
    (again,) = memory_of_stages(TINY, setup(recompute="full"))
    assert again.activations == 10 * (4 * 16 + 208 - 16)


def test_scores_that_are_written_out() -> None:
    """8 bytes for each of 4 heads and 5 positions: of every layer, or of one at a time."""
    capped = replace(TINY, capped=True)
    (kept,) = memory_of_stages(capped, setup())
    assert kept.activations == 10 * 4 * (208 + 160)
    (once,) = memory_of_stages(capped, setup(recompute="selective"))
    assert once.activations == 10 * (4 * 208 + 160)


def test_the_head_is_on_the_last_stage() -> None:
    found = memory_of_stages(TINY, setup(pipeline=2, logprob_tokens=3))
    assert found[0].head == 0
    # 3 x 100 logits in float32 and their gradient in bf16; 8 numbers in 4 + 4 + 4 bytes a position.
    assert found[1].head == 300 * 6 + 10 * 8 * 12
    (many,) = memory_of_stages(replace(TINY, vocabulary=2**20), setup(logprob_tokens=1024))
    assert many.head == 2**25 * 6 + 10 * 8 * 12


def test_the_total_and_the_fullest_stage() -> None:
    found = memory_of_stages(TINY, setup(pipeline=2, micro_batches=4))
    for one in found:
        parts = [v for name, v in vars(one).items() if name != "reserve"]
        assert one.total == sum(parts) + RESERVE
    assert fullest(found) is max(found, key=lambda one: one.total)


def test_sizes_of_a_config_json() -> None:
    values = {
        "model_type": "gemma2", "hidden_size": 3584, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "num_hidden_layers": 42,
        "intermediate_size": 14336, "vocab_size": 256000, "attn_logit_softcapping": 50.0,
    }  # fmt: skip
    assert read_shape(values) == KNOWN["gemma2_9b"]
    assert read_shape({**values, "vocab_size": None}) is None
    assert read_shape({"num_attention_heads": 32, "num_hidden_layers": 32}) is None


def test_disk() -> None:
    found = disk_of(
        TINY, precision="bf16", distributed_optimizer=True, kept=2, labels=100, columns=2
    )
    assert found.checkpoint == 14 * TINY.parameters
    assert found.room == 3 * found.checkpoint
    assert (found.reference, found.export) == (800, 2 * TINY.parameters)
    wide = disk_of(TINY, precision="fp32", distributed_optimizer=False, kept=1, labels=0, columns=1)
    assert wide.checkpoint == 12 * TINY.parameters
