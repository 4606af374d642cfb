"""Reading config.json of every family: nothing that changes the arithmetic is overlooked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.families import FAMILIES, read_hf_config
from nemo_gdpo.conversion.families.fields import IRRELEVANT, NEUTRAL
from nemo_gdpo.conversion.formats.tokenizer_size import check_tokenizer_fits
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError
from tests.support import models

KINDS = {
    "llama": "llama_llama3",
    "mistral": "mistral",
    "qwen2": "qwen2_windows",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_untied",
}
"""Family -> the model of the zoo whose fields are changed one by one."""
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 777.0}
MAPPED: dict[str, Any] = {
    "vocab_size": 77,
    "hidden_size": 128,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 20,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": None,  # the other one
    "rope_parameters": LINEAR,
    "sliding_window": 9,
    "use_sliding_window": None,
    "max_window_layers": 3,
    "layer_types": ["full_attention"] * 3 + ["sliding_attention"],
    "query_pre_attn_scalar": 20,
    "attn_logit_softcapping": 9.0,
    "final_logit_softcapping": 9.0,
    "_sliding_window_pattern": 2,
}
"""Field -> another value that has to arrive somewhere, where the family has the field."""
WITHOUT_TYPES = (
    "num_hidden_layers",
    "max_window_layers",
    "_sliding_window_pattern",
    "use_sliding_window",
)
"""Matter, or are possible, only where the file does not name the layers' types."""


def values_of(family: str) -> dict[str, Any]:
    changes = WINDOWED if family == "qwen3" else {}
    values = models.configuration(KINDS[family], **changes).to_dict()
    values["architectures"] = list(FAMILIES[family].architectures)
    return dict(values)


def read(family: str, values: dict[str, Any]) -> MegatronModelConfig:
    return FAMILIES[family].read_config(values, "config.json")


def own_fields(family: str) -> set[str]:
    config = models.KINDS[KINDS[family]].config
    inherited = {field.name for field in dataclasses.fields(PretrainedConfig)}
    return {field.name for field in dataclasses.fields(config)} - inherited


def test_every_family_is_here() -> None:
    assert KINDS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_transformers_is_dealt_with(family: str) -> None:
    """A field that transformers adds fails here until somebody has looked at it."""
    known = MAPPED.keys() | FAMILIES[family].neutral.keys() | NEUTRAL.keys() | IRRELEVANT
    every = own_fields(family) | models.KINDS[KINDS[family]].config().to_dict().keys()
    assert sorted(every - known) == []


@pytest.mark.parametrize(
    ("family", "field"),
    [
        (family, field)
        for family in FAMILIES
        for field in MAPPED
        if field in values_of(family) and field not in FAMILIES[family].neutral
    ],
)
def test_a_mapped_field_changes_the_description(family: str, field: str) -> None:
    values = values_of(family)
    if field in WITHOUT_TYPES:
        values.pop("layer_types", None)
    value = (not values[field]) if MAPPED[field] is None else MAPPED[field]
    if field == "rope_parameters" and family == "gemma3_text":
        value = {**values[field], "full_attention": LINEAR}
    assert read(family, values | {field: value}) != read(family, values)


def test_the_window_of_the_second_rope_is_mapped() -> None:
    values = values_of("gemma3_text")
    parts = dict(values["rope_parameters"])
    parts["sliding_attention"] = {"rope_type": "default", "rope_theta": 55.0}
    assert read("gemma3_text", values | {"rope_parameters": parts}).local_rotary_base == 55.0
    parts["sliding_attention"] = LINEAR
    with pytest.raises(UserError, match="sliding_attention has a scaling"):
        read("gemma3_text", values | {"rope_parameters": parts})


NEUTRAL_CASES = [(family, field) for family in FAMILIES for field in FAMILIES[family].neutral]


@pytest.mark.parametrize(("family", "field"), NEUTRAL_CASES)
def test_any_other_value_of_a_neutral_field_is_refused(family: str, field: str) -> None:
    values = values_of(family)
    for value in FAMILIES[family].neutral[field]:
        assert read(family, values | {field: value}) == read(family, values)
    with pytest.raises(UserError, match=rf"config\.json: {field} is 'something'.*not supported"):
        read(family, values | {field: "something"})


