"""What is concluded from a machine, with a reason for everything that cannot be had."""

from __future__ import annotations

import pytest

from nemo_gdpo.platform.base import Finding, Support
from nemo_gdpo.platform.capabilities import capabilities_of
from nemo_gdpo.platform.machine import ABSENT, USABLE, Machine, Package
from nemo_gdpo.precisions import FP8_RECIPES
from tests.platform.machines import (
    EVERY_FP8,
    broken_engine,
    capabilities,
    machine,
    without_engine,
    without_gpu,
)

LIBCUDNN = "Transformer Engine is installed but does not import (ImportError: libcudnn.so.9: cannot"


def test_a_complete_hopper_machine() -> None:
    found = capabilities()
    assert found.device_type == "cuda"
    assert found.transformer_engine == found.gradient_fusion == Support(True)
    assert found.precisions == {"fp32", "bf16", "fp8_tensorwise", "fp8_blockwise"}
    assert found.optimizer == Finding("Transformer Engine FusedAdam")
    assert found.attention == dict.fromkeys(("flash", "fused", "unfused", "local"), Support(True))
    assert found.unusable is None


@pytest.mark.parametrize("precision", FP8_RECIPES)
def test_fp8_is_what_transformer_engine_itself_accepts(precision: str) -> None:
    """Compute capability alone said mxfp8 on 12.0 and blockwise under CUDA 12.8."""
    answers = {**EVERY_FP8, precision: Support(False, "its own words.")}
    newest = capabilities(compute_capability=(12, 0), fp8=answers)
    assert precision not in newest.precisions
    assert newest.why_not(precision) == (
        f"precision={precision} is refused by Transformer Engine: its own words."
    )
    accepted = capabilities(fp8={**EVERY_FP8, precision: Support(True)})
    assert accepted.why_not(precision) is None


@pytest.mark.parametrize("precision", FP8_RECIPES)
@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (without_gpu(), "this machine has no GPU, and the local layers would train unquantised"),
        (without_engine(), "Transformer Engine is not installed; install the gpu extra or use"),
        (broken_engine(), LIBCUDNN),
    ],
    ids=["no GPU", "no engine", "broken engine"],
)
def test_no_fp8_without_transformer_engine(found: Machine, reason: str, precision: str) -> None:
    made = capabilities_of(found)
    assert made.precisions == {"fp32", "bf16"}
    assert reason in str(made.why_not(precision))


def test_bf16_is_not_emulated() -> None:
    assert capabilities(compute_capability=(8, 0)).why_not("bf16") is None
    assert capabilities(compute_capability=(7, 5)).why_not("bf16") == (
        "precision=bf16 needs a GPU of compute capability 8.0 or newer; this one has 7.5 and would "
        "emulate it"
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (without_gpu(), "needs bitsandbytes' kernels on a GPU, and this machine has none"),
        (
            machine(bitsandbytes=ABSENT),
            "needs the package bitsandbytes, which is not installed: install nemo_gdpo with the "
            "extra qlora",
        ),
        (
            machine(bitsandbytes=Package(True, "OSError: libnvJitLink.so.13")),
            "needs bitsandbytes, which does not import (OSError: libnvJitLink.so.13)",
        ),
    ],
    ids=["no GPU", "absent", "broken"],
)
def test_what_four_bits_need(found: Machine, reason: str) -> None:
    assert capabilities().four_bit == Support(True)
    assert capabilities_of(found).four_bit == Support(False, reason)


def test_an_unknown_precision() -> None:
    assert capabilities_of(without_gpu()).why_not("fp16") == (
        "precision=fp16 is not one of bf16, fp32"
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (without_gpu(gradient_fusion=USABLE), "it is a CUDA kernel, and this machine has no GPU"),
        (
            machine(gradient_fusion=ABSENT),
            "NVIDIA Apex's extension fused_weight_gradient_mlp_cuda is not installed",
        ),
        (
            machine(gradient_fusion=Package(True, "ImportError: libc10.so")),
            "NVIDIA Apex's extension fused_weight_gradient_mlp_cuda does not import (ImportError: "
            "libc10.so)",
        ),
    ],
    ids=["no GPU", "absent", "broken"],
)
def test_gradient_fusion_needs_the_extension_itself(found: Machine, reason: str) -> None:
    """Transformer Engine and Apex's optimizers do not prove it: no model could be built."""
    assert capabilities_of(found).gradient_fusion == Support(False, reason)


@pytest.mark.parametrize(
    ("found", "value", "reason"),
    [
        (without_gpu(), "torch AdamW", "not installed; NVIDIA Apex's optimizers is not installed"),
        (without_engine(), "Apex FusedAdam", "Transformer Engine is not installed"),
        (
            without_engine(apex_optimizers=ABSENT),
            "torch AdamW",
            "Transformer Engine is not installed; NVIDIA Apex's optimizers is not installed",
        ),
    ],
    ids=["no GPU", "Apex", "neither"],
)
def test_the_optimizer_is_the_first_that_megatron_finds(
    found: Machine, value: str, reason: str
) -> None:
    made = capabilities_of(found).optimizer
    assert made.value == value
    assert reason in made.reason


def test_attention_back_ends_say_why_not() -> None:
    lacking = capabilities(
        flash_attention=Support(False, "no package"), compute_capability=(7, 5)
    ).attention
    assert lacking["flash"] == Support(False, "cannot run: no package")
    assert lacking["fused"] == Support(False, "needs a GPU of compute capability 8.0 or newer")
    assert lacking["unfused"].ok
    assert {b.reason for b in capabilities_of(without_engine()).attention.values()} == {
        "needs Transformer Engine's layers: Transformer Engine is not installed"
    }


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (broken_engine(), f"{LIBCUDNN} open shared object file); repair it, or uninstall"),
        (without_gpu(transformer_engine=Package(True, "RuntimeError: no CUDA")), "does not import"),
        (without_gpu(transformer_engine=USABLE), "torch finds no GPU"),
        (without_gpu(apex_optimizers=USABLE), "NVIDIA Apex is installed, but torch finds no GPU"),
        (
            without_engine(apex_optimizers=Package(True, "amp_C is not installed")),
            "NVIDIA Apex's optimizer, which is broken (amp_C is not installed); build Apex",
        ),
    ],
    ids=["broken", "broken without GPU", "no GPU", "Apex without GPU", "Apex without kernels"],
)
def test_an_environment_that_megatron_would_fail_in_is_named(found: Machine, told: str) -> None:
    problem = capabilities_of(found).unusable
    assert told in str(problem)
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    "found",
    [
        without_gpu(),
        without_engine(),
        machine(apex_optimizers=Package(True, "broken, but Transformer Engine's comes first")),
    ],
)
def test_what_is_merely_missing_is_no_fault(found: Machine) -> None:
    assert capabilities_of(found).unusable is None
