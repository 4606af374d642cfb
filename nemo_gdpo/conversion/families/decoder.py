"""Fields of config.json that all supported decoders share: sizes, heads, vocabulary."""

from __future__ import annotations

from typing import Any

from nemo_gdpo.conversion.families.fields import ConfigFields


def read_sizes(
    fields: ConfigFields,
    *,
    default_head_dim: int | None = None,
    default_groups: int | None = None,
    default_positions: int,
    tied_by_default: bool = False,
) -> dict[str, Any]:
    """Arguments of `MegatronModelConfig` that every family reads in the same way.

    Args:
        fields: of config.json.
        default_head_dim: where the file names none; None is hidden size over heads.
        default_groups: key-value heads, likewise; None is as many as query heads.
        default_positions: the longest sequence, likewise.
        tied_by_default: whether the output layer is the embedding, likewise.

    Raises:
        UserError: a field is missing, or two do not go together.
    """
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads")
    groups = fields.size("num_key_value_heads", default_groups or heads)
    if heads % groups:
        raise fields.error(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; "
            "restore the file"
        )
    if fields.optional("head_dim") is None and default_head_dim is None and hidden % heads:
        raise fields.error(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim "
            "is missing; restore the file"
        )
    return {
        "num_layers": fields.size("num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": fields.size("intermediate_size"),
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": fields.size("head_dim", default_head_dim or hidden // heads),
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": fields.size("max_position_embeddings", default_positions),
        "layernorm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", tied_by_default),
    }
