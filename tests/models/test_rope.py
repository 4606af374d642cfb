"""Rotary frequencies are those of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nemo_gdpo.errors import UserError
from nemo_gdpo.models.rope import (
    FamilyRotaryEmbedding,
    attention_factor,
    inverse_frequencies,
)
from tests.models.megatron_parts import MODEL

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "Llama 3.1": LLAMA31,
    "Llama 3.2": LLAMA31 | {"factor": 32.0},
    # Megatron's own implementation has 1, 4 and 8192 hard-coded.
    "other numbers": LLAMA31
    | {"low_freq_factor": 2.0, "high_freq_factor": 6.0, "original_max_position_embeddings": 512},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "YaRN": YARN,
    "YaRN, all numbers": YARN
    | {
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "YaRN, own factor": YARN | {"attention_factor": 1.7},
    "YaRN, within its context": YARN | {"factor": 0.5},
}


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_transformers_agrees(name: str, base: float) -> None:
    scaling = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        head_dim=128,
        rope_parameters={"rope_type": "default", **(scaling or {}), "rope_theta": base},
    )
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    model = replace(MODEL, kv_channels=128, rotary_base=base, rotary_scaling=scaling)
    assert attention_factor(model) == pytest.approx(factor, rel=1e-12)
    assert (factor != 1.0) is (name.startswith("YaRN") and "within" not in name)
    torch.testing.assert_close(inverse_frequencies(model), expected, rtol=1e-6, atol=0)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    model = replace(MODEL, kv_channels=128, rotary_base=500000.0)
    plain = inverse_frequencies(model)
    scaled = inverse_frequencies(replace(model, rotary_scaling=LLAMA31))
    ratio = plain / scaled
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(8.0)
    assert ((ratio > 1.01) & (ratio < 7.99)).any(), "no frequency lies in the ramp"


@pytest.mark.parametrize("length", [1, 128, 129, 500])
def test_dynamic_scaling_goes_by_the_longest_sequence(length: int) -> None:
    """128 positions are the model's own."""
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        head_dim=128,
        max_position_embeddings=128,
        rope_parameters={**scaling, "rope_theta": 10000.0},
    )
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    model = replace(MODEL, kv_channels=128, max_position_embeddings=128, rotary_scaling=scaling)
    found = inverse_frequencies(model, length)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    plain = inverse_frequencies(replace(model, rotary_scaling=None))
    assert torch.allclose(found, plain, rtol=1e-6) is (length <= 128)


def test_two_bases_lie_side_by_side() -> None:
    model = replace(MODEL, local_rotary_base=50.0)
    angles = FamilyRotaryEmbedding(model, None).get_emb(3, offset=2)
    assert angles.shape == (3, 1, 1, 16)
    one, other = angles[:, 0, 0].chunk(2, dim=-1)
    positions = torch.tensor([2.0, 3.0, 4.0])
    for half, base in ((one, 10000.0), (other, 50.0)):
        assert torch.equal(half[:, :4], half[:, 4:])
        torch.testing.assert_close(half[:, 1], positions * base ** -(2 / 8))


def test_an_unknown_scaling_is_refused_by_name() -> None:
    model = replace(MODEL, rotary_scaling={"rope_type": "longrope", "factor": 4.0})
    with pytest.raises(UserError, match=r"longrope .* default, linear, dynamic, llama3, yarn"):
        inverse_frequencies(model)
