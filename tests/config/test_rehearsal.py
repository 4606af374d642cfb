"""What a rehearsal of FP8 needs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_gdpo.config.checks_shapes import check_fp8_shapes
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.world import Hardware
from nemo_gdpo.precisions import REHEARSALS
from tests.config.changed import found_in

GRANULARITY = "model__activations_checkpoint_granularity"


@pytest.mark.parametrize("precision", REHEARSALS)
def test_it_runs_wherever_fp32_does(base: dict[str, dict[str, Any]], precision: str) -> None:
    assert found_in(base, Hardware(), precision=precision) == []
    assert found_in(base, Hardware(), precision=precision, reference="swap") == []
    adapters = {"reference": "adapter_off", "lora__rank": 4}
    assert found_in(base, Hardware(), precision=precision, **adapters) == []
    shared = {"data__packing": True, "data__prefix_sharing": True}
    assert found_in(base, Hardware(), precision=precision, **shared) == []


@pytest.mark.parametrize("precision", REHEARSALS)
def test_transformer_engine_is_refused(base: dict[str, dict[str, Any]], precision: str) -> None:
    for world in (None, Hardware()):
        (line,) = found_in(base, world, precision=precision, model__layers="transformer_engine")
        assert line.startswith(f"model.layers: {precision} rounds the operands of the local layers")


def test_an_attention_of_transformer_engine_is_not_read(base: dict[str, dict[str, Any]]) -> None:
    precision = "fp8_rehearsal_blockwise"
    (line,) = found_in(base, precision=precision, model__attention_backend="flash")
    assert line.startswith("model.attention_backend: flash would not be read")


def test_delayed_scales_would_differ_in_what_is_computed_again(
    base: dict[str, dict[str, Any]],
) -> None:
    again = {GRANULARITY: "full"}
    (line,) = found_in(base, precision="fp8_rehearsal_delayed", **again)
    assert line.startswith("precision: fp8_rehearsal_delayed would round what is computed again")
    assert found_in(base, precision="fp8_rehearsal_tensorwise", **again) == []


@pytest.mark.parametrize("precision", REHEARSALS)
def test_some_layer_has_to_be_rounded(precision: str) -> None:
    config = TRAIN.parse({"precision": precision})
    (problem,) = check_fp8_shapes(config, {"num_hidden_layers": 2})
    assert str(problem) == (
        f"precision: {precision} leaves the first and the last layer in fp32, and the model has 2: "
        "none would be rounded to FP8; use precision=fp32, or a deeper model"
    )
    assert list(check_fp8_shapes(config, {"num_hidden_layers": 3})) == []


def test_fp8_itself_is_refused_without_naming_a_rehearsal_as_a_way_out(
    base: dict[str, dict[str, Any]],
) -> None:
    (line,) = found_in(base, Hardware(), precision="fp8_tensorwise")
    assert line.endswith("use bf16, fp32")
