"""Sizes of a model that FP8 kernels take, and rows that a model takes."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_gdpo.config.checks_shapes import check_dynamic_rope, check_fp8_shapes
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.validate import problems
from nemo_gdpo.config.world import Hardware

LLAMA3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "max_position_embeddings": 8192,
}
FP8 = ("fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8")


def found(precision: str, model: dict[str, Any], **mesh: Any) -> list[str]:
    config = TRAIN.parse({"precision": precision, "model": mesh})
    return [str(problem) for problem in check_fp8_shapes(config, model)]


@pytest.mark.parametrize("precision", FP8)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_llama3_8b_fits(precision: str, tp: int) -> None:
    for sp in {False, tp > 1}:
        sizes = {"tensor_model_parallel_size": tp, "sequence_parallel": sp}
        assert found(precision, LLAMA3_8B, **sizes) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_fp8_any_size_is_right(precision: str) -> None:
    odd = LLAMA3_8B | {"hidden_size": 100, "intermediate_size": 33, "num_hidden_layers": 2}
    assert found(precision, odd) == []


def test_the_hidden_size() -> None:
    odd = LLAMA3_8B | {"hidden_size": 4112, "head_dim": 128}
    assert found("fp8_tensorwise", odd) == []
    assert found("fp8_mxfp8", odd) == [
        "precision: fp8_mxfp8 needs a hidden size that is a multiple of 32, and the model's is "
        "4112; use precision=bf16"
    ]
    assert found("fp8_blockwise", odd) == []
    cut = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    assert found("fp8_blockwise", odd, **cut) == [
        "precision: fp8_blockwise with model.sequence_parallel=true needs a hidden size that is a "
        "multiple of 128, and the model's is 4112; use precision=bf16"
    ]


def test_what_tensor_parallelism_cuts() -> None:
    # 96 / 4 are 24, a multiple of 8 only; 96 / 2 are 48.
    odd = LLAMA3_8B | {"intermediate_size": 96}
    assert found("fp8_tensorwise", odd, tensor_model_parallel_size=2) == []
    assert found("fp8_tensorwise", odd, tensor_model_parallel_size=4) == [
        "model.tensor_model_parallel_size: fp8_tensorwise needs a multiple of 16 on every rank, "
        "and the size of the model's FFN is 96 / 4 ranks; choose one of 1, 2"
    ]
    # 48 is no multiple of 32 whatever cuts it: 3 x 32 is 96.
    (line,) = found("fp8_mxfp8", odd | {"intermediate_size": 48})
    assert line.endswith("the size of the model's FFN is 48; use precision=bf16")


def test_queries_keys_and_values() -> None:
    # Heads of 24: 4 x 24 are 96; with 2 x 2 x 24, 192, of which four ranks have 48.
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
    assert found("fp8_mxfp8", small) == []
    both = found("fp8_mxfp8", small, tensor_model_parallel_size=2)
    assert [line.split(": ")[0] for line in both] == ["model.tensor_model_parallel_size"]
    assert "the size of the model's queries is 96 / 2 ranks; choose one of 1" in both[0]
    # Without a head size of its own a head has hidden_size / heads.
    small = {"num_attention_heads": 4, "hidden_size": 64}
    assert found("fp8_tensorwise", small, tensor_model_parallel_size=4) == []
    assert len(found("fp8_tensorwise", small, tensor_model_parallel_size=8)) == 2


def test_some_layer_has_to_be_in_fp8() -> None:
    assert found("fp8_blockwise", LLAMA3_8B | {"num_hidden_layers": 3}) == []
    assert found("fp8_blockwise", LLAMA3_8B | {"num_hidden_layers": 2}) == [
        "precision: the first and the last layer stay in bf16 under fp8_blockwise, and the model "
        "has 2: none would be in FP8; use precision=bf16"
    ]


def test_a_machine_that_lacks_the_precision_is_named_alone() -> None:
    config = TRAIN.parse(
        {
            "precision": "fp8_mxfp8",
            "model": {"restore_from_path": "/m"},
            "data": {"train_path": "x"},
        }
    )
    odd = LLAMA3_8B | {"hidden_size": 100, "head_dim": 128}
    for world, keys in (
        (Hardware(), ["precision"]),
        (Hardware(precisions=frozenset({"fp8_mxfp8"})), ["precision"]),
        (None, ["precision"]),
    ):
        told = problems(config, world, odd, files=False)
        assert [problem.key for problem in told] == keys
        assert ("hidden size" in str(told[0])) == (world != Hardware())


DYNAMIC = {
    "max_position_embeddings": 100,
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
}


def rope_problems(
    model: dict[str, Any], length: int, settings: dict[str, Any] | None = None, **data: Any
) -> list[str]:
    lengths = {"max_length": length, "max_prompt_length": 10, "packing": False, **data}
    config = TRAIN.parse({"data": lengths, **(settings or {})})
    return [str(problem) for problem in check_dynamic_rope(config, model)]


def test_filling_must_not_stretch_a_dynamic_rope() -> None:
    assert rope_problems(DYNAMIC, 96) == []
    assert rope_problems(DYNAMIC, 97) == [
        "data.max_length: rows are filled up to as much as 104 positions here, and beyond the "
        "model's 100 its dynamic rope scaling depends on the filling; set it to 96 or less"
    ]
    # Its filling is a sequence of 7 at most.
    assert rope_problems(DYNAMIC, 97, packing=True) == []
    # Under context parallelism sequences are filled up, too: to 104 for CP4.
    cut = {"model": {"context_parallel_size": 4}}
    assert len(rope_problems(DYNAMIC, 97, cut, packing=True)) == 1
    # Beyond 100 is refused by itself; other scalings do not look at the length.
    assert rope_problems(DYNAMIC, 101) == []
    for kind in ("linear", "yarn", "default"):
        plain = DYNAMIC | {"rope_scaling": {"type": kind, "factor": 2.0}}
        assert rope_problems(plain, 97) == []
    new = {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic"}}
    assert len(rope_problems(new, 97)) == 1
    # Under TP4 and SP, FP8 in blocks has rows of 256.
    cut = {"model": {"tensor_model_parallel_size": 4, "sequence_parallel": True}}
    assert rope_problems(DYNAMIC, 60, cut) == []
    (line,) = rope_problems(DYNAMIC, 60, cut | {"precision": "fp8_blockwise"})
    assert "as much as 256 positions" in line and line.endswith("use precision=bf16")
