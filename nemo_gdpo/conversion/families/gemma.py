"""Gemma 1, 2 and 3 (text): scaled embeddings, zero-centred norms, GELU; soft-caps, windows.

What each has beyond the one before: Gemma 2 norms of the outputs, soft-caps of scores and logits,
its own scale of queries, a window on every other layer; Gemma 3 norms of query and key heads, a
second rope base for the layers with a window, five of those to one without, and no soft-caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.conversion.families.blocks import (
    HEAD_NORMS,
    KEY_NORM,
    LOCAL_NAMES,
    POST_ATTENTION_NORM,
    POST_MLP_NORM,
    PRE_AND_POST_NORMS,
    PRE_NORMS,
    QUERY_NORM,
    decoder,
    extra_states,
)
from nemo_gdpo.conversion.families.decoder import read_sizes
from nemo_gdpo.conversion.families.fields import ConfigFields
from nemo_gdpo.conversion.families.rope import read_rope, read_two_ropes
from nemo_gdpo.conversion.families.table import Family
from nemo_gdpo.conversion.families.windows import read_layer_windows
from nemo_gdpo.conversion.model_config import MegatronModelConfig

_ALL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "use_bidirectional_attention": (False, None),
}
_GELU = ("gelu_pytorch_tanh",)
GEMMA_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_ALL,
    # The first release said "gelu" and meant the tanh formula; transformers takes it so.
    "hidden_act": ("gelu", *_GELU),
    "hidden_activation": (None, *_GELU),
}
GEMMA2_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_ALL,
    "cache_implementation": ("hybrid", None),
    "hidden_act": _GELU,
    "hidden_activation": _GELU,
    "sliding_window_size": (4096,),  # an older name that transformers no longer reads
}
GEMMA3_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_ALL,
    # transformers has the field and does not apply it to this model.
    "attn_logit_softcapping": (None,),
    "cache_implementation": ("hybrid", None),
    "hidden_act": _GELU,
    "hidden_activation": _GELU,
}
_HEAD_DIM, _QUERY_SCALAR, _WINDOW, _PATTERN = 256, 256.0, 4096, 6
_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0


def _common(fields: ConfigFields, *, groups: int, positions: int) -> dict[str, Any]:
    sizes = read_sizes(
        fields,
        default_head_dim=_HEAD_DIM,
        default_groups=groups,
        default_positions=positions,
        tied_by_default=True,
    )
    return {
        **sizes,
        "activation": "gelu_tanh",
        "zero_centered_norms": True,
        "embedding_scale": sizes["hidden_size"] ** 0.5,
    }


def _window(fields: ConfigFields) -> int | None:
    window = fields.number_or_none("sliding_window", _WINDOW)
    return None if window is None else int(window)


def read_gemma_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Gemma 1 config.json describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling = read_rope(fields)
    config = MegatronModelConfig(
        family="gemma",
        rotary_base=base,
        rotary_scaling=scaling,
        **_common(fields, groups=16, positions=8192),
    )
    fields.refuse_unless_neutral(GEMMA_NEUTRAL)
    fields.refuse_unknown()
    return config


def read_gemma2_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Gemma 2 config.json describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling = read_rope(fields)
    common = _common(fields, groups=4, positions=8192)
    config = MegatronModelConfig(
        family="gemma2",
        rotary_base=base,
        rotary_scaling=scaling,
        softmax_scale=fields.number("query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        attention_softcap=fields.number_or_none("attn_logit_softcapping", 50.0),
        logit_softcap=fields.number_or_none("final_logit_softcapping", 30.0),
        layer_windows=read_layer_windows(
            fields, common["num_layers"], _window(fields), lambda layer: layer % 2 == 0
        ),
        post_norms=True,
        **common,
    )
    fields.refuse_unless_neutral(GEMMA2_NEUTRAL)
    fields.refuse_unknown()
    return config


def _pattern(fields: ConfigFields) -> int:
    """Every n-th layer sees everything; a file that transformers 5 wrote has an underscore."""
    found = {
        fields.optional(name) for name in ("sliding_window_pattern", "_sliding_window_pattern")
    }
    numbers = found - {None}
    if len(numbers) > 1:
        raise fields.error("sliding_window_pattern and _sliding_window_pattern differ")
    return int(numbers.pop()) if numbers else _PATTERN


def read_gemma3_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that the config.json of a Gemma 3 text model describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling, local_base = read_two_ropes(fields, _BASE, _LOCAL_BASE)
    common = _common(fields, groups=4, positions=131_072)
    pattern = _pattern(fields)
    config = MegatronModelConfig(
        family="gemma3_text",
        rotary_base=base,
        rotary_scaling=scaling,
        local_rotary_base=local_base,
        softmax_scale=fields.number("query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        logit_softcap=fields.number_or_none("final_logit_softcapping", None),
        layer_windows=read_layer_windows(
            fields, common["num_layers"], _window(fields), lambda layer: (layer + 1) % pattern != 0
        ),
        qk_norms=True,
        post_norms=True,
        **common,
    )
    fields.refuse_unless_neutral(GEMMA3_NEUTRAL)
    fields.refuse_unknown()
    return config


GEMMA = Family(
    name="gemma",
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    read_config=read_gemma_config,
    neutral=GEMMA_NEUTRAL,
    mappings=decoder(PRE_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(),
    derived=(".rotary_emb.inv_freq",),
)
GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    read_config=read_gemma2_config,
    neutral=GEMMA2_NEUTRAL,
    mappings=decoder(PRE_AND_POST_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(POST_ATTENTION_NORM, POST_MLP_NORM),
    derived=(".rotary_emb.inv_freq",),
)
GEMMA3_TEXT = Family(
    name="gemma3_text",
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    read_config=read_gemma3_config,
    neutral=GEMMA3_NEUTRAL,
    mappings=decoder(PRE_AND_POST_NORMS, *HEAD_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(POST_ATTENTION_NORM, POST_MLP_NORM, QUERY_NORM, KEY_NORM),
    derived=(".rotary_emb.inv_freq",),
    # The multimodal models' tokenizer comes with the text models, too, whose embedding ends before.
    foreign_tokens=frozenset({"<image_soft_token>"}),
)
