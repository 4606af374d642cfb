"""Rotary frequencies for every rope scaling that is supported, from the model's description."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError


def _llama3(inv_freq: Tensor, scaling: dict[str, float]) -> Tensor:
    """Llama 3.1: long wavelengths stretched by `factor`, short ones kept, a ramp in between."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    turns = original * inv_freq / (2 * math.pi)  # rotations within the original context
    ramp = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inv_freq * (ramp + (1 - ramp) / factor)


def inverse_frequencies(model: MegatronModelConfig) -> Tensor:
    """Angular frequency of each rotated pair of dimensions, float32 [kv_channels / 2].

    Raises:
        UserError: the model's rope scaling is of a type that is not built.
    """
    exponents = torch.arange(0, model.kv_channels, 2, dtype=torch.float32) / model.kv_channels
    inv_freq: Tensor = 1.0 / (model.rotary_base**exponents)
    scaling = model.rotary_scaling
    if scaling is None:
        return inv_freq
    kind = scaling["rope_type"]
    if kind == "default":
        return inv_freq
    if kind == "linear":
        stretch: float = scaling["factor"]
        return inv_freq / stretch
    if kind == "llama3":
        return _llama3(inv_freq, scaling)
    raise UserError(
        f"rope scaling type {kind} of the model is not supported; supported: default, linear, "
        "llama3"
    )
