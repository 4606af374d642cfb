"""The head's kernels, as far as shapes go: Triton compiles them for a GPU that is not here.

What is done around them is the project's own: which tiles there are, the products, the collectives,
and the gradient that is added straight to the main one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.logprobs import MainGrad, chunked, kernels, tiles
from nemo_gdpo.models import forward
from tests.gpu_path.compiled.calls import CALLS

KERNELS = ("score", "gradient", "add_rows")


class _Kernel:
    """Stands for a compiled kernel."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            del options
            if min(grid) < 1:
                raise RuntimeError(f"grid {grid}")
            tensors = [x for x in args if isinstance(x, Tensor)]
            if len({x.device for x in tensors}) != 1:
                raise RuntimeError(f"{self.name}: {[x.device for x in tensors]}")
            CALLS[f"head {self.name}"] += 1

        return launch


def _is_bf16(hidden_TH: Tensor, weight_VH: Tensor) -> bool:
    return hidden_TH.dtype == weight_VH.dtype == torch.bfloat16


def _add_product(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    # torch 2.13 has no fake form of the `baddbmm` that takes bfloat16 and adds to float32.
    if (total_MN.dtype, left_MK.dtype, right_KN.dtype) != (torch.float32, *[torch.bfloat16] * 2):
        raise RuntimeError(f"{total_MN.dtype} += {left_MK.dtype} @ {right_KN.dtype}")
    total_MN.addmm_(left_MK.float(), right_KN.float())


def install() -> None:
    """Make the head take its way on a GPU, which it knows by a name that fake ones cannot have."""
    for name in KERNELS:
        assert name in vars(kernels)
        setattr(kernels, name, _Kernel(name))
    vars(tiles)["add_product"] = _add_product
    vars(chunked)["runs_in_tiles"] = _is_bf16
    vars(forward)["_main_grad"] = MainGrad.of
