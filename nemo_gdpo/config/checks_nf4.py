"""Checks of a base in four bits: what it cannot go with, the machine, sizes of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_gdpo.config.checks_mesh import TP
from nemo_gdpo.config.checks_shapes import cut_sizes
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.world import Hardware
from nemo_gdpo.precisions import NF4_BLOCK, REHEARSALS, in_fp8

KEY = "lora.base_precision"
_TO_RUN = f"or {KEY}=run"


def check_nf4(
    config: RunConfig, world: Hardware | None, model_config: Mapping[str, Any] | None
) -> Iterator[Problem]:
    """Whatever keeps a base from being quantised as the configuration asks for.

    Args:
        config: of the run.
        world: the machine; None judges what the configuration says alone.
        model_config: config.json of the base; without it no sizes are judged.
    """
    if config.lora.rank is None or config.lora.base_precision != "nf4":
        return  # without adapters `check_lora` says that nothing reads it
    if in_fp8(config.precision) or config.precision in REHEARSALS:
        yield Problem(
            KEY,
            f"a matrix in nf4 is multiplied in bf16 or fp32, not in {config.precision}",
            "set precision=bf16, or it to run",
        )
    if config.reference == "resident":
        yield Problem(
            "reference",
            f"resident is a second copy of every weight, and {KEY}=nf4 keeps none in the "
            "precision of the run",
            f"set it to adapter_off, swap or cache, {_TO_RUN}",
        )
    if world is not None and world.four_bit_reason is not None:
        yield Problem(KEY, f"nf4 {world.four_bit_reason}", "set it to run")
    yield from _check_sizes(config, model_config or {})


def _check_sizes(config: RunConfig, model_config: Mapping[str, Any]) -> Iterator[Problem]:
    """Rows of a matrix that blocks do not fill: the base would be another one on another mesh."""
    tp, hidden = config.model.tensor_model_parallel_size, model_config.get("hidden_size")
    whole = f"nf4 quantises blocks of {NF4_BLOCK} numbers in a row, and the size of the model's"
    if isinstance(hidden, int) and hidden % NF4_BLOCK:
        yield Problem(KEY, f"{whole} hidden states is {hidden}", "set it to run")
    sizes = cut_sizes(dict(model_config))
    for name in ("FFN", "queries"):
        size = sizes.get(name)
        if size is None or size % (tp * NF4_BLOCK) == 0:
            continue
        if size % NF4_BLOCK:
            yield Problem(KEY, f"{whole} {name} is {size}", "set it to run")
            continue
        fitting = [str(n) for n in range(1, tp) if tp % n == 0 and size % (n * NF4_BLOCK) == 0]
        yield Problem(
            TP,
            f"{KEY}={whole} {name} is {size} / {tp} ranks",
            f"choose one of {', '.join(fitting)}, {_TO_RUN}",
        )
