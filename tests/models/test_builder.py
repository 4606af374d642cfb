"""What the builder asks of megatron, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.models import builder
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.platform import current_platform
from tests.models.megatron_parts import MODEL, transformer_config


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"activation gelu_fast .* known: silu"):
        transformer_config(activation="gelu_fast")


def test_no_dropout_and_loss_averaged_over_pairs() -> None:
    config = transformer_config()
    assert config.hidden_dropout == config.attention_dropout == 0.0
    assert config.calculate_per_token_loss


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision(precision: str, dtype: torch.dtype) -> None:
    config = transformer_config(precision)
    assert config.params_dtype == config.pipeline_dtype == dtype
    assert config.bf16 is (precision == "bf16")


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        (None, (None, None, None)),
        ("selective", ("selective", None, None)),
        ("full", ("full", "uniform", 1)),
    ],
)
def test_recompute(recompute: str | None, expected: tuple[Any, ...]) -> None:
    config = transformer_config(layout={"recompute": recompute})
    found = (
        config.recompute_granularity,
        config.recompute_method,
        config.recompute_num_layers,
    )
    assert found == expected
    if recompute == "selective":
        assert config.recompute_modules == ["core_attn"]


def test_biases_follow_the_model() -> None:
    assert transformer_config(attention_bias=True).add_qkv_bias
    assert not transformer_config().add_qkv_bias
    assert not transformer_config(attention_bias=True).add_bias_linear


def test_windows_count_without_the_query_itself_and_go_by_layer() -> None:
    config = transformer_config(layer_windows=[None, 6])
    assert (config.window_size, config.window_attn_skip_freq) == ((5, 0), [0, 1])
    assert transformer_config().window_size is None
    with pytest.raises(UserError, match="windows of 2 sizes"):
        transformer_config(layer_windows=[4, 6])


def test_the_factor_of_yarn_is_squared_into_the_scale() -> None:
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.5,
    }
    assert transformer_config().softmax_scale == pytest.approx(8**-0.5)
    found = transformer_config(rotary_scaling=scaling, softmax_scale=0.2).softmax_scale
    assert found == pytest.approx(0.2 * 2.25)


def test_gelu_is_the_tanh_formula_and_not_megatrons_fused_one() -> None:
    config = transformer_config(activation="gelu_tanh")
    x = torch.linspace(-3, 3, 7)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    assert torch.equal(config.activation_func(x), expected)
    assert not config.bias_activation_fusion


def test_dynamic_rope_beyond_the_models_length_is_refused() -> None:
    model = replace(MODEL, rotary_scaling={"rope_type": "dynamic", "factor": 2.0})
    config = transformer_config()
    with pytest.raises(UserError, match=r"data.max_length: 129 .* 128 positions"):
        builder.build_gpt_chunks(
            model, config, ParallelLayout(), current_platform(), max_sequence_length=129
        )


def test_a_model_copy_takes_the_product_of_the_sizes() -> None:
    assert ParallelLayout().model_parallel_size == 1
    layout = ParallelLayout(tensor=2, pipeline=3, context=5, virtual_pipeline=7)
    assert layout.model_parallel_size == 30
