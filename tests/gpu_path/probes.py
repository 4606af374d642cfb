"""What single layers of Transformer Engine do: the facts that the project's own rules rest on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LARGE = 256
"""A size that every recipe takes."""


def _recipes() -> dict[str, tuple[Any, tuple[int, int]]]:
    from transformer_engine.common.recipe import (
        Float8BlockScaling,
        Float8CurrentScaling,
        MXFP8BlockScaling,
    )

    return {
        "fp8_tensorwise": (Float8CurrentScaling(), (9, 0)),
        "fp8_blockwise": (Float8BlockScaling(), (9, 0)),
        "fp8_mxfp8": (MXFP8BlockScaling(), (10, 0)),
    }


def _accepts(recipe: Any, tokens: int, hidden: int, features: int, *, split: bool) -> bool:
    """Whether an MLP of two linear layers takes these sizes of a rank, forward and backward."""
    import transformer_engine.pytorch as te

    cut: dict[str, Any] = {"bias": False, "params_dtype": torch.bfloat16}
    if split:
        world = dist.group.WORLD
        cut |= {"tp_group": world, "tp_size": dist.get_world_size(), "sequence_parallel": True}
    whole = features * (dist.get_world_size() if split else 1)
    column = {"parallel_mode": "column"} if split else {}
    row = {"parallel_mode": "row"} if split else {}
    up = te.LayerNormLinear(hidden, whole, normalization="RMSNorm", **cut, **column)
    down = te.Linear(whole, hidden, **cut, **row)
    x = torch.randn(tokens, 1, hidden, dtype=torch.bfloat16, requires_grad=True)
    try:
        with te.fp8_autocast(enabled=True, fp8_recipe=recipe):
            y: Tensor = down(up(x))
        y.float().sum().backward()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        assert any(word in str(error) for word in _SHAPE_WORDS), error
        return False
    return True


_SHAPE_WORDS = (
    "FP8 execution requires",
    "All-gather requires quantizable",
    "Caller must pad",
    "Incorrect shape",
)
"""What Transformer Engine, or the stand-in in cuBLAS' place, says of a shape."""


def multiples() -> dict[str, Any]:
    """Recipe and split -> dimension -> the sizes that are accepted while all others are large."""
    from nemo_gdpo.platform import current_platform
    from nemo_gdpo.training.mesh import join_world, leave_world
    from tests.gpu_path import gpu, worlds

    gpu.become((9, 0))
    worlds.begin()
    join_world(current_platform(), timeout_minutes=2)
    found: dict[str, Any] = {}
    for name, (recipe, capability) in _recipes().items():
        gpu.become(capability)
        for split in (False, True):
            found[f"{name} {'split' if split else 'whole'}"] = {
                dimension: [
                    size
                    for size in SIZES
                    if _accepts(recipe, **{**_ALL_LARGE, dimension: size}, split=split)
                ]
                for dimension in _ALL_LARGE
            }
    leave_world()
    return found


_ALL_LARGE = {"tokens": LARGE, "hidden": LARGE, "features": LARGE}


def own_reference() -> dict[str, Any]:
    """How far a layer is from what it gave before training, on the same weights and inputs.

    That is what a cached reference is compared with at step 0. `error` is that of the cached
    result itself against the product in float32.
    """
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import DelayedScaling, Float8CurrentScaling

    from tests.gpu_path import gpu

    gpu.become((9, 0))
    found: dict[str, Any] = {}
    for name, recipe in (("delayed", DelayedScaling()), ("current", Float8CurrentScaling())):
        layer = te.Linear(64, 64, bias=False)
        x = (torch.randn(32, 64) * 1e-3).requires_grad_()

        def apply(layer: Any = layer, x: Tensor = x, recipe: Any = recipe) -> Tensor:
            with te.fp8_autocast(enabled=True, fp8_recipe=recipe):
                result: Tensor = layer(x)
            return result

        with torch.no_grad():
            cached, exact = apply(), x @ layer.weight.T
        apply().sum().backward()  # type: ignore[no-untyped-call]
        gap = apply().detach() - cached
        found[name] = {
            "gap": float(gap.norm() / exact.norm()),
            "error": float((cached - exact).norm() / exact.norm()),
        }
    return found


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "multiples": multiples,
    "own reference": own_reference,
}
