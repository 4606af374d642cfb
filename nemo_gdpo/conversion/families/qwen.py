"""Qwen 2 and 2.5 (biases on query, key and value) and Qwen 3 (norms on query and key heads)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.conversion.families.blocks import (
    HEAD_NORMS,
    KEY_NORM,
    LOCAL_NAMES,
    PRE_NORMS,
    QKV_BIAS,
    QUERY_NORM,
    decoder,
    extra_states,
)
from nemo_gdpo.conversion.families.decoder import read_sizes
from nemo_gdpo.conversion.families.fields import ConfigFields
from nemo_gdpo.conversion.families.rope import read_rope
from nemo_gdpo.conversion.families.table import Family
from nemo_gdpo.conversion.families.windows import read_layer_windows
from nemo_gdpo.conversion.model_config import MegatronModelConfig

_BOTH: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0, None),
    "hidden_act": ("silu", "swish"),
    "use_mrope": (False,),
}
QWEN2_NEUTRAL = _BOTH
QWEN3_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **_BOTH,
    "attention_bias": (False,),  # it would put a bias on the output projection too
}
_WINDOW, _MAX_WINDOW_LAYERS = 4096, 28  # transformers' own, where a file says nothing


def _windows(fields: ConfigFields, layers: int) -> list[int | None] | None:
    """`use_sliding_window` decides; the first `max_window_layers` layers see everything."""
    window = fields.number_or_none("sliding_window", _WINDOW)
    used = fields.flag("use_sliding_window", False)
    first = fields.optional("max_window_layers")
    start = _MAX_WINDOW_LAYERS if first is None else int(first)
    return read_layer_windows(
        fields,
        layers,
        int(window) if used and window is not None else None,
        lambda layer: used and window is not None and layer >= start,
    )


def read_qwen2_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Qwen 2 or 2.5 config.json describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling = read_rope(fields)
    sizes = read_sizes(fields, default_positions=32768)
    config = MegatronModelConfig(
        family="qwen2",
        rotary_base=base,
        rotary_scaling=scaling,
        attention_bias=True,
        layer_windows=_windows(fields, sizes["num_layers"]),
        **sizes,
    )
    fields.refuse_unless_neutral(QWEN2_NEUTRAL)
    fields.refuse_unknown()
    return config


def read_qwen3_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Qwen 3 config.json describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling = read_rope(fields)
    sizes = read_sizes(fields, default_head_dim=128, default_positions=32768)
    config = MegatronModelConfig(
        family="qwen3",
        rotary_base=base,
        rotary_scaling=scaling,
        qk_norms=True,
        layer_windows=_windows(fields, sizes["num_layers"]),
        **sizes,
    )
    fields.refuse_unless_neutral(QWEN3_NEUTRAL)
    fields.refuse_unknown()
    return config


QWEN2 = Family(
    name="qwen2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    read_config=read_qwen2_config,
    neutral=QWEN2_NEUTRAL,
    mappings=decoder(PRE_NORMS, QKV_BIAS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(),
    derived=(".rotary_emb.inv_freq",),
)
QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    read_config=read_qwen3_config,
    neutral=QWEN3_NEUTRAL,
    mappings=decoder(PRE_NORMS, *HEAD_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(QUERY_NORM, KEY_NORM),
    derived=(".rotary_emb.inv_freq",),
)
