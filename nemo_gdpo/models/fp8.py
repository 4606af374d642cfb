"""FP8 rounding in plain torch: numbers are scaled, rounded to FP8 and scaled back, in float32.

The recipes are those of Transformer Engine 2.12 (`common/recipe/__init__.py`):

- tensorwise, `Float8CurrentScaling`: one scale, of the tensor's own largest number, rounded down to
  a power of two, so that it moves nothing but the ends of the range.
- blockwise, `Float8BlockScaling`: powers of two for 1 x 128 numbers of an activation or gradient,
  along the dimension that the product sums over, and for 128 x 128 of a weight; E4M3 throughout.
- delayed, `DelayedScaling`: the scale of the largest number in the last 1024 passes.

All but blockwise have E4M3 forward and E5M2 for gradients. Shapes: T rows, K columns.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BLOCK = 128
HISTORY = 1024
"""Passes whose largest number counts, `DelayedScaling.amax_history_len`."""


class Quantizer(Protocol):
    """Rounds one operand of a linear layer: its input, its weight or its output's gradient."""

    def __call__(self, x_TK: Tensor, *, updates: bool) -> tuple[Tensor, Tensor]:
        """The numbers as FP8 holds them, for products that sum over K and over T; float32.

        Args:
            x_TK: the operand.
            updates: scales of later passes may depend on this one.
        """


def scale_of(amax: Tensor, dtype: torch.dtype, *, power_of_two: bool) -> Tensor:
    """What brings `amax` to the end of the range of `dtype`; 1 for 0, infinity and NaN.

    `compute_scale_from_amax` of Transformer Engine's recipe_common.cuh.
    """
    scale = (torch.finfo(dtype).max / amax).clamp_max(torch.finfo(torch.float32).max)
    if power_of_two:  # down: the mantissa is cut off
        scale = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - 1)
    return torch.where((amax > 0) & torch.isfinite(amax), scale, torch.ones_like(scale))


def rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as `dtype` holds them under a scale, float32; what is too large becomes the largest.

    Args:
        x: numbers of any type.
        scale: of the same shape, or one.
        dtype: of FP8.
    """
    top = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-top, top).to(dtype).float() * (1.0 / scale)


class Tensorwise:
    """One current scale for the whole tensor."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, x_TK: Tensor, *, updates: bool) -> tuple[Tensor, Tensor]:
        del updates
        amax = x_TK.abs().amax().float()
        found = rounded(x_TK, scale_of(amax, self._dtype, power_of_two=True), self._dtype)
        return found, found


def _in_blocks(x_TK: Tensor, block: tuple[int, int]) -> Tensor:
    """Rounded with a scale for each block; the last ones are smaller where need be."""
    rows, columns = x_TK.shape
    high, wide = (math.ceil(n / b) for n, b in zip((rows, columns), block, strict=True))
    padded = x_TK.new_zeros(high * block[0], wide * block[1], dtype=torch.float32)
    padded[:rows, :columns] = x_TK
    blocks = padded.view(high, block[0], wide, block[1])
    amax = blocks.abs().amax((1, 3), keepdim=True)
    scale = scale_of(amax, E4M3, power_of_two=True)
    return rounded(blocks, scale, E4M3).view_as(padded)[:rows, :columns]


class Blockwise:
    """A scale for every block: squares for a weight, else rows along what is summed over."""

    def __init__(self, *, square: bool) -> None:
        self._square = square

    def __call__(self, x_TK: Tensor, *, updates: bool) -> tuple[Tensor, Tensor]:
        del updates
        if self._square:
            found = _in_blocks(x_TK, (BLOCK, BLOCK))
            return found, found
        return _in_blocks(x_TK, (1, BLOCK)), _in_blocks(x_TK, (BLOCK, 1))


class Delayed:
    """The scale of the largest number in the last passes that had gradients, this one excluded.

    It starts at 1. A pass without gradients is rounded by the scale as it stands, and what it met
    counts once a pass with gradients comes, as in Transformer Engine's `FP8GlobalStateManager`.
    """

    def __init__(self, dtype: torch.dtype, group: dist.ProcessGroup | None) -> None:
        """Begin without a history.

        Args:
            dtype: E4M3 or E5M2.
            group: ranks that share the history; None: only this one.
        """
        self._dtype, self._group = dtype, group
        self.scale = torch.ones(())
        self._history = torch.zeros(HISTORY)
        self._met = torch.zeros(())
        self._passes = 0

    def __call__(self, x_TK: Tensor, *, updates: bool) -> tuple[Tensor, Tensor]:
        self.scale = self.scale.to(x_TK.device)
        found = rounded(x_TK, self.scale, self._dtype)
        self._met = torch.maximum(self._met.to(x_TK.device), x_TK.abs().amax().float())
        if updates:
            self._update()
        return found, found

    def _update(self) -> None:
        if self._group is not None and self._group.size() > 1:
            dist.all_reduce(self._met, op=dist.ReduceOp.MAX, group=self._group)
        self._history = self._history.to(self._met.device)
        self._history[self._passes % HISTORY] = self._met
        self._passes += 1
        amax = self._history.amax()
        new = scale_of(amax, self._dtype, power_of_two=False)
        self.scale = torch.where((amax > 0) & torch.isfinite(amax), new, self.scale)
        self._met = torch.zeros_like(self._met)
