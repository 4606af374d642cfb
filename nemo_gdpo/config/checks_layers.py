"""Which layers and attention kernels a run is built of, against precision, machine, environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.world import Hardware
from nemo_gdpo.precisions import REHEARSALS, arithmetic, in_fp8

LAYERS = "model.layers"
BACKEND = "model.attention_backend"
VARIABLES = {
    "NVTE_FLASH_ATTN": "flash",
    "NVTE_FUSED_ATTN": "fused",
    "NVTE_UNFUSED_ATTN": "unfused",
}
"""Transformer Engine's variables -> the back end that each allows (1) or forbids (0)."""
BACKENDS = ("auto", *VARIABLES.values(), "local")
SCALING = "NVTE_APPLY_QK_LAYER_SCALING"


def contradiction(layers: str, precision: str) -> Problem | None:
    """Why no machine can compute in `precision` with `layers`, or None where some can.

    Args:
        layers: value of `model.layers`.
        precision: value of `precision`.
    """
    if layers == "local" and in_fp8(precision):
        return Problem(
            LAYERS,
            f"local ones would train unquantised without a word, not in {precision}",
            "set it to auto, or precision=bf16",
        )
    if layers == "transformer_engine" and precision in REHEARSALS:
        return Problem(
            LAYERS,
            f"{precision} rounds the operands of the local layers; those of Transformer Engine "
            "multiply in FP8 themselves, with precision=fp8_... on a GPU that has it",
            "set it to auto",
        )
    if layers == "transformer_engine" and precision == "fp32":
        return Problem(
            LAYERS,
            "Transformer Engine multiplies fp32 in TF32, with 10 bits of mantissa instead of 23",
            "set it to auto, which takes the local layers for fp32, or precision=bf16",
        )
    return None


def check_layers(config: RunConfig, world: Hardware | None) -> Iterator[Problem]:
    """Layers that the precision or the machine excludes."""
    found = contradiction(config.model.layers, config.precision)
    if found is None and world is not None and arithmetic(config.precision) in world.precisions:
        # A precision that is not to be had is named by `check_precision`.
        found = world.layers_problem
    if found is not None:
        yield found


def _uses_local_layers(config: RunConfig, world: Hardware | None) -> bool:
    """True once it is certain; without a machine it can be open."""
    if world is not None:
        return world.layers == "local"
    return config.model.layers == "local" or arithmetic(config.precision) == "fp32"


def check_attention_backend(config: RunConfig, world: Hardware | None) -> Iterator[Problem]:
    """A back end that nothing would read, or that the machine lacks."""
    backend = config.model.attention_backend
    if backend == "auto":
        return
    if _uses_local_layers(config, world):
        yield Problem(
            BACKEND,
            f"{backend} would not be read: this run is built of the local layers, which have one "
            "core attention",
            "set it to auto",
        )
    elif world is not None and world.attention_reason is not None:
        yield Problem(BACKEND, f"{backend} {world.attention_reason}", "set it to auto")


def expected_variables(backend: str) -> dict[str, str]:
    """The values that megatron-core sets for `backend`, and asserts where one is exported.

    `LanguageModule._set_attention_backend` of 0.19.2 does so for every model, whatever its layers.
    """
    return {name: str(int(backend in ("auto", kind))) for name, kind in VARIABLES.items()}


def check_attention_variables(
    config: RunConfig, world: Hardware, environ: Mapping[str, str]
) -> Iterator[Problem]:
    """Variables of Transformer Engine that were exported and say something else than the run."""
    backend = config.model.attention_backend
    wrong = [
        f"{name}={environ[name]}"
        for name, value in expected_variables(backend).items()
        if environ.get(name, value) != value
    ]
    if wrong:
        fitting = [b for b in BACKENDS if expected_variables(b).items() >= _exported(environ)]
        other = f", or set it to {fitting[0]}" if fitting else ""
        yield Problem(
            BACKEND,
            f"{backend} contradicts {', '.join(wrong)} in the environment",
            f"unset {', '.join(name.partition('=')[0] for name in wrong)}{other}",
        )
    if world.layers != "local" and environ.get(SCALING, "0") != "0":
        yield Problem(
            LAYERS,
            f"{SCALING}={environ[SCALING]} is in the environment, which would scale the scores of "
            "attention by layer",
            f"unset {SCALING}",
        )


def _exported(environ: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name, environ[name]) for name in VARIABLES if name in environ}
