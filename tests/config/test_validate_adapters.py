"""Validation of what an adapter needs, and of a base in four bits: each problem alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.checks_nf4 import check_nf4
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.world import Hardware
from tests.config.changed import LLAMA, found_in, mapping_of

NF4 = {"lora__rank": 4, "lora__base_precision": "nf4"}
TP = "tensor_model_parallel_size"

CASES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"reference": "adapter_off"},
        "reference",
        "adapter_off needs an adapter, and with lora.rank=null there is none; set lora.rank=16, or "
        "reference=cache",
    ),
    (
        {"reference": "adapter_off", "reference_cache_dir": "/cache", "lora__rank": 4},
        "reference_cache_dir",
        "nothing reads it with reference=adapter_off",
    ),
    ({"lora__alpha": 8.0}, "lora.alpha", "nothing reads it with lora.rank=null"),
    ({"lora__targets": ["q_proj"]}, "lora.targets", "nothing reads it with lora.rank=null"),
    ({"lora__export_peft": False}, "lora.export_peft", "nothing reads it with lora.rank=null"),
    ({"lora__restore_from_path": "/a"}, "lora.restore_from_path", "nothing reads it"),
    (
        {"lora__rank": 4, "lora__restore_from_path": "/nowhere"},
        "lora.restore_from_path",
        "/nowhere has no adapter_config.json",
    ),
    (
        {**NF4, "precision": "fp8_rehearsal_tensorwise"},
        "lora.base_precision",
        "multiplied in bf16 or fp32, not in fp8_rehearsal_tensorwise",
    ),
    (
        {"lora__base_precision": "nf4"},
        "lora.base_precision",
        "nothing reads it with lora.rank=null",
    ),
    (
        {**NF4, "precision": "fp8_tensorwise"},
        "lora.base_precision",
        "multiplied in bf16 or fp32, not in fp8_tensorwise; set precision=bf16, or it to run",
    ),
    (
        {**NF4, "reference": "resident"},
        "reference",
        "lora.base_precision=nf4 keeps none in the precision of the run; set it to adapter_off, "
        "swap or cache, or lora.base_precision=run",
    ),
    ({"lora__rank": 0}, "lora.rank", "greater than or equal to 1"),
    ({"lora__rank": 4, "lora__alpha": 0.0}, "lora.alpha", "greater than 0"),
    ({"lora__rank": 4, "lora__targets": []}, "lora.targets", "at least 1"),
    ({"lora__rank": 4, "lora__targets": ["q_proj", "q_proj"]}, "lora.targets", "named twice"),
    ({"lora__rank": 4, "export_nemo": True}, "export_nemo", "with adapters (lora.rank)"),
]


@pytest.mark.parametrize(("changes", "key", "message"), CASES)
def test_each_problem_alone(
    base: dict[str, dict[str, Any]], changes: dict[str, Any], key: str, message: str
) -> None:
    found = found_in(base, **changes)
    assert {line.split(": ")[0] for line in found} == {key}
    assert any(message in line for line in found), found


def test_the_base_is_no_start_of_an_adapter(
    base: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """With an adapter to start from, policy and reference would differ before the first update."""
    (tmp_path / "adapter_config.json").write_text("{}")
    lora = {"rank": 4, "restore_from_path": str(tmp_path)}
    assert found_in(base, reference="cache", lora=lora) == []
    (line,) = found_in(base, reference="adapter_off", lora=lora)
    assert line.startswith("reference: adapter_off is the base alone, and with lora.restore_from_")
    assert "set it to cache or resident, or reference_model to the base" in line


def test_a_base_in_nf4_needs_a_machine_that_can(base: dict[str, dict[str, Any]]) -> None:
    """Not known, as with --elsewhere, it is fine; the reason is the platform's."""
    for reference in ("cache", "swap", "adapter_off"):
        assert found_in(base, **NF4, reference=reference) == []
        assert found_in(base, Hardware(), **NF4, reference=reference) == []
    assert found_in(base, **NF4, precision="fp32") == []
    reason = "needs bitsandbytes' kernels on a GPU, and this machine has none"
    assert found_in(base, Hardware(four_bit_reason=reason), **NF4) == [
        f"lora.base_precision: nf4 {reason}; set it to run"
    ]
    assert found_in(base, Hardware(four_bit_reason=reason), lora__rank=4) == []


@pytest.mark.parametrize(
    ("changes", "tp", "line"),
    [
        ({}, 8, None),
        (
            {"hidden_size": 4128, "head_dim": 128},
            1,
            "lora.base_precision: nf4 quantises blocks of 64 numbers in a row, and the size of the "
            "model's hidden states is 4128; set it to run",
        ),
        (
            {"intermediate_size": 14368},
            1,
            "lora.base_precision: nf4 quantises blocks of 64 numbers in a row, and the size of the "
            "model's FFN is 14368; set it to run",
        ),
        (
            {"intermediate_size": 64 * 6},
            4,
            "model.tensor_model_parallel_size: lora.base_precision=nf4 quantises blocks of 64 "
            "numbers in a row, and the size of the model's FFN is 384 / 4 ranks; choose one of 1, "
            "2, or lora.base_precision=run",
        ),
        (
            {"head_dim": 6, "intermediate_size": 14336},
            2,
            "model.tensor_model_parallel_size: lora.base_precision=nf4 quantises blocks of 64 "
            "numbers in a row, and the size of the model's queries is 192 / 2 ranks; choose one of "
            "1, or lora.base_precision=run",
        ),
    ],
)
def test_blocks_fill_the_rows_of_every_rank(
    base: dict[str, dict[str, Any]], changes: dict[str, Any], tp: int, line: str | None
) -> None:
    """Otherwise the base would be another one on another mesh."""
    config = TRAIN.parse(mapping_of(base, **NF4, **{f"model__{TP}": tp}))
    model = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, **changes}
    found = [str(problem) for problem in check_nf4(config, None, model)]
    assert found == ([] if line is None else [line])


def test_a_checkpoint_of_an_adapter_is_no_model(
    base: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("adapter.json", "model_config.json"):
        (tmp_path / name).write_text("{}")
    (line,) = found_in(base, model__restore_from_path=str(tmp_path))
    assert line.startswith(f"model.restore_from_path: {tmp_path} holds an adapter alone")
    assert "--base BASE" in line
