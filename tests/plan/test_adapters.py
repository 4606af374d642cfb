"""Adapters, a swapped reference and shared prompts in the plan, against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_gdpo.config.lora import TARGETS
from nemo_gdpo.plan.adapters import ATTENTION, MLP, ROWS, Adapters
from nemo_gdpo.plan.disk import disk_of
from nemo_gdpo.plan.hardware import Cluster
from nemo_gdpo.plan.memory import (
    RESERVE,
    Setup,
    activation_bytes,
    held_parameters,
    layer_bytes,
    memory_of_stages,
)
from nemo_gdpo.plan.shape import KNOWN
from nemo_gdpo.plan.speed import data_seconds, model_seconds, passes, swap_seconds, useful_passes
from tests.plan.test_memory import END, LAYER, MATRICES, TINY, setup
from tests.plan.test_speed import DEVICE, WORK, step

ALL = Adapters(2, TARGETS)
# Rank 2 on hidden 8, query 8, key 4, ffn 16: query and output 2 (8 + 8) each, key and value
# 2 (8 + 4), gate, up and down 2 (8 + 16).
OF_LAYER = 2 * 32 + 2 * 24 + 3 * 48
HELD = 4 * LAYER + 2 * END + 8


def test_the_names_are_those_of_the_key() -> None:
    assert {*ATTENTION, *MLP, *ROWS} == set(TARGETS)


def test_parameters_by_hand() -> None:
    assert ALL.parameters(TINY, 1) == 256 == OF_LAYER
    # A whole and half of B: 2 (8 + 4), 2 (8 + 2), 2 (8 + 8); rows half of A: 2 (4 + 8), 2 (8 + 8).
    assert ALL.parameters(TINY, 2) == 24 + 2 * 20 + 2 * 32 + 24 + 32
    assert Adapters(2, ("q_proj", "down_proj")).parameters(TINY, 1) == 32 + 48
    # All seven of Llama 3 8B with rank 16, as PEFT counts them.
    assert 32 * Adapters(16, TARGETS).parameters(KNOWN["llama3_8b"], 1) == 41_943_040


@pytest.mark.parametrize(
    ("changes", "width", "optimizer"),
    [
        ({}, 2, 12),
        ({"distributed_optimizer": True, "data": 4}, 2, 3),
        ({"precision": "fp32"}, 4, 8),
    ],
)
def test_gradients_and_states_are_the_adapters(
    changes: dict[str, Any], width: int, optimizer: int
) -> None:
    (found,) = memory_of_stages(TINY, setup(adapters=ALL, **changes))
    assert found.weights == width * (HELD + 4 * OF_LAYER)
    assert (found.gradients, found.optimizer) == (4 * 4 * OF_LAYER, optimizer * 4 * OF_LAYER)
    assert found.reference == found.host == 0  # adapters off, or cached
    (resident,) = memory_of_stages(TINY, setup(adapters=ALL, resident=True, **changes))
    assert resident.reference == resident.weights


def test_every_stage_has_the_adapters_of_its_layers() -> None:
    found = memory_of_stages(TINY, setup(adapters=ALL, pipeline=4))
    assert [one.gradients for one in found] == [4 * OF_LAYER] * 4


def test_the_base_alone_is_quantised() -> None:
    (found,) = memory_of_stages(TINY, setup(adapters=ALL, precision="fp8_tensorwise"))
    assert found.fp8_copies == 2 * 4 * MATRICES


def test_a_base_in_nf4() -> None:
    """0.5625 bytes of a number of a matrix; norms, embedding, head and adapters as they were."""
    one = setup(adapters=ALL, four_bit=True)
    (found,), (plain,) = memory_of_stages(TINY, one), memory_of_stages(TINY, setup(adapters=ALL))
    assert found.weights == 4 * MATRICES * 0.5625 + 2 * (HELD - 4 * MATRICES + 4 * OF_LAYER)
    assert (found.loading, plain.loading) == (plain.weights, 0)
    assert (found.gradients, found.optimizer) == (plain.gradients, plain.optimizer)
    assert found.activations == plain.activations
    # Gate and up, as one product needs them.
    assert found.buffers - plain.buffers == 2 * 2 * 128
    (half,) = memory_of_stages(TINY, replace(one, tensor=2))
    assert half.weights - 4 * MATRICES * 0.5625 / 2 == 2 * (
        held_parameters(TINY, replace(one, tensor=2), 0)
        - 4 * MATRICES // 2
        + 4 * ALL.parameters(TINY, 2)
    )
    # A bias is no matrix.
    biased = replace(TINY, biased=True)
    (other,) = memory_of_stages(biased, one)
    assert other.weights - found.weights == 2 * 4 * 2 * (4 + 2 * 2)


def test_a_base_is_loaded_before_it_is_quantised() -> None:
    """70B on one device: 38.5 GB of matrices, 4.2 of the rest, 0.4 of adapters; 141.5 before."""
    one = Setup(adapters=Adapters(16, TARGETS), four_bit=True, positions=2048, row=1024)
    (found,) = memory_of_stages(KNOWN["llama3_70b"], one)
    assert found.weights == pytest.approx(43.1e9, rel=0.01)
    assert found.loading == pytest.approx(141.5e9, rel=0.01)
    assert found.total == found.loading + RESERVE


def test_a_swapped_reference_is_in_host_memory() -> None:
    """Two sets there, nothing on the device; of a model with adapters they alone."""
    (found,) = memory_of_stages(TINY, setup(swapped=True))
    (cached,) = memory_of_stages(TINY, setup())
    assert (found.host, found.reference, found.total) == (2 * 2 * HELD, 0, cached.total)
    (adapted,) = memory_of_stages(TINY, setup(swapped=True, adapters=ALL))
    assert adapted.host == 2 * 2 * 4 * OF_LAYER


@pytest.mark.parametrize(
    ("targets", "changes", "numbers"),
    [
        # As without adapters (32 + 24 + 48), and what each A gives: 5 and 2 times 2.
        (TARGETS, {}, 32 + 24 + 48 + 10 + 4),
        # One product of four keeps its input, and the MLP not that of its last one.
        (("q_proj",), {}, 24 + 24 + 32 + 2),
        (("down_proj",), {}, 16 + 24 + 48 + 2),
        # The MLP is computed again from its input, the norm's output, with its adapters.
        (TARGETS, {"recompute": "selective"}, 32 + 24 + 6 + 2),
        (("q_proj",), {"recompute": "selective"}, 24 + 24 + 2),
        (TARGETS, {"recompute": "full"}, 8),
        # What column-parallel ones give is whole on each rank, gathered along the sequence.
        (TARGETS, {"tensor": 2}, 32 + 12 + 24 + 10 + 4),
        (TARGETS, {"tensor": 2, "sequence_parallel": True}, 16 + 12 + 24 + 10 + 2),
        # Local norms: 4 bytes x 8 each, less what their frozen scale would read: 16 numbers.
        (TARGETS, {"fused": False}, 118 + 16 + 32 + 12),
    ],
)
def test_what_a_layer_keeps(
    targets: tuple[str, ...], changes: dict[str, Any], numbers: int
) -> None:
    one = setup(adapters=Adapters(2, targets), **changes)
    assert layer_bytes(TINY, one) == one.width * numbers


def test_every_layer_keeps_its_As_put_together() -> None:
    """2 (6 x 8 + 16) numbers of a layer, whatever the positions."""
    one = setup(adapters=ALL)
    assert activation_bytes(TINY, one, 0) == 4 * (10 * 2 * 118 + 2 * 128)
    selective = setup(adapters=ALL, recompute="selective")
    # Of attention alone; one layer is there whole while it is computed again.
    assert activation_bytes(TINY, selective, 0) == 4 * (10 * 2 * 64 + 2 * 64) + 10 * 2 * (118 - 64)


def test_keys_and_values_of_shared_prompts_are_repeated() -> None:
    """Twice as many at most: 16 of the 24 numbers become 32."""
    one = setup(prefix_sharing=True)
    assert layer_bytes(TINY, one) == 2 * (32 + 16 + 16 + 48)


def test_a_frozen_matrix_has_no_gradient() -> None:
    """Backward: one product for it, two for attention; recomputation and reference as always."""
    one = Setup(adapters=ALL)
    assert useful_passes(one, 0.25) == 1 + 1 + 0.25
    assert useful_passes(Setup(), 0.25) == 3
    full = replace(one, recompute="full")
    assert passes(TINY, full, live_reference=True, attention=0.25) == 2.25 + 2
    found = step({"adapters": ALL})
    assert found is not None
    # WORK has a tenth of its FLOPs in attention.
    assert found.compute == pytest.approx(2.1e15 / (0.41 * 1e14))


def test_what_adapters_do_not_send() -> None:
    cluster = Cluster(DEVICE, 4)
    # No input is gathered for a weight's gradient: 8 collectives of a layer instead of 10.
    tensor = Setup(tensor=2, adapters=ALL)
    assert model_seconds(TINY, tensor, WORK, cluster) == pytest.approx(4 * 8 * 800 / 2 / 100e9)
    copies = Setup(data=4, distributed_optimizer=True, adapters=ALL)
    trained = 4 * OF_LAYER
    assert data_seconds(TINY, copies, cluster) == pytest.approx(
        (4 * trained * 3 / 4 / 100e9, 2 * trained * 3 / 4 / 100e9)
    )


def test_weights_change_places_with_the_host() -> None:
    """Out, the reference in, and back in, at 20 GB/s; on top of all else."""
    cluster = Cluster(DEVICE, 1)
    held = held_parameters(TINY, Setup(), 0)
    took = swap_seconds(TINY, Setup(swapped=True), cluster)
    assert took == pytest.approx(3 * 2 * held / 20e9)
    one, other = step({"swapped": True}, live=True), step({}, live=True)
    assert one is not None and other is not None
    assert one.communication - other.communication == pytest.approx(took)
    assert swap_seconds(TINY, Setup(), cluster) == 0


def test_disk() -> None:
    given: dict[str, Any] = {
        "precision": "bf16", "distributed_optimizer": True, "kept": 2, "labels": 0, "columns": 2,
    }  # fmt: skip
    found = disk_of(TINY, adapters=ALL, **given)
    assert found.checkpoint == 14 * 4 * OF_LAYER
    assert (found.export, found.adapter) == (2 * TINY.parameters, 2 * 4 * OF_LAYER)
    assert disk_of(TINY, **given).adapter == 0
