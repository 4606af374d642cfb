"""Published speeds come out of the FLOPs that are counted; times of an update by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_gdpo.plan.hardware import Cluster, Device, Peak
from nemo_gdpo.plan.memory import Setup, held_parameters
from nemo_gdpo.plan.shape import KNOWN, Shape
from nemo_gdpo.plan.speed import (
    BF16_SHARE,
    FP8_SHARE,
    PUBLISHED,
    Published,
    Step,
    Work,
    data_seconds,
    model_seconds,
    passes,
    step_of,
)
from nemo_gdpo.training.forecast import as_megatron
from nemo_gdpo.training.throughput import FORWARD_AND_BACKWARD, FlopCount
from tests.support.ranks import ROOT


def flops_of_a_token(point: Published) -> float:
    """Of an update in language modelling, where the head is computed everywhere.

    That is 6 (P - V h) + 6 L h s: all matrices but the embedding, and causal attention. With LoRA
    backward has no product for a weight's gradient: 4 (P - V h), and attention is left out.
    """
    shape = KNOWN[point.model]
    count = FlopCount.of(as_megatron(shape))
    if point.adapters:
        return float(2 * (count.per_token + count.per_label))
    return FORWARD_AND_BACKWARD * count.forward(point.length, point.length) / point.length


@pytest.mark.parametrize("point", PUBLISHED, ids=lambda point: point.name)
def test_published_tflops(point: Published) -> None:
    found = point.tokens_per_second * flops_of_a_token(point) / 1e12
    assert found == pytest.approx(point.tflops, rel=0.03)
    # Much nearer than that, in fact.
    assert found == pytest.approx(point.tflops, rel=0.002)


@pytest.mark.parametrize("point", PUBLISHED, ids=lambda point: point.name)
def test_the_count_is_the_formula(point: Published) -> None:
    shape = KNOWN[point.model]
    inner = shape.parameters - shape.embedding
    told = 4.0 * inner
    if not point.adapters:
        told = 6 * inner + 6 * shape.layers * shape.hidden * point.length
    assert flops_of_a_token(point) == pytest.approx(told, rel=1e-3)


@pytest.mark.parametrize("point", PUBLISHED, ids=lambda point: point.name)
def test_the_pages_table(point: Published) -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    flops = flops_of_a_token(point)
    found = point.tokens_per_second * flops / 1e12
    formula = "4 (P - V h)" if point.adapters else "6 (P - V h) + 6 L h s"
    assert (
        f"| {point.name}, s {point.length} | {formula} | {flops:.3e} | "
        f"{point.tokens_per_second:,} | {found:,.1f} | {point.tflops:,} | "
        f"{found / point.tflops - 1:+.2%} |\n"
    ) in page


def test_the_share_is_that_of_the_published_runs() -> None:
    shares = [point.tflops / (point.peak.fp8 or 0) for point in PUBLISHED]
    assert sum(shares) / len(shares) == pytest.approx(FP8_SHARE, abs=0.005)
    assert sum((0.43, 0.41, 0.38)) / 3 == pytest.approx(BF16_SHARE, abs=0.005)


DEVICE = Device("d", 80, Peak("D", 100.0, 200.0, 50.0), 100.0, 10.0, host=20.0, node=4)
TINY = Shape(layers=4, hidden=8, heads=4, groups=2, head=2, ffn=16, vocabulary=128)
WORK = Work(
    pairs=2, tokens=40, repeated=8, labels=20, flops=1e15, attention=1e14, slots=50,
    busiest_flops=1e15, busiest_attention=1e14, busiest_slots=50, micro_batches=4,
)  # fmt: skip


def step(changes: dict[str, Any], count: int = 1, *, live: bool = False) -> Step | None:
    cluster = Cluster(DEVICE, count)
    return step_of(TINY, Setup(**changes), WORK, cluster, live_reference=live, overlapped=False)


def test_compute_by_hand() -> None:
    """Three passes of 1e15 FLOPs at 41 % of 100 TFLOP/s; a live reference is a fourth."""
    one = step({})
    assert one is not None
    assert one.compute == pytest.approx(3e15 / (0.41 * 1e14))
    assert (one.bubble, one.communication) == (0.0, 0.0)
    other = step({}, live=True)
    assert other is not None
    assert other.compute == pytest.approx(one.compute * 4 / 3)
    fp8 = step({"precision": "fp8_tensorwise"})
    assert fp8 is not None
    assert fp8.compute == pytest.approx(3e15 / (0.36 * 2e14))


def test_nothing_is_predicted_where_nothing_is_published() -> None:
    assert step({"precision": "fp32"}) is None


def test_recomputation_is_more_passes() -> None:
    assert passes(TINY, Setup(recompute="full"), live_reference=False) == 4
    # The MLP has 3 x 8 x 16 = 384 of a layer's 576 products.
    selective = passes(TINY, Setup(recompute="selective"), live_reference=True)
    assert selective == pytest.approx(3 + 384 / 576 + 1)
    capped = replace(TINY, capped=True)
    assert passes(capped, Setup(recompute="selective"), live_reference=False) == 3


def test_the_bubble() -> None:
    """Three of four stages wait, for one of four micro-batches."""
    one = step({"pipeline": 4}, count=4)
    assert one is not None
    assert one.bubble == pytest.approx(one.compute * 3 / 4)
    half = step({"pipeline": 4, "chunks": 2}, count=4)
    assert half is not None
    assert half.bubble == pytest.approx(one.bubble / 2)


def test_collectives_by_hand() -> None:
    cluster = Cluster(DEVICE, 8)
    tensor = model_seconds(TINY, Setup(tensor=2), WORK, cluster)
    # 4 layers, 10 collectives of half of 50 x 8 numbers of 2 bytes.
    assert tensor == pytest.approx(4 * 10 * 800 / 2 / 100e9)
    context = model_seconds(TINY, Setup(context=2), WORK, cluster)
    # 4 layers, 3 times 25 positions x (key 4 + value 4) numbers of 2 bytes.
    assert context == pytest.approx(4 * 3 * 25 * 8 * 2 / 100e9)


def test_gradients_between_nodes_go_through_all_ports() -> None:
    setup = Setup(data=8, distributed_optimizer=True)
    held = held_parameters(TINY, setup, 0)
    inside = data_seconds(TINY, replace(setup, data=4), Cluster(DEVICE, 4))
    assert inside == pytest.approx((4 * held * 3 / 4 / 100e9, 2 * held * 3 / 4 / 100e9))
    across = data_seconds(TINY, setup, Cluster(DEVICE, 8))
    assert across == pytest.approx((4 * held * 7 / 8 / 40e9, 2 * held * 7 / 8 / 40e9))
