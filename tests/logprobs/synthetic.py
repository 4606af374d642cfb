"""Random heads, and the two forms' values and gradients side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_gdpo.logprobs import SelectedLogprobs


@dataclass(frozen=True)
class Inputs:
    """A head and the tokens it scores, with weights for a scalar loss of both columns."""

    hidden_TH: Tensor
    weight_VH: Tensor
    labels_T: Tensor
    label_factor_T: Tensor
    eos_factor_T: Tensor


def random_inputs(
    tokens: int = 11,
    rows: int = 24,
    width: int = 5,
    *,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Logits of a few units; labels below `vocab_size`, the first and last id among them."""
    generator = torch.Generator().manual_seed(seed)
    size = rows if vocab_size is None else vocab_size

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, size, (tokens,), generator=generator)
    labels[:2] = torch.tensor([0, size - 1])[:tokens]
    return Inputs(
        (2.0 * draw(tokens, width)).to(dtype),
        draw(rows, width).to(dtype),
        labels,
        draw(tokens),
        draw(tokens),
    )


def evaluate(
    scorer: Callable[..., SelectedLogprobs], inputs: Inputs, **options: object
) -> tuple[SelectedLogprobs, Tensor, Tensor]:
    """(result, hidden gradient, weight gradient) of the weighted sum of both columns."""
    hidden = inputs.hidden_TH.clone().requires_grad_()
    weight = inputs.weight_VH.clone().requires_grad_()
    result = scorer(hidden, weight, inputs.labels_T, **options)
    loss = (result.label_T * inputs.label_factor_T).sum()
    if result.eos_T is not None:
        loss = loss + (result.eos_T * inputs.eos_factor_T).sum()
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return result, hidden.grad, weight.grad
