"""The project's own `train` through Transformer Engine's Python layer, on two ranks."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_gdpo.training.rounding import SAMPLES
from tests.gpu_path.cases import (
    ADAPTED,
    ADAPTERS,
    BATCH,
    BF16,
    EXACT,
    FOUR_BITS,
    FOUR_BITS_EXACT,
    FP8,
    FULL,
    LAYERS,
    LEARNING_RATE,
    NF4,
    PACKED,
    PAIRS,
    PP2,
    RANKS,
    RESIDENT,
    SELECTIVE,
    STEPS,
    TP2,
    Case,
)
from tests.gpu_path.compare import FP8_NOISE, NOISE, compare, logps, table
from tests.gpu_path.launch import Found

RESUMED = [case for case in (*BF16, *FP8, *ADAPTED, *FOUR_BITS) if case.resumes]
EXPORTED = [case for case in RESUMED if case.has("export_hf=true")]


def ids(case: Case) -> str:
    return case.key


def test_every_case_in_a_table(
    rehearsed: Found, local: Found, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{table([*BF16, *FP8], rehearsed, local)}")


@pytest.mark.parametrize("case", [*EXACT, *FOUR_BITS_EXACT], ids=ids)
def test_both_kinds_of_layers_are_one_model(case: Case, rehearsed: Found) -> None:
    """In float32, where nothing hides behind rounding: values, gradients and the first update."""
    found = rehearsed[case.key][0]
    engine, local = (found[layers]["steps"] for layers in ("transformer_engine", "local"))
    assert len(engine) == len(local) == 2
    for one, other in zip(engine, local, strict=True):
        assert logps(one) == pytest.approx(logps(other), abs=2e-4)
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
    assert ("gemm plain" in found["transformer_engine"]["calls"]) is not case.has(*NF4)
    assert "gemm plain" not in found["local"]["calls"]


@pytest.mark.parametrize("case", FOUR_BITS, ids=ids)
def test_no_product_over_four_bits_is_transformer_engines(case: Case, rehearsed: Found) -> None:
    """Its layers stand around the products, which are the project's own."""
    for found in rehearsed[case.key]:
        assert not any(name.startswith("gemm") for name in found["calls"])


@pytest.mark.parametrize("case", [*BF16, *FP8], ids=ids)
def test_training_is_as_near_to_the_local_layers_as_rounding_allows(
    case: Case, rehearsed: Found, local: Found
) -> None:
    found = compare(case, rehearsed, local)
    times = NOISE.get(case.precision, FP8_NOISE)
    assert 0.01 < found.local_error < 0.2
    assert found.error < times * found.local_error
    assert found.loss_gap < found.allowed(times)
    assert found.grad_norm_gap < found.allowed(times)
    # A policy that is its reference is that to the bit or nearly, also where a tensor has one scale
    # for the pairs of a row, and the cached reference had others beside it.
    assert found.step0_gap < 0.01


def linear_products(case: Case) -> int:
    """Matrix products of one rank in all its linear layers: worked out from what a run does.

    Four linear layers; one product for each in a forward pass, two in a backward pass.
    """
    layers = LAYERS // 2 if case.has(*PP2) else LAYERS
    ranks = 1 if case.has(*TP2) or case.has(*PP2) else RANKS
    rows = BATCH // ranks
    if case.has(*PACKED):
        rows = 2 if case.has(*PP2) else 1
    steps = STEPS * rows
    frozen = case.has(*ADAPTERS)
    reference = steps if case.has(*RESIDENT) or frozen else PAIRS // BATCH * rows
    again = 4 * steps if case.has(*FULL) else 0
    if case.has(*SELECTIVE):
        again = 2 * steps  # the MLP
    # Before the first update: its batch as it is, and with embeddings moved for 32 responses.
    noise = rows * (1 + math.ceil(SAMPLES / (2 * BATCH)))
    passes = 2 if frozen else 3  # of a frozen weight there is no gradient
    return layers * (4 * (reference + noise + passes * steps) + again)


