"""Rotary embeddings of every supported model, from its description."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError


def _plain(base: float, size: int) -> Tensor:
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    inv_freq: Tensor = 1.0 / (base**exponents)
    return inv_freq


def _llama3(inv_freq: Tensor, scaling: dict[str, float]) -> Tensor:
    """Llama 3.1: long wavelengths stretched by `factor`, short ones kept, a ramp in between."""
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    turns = original * inv_freq / (2 * math.pi)  # rotations within the original context
    ramp = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inv_freq * (ramp + (1 - ramp) / factor)


def _dynamic(model: MegatronModelConfig, factor: float, length: int) -> Tensor:
    """Dynamic NTK: a larger base for sequences beyond the model's own length."""
    own, size = model.max_position_embeddings, model.kv_channels
    stretch = factor * max(length, own) / own - (factor - 1)
    return _plain(model.rotary_base * stretch ** (size / (size - 2)), size)


def _yarn(model: MegatronModelConfig, scaling: dict[str, Any]) -> Tensor:
    """YaRN (Peng et al. 2023, section 3.2): by rotations within the original context, as Llama 3,
    with a ramp over the index of the dimension rather than over the rotations."""
    size, base = model.kv_channels, model.rotary_base
    original = scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The index that turns so often within the original context."""
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first = dimension(scaling.get("beta_fast", 32.0))
    last = dimension(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    index = torch.arange(size // 2, dtype=torch.float32)
    stretched = ((index - first) / (last - first)).clamp(0.0, 1.0)
    inv_freq = _plain(base, size)
    factor = float(scaling["factor"])
    return inv_freq * (1 - stretched) + inv_freq / factor * stretched


def _yarn_temperature(scale: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0


def attention_factor(model: MegatronModelConfig) -> float:
    """Factor by which YaRN multiplies rotated queries and keys; 1 for every other scaling.

    Its square is a factor of the attention scores, where the builder puts it.
    """
    scaling = model.rotary_scaling
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    factor = scaling["factor"]
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        above = _yarn_temperature(factor, scaling["mscale"])
        return above / _yarn_temperature(factor, scaling["mscale_all_dim"])
    return _yarn_temperature(factor)


def inverse_frequencies(model: MegatronModelConfig, length: int = 0) -> Tensor:
    """Angular frequency of each rotated pair of dimensions, float32 [kv_channels / 2].

    Args:
        model: the description.
        length: positions of the longest sequence; only the dynamic scaling depends on it.

    Raises:
        UserError: the model's rope scaling is of a type that is not built.
    """
    scaling = model.rotary_scaling
    kind = "default" if scaling is None else scaling["rope_type"]
    inv_freq = _plain(model.rotary_base, model.kv_channels)
    if scaling is None or kind == "default":
        return inv_freq
    if kind == "linear":
        stretch = float(scaling["factor"])
        return _plain(model.rotary_base, model.kv_channels) / stretch
    if kind == "dynamic":
        return _dynamic(model, scaling["factor"], length)
    if kind == "llama3":
        return _llama3(inv_freq, scaling)
    if kind == "yarn":
        return _yarn(model, scaling)
    raise UserError(
        f"rope scaling type {kind} of the model is not supported; supported: default, linear, "
        "dynamic, llama3, yarn"
    )


class FamilyRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]
    """Angles for every scaling alike, where megatron's own has one with hard-coded numbers.

    With a second base for windowed layers, the angles of both lie side by side in the last
    dimension, [S, 1, 1, 2 * kv_channels]; `LayerwiseRotaryAttention` takes its layer's half.
    """

    def __init__(self, model: MegatronModelConfig, cp_group: Any) -> None:
        """Args: the model's description; the context-parallel group, or None."""
        super().__init__(
            kv_channels=model.kv_channels,
            rotary_percent=1.0,
            use_cpu_initialization=True,
            cp_group=cp_group,
        )
        self._model = model

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of positions `offset`, `offset` + 1, ..., before context parallelism."""
        device = torch.cuda.current_device()
        tables = [inverse_frequencies(self._model, offset + max_seq_len)]
        if self._model.local_rotary_base is not None:
            tables.append(_plain(self._model.local_rotary_base, self._model.kv_channels))
        positions = torch.arange(max_seq_len, dtype=torch.float32) + offset
        angles = [torch.outer(positions, table) for table in tables]
        return torch.cat([a for half in angles for a in (half, half)], dim=-1)[:, None, None, :].to(
            device
        )
