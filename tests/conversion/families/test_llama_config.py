"""Reading a Llama config.json: what is mapped, what is refused, and that nothing is overlooked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

from nemo_gdpo.conversion.families import read_hf_config
from nemo_gdpo.conversion.families.fields import IRRELEVANT
from nemo_gdpo.conversion.families.fields import NEUTRAL as NEUTRAL_EVERYWHERE
from nemo_gdpo.conversion.families.llama import NEUTRAL, read_llama_config
from nemo_gdpo.conversion.model_config import MegatronModelConfig, padded_vocab_size
from nemo_gdpo.errors import UserError
from tests.conversion.conftest import LLAMA3_ROPE, SHAPE, build

BASE: dict[str, Any] = {
    **SHAPE,
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_theta": 10000.0,
}
# Each field that is mapped: another value, and where it has to arrive.
MAPPED: dict[str, tuple[Any, str, Any]] = {
    "vocab_size": (77, "vocab_size", 77),
    "hidden_size": (64, "hidden_size", 64),
    "intermediate_size": (80, "ffn_hidden_size", 80),
    "num_hidden_layers": (3, "num_layers", 3),
    "num_attention_heads": (8, "num_attention_heads", 8),
    "num_key_value_heads": (1, "num_query_groups", 1),
    "head_dim": (16, "kv_channels", 16),
    "max_position_embeddings": (256, "max_position_embeddings", 256),
    "rms_norm_eps": (1e-3, "layernorm_epsilon", 1e-3),
    "tie_word_embeddings": (True, "tie_word_embeddings", True),
    "rope_parameters": (
        LLAMA3_ROPE,
        "rotary_scaling",
        {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"},
    ),
}


def read(**changes: Any) -> MegatronModelConfig:
    return read_llama_config(BASE | changes, "config.json")


@pytest.mark.parametrize("field", MAPPED)
def test_mapped_field_arrives(field: str) -> None:
    value, name, wanted = MAPPED[field]
    values = {k: v for k, v in BASE.items() if k != "rope_theta"}
    config = read_llama_config(values | {field: value}, "config.json")
    assert getattr(config, name) == wanted
    assert getattr(read(), name) != wanted


def test_every_llama_field_of_transformers_is_dealt_with() -> None:
    """A field that transformers adds fails here until somebody has looked at it."""
    known = MAPPED.keys() | NEUTRAL.keys() | NEUTRAL_EVERYWHERE.keys() | IRRELEVANT
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    assert sorted((fields | LlamaConfig().to_dict().keys()) - known) == []


def test_no_field_is_in_two_lists() -> None:
    lists = [set(MAPPED), set(NEUTRAL), set(NEUTRAL_EVERYWHERE), set(IRRELEVANT)]
    assert sum(map(len, lists)) == len(set.union(*lists))


OWN_IRRELEVANT = sorted(
    {f.name for f in dataclasses.fields(LlamaConfig)}
    - {f.name for f in dataclasses.fields(PretrainedConfig)}
    - MAPPED.keys()
    - NEUTRAL.keys()
)


@pytest.mark.parametrize("field", OWN_IRRELEVANT)
def test_irrelevant_field_changes_no_logit(field: str) -> None:
    values = {"use_cache": False, "initializer_range": 0.5}
    value = values.get(field, 5)
    assert field in IRRELEVANT
    tokens = torch.arange(9)[None]
    model = build()
    other = LlamaForCausalLM(LlamaConfig(**(SHAPE | {field: value}))).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("hidden_act", "gelu"),
        ("mlp_bias", True),
        ("pretraining_tp", 2),
        ("rope_interleaved", True),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("is_encoder_decoder", True),
    ],
)
def test_unsupported_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {field} is .*not supported"):
        read(**{field: value})


def test_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="unknown fields logit_scale"):
        read(logit_scale=2.0)


def test_quantised_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match="quantised"):
        read(quantization_config={"quant_method": "gptq"})


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_missing_size_is_refused(field: str) -> None:
    values = {k: v for k, v in BASE.items() if k != field}
    with pytest.raises(UserError, match=f"{field} is missing"):
        read_llama_config(values, "config.json")


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4"])
def test_size_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"num_hidden_layers is .* instead of a positive integer"):
        read(num_hidden_layers=value)


def test_heads_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="not a multiple of num_key_value_heads 3"):
        read(num_key_value_heads=3)


def test_old_file_has_transformers_defaults() -> None:
    """Llama 1 files have neither KV heads nor a head size nor a rope base."""
    values = {
        k: v for k, v in BASE.items() if k not in ("num_key_value_heads", "head_dim", "rope_theta")
    }
    config = read_llama_config(values, "config.json")
    assert (config.num_query_groups, config.kv_channels, config.rotary_base) == (4, 8, 10000.0)


def test_smollm2_file() -> None:
    config = read_llama_config(
        {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False,
            "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": 576, "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192,
            "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9,
            "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
            "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {}},
            "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
        },
        "config.json",
    )  # fmt: skip
    assert config.kv_channels == 64
    assert (config.rotary_base, config.rotary_scaling) == (100000.0, None)


SCALINGS = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "truncate": False,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_of_transformers_4_and_5_read_the_same(name: str) -> None:
    scaling = SCALINGS[name]
    base = {k: v for k, v in BASE.items() if k != "rope_theta"}
    old = read_llama_config(base | {"rope_theta": 5e5, "rope_scaling": scaling}, "old")
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": 5e5}
    new = read_llama_config(base | {"rope_parameters": parameters}, "new")
    assert old == new
    assert (new.rotary_base, new.rotary_scaling) == (5e5, scaling)


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_as_transformers_writes_it(name: str, tmp_path: Path) -> None:
    parameters = {"rope_type": "default", **(SCALINGS[name] or {}), "rope_theta": 5e5}
    hf = LlamaConfig(**SHAPE, rope_parameters=parameters, architectures=["LlamaForCausalLM"])
    hf.save_pretrained(tmp_path)
    config = read_hf_config(tmp_path)
    assert (config.rotary_base, config.rotary_scaling) == (5e5, SCALINGS[name])


def test_oldest_name_of_the_rope_type_is_read() -> None:
    config = read(rope_scaling={"type": "linear", "factor": 2.0})
    assert config.rotary_scaling == {"rope_type": "linear", "factor": 2.0}


def test_yarn_without_an_original_length_takes_the_models_own() -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "attention_factor": None}
    assert read(rope_scaling=scaling).rotary_scaling == {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 128,
    }


@pytest.mark.parametrize("kind", ["longrope", "su", "mrope"])
@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_unknown_rope_type_is_named(kind: str, form: str) -> None:
    values = {k: v for k, v in BASE.items() if k != "rope_theta"}
    with pytest.raises(UserError, match=f"rope type {kind} "):
        read_llama_config(values | {form: {"rope_type": kind, "factor": 2.0}}, "config.json")


def test_rope_without_one_of_its_numbers_is_refused() -> None:
    scaling = dict(SCALINGS["llama3"] or {})
    del scaling["low_freq_factor"]
    with pytest.raises(UserError, match="low_freq_factor"):
        read(rope_scaling=scaling)


def test_contradicting_rope_is_refused() -> None:
    with pytest.raises(UserError, match="rope_theta is 10000"):
        read(rope_parameters={"rope_type": "default", "rope_theta": 5e5})


def test_wrong_family_and_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(BASE | {"model_type": "mamba"}))
    with pytest.raises(UserError, match="model_type 'mamba' is not supported; supported: llama"):
        read_hf_config(tmp_path)
    file.write_text(json.dumps(BASE | {"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(UserError, match="architecture LlamaForSequenceClassification"):
        read_hf_config(tmp_path)


def test_config_survives_json_and_refuses_what_it_does_not_know() -> None:
    config = read(rope_scaling=SCALINGS["llama3"])
    values = json.loads(json.dumps(config.to_dict()))
    assert MegatronModelConfig.from_dict(values, "x") == config
    with pytest.raises(UserError, match="unknown fields"):
        MegatronModelConfig.from_dict(values | {"logit_scale": 30.0}, "x")
    with pytest.raises(UserError, match="lacks the fields"):
        MegatronModelConfig.from_dict({k: v for k, v in values.items() if k != "family"}, "x")
    with pytest.raises(UserError, match="num_layers is '2'"):
        MegatronModelConfig.from_dict(values | {"num_layers": "2"}, "x")


@pytest.mark.parametrize(
    ("vocab", "divisible", "tp", "padded"),
    [(101, 128, 1, 128), (128, 128, 1, 128), (129, 128, 2, 256), (49152, 128, 4, 49152)],
)
def test_padded_vocabulary(vocab: int, divisible: int, tp: int, padded: int) -> None:
    assert padded_vocab_size(vocab, divisible, tp) == padded
