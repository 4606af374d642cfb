"""Filling live parameters, with a stand-in that has megatron's parameter names and shard shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.formats.hf_source import open_hf
from nemo_gdpo.conversion.live import load_hf_into_model
from tests.conversion.conftest import ModelMaker
from tests.conversion.test_layouts import named_module

LAYER = {
    "input_layernorm.weight": (32,),
    "self_attention.linear_qkv.weight": (48, 32),
    "self_attention.linear_proj.weight": (32, 24),
    "pre_mlp_layernorm.weight": (32,),
    "mlp.linear_fc1.weight": (48, 32),
    "mlp.linear_fc2.weight": (32, 24),
}
"""One layer on one of two tensor-parallel ranks."""


def last_stage(layer: dict[str, tuple[int, ...]] = LAYER) -> torch.nn.Module:
    """Layer 1 of 2, the final norm and the output layer (112 padded rows over 2 ranks)."""
    return named_module(
        {
            **{f"decoder.layers.0.{name}": shape for name, shape in layer.items()},
            "decoder.final_layernorm.weight": (32,),
            "output_layer.weight": (56, 32),
        }
    )


def load(model: torch.nn.Module, source: Path) -> None:
    bridge = ModelBridge.from_hf(source)
    opened = open_hf(source, bridge)
    load_hf_into_model(model, opened, bridge, layer_offset=1, tp_rank=1, tp_size=2)


@pytest.mark.parametrize("tied", [True, False])
def test_last_pipeline_stage_second_tensor_rank(make_model: ModelMaker, tied: bool) -> None:
    source = make_model(tie_word_embeddings=tied)
    hf = load_file(source / "model.safetensors")
    model = last_stage()
    load(model, source)
    own = dict(model.named_parameters())
    layer = "model.layers.1."
    assert not any(p.isnan().any() for p in own.values())
    assert torch.equal(
        own["decoder.layers.0.mlp.linear_fc1.weight"],
        torch.cat([hf[layer + "mlp.gate_proj.weight"][24:], hf[layer + "mlp.up_proj.weight"][24:]]),
    )
    assert torch.equal(
        own["decoder.layers.0.self_attention.linear_proj.weight"],
        hf[layer + "self_attn.o_proj.weight"][:, 24:],
    )
    assert torch.equal(
        own["decoder.layers.0.pre_mlp_layernorm.weight"],
        hf[layer + "post_attention_layernorm.weight"],
    )
    head = hf["model.embed_tokens.weight" if tied else "lm_head.weight"]
    assert torch.equal(own["output_layer.weight"][:45], head[56:])
    assert torch.count_nonzero(own["output_layer.weight"][45:]) == 0


def test_values_are_cast_to_the_parameters_type(make_model: ModelMaker) -> None:
    source = make_model()
    model = last_stage().bfloat16()
    load(model, source)
    hf = load_file(source / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.get_parameter("decoder.final_layernorm.weight"), hf.bfloat16())


def test_an_unknown_parameter_is_an_error(make_model: ModelMaker) -> None:
    model = last_stage(LAYER | {"self_attention.linear_qkv.bias": (48,)})
    with pytest.raises(
        RuntimeError,
        match=r"layers\.0\.self_attention\.linear_qkv\.bias .* is not in the llama table",
    ):
        load(model, make_model())


def test_a_parameter_too_few_is_an_error(make_model: ModelMaker) -> None:
    layer = {name: shape for name, shape in LAYER.items() if "pre_mlp" not in name}
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.linear_fc1\.layer_norm_weight"):
        load(last_stage(layer), make_model())


def test_fused_and_separate_norms_together_are_an_error(make_model: ModelMaker) -> None:
    layer = LAYER | {"mlp.linear_fc1.layer_norm_weight": (32,)}
    with pytest.raises(RuntimeError, match="filled twice"):
        load(last_stage(layer), make_model())


def test_another_shape_is_an_error(make_model: ModelMaker) -> None:
    model = last_stage(LAYER | {"mlp.linear_fc2.weight": (32, 48)})
    with pytest.raises(RuntimeError, match=r"linear_fc2\.weight is \[32, 48\]"):
        load(model, make_model())
