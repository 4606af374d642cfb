"""The stages in the order of running: from what everything stands on to what costs most."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.errors import UserError
from nemo_gdpo.gpu_check.findings import Measurement

StageFunction = Callable[[Path], Iterable[Measurement]]
"""Takes an empty folder of its own; yields measurements; raises `NotHereError` where it does not
apply."""


@dataclass(frozen=True)
class Stage:
    """One subject, run in processes of its own, so that a broken one takes nothing else along."""

    name: str
    summary: str
    limit_s: float
    """Seconds after which it is ended and counts as failed."""
    runs: str
    """`module:function` of a `StageFunction`."""
    arguments: tuple[str, ...] = ()
    """Passed to the function before the folder."""
    all_gpus: bool = False
    """One rank on every GPU of this machine instead of one rank; rank 0's measurements count."""

    def function(self) -> StageFunction:
        """The function, with `arguments` bound."""
        module, _, name = self.runs.partition(":")
        found: Callable[..., Iterable[Measurement]] = vars(importlib.import_module(module))[name]
        return lambda folder: found(*self.arguments, folder)


_HERE = "nemo_gdpo.gpu_check"

STAGES = (
    Stage("devices", "GPUs, libraries, memory, matrix products", 90, f"{_HERE}.devices:inventory"),
    Stage("nccl", "collectives over all GPUs", 90, f"{_HERE}.devices:collectives", all_gpus=True),
    Stage(
        "fp32", "local layers in fp32 against numbers of a CPU", 120, f"{_HERE}.layers:against_cpu"
    ),
    Stage("head", "time, memory and error of the head", 120, f"{_HERE}.head:kernel_speed"),
    Stage(
        "layers",
        "Transformer Engine's layers in bf16 against the local ones, by family",
        240,
        f"{_HERE}.layers:transformer_engine",
    ),
    Stage("packing", "packed against padded rows", 120, f"{_HERE}.layers:packing"),
    Stage("sharing", "shared prompts against padded rows", 120, f"{_HERE}.layers:sharing"),
    Stage("references", "cache, resident and swap", 120, f"{_HERE}.layers:references"),
    *(
        Stage(
            precision,
            f"{precision}: step 0, training, checkpoint, resume",
            120,
            f"{_HERE}.fp8:train_and_resume",
            (precision,),
        )
        for precision in ("fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")
    ),
    Stage("resume", "bf16: checkpoint and resume", 120, f"{_HERE}.fp8:train_and_resume", ("bf16",)),
    Stage(
        "shape_8b", "speed at the shape of Llama 3 8B, bf16 and FP8", 300, f"{_HERE}.shape:speed"
    ),
    Stage("batching", "speed of padded, packed and shared rows", 300, f"{_HERE}.batching:speed"),
    Stage(
        "parallel",
        "TP, PP, CP and DP over several GPUs against one",
        300,
        f"{_HERE}.parallel:against_one",
        all_gpus=True,
    ),
)


def selected(names: str | None) -> tuple[Stage, ...]:
    """All stages, or those of a list with commas.

    Raises:
        UserError: there is no such stage.
    """
    if names is None:
        return STAGES
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {stage.name for stage in STAGES}
    for name in wanted:
        if name not in known:
            raise UserError(
                f"doctor --gpu: --only {name}: there is no such stage; known: "
                f"{', '.join(stage.name for stage in STAGES)}"
            )
    return tuple(stage for stage in STAGES if stage.name in wanted)
