"""The frozen base in four bits: NF4 of QLoRA (Dettmers et al. 2023, section 3), by bitsandbytes.

A linear layer of the spec is replaced by a subclass that gives its weight away once it is loaded,
for four bits a number and one float32 maximum for 64 of them. Every product makes the matrix anew,
in the precision of the run, forwards and backwards, and keeps nothing but the packed numbers.

The maxima are not quantised in their turn (QLoRA's double quantisation, 0.37 bits a weight): that
takes their mean over all of a matrix as it is stored, and the base would be another one on another
mesh. The 64 numbers lie side by side in a row of the matrix, so that a rank's part has the numbers
of the whole if its rows are a multiple of 64 long, which the checks of a configuration see to.

Communication is that of megatron's own column- and row-parallel layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from nemo_gdpo.models.lora import LAYERS
from nemo_gdpo.precisions import NF4_BLOCK


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in NF4. No parameter and no buffer: nothing casts, trains or saves it."""

    packed: Tensor
    """uint8, two numbers each."""
    state: Any
    """bitsandbytes' `QuantState`: maxima, shape and precision."""

    @classmethod
    def of(cls, weight_OH: Tensor) -> PackedMatrix:
        """Quantise a matrix, which is not needed afterwards."""
        # On GPUs only, and in no lock.
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            weight_OH.detach().contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
        )
        return cls(packed, state)

    def dense(self) -> Tensor:
        """The matrix, [O, H], in the precision that it had."""
        from bitsandbytes.functional import dequantize_4bit

        weight_OH: Tensor = dequantize_4bit(self.packed, self.state)
        return weight_OH


class FrozenProduct(torch.autograd.Function):
    """x W^T of a W that is not trained: only x has a gradient, so that x is not kept."""

    @staticmethod
    def forward(ctx: Any, x_SBH: Tensor, matrix: PackedMatrix) -> Tensor:
        """The product, [S, B, O]."""
        ctx.matrix = matrix
        return nn.functional.linear(x_SBH, matrix.dense())

    @staticmethod
    def backward(ctx: Any, gradient_SBO: Tensor) -> tuple[Tensor, None]:
        """That of x, with the matrix made once more."""
        return torch.matmul(gradient_SBO, ctx.matrix.dense()), None


def frozen_product(x_SBH: Tensor, matrix: PackedMatrix) -> Tensor:
    """`FrozenProduct`, [S, B, O]."""
    output_SBO: Tensor = FrozenProduct.apply(x_SBH, matrix)  # type: ignore[no-untyped-call]
    return output_SBO


def _around(*, is_column: bool, sequence_parallel: bool) -> Callable[..., Tensor]:
    """What a column-parallel layer does before its product, a row-parallel one after it."""
    if is_column:
        if sequence_parallel:
            return gather_from_sequence_parallel_region  # type: ignore[no-any-return]
        return copy_to_tensor_model_parallel_region  # type: ignore[no-any-return]
    if sequence_parallel:
        return reduce_scatter_to_sequence_parallel_region  # type: ignore[no-any-return]
    return reduce_from_tensor_model_parallel_region  # type: ignore[no-any-return]


def quantisable(linear: type[nn.Module], name: str) -> type[nn.Module]:
    """A linear layer of a spec whose weight can be quantised: as it was, until it is.

    Args:
        linear: megatron's or Transformer Engine's, column- or row-parallel, without a norm in it.
        name: a key of `LAYERS`.
    """
    is_column = LAYERS[name][1]

    class QuantisableLinear(linear):  # type: ignore[misc, valid-type]
        def __init__(
            self,
            input_size: int,
            output_size: int,
            *,
            config: Any,
            tp_group: Any,
            bias: bool,
            skip_bias_add: bool,
            **named: Any,
        ) -> None:
            super().__init__(
                input_size, output_size, config=config, tp_group=tp_group, bias=bias,
                skip_bias_add=skip_bias_add, **named,
            )  # fmt: skip
            self._matrix: PackedMatrix | None = None
            self._has_bias, self._gives_bias = bias, skip_bias_add
            self._around = _around(
                is_column=is_column, sequence_parallel=bool(config.sequence_parallel)
            )
            self._ranks = tp_group

        def quantise(self) -> None:
            """Replace the weight, which is let go."""
            self._matrix = PackedMatrix.of(self.get_parameter("weight"))
            self.weight = None

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            if self._matrix is None:
                whole: tuple[Tensor, Tensor | None] = super().forward(x)
                return whole
            if is_column:
                output = frozen_product(self._around(x, group=self._ranks), self._matrix)
            else:
                output = self._around(frozen_product(x, self._matrix), group=self._ranks)
            # Transformer Engine's layers have an empty tensor for a bias that is not there.
            bias = self.bias if self._has_bias else None
            if bias is None or self._gives_bias:
                return output, bias
            return output + bias, None

    QuantisableLinear.__name__ = f"Quantisable{linear.__name__}"
    return QuantisableLinear


def quantise(chunks: Iterable[Any]) -> None:
    """Quantise every linear layer of the decoder, one by one: memory falls as it goes.

    Args:
        chunks: megatron's GPT models of this rank, made of `quantisable` layers, with their
            weights.
    """
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for name, module in layer.named_modules():
                if name.rpartition(".")[2] in LAYERS:
                    module.quantise()
