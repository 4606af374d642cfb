"""What a machine can do, concluded from what was found of it. Pure: nothing is looked at here."""

from __future__ import annotations

from nemo_gdpo.config.checks_layers import LAYERS
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.platform.base import Capabilities, Finding, Support
from nemo_gdpo.platform.machine import GRADIENT_FUSION_MODULE, Machine, Package
from nemo_gdpo.precisions import FP8_RECIPES

_BF16 = (8, 0)
"""Compute capability from which tensor cores take bfloat16; older GPUs emulate it."""
_INSTALL = "install the gpu extra or use the image"


def capabilities_of(machine: Machine) -> Capabilities:
    """What can be done on `machine`, with the reason for everything that cannot."""
    engine = _transformer_engine(machine)
    return Capabilities(
        device_type="cuda" if machine.gpus else "cpu",
        transformer_engine=engine,
        precision_support=_precisions(machine, engine),
        attention=_attention(machine, engine),
        gradient_fusion=_gradient_fusion(machine),
        four_bit=_four_bit(machine),
        optimizer=_optimizer(machine),
        unusable=_unusable(machine),
    )


def _unusable(machine: Machine) -> Problem | None:
    """What would end in megatron-core's own code: in the middle of an import, or in Adam."""
    engine, apex = machine.transformer_engine, machine.apex_optimizers
    if engine.failure:
        return Problem(
            LAYERS,
            f"Transformer Engine is installed but does not import ({engine.failure})",
            "repair it, or uninstall transformer-engine and what belongs to it",
        )
    if not machine.gpus and (engine.installed or apex.usable):
        whose = "Transformer Engine" if engine.installed else "NVIDIA Apex"
        return Problem(
            LAYERS,
            f"{whose} is installed, but torch finds no GPU, and megatron-core would take its "
            "optimizer, which is for one",
            f"use a machine with a GPU, or an environment without {whose}",
        )
    if not engine.installed and apex.failure:
        return Problem(
            "optim",
            f"megatron-core would take NVIDIA Apex's optimizer, which is broken ({apex.failure})",
            "build Apex with --cpp_ext and --cuda_ext, or uninstall it",
        )
    return None


def _transformer_engine(machine: Machine) -> Support:
    if machine.transformer_engine.failure:
        return Support(
            False,
            "Transformer Engine is installed but does not import "
            f"({machine.transformer_engine.failure})",
        )
    if not machine.gpus:
        return Support(False, "Transformer Engine needs a GPU, and this machine has none")
    if not machine.transformer_engine.installed:
        return Support(False, "Transformer Engine is not installed")
    return Support(True)


def _precisions(machine: Machine, engine: Support) -> dict[str, Support]:
    found = {"fp32": Support(True), "bf16": Support(True)}
    capability = machine.compute_capability
    if capability is not None and capability < _BF16:
        found["bf16"] = Support(
            False,
            "needs a GPU of compute capability 8.0 or newer; this one has "
            f"{capability[0]}.{capability[1]} and would emulate it",
        )
    return found | {precision: _fp8(machine, engine, precision) for precision in FP8_RECIPES}


def _fp8(machine: Machine, engine: Support, precision: str) -> Support:
    if not machine.gpus:
        return Support(
            False,
            "needs a GPU with FP8 tensor cores and Transformer Engine; this machine has no GPU, "
            "and the local layers would train unquantised without a word",
        )
    if not engine.ok:
        return Support(False, f"cannot run: {engine.reason}; {_INSTALL}")
    answer = machine.fp8[precision]
    return (
        answer
        if answer.ok
        else Support(False, f"is refused by Transformer Engine: {answer.reason}")
    )


def _attention(machine: Machine, engine: Support) -> dict[str, Support]:
    if not engine.ok:
        lacking = Support(False, f"needs Transformer Engine's layers: {engine.reason}")
        return dict.fromkeys(("flash", "fused", "unfused", "local"), lacking)
    fused = Support(True)
    if machine.compute_capability is not None and machine.compute_capability < _BF16:
        fused = Support(False, "needs a GPU of compute capability 8.0 or newer")
    flash = machine.flash_attention
    return {
        "flash": flash if flash.ok else Support(False, f"cannot run: {flash.reason}"),
        "fused": fused,
        "unfused": Support(True),
        "local": Support(True),
    }


def _gradient_fusion(machine: Machine) -> Support:
    """Whether megatron-core can be asked for `gradient_accumulation_fusion`.

    Transformer Engine's linear layers have such a kernel of their own. But GPTModel always makes
    its output layer of megatron's ColumnParallelLinear, which refuses the setting unless it could
    import Apex's extension (megatron/core/tensor_parallel/layers.py of 0.19.2).
    """
    if not machine.gpus:
        return Support(False, "it is a CUDA kernel, and this machine has no GPU")
    return _of_apex(machine.gradient_fusion, f"extension {GRADIENT_FUSION_MODULE}")


def _of_apex(package: Package, what: str) -> Support:
    if package.usable:
        return Support(True)
    if package.installed:
        return Support(False, f"NVIDIA Apex's {what} does not import ({package.failure})")
    return Support(False, f"NVIDIA Apex's {what} is not installed")


def _four_bit(machine: Machine) -> Support:
    """bitsandbytes also computes on a CPU, where nobody would train a model that needs it."""
    package = machine.bitsandbytes
    if not machine.gpus:
        return Support(False, "needs bitsandbytes' kernels on a GPU, and this machine has none")
    if package.failure:
        return Support(False, f"needs bitsandbytes, which does not import ({package.failure})")
    if not package.installed:
        return Support(
            False,
            "needs the package bitsandbytes, which is not installed: install nemo_gdpo with the "
            "extra qlora",
        )
    return Support(True)


def _optimizer(machine: Machine) -> Finding:
    """In the order of megatron/core/optimizer/__init__.py of 0.19.2, which takes what imports."""
    if machine.transformer_engine.usable:
        return Finding("Transformer Engine FusedAdam")
    missing = (
        f"Transformer Engine does not import ({machine.transformer_engine.failure})"
        if machine.transformer_engine.installed
        else "Transformer Engine is not installed"
    )
    apex = _of_apex(machine.apex_optimizers, "optimizers")
    if apex.ok:
        return Finding("Apex FusedAdam", missing)
    return Finding("torch AdamW", f"{missing}; {apex.reason}")