def left_out(case: Case) -> int:
    """Products that the first layer saves: its input is the embedding, which is frozen."""
    return STEPS * BATCH if case.has(*ADAPTERS) else 0


@pytest.mark.parametrize("case", [*ADAPTED, *FOUR_BITS], ids=ids)
def test_the_policy_begins_as_its_base(case: Case, rehearsed: Found) -> None:
    """And the reference with the adapters off is that, after updates as well."""
    first, *_, last = rehearsed[case.key][0]["steps"]
    for one, other in zip(logps(first), logps(first, "reference_logps"), strict=True):
        assert abs(one - other) < 0.01
    assert logps(last) != logps(last, "reference_logps")


@pytest.mark.parametrize("case", [*BF16, *FP8, *ADAPTED], ids=ids)
def test_every_linear_layer_is_transformer_engines(case: Case, rehearsed: Found) -> None:
    for found in rehearsed[case.key]:
        calls: Counter[str] = Counter(found["calls"])
        products = {name: calls[f"gemm {name}"] for name in ("plain", "tensor", "block", "mx")}
        own = {"fp8_tensorwise": "tensor", "fp8_blockwise": "block", "fp8_mxfp8": "mx"}
        expected = dict.fromkeys(products, 0)
        if case.precision == "bf16":
            expected["plain"] = linear_products(case)
        else:
            # Two of four layers are in FP8: one of two on each of two pipeline stages.
            expected["plain"] = expected[own[case.precision]] = linear_products(case) // 2
        expected["plain"] -= left_out(case)
        assert products == expected


@pytest.mark.parametrize("case", [*BF16, *FP8], ids=ids)
def test_the_first_and_the_last_layer_stay_in_bf16(case: Case, rehearsed: Found) -> None:
    quantized = {name for found in rehearsed[case.key] for name in found["quantized"]}
    linear = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
    expected = {f"{layer}.{name}" for layer in (2, LAYERS - 1) for name in linear}
    assert quantized == (set() if case.precision == "bf16" else expected)


@pytest.mark.parametrize("case", RESUMED, ids=ids)
def test_a_resumed_run_repeats_the_steps_to_the_bit(case: Case, rehearsed: Found) -> None:
    for found in rehearsed[case.key]:
        (again,) = found["resumed"]["steps"]
        assert again == found["steps"][-1]
        assert again["step"] == STEPS - 1


@pytest.mark.parametrize("case", RESUMED, ids=ids)
def test_checkpoints_hold_the_generators_of_every_rank(case: Case, rehearsed: Found) -> None:
    """Transformer Engine's tracker keeps generators where megatron's keeps their bytes."""
    output = Path(rehearsed[case.key][0]["output"])
    (first, last) = sorted((output / "checkpoints").glob("step_*"))
    for checkpoint in (first, last):
        for rank in range(RANKS):
            saved = load_file(checkpoint / "rng" / f"rank_{rank:05d}.safetensors")
            assert "tracker.model-parallel-rng" in saved
            assert {state.dtype for state in saved.values()} == {torch.uint8}


@pytest.mark.parametrize("case", EXPORTED, ids=ids)
def test_the_export_is_the_model_after_its_updates(
    case: Case, rehearsed: Found, folder: Path
) -> None:
    output = Path(rehearsed[case.key][0]["output"])
    before = load_file(folder / case.model / "model.safetensors")
    after = load_file(output / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        moved = (after[name].float() - weight.to(torch.bfloat16).float()).abs()
        # Adam moves a weight by about the learning rate; then it is rounded to 8 bits.
        assert moved.max() <= 1.5 * STEPS * LEARNING_RATE + 2**-8 * weight.abs().max(), name
        # The weights of norms are around 1, where 8 bits do not show so small a step.
        assert (moved.max() > 0) == (weight.dim() == 2), name
    assert (output / "model.nemo").stat().st_size > 0