@pytest.mark.parametrize(
    ("family", "field"),
    [(f, field) for f in FAMILIES for field in sorted(own_fields(f) & IRRELEVANT)],
)
def test_an_irrelevant_field_changes_no_logit(family: str, field: str) -> None:
    config = models.configuration(KINDS[family])
    before = config.to_dict()[field]
    value = (not before) if isinstance(before, bool) else 0.5 if isinstance(before, float) else 7
    model = models.build(KINDS[family])
    other = AutoModelForCausalLM.from_config(
        models.configuration(KINDS[family], **{field: value}), attn_implementation="eager"
    ).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(models.tokens()).logits, other(models.tokens()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_and_quantised_are_refused(family: str) -> None:
    with pytest.raises(UserError, match="unknown fields logit_scale"):
        read(family, values_of(family) | {"logit_scale": 2.0})
    with pytest.raises(UserError, match="quantised"):
        read(family, values_of(family) | {"quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize("family", [f for f in FAMILIES if "layer_types" in values_of(f)])
def test_layer_types_that_are_not_built_are_refused(family: str) -> None:
    values = values_of(family)
    with pytest.raises(UserError, match="chunked_attention; supported: full_attention"):
        read(family, values | {"layer_types": ["chunked_attention"] * 4})
    with pytest.raises(UserError, match="types of 4 layers"):
        read(family, values | {"layer_types": ["full_attention"]})


def test_the_multimodal_gemma_3_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(UserError, match=r"'gemma3' is not supported \(it is the multimodal model"):
        read_hf_config(tmp_path)


_BIAS_FREE = {"attention_bias": False, "attention_dropout": 0.0}
_LLAMA3 = _BIAS_FREE | {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 128000, "hidden_act": "silu",
    "initializer_range": 0.02, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 128256,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2-7b-hf": {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
        "vocab_size": 32000,
    },
    "Meta-Llama-3-8B": _LLAMA3 | {
        "eos_token_id": 128001, "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 8192, "num_hidden_layers": 32, "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "Llama-3.1-8B-Instruct": _LLAMA3 | {
        "eos_token_id": [128001, 128008, 128009], "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "num_hidden_layers": 32,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "tie_word_embeddings": False,
    },
    "Llama-3.2-1B-Instruct": _LLAMA3 | {
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "num_hidden_layers": 16,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 32768,
    },
    "Qwen2.5-7B-Instruct": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
        "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
        "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen3-8B": {
        **_BIAS_FREE, "architectures": ["Qwen3ForCausalLM"], "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 40960,
        "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "gemma-2b": {
        **_BIAS_FREE, "architectures": ["GemmaForCausalLM"], "bos_token_id": 2, "eos_token_id": 1,
        "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma",
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 256000,
    },
    "gemma-2-9b": {
        **_BIAS_FREE, "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
        "torch_dtype": "float32", "use_cache": True, "vocab_size": 256000,
    },
    "gemma-3-1b-it": {
        **_BIAS_FREE, "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 262144,
    },
}  # fmt: skip
"""Published models, in the form that was current when they came out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_reads_as_transformers_takes_it(name: str, tmp_path: Path) -> None:
    """As it lies on the hub, and as transformers 5 writes it again."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = read_hf_config(tmp_path)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert read_hf_config(tmp_path) == config


def test_what_the_published_files_say(tmp_path: Path) -> None:
    found = {}
    for name, values in PUBLISHED.items():
        (tmp_path / "config.json").write_text(json.dumps(values))
        found[name] = read_hf_config(tmp_path)
    assert found["Llama-2-7b-hf"].num_query_groups == 32
    assert found["Meta-Llama-3-8B"].rotary_scaling is None
    for name, factor in (("Llama-3.1-8B-Instruct", 8.0), ("Llama-3.2-1B-Instruct", 32.0)):
        scaling = found[name].rotary_scaling
        assert scaling is not None
        assert (scaling["rope_type"], scaling["factor"]) == ("llama3", factor)
        assert found[name].rotary_base == 500000.0
    assert found["Llama-3.2-1B-Instruct"].tie_word_embeddings
    assert found["Mistral-7B-v0.1"].layer_windows == [4096] * 32
    assert found["Mistral-7B-v0.3"].layer_windows is None
    assert found["Qwen2.5-7B-Instruct"].layer_windows is None
    assert found["Qwen2.5-7B-Instruct"].attention_bias
    assert found["Qwen3-8B"].qk_norms
    assert not found["Qwen3-8B"].attention_bias
    gemma = found["gemma-2b"]
    assert (gemma.activation, gemma.tie_word_embeddings) == ("gelu_tanh", True)
    assert gemma.embedding_scale == pytest.approx(45.254834)
    gemma2 = found["gemma-2-9b"]
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    assert gemma2.softmax_scale == 0.0625
    assert gemma2.layer_windows == [4096, None] * 21
    gemma3 = found["gemma-3-1b-it"]
    assert (gemma3.rotary_base, gemma3.local_rotary_base) == (1e6, 1e4)
    assert gemma3.layer_windows == ([512] * 5 + [None]) * 4 + [512] * 2
    assert (gemma3.attention_softcap, gemma3.logit_softcap) == (None, None)


def test_gemma_3_comes_with_a_token_of_the_multimodal_models(tmp_path: Path) -> None:
    """gemma-3-1b-it: 262144 rows, and <image_soft_token> is 262144."""
    config = read("gemma3_text", values_of("gemma3_text"))
    tokens = {"version": "1.0", "model": {"vocab": {"a": 0}}}
    file = tmp_path / "tokenizer.json"
    image = {"id": config.vocab_size, "content": "<image_soft_token>"}
    file.write_text(json.dumps({**tokens, "added_tokens": [image]}))
    check_tokenizer_fits(tmp_path, ModelBridge(config))
    with pytest.raises(UserError, match="<image_soft_token>"):
        check_tokenizer_fits(tmp_path, ModelBridge(read("gemma2", values_of("gemma2"))))
    other = {"id": config.vocab_size, "content": "<other>"}
    file.write_text(json.dumps({**tokens, "added_tokens": [image, other]}))
    with pytest.raises(UserError, match="the last is '<other>'"):
        check_tokenizer_fits(tmp_path, ModelBridge(config))
