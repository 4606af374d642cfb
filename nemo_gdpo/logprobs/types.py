"""The result of the language-model head, and the checks of its arguments. T tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SelectedLogprobs(NamedTuple):
    """Two columns of one log-softmax, float32 (float64 for float64 inputs)."""

    label_T: Tensor
    """log p(label | prefix)."""
    eos_T: Tensor | None
    """log p(EOS | prefix); None when no EOS was asked for."""
    tempered_eos_T: Tensor | None
    """log softmax(z / temperature)[EOS], without gradient; `eos_T` itself at temperature 1."""


def check_arguments(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    all_rows: int,
    vocab_size: int | None,
    eos_id: int | None,
    eos_temperature: float,
    logit_softcap: float | None,
) -> int:
    """Refuse arguments that would give a wrong answer in silence.

    Args:
        all_rows: rows of the head on all ranks together.

    Returns:
        The true size of the vocabulary.

    Raises:
        ValueError: naming the argument.
    """
    if hidden_TH.dim() != 2 or weight_VH.dim() != 2 or hidden_TH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden {[*hidden_TH.shape]} and weight {[*weight_VH.shape]} are not [T, H] and [V, H]"
        )
    if labels_T.shape != hidden_TH.shape[:1]:
        raise ValueError(f"{hidden_TH.shape[0]} hidden states for labels {[*labels_T.shape]}")
    if not (math.isfinite(eos_temperature) and eos_temperature > 0):
        raise ValueError(f"eos_temperature must be positive and finite, not {eos_temperature}")
    if logit_softcap is not None and not (math.isfinite(logit_softcap) and logit_softcap > 0):
        raise ValueError(f"logit_softcap must be positive and finite, not {logit_softcap}")
    size = all_rows if vocab_size is None else vocab_size
    if not 0 < size <= all_rows:
        raise ValueError(f"vocab_size {size} does not fit the head's {all_rows} rows")
    if eos_id is not None and not 0 <= eos_id < size:
        raise ValueError(f"eos_id {eos_id} is not in the vocabulary of {size}")
    # A label of -100 that slipped through would otherwise count as a logit of 0.
    if labels_T.numel() and bool(((labels_T < 0) | (labels_T >= size)).any()):
        lowest, highest = int(labels_T.min()), int(labels_T.max())
        raise ValueError(
            f"labels run from {lowest} to {highest}, the vocabulary from 0 to {size - 1}"
        )
    return size


def wide_dtype(hidden_TH: Tensor, weight_VH: Tensor) -> torch.dtype:
    """Type of all arithmetic: float64 if an input has it, otherwise float32."""
    wide = torch.promote_types(hidden_TH.dtype, weight_VH.dtype)
    return torch.promote_types(wide, torch.float32)
