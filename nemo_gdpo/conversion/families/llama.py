"""Llama 2, 3, 3.1, 3.2 and SmolLM2: pre-norm, RMSNorm, rotary, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.conversion.families.fields import ConfigFields
from nemo_gdpo.conversion.families.rope import read_rope
from nemo_gdpo.conversion.families.table import Entry, Family, Kind, Part, untied
from nemo_gdpo.conversion.model_config import MegatronModelConfig

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),  # it would put a bias on the output projection too
    "attention_dropout": (0, None),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "is_llama_config": (True,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
}


def read_llama_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Llama config.json describes.

    Raises:
        UserError: a field is missing, unknown, inconsistent, or asks for arithmetic that is not
            built.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads")
    groups = fields.size("num_key_value_heads", heads)
    if heads % groups:
        raise fields.refuse(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}; restore "
            "the file"
        )
    if fields.optional("head_dim") is None and hidden % heads:
        raise fields.refuse(
            f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and head_dim is "
            "missing; restore the file"
        )
    base, scaling = read_rope(fields)
    config = MegatronModelConfig(
        family="llama",
        num_layers=fields.size("num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=fields.size("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=fields.size("head_dim", hidden // heads),
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings", 2048),
        rotary_base=base,
        rotary_scaling=scaling,
        layernorm_epsilon=fields.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
    )
    fields.refuse_unless_neutral(NEUTRAL)
    fields.refuse_unknown()
    return config


_MEGATRON = "decoder.layers.{layer}."
_HF = "model.layers.{layer}."

ENTRIES = (
    Entry(
        "embedding.word_embeddings.weight",
        Kind.VOCAB,
        (Part("model.embed_tokens.weight", lambda c: (c.vocab_size, c.hidden_size)),),
    ),
    Entry(
        _MEGATRON + "self_attention.linear_qkv.layer_norm_weight",
        Kind.NORM,
        (Part(_HF + "input_layernorm.weight", lambda c: (c.hidden_size,)),),
    ),
    Entry(
        _MEGATRON + "self_attention.linear_qkv.weight",
        Kind.QKV,
        (
            Part(_HF + "self_attn.q_proj.weight", lambda c: (c.query_size, c.hidden_size)),
            Part(_HF + "self_attn.k_proj.weight", lambda c: (c.key_value_size, c.hidden_size)),
            Part(_HF + "self_attn.v_proj.weight", lambda c: (c.key_value_size, c.hidden_size)),
        ),
    ),
    Entry(
        _MEGATRON + "self_attention.linear_proj.weight",
        Kind.ROW,
        (Part(_HF + "self_attn.o_proj.weight", lambda c: (c.hidden_size, c.query_size)),),
    ),
    Entry(
        _MEGATRON + "mlp.linear_fc1.layer_norm_weight",
        Kind.NORM,
        (Part(_HF + "post_attention_layernorm.weight", lambda c: (c.hidden_size,)),),
    ),
    Entry(
        _MEGATRON + "mlp.linear_fc1.weight",
        Kind.GATE_UP,
        (
            Part(_HF + "mlp.gate_proj.weight", lambda c: (c.ffn_hidden_size, c.hidden_size)),
            Part(_HF + "mlp.up_proj.weight", lambda c: (c.ffn_hidden_size, c.hidden_size)),
        ),
    ),
    Entry(
        _MEGATRON + "mlp.linear_fc2.weight",
        Kind.ROW,
        (Part(_HF + "mlp.down_proj.weight", lambda c: (c.hidden_size, c.ffn_hidden_size)),),
    ),
    Entry(
        "decoder.final_layernorm.weight",
        Kind.NORM,
        (Part("model.norm.weight", lambda c: (c.hidden_size,)),),
    ),
    Entry(
        "output_layer.weight",
        Kind.VOCAB,
        (Part("lm_head.weight", lambda c: (c.vocab_size, c.hidden_size)),),
        condition=untied,
    ),
)

LOCAL_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Megatron's local layers keep norms apart; Transformer Engine's fuse them with the next linear."""

EXTRA_STATES = (
    _MEGATRON + "self_attention.linear_qkv",
    _MEGATRON + "self_attention.core_attention",
    _MEGATRON + "self_attention.linear_proj",
    _MEGATRON + "mlp.linear_fc1",
    _MEGATRON + "mlp.linear_fc2",
    "decoder.final_layernorm",
)

LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    read_config=read_llama_config,
    entries=ENTRIES,
    local_names=LOCAL_NAMES,
    extra_states=EXTRA_STATES,
    derived=(".rotary_emb.inv_freq",),
)
