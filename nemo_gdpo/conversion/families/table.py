"""The description of a model family that conversion works from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_gdpo.conversion.layouts import TensorMapping
from nemo_gdpo.conversion.model_config import MegatronModelConfig


@dataclass(frozen=True)
class Family:
    """Names, config reader and tensor table of a model family."""

    name: str
    model_type: str
    """`model_type` of config.json."""
    architectures: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], str], MegatronModelConfig]
    """(config.json, its path for errors) -> the architecture."""
    neutral: Mapping[str, tuple[Any, ...]]
    """Fields of config.json -> the values that change nothing; any other value is refused."""
    mappings: tuple[TensorMapping, ...]
    """Tensors of a model: those before the layers, those of one layer, those after them."""
    local_names: Mapping[str, str]
    """Parameter names of megatron's local layers, within a layer -> the names in `mappings`."""
    extra_states: tuple[str, ...]
    """Modules whose (empty) extra state megatron's layers of either kind look for; without it, a
    strict load fails."""
    derived: tuple[str, ...]
    """Endings of tensors that old files carry and that follow from the config; not converted."""
    foreign_tokens: frozenset[str] = frozenset()
    """Tokens that published tokenizers have beyond the embedding, for parts that this model lacks.
    Data in which one occurs is refused."""
