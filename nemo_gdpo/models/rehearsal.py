"""Rehearsal of FP8: linear layers of megatron whose operands are rounded to FP8, on any machine.

Input, weight and the output's gradient are rounded as a recipe of Transformer Engine has it (see
`nemo_gdpo.models.fp8`), and multiplied in float32, so that rounding to FP8 is all that differs from
`precision=fp32`. The layers are those that `CudaPlatform` has in FP8: all in the transformer but
the first and the last one; embedding and head are left.

Under tensor parallelism a rank rounds its own part of a weight with its own scale, as Transformer
Engine does. What sequence parallelism cut is gathered first: the scale is that of the whole, for
which Transformer Engine reduces the largest numbers over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_gdpo.models.fp8 import E4M3, E5M2, Blockwise, Delayed, Quantizer, Tensorwise


@dataclass(frozen=True)
class Operands:
    """What rounds the three operands of one linear layer."""

    input: Quantizer
    weight: Quantizer
    gradient: Quantizer


def operands_of(recipe: str) -> Operands:
    """What rounds one layer's operands.

    Args:
        recipe: `"tensorwise"`, `"blockwise"` or `"delayed"`.
    """
    if recipe == "tensorwise":
        return Operands(Tensorwise(E4M3), Tensorwise(E4M3), Tensorwise(E5M2))
    if recipe == "blockwise":
        return Operands(Blockwise(square=False), Blockwise(square=True), Blockwise(square=False))
    group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    return Operands(Delayed(E4M3, group), Delayed(E4M3, group), Delayed(E5M2, group))


class _Product(torch.autograd.Function):
    """Input [..., K] times weight [N, K], both rounded; and the two products of its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_NK: Tensor, operands: Operands, updates: bool
    ) -> Tensor:
        x_TK = x.reshape(-1, x.shape[-1])
        x_along_K, x_along_T = operands.input(x_TK, updates=updates)
        weight, _ = operands.weight(weight_NK, updates=updates)
        ctx.save_for_backward(weight, *((x_along_T,) if weight_NK.requires_grad else ()))
        ctx.operands, ctx.shape = operands, x.shape
        product = x_along_K @ weight.T
        return product.view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, *x_along_T = ctx.saved_tensors
        gradient_TN = gradient.reshape(-1, gradient.shape[-1])
        along_N, along_T = ctx.operands.gradient(gradient_TN, updates=True)
        of_input = (along_N @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        of_weight = along_T.T @ x_along_T[0] if x_along_T else None
        return of_input, of_weight, None, None


class RehearsedProduct:
    """Stands for the `_forward_impl` of a parallel linear layer of megatron."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands

    def __call__(
        self,
        *,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any,
        **_: Any,
    ) -> Tensor:
        """Input [S, B, K] -> output [S, B, N] of this rank; `linear` with megatron's arguments."""
        assert not gradient_accumulation_fusion
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=tp_group
            )
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            input, weight, self._operands, torch.is_grad_enabled()
        )
        return output if bias is None else output + bias


def rehearse_fp8(gpt: GPTModel, recipe: str, num_layers: int) -> None:
    """Round the operands of all linear layers of a chunk but those of the first and last layer.

    Args:
        gpt: built of local layers.
        recipe: see `operands_of`.
        num_layers: of the whole model.
    """
    for layer in gpt.decoder.layers:
        if not 1 < layer.layer_number < num_layers:
            continue
        for module in layer.modules():
            if isinstance(module, ColumnParallelLinear | RowParallelLinear):
                module._forward_impl = RehearsedProduct(operands_of(recipe))
