"""FLOPs against sums by hand and against torch's own counter; peaks; the columns of a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.training.throughput import FlopCount, Speedometer, attended, peak_tflops

TINY = MegatronModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=16,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=4,
    vocab_size=10,
    max_position_embeddings=64,
    rotary_base=10000.0,
    layernorm_epsilon=1e-5,
)
PAIR = TokenizedPair(
    "a", (1, 2), TokenizedResponse((3, 4, 5), True), TokenizedResponse((6, 7), True), None, None, {}
)
"""Rows of 5 and 4 tokens, with 3 and 2 labels."""

# A layer: query 8 x 8, key and value 8 x 4 each, output 8 x 8, gate, up and down 8 x 16 each.
LAYER = 64 + 32 + 32 + 64 + 3 * 128
TOKEN = 2 * 2 * LAYER  # two layers, 2 FLOPs a product
POSITION = 2 * 2 * 2 * 8  # two layers; a score and a sum, 2 FLOPs each, in 8 query dimensions
LABEL = 2 * 8 * 10
CHOSEN = 5 * TOKEN + 15 * POSITION + 3 * LABEL
REJECTED = 4 * TOKEN + 10 * POSITION + 2 * LABEL


def test_by_hand() -> None:
    assert (TOKEN, POSITION, LABEL) == (2304, 64, 160)
    assert (CHOSEN, REJECTED) == (12960, 10176)
    count = FlopCount.of(TINY)
    assert count.forward(5, 3) == CHOSEN
    assert count.of_pairs([PAIR]) == CHOSEN + REJECTED
    assert count.of_pairs([PAIR, PAIR]) == 2 * (CHOSEN + REJECTED)


def test_a_shared_prompt_is_computed_once() -> None:
    """But for its last token: the rejected response has 3 queries, which see 2, 3 and 4."""
    count = FlopCount.of(TINY)
    shared = 3 * TOKEN + (2 + 3 + 4) * POSITION + 2 * LABEL
    assert count.of_pairs([PAIR], prefix_sharing=True) == CHOSEN + shared


def test_windows_layer_by_layer() -> None:
    """A window of 2: queries of 5 positions see 1, 2, 2, 2, 2 = 9 instead of 15."""
    windowed = dataclasses.replace(TINY, layer_windows=[2, None])
    assert FlopCount.of(windowed).forward(5, 3) == CHOSEN - (15 - 9) * POSITION // 2


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
def test_positions_that_queries_see(length: int, window: int | None) -> None:
    seen = sum(min(position + 1, window or length) for position in range(length))
    assert attended(length, window) == seen


def test_against_torch_counting_transformers() -> None:
    """Eager attention computes all n x n positions; the rest has to agree."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, vocab_size=10, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    length = 12
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.ones(1, length, dtype=torch.int64))
    every_position = (
        FlopCount.of(TINY).forward(length, length)
        + (length * length - attended(length, None)) * POSITION
    )
    assert counter.get_total_flops() == every_position


def _speed(**changes: Any) -> Speedometer:
    given: dict[str, Any] = {
        "devices": 4, "live_reference": False, "device": "cpu", "precision": "bf16",
        "configured_peak": None, "prefix_sharing": False,
    }  # fmt: skip
    return Speedometer.of(TINY, **(given | changes))


def test_columns_of_a_step() -> None:
    columns = _speed(configured_peak=0.5).columns([PAIR], 9, 2.0, 0.25)
    tflops = 3 * (CHOSEN + REJECTED) / 2.0 / 4 / 1e12
    assert columns == {
        "perf/tokens_per_second": 4.5,
        "perf/tokens_per_second_per_gpu": 1.125,
        "perf/model_tflops_per_gpu": pytest.approx(tflops, rel=1e-12),
        "perf/mfu": pytest.approx(tflops / 0.5, rel=1e-12),
        "perf/step_seconds": 2.0,
        "perf/data_seconds": 0.25,
    }


def test_a_live_reference_is_a_fourth_pass() -> None:
    cached, resident = _speed(), _speed(live_reference=True)
    name = "perf/model_tflops_per_gpu"
    assert resident.columns([PAIR], 9, 1.0, 0.0)[name] == pytest.approx(
        cached.columns([PAIR], 9, 1.0, 0.0)[name] * 4 / 3
    )


def test_a_frozen_weight_has_no_gradient() -> None:
    """Two products for each weight instead of three; the scores of attention have three still."""
    scores = (15 + 10) * POSITION
    weights = CHOSEN + REJECTED - scores
    columns = _speed(frozen=True).columns([PAIR], 9, 1.0, 0.0)
    flops = columns["perf/model_tflops_per_gpu"] * 4 * 1e12
    assert flops == pytest.approx(2 * weights + 3 * scores)


def test_no_utilisation_is_made_up() -> None:
    unknown = _speed()
    assert "perf/mfu" not in unknown.columns([PAIR], 9, 1.0, 0.0)
    assert unknown.why_no_peak == ("the peak of cpu in bf16 is not known; set logger.peak_tflops")
    assert _speed(device="NVIDIA H100 80GB HBM3").why_no_peak == ""


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A100-SXM4-80GB", "fp8_tensorwise", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp8_blockwise", 1979.0),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA B200", "fp8_mxfp8", 4500.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L4", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks(device: str, precision: str, peak: float | None) -> None:
    assert peak_tflops(device, precision) == peak
