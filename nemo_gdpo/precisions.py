"""What the values of the `precision` key mean: FP8 on hardware, or a rehearsal of it.

A rehearsal rounds the operands of linear layers to FP8 and multiplies them in float32. It shows
what FP8 does to a model and an objective, on any machine. It is not FP8: nothing in it is faster or
smaller, and no tensor core sums.
"""

from __future__ import annotations

FP8_RECIPES = {
    "fp8_tensorwise": "tensorwise",
    "fp8_blockwise": "blockwise",
    "fp8_mxfp8": "mxfp8",
}
"""Precision in FP8 on hardware -> Transformer Engine recipe (megatron `fp8_recipe`)."""
DELAYED = "fp8_rehearsal_delayed"
REHEARSALS = {
    DELAYED: "delayed",
    "fp8_rehearsal_tensorwise": "tensorwise",
    "fp8_rehearsal_blockwise": "blockwise",
}
"""Precision that rehearses FP8 -> the recipe whose rounding it has."""
REHEARSAL = "FP8 rehearsal"
"""What every log, card and checkpoint of one is labelled with."""
NF4_BLOCK = 64
"""Numbers of a matrix in NF4 that share one maximum (`lora.base_precision`)."""
DELAYED_IS_REFUSED = (
    "precision=fp8_delayed itself is refused: its scales come from past passes, so that policy and "
    "reference are quantised by different ones; this run shows what comes of that"
)
"""Said by a rehearsal of delayed scaling when it starts."""


def in_fp8(precision: str) -> bool:
    """Whether tensor cores multiply FP8; no rehearsal does."""
    return precision in FP8_RECIPES


def arithmetic(precision: str) -> str:
    """What weights, activations and sums are kept in; a rehearsal needs what fp32 needs.

    Args:
        precision: value of the `precision` key.
    """
    return "fp32" if precision in REHEARSALS else precision


def described(precision: str) -> str:
    """A precision in a log, a card or a checkpoint; a rehearsal is always called one."""
    if precision not in REHEARSALS:
        return precision
    return (
        f"{precision} ({REHEARSAL}: {REHEARSALS[precision]} scaling, operands of linear layers "
        "rounded to FP8 and multiplied in fp32; not FP8 on hardware)"
    )
