"""Llama 2, 3, 3.1, 3.2 and SmolLM2: pre-norm, RMSNorm, rotary, grouped queries, SwiGLU."""

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
    base, scaling = read_rope(fields)
    config = MegatronModelConfig(
        family="llama",
        rotary_base=base,
        rotary_scaling=scaling,
        **read_sizes(fields, default_positions=2048),
    )
    fields.refuse_unless_neutral(NEUTRAL)
    fields.refuse_unknown()
    return config


LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    read_config=read_llama_config,
    neutral=NEUTRAL,
    mappings=decoder(PRE_NORMS),
    local_names=LOCAL_NAMES,
    extra_states=extra_states(),
    derived=(".rotary_emb.inv_freq",),
)
