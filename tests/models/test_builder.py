"""What the builder asks of megatron, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_gdpo.errors import UserError
from nemo_gdpo.models.builder import ParallelLayout
from tests.models.megatron_parts import transformer_config


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"activation gelu_fast .* known: silu"):
        transformer_config(activation="gelu_fast")


def test_dropout_is_off_and_losses_are_divided_by_the_number_of_pairs() -> None:
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


@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_follow_the_model(field: str) -> None:
    config = transformer_config(**{field: True})
    assert config.add_qkv_bias is (field == "attention_bias")
    assert config.add_bias_linear is (field == "mlp_bias")


def test_a_model_copy_takes_the_product_of_the_sizes() -> None:
    assert ParallelLayout().model_parallel_size == 1
    layout = ParallelLayout(tensor=2, pipeline=3, context=5, virtual_pipeline=7)
    assert layout.model_parallel_size == 30
