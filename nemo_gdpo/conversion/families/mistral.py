"""Mistral 7B and its kin: Llama's layers, with a window on all of them or on none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_gdpo.conversion.families.blocks import LOCAL_NAMES, PRE_NORMS, decoder, extra_states
from nemo_gdpo.conversion.families.decoder import read_sizes
from nemo_gdpo.conversion.families.fields import ConfigFields
from nemo_gdpo.conversion.families.rope import read_rope
from nemo_gdpo.conversion.families.table import Family
from nemo_gdpo.conversion.model_config import MegatronModelConfig

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0, None),
    "hidden_act": ("silu", "swish"),
}
_WINDOW = 4096  # transformers' own, where a file says nothing


def read_mistral_config(values: Mapping[str, Any], where: str) -> MegatronModelConfig:
    """The architecture that a Mistral config.json describes.

    Raises:
        UserError: as `read_llama_config`.
    """
    fields = ConfigFields(values, where)
    fields.refuse_quantized()
    base, scaling = read_rope(fields)
    sizes = read_sizes(fields, default_groups=8, default_positions=4096 * 32)
    fields.optional("sliding_window")
    has_window = "sliding_window" not in values or values["sliding_window"] is not None
    window = fields.size("sliding_window", _WINDOW) if has_window else None
    config = MegatronModelConfig(
        family="mistral",
        rotary_base=base,
        rotary_scaling=scaling,
        layer_windows=[window] * sizes["num_layers"] if window else None,
        **sizes,
    )
    fields.refuse_unless_neutral(NEUTRAL)
    fields.refuse_unknown()
    return config


MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    read_config=read_mistral_config,
    neutral=NEUTRAL,
    mappings=decoder(PRE_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(),
    derived=(".rotary_emb.inv_freq",),
)
