"""A small description of a model and its TransformerConfig, without any process group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.models import builder  # installs the platform before megatron comes in
from nemo_gdpo.platform import current_platform

MODEL = MegatronModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=101,
    max_position_embeddings=128,
    rotary_base=10000.0,
    layernorm_epsilon=1e-5,
)


class OneRank:
    """A group of one, for modules that only ask for its size."""

    @staticmethod
    def size() -> int:
        return 1

    @staticmethod
    def rank() -> int:
        return 0


class Groups:
    """Stands for megatron's collection of process groups."""

    cp = OneRank()


def transformer_config(precision: str = "fp32", **changes: Any) -> Any:
    """megatron's configuration of `MODEL` with fields changed."""
    layout = builder.ParallelLayout(**changes.pop("layout", {}))
    made = builder.transformer_config(
        replace(MODEL, **changes), layout, precision, current_platform()
    )
    return made
