"""Layer parts that megatron-core lacks: norms of outputs, a rope base for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor, nn


def with_post_norm(linear: type[nn.Module], norm: Callable[..., nn.Module]) -> type[nn.Module]:
    """A row-parallel linear layer whose output is normalised.

    It stands where a spec has `linear_proj` or `linear_fc2`, so that the norm comes before the
    addition to the residual stream; its weight is `post_layernorm.weight` in there.

    Args:
        linear: megatron's or Transformer Engine's row-parallel linear.
        norm: (config, hidden_size, eps) -> the norm.
    """

    class PostNormLinear(linear):  # type: ignore[misc, valid-type]
        def __init__(self, input_size: int, output_size: int, *, config: Any, **named: Any) -> None:
            super().__init__(input_size, output_size, config=config, **named)
            self.post_layernorm = norm(
                config=config, hidden_size=output_size, eps=config.layernorm_epsilon
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            output, bias = super().forward(x)
            if bias is not None:
                raise ValueError("a bias would have to be added before the norm: it is not built")
            return self.post_layernorm(output), None

    PostNormLinear.__name__ = f"PostNorm{linear.__name__}"
    return PostNormLinear


class LayerwiseRotaryAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention that picks its layer's half of `FamilyRotaryEmbedding`'s angles."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *arguments: Any,
        rotary_pos_emb: Tensor | None = None,
        **named: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As megatron's, with `rotary_pos_emb` [S, 1, 1, 2 * D]: unwindowed half, then windowed."""
        if rotary_pos_emb is None or rotary_pos_emb.shape[-1] != 2 * self.config.kv_channels:
            raise ValueError("the angles of both kinds of layers are needed")
        windowed = is_layer_window_attention(
            self.config.window_size, self.config.window_attn_skip_freq, self.layer_number
        )
        angles = rotary_pos_emb.chunk(2, dim=-1)[int(windowed)].contiguous()
        output: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, attention_mask, *arguments, rotary_pos_emb=angles, **named
        )
        return output


class ScaleEmbedding:
    """Forward hook of the embedding: its output times a factor, rounded to the output's type.

    A hook on the module's output leaves the weight alone, which a tied output layer shares.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, module: nn.Module, arguments: Any, output_SBH: Tensor) -> Tensor:
        """[S, B, H] -> [S, B, H]."""
        del module, arguments
        # As transformers: in bf16 the factor itself is rounded before it multiplies.
        return output_SBH * output_SBH.new_tensor(self._factor)


def with_gradient(module: nn.Module, arguments: Any, output_SBH: Tensor) -> Tensor:
    """Forward hook of a frozen embedding: its output takes part in the backward pass.

    A recomputed layer has gradients for its parameters only where one of its inputs has one.
    """
    del module, arguments
    return output_SBH.requires_grad_() if torch.is_grad_enabled() else output_SBH
