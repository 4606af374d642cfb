"""The tensors of a decoder that all families share, as rows of their tables."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_gdpo.conversion.layouts import (
    GatedMLPMapping,
    HFTensor,
    QKVMapping,
    ReplicatedMapping,
    RowParallelMapping,
    TensorMapping,
    VocabMapping,
    untied,
)

MEGATRON = "decoder.layers.{layer}."
HF = "model.layers.{layer}."

EMBEDDING = VocabMapping(
    "embedding.word_embeddings.weight",
    (HFTensor("model.embed_tokens.weight", lambda c: (c.vocab_size, c.hidden_size)),),
)
QKV = QKVMapping(
    MEGATRON + "self_attention.linear_qkv.weight",
    (
        HFTensor(HF + "self_attn.q_proj.weight", lambda c: (c.query_size, c.hidden_size)),
        HFTensor(HF + "self_attn.k_proj.weight", lambda c: (c.key_value_size, c.hidden_size)),
        HFTensor(HF + "self_attn.v_proj.weight", lambda c: (c.key_value_size, c.hidden_size)),
    ),
)
QKV_BIAS = QKVMapping(
    MEGATRON + "self_attention.linear_qkv.bias",
    (
        HFTensor(HF + "self_attn.q_proj.bias", lambda c: (c.query_size,)),
        HFTensor(HF + "self_attn.k_proj.bias", lambda c: (c.key_value_size,)),
        HFTensor(HF + "self_attn.v_proj.bias", lambda c: (c.key_value_size,)),
    ),
)
PROJECTION = RowParallelMapping(
    MEGATRON + "self_attention.linear_proj.weight",
    (HFTensor(HF + "self_attn.o_proj.weight", lambda c: (c.hidden_size, c.query_size)),),
)
GATE_UP = GatedMLPMapping(
    MEGATRON + "mlp.linear_fc1.weight",
    (
        HFTensor(HF + "mlp.gate_proj.weight", lambda c: (c.ffn_hidden_size, c.hidden_size)),
        HFTensor(HF + "mlp.up_proj.weight", lambda c: (c.ffn_hidden_size, c.hidden_size)),
    ),
)
DOWN = RowParallelMapping(
    MEGATRON + "mlp.linear_fc2.weight",
    (HFTensor(HF + "mlp.down_proj.weight", lambda c: (c.hidden_size, c.ffn_hidden_size)),),
)
FINAL_NORM = ReplicatedMapping(
    "decoder.final_layernorm.weight",
    (HFTensor("model.norm.weight", lambda c: (c.hidden_size,)),),
)
OUTPUT = VocabMapping(
    "output_layer.weight",
    (HFTensor("lm_head.weight", lambda c: (c.vocab_size, c.hidden_size)),),
    condition=untied,
)


def layer_norm(megatron: str, hf: str) -> TensorMapping:
    """A norm of the hidden size in every layer, by the two names of its module."""
    tensor = HFTensor(f"{HF}{hf}.weight", lambda c: (c.hidden_size,))
    return ReplicatedMapping(f"{MEGATRON}{megatron}", (tensor,))


def head_norm(megatron: str, hf: str) -> TensorMapping:
    """A norm of the size of one head in every layer."""
    tensor = HFTensor(f"{HF}{hf}.weight", lambda c: (c.kv_channels,))
    return ReplicatedMapping(f"{MEGATRON}{megatron}.weight", (tensor,))


ATTENTION_NORM = "self_attention.linear_qkv.layer_norm_weight"
"""Norm before attention, under the name of Transformer Engine's fused layer."""
MLP_NORM = "mlp.linear_fc1.layer_norm_weight"
"""Norm before the MLP, likewise."""
POST_ATTENTION_NORM = "self_attention.linear_proj.post_layernorm"
POST_MLP_NORM = "mlp.linear_fc2.post_layernorm"
QUERY_NORM, KEY_NORM = "self_attention.q_layernorm", "self_attention.k_layernorm"

PRE_NORMS = (
    layer_norm(ATTENTION_NORM, "input_layernorm"),
    layer_norm(MLP_NORM, "post_attention_layernorm"),
)
"""Norms of families that normalise only the inputs of attention and MLP."""
PRE_AND_POST_NORMS = (
    layer_norm(ATTENTION_NORM, "input_layernorm"),
    layer_norm(f"{POST_ATTENTION_NORM}.weight", "post_attention_layernorm"),
    layer_norm(MLP_NORM, "pre_feedforward_layernorm"),
    layer_norm(f"{POST_MLP_NORM}.weight", "post_feedforward_layernorm"),
)
"""Norms of families that also normalise the outputs, where one Hugging Face name means another."""
HEAD_NORMS = (
    head_norm(QUERY_NORM, "self_attn.q_norm"),
    head_norm(KEY_NORM, "self_attn.k_norm"),
)

LOCAL_NAMES = {
    "input_layernorm.weight": ATTENTION_NORM,
    "pre_mlp_layernorm.weight": MLP_NORM,
}
"""Megatron's local layers keep norms apart; Transformer Engine's fuse them with the next linear."""


def decoder(norms: Sequence[TensorMapping], *further: TensorMapping) -> tuple[TensorMapping, ...]:
    """The table of a decoder.

    Args:
        norms: norms of each layer.
        further: other mappings of each layer, besides the five matrices.
    """
    layer = (*norms, QKV, *further, PROJECTION, GATE_UP, DOWN)
    return (EMBEDDING, *layer, FINAL_NORM, OUTPUT)


def extra_states(*further: str) -> tuple[str, ...]:
    """Modules with an (empty) extra state; `further` are modules of a layer."""
    names = (
        "self_attention.linear_qkv",
        "self_attention.core_attention",
        "self_attention.linear_proj",
        "mlp.linear_fc1",
        "mlp.linear_fc2",
        *further,
    )
    return (*(MEGATRON + name for name in names), "decoder.final_layernorm")
