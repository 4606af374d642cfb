"""Validation: each problem alone, all of them together, and nothing where nothing is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.problem import Problem
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.validate import problems, problems_of_mapping
from nemo_gdpo.config.world import Hardware, configured_world_size, ranks_per_node
from tests.config.changed import LLAMA, found_in, mapping_of

parse_config = TRAIN.parse

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
VPP, CP = "virtual_pipeline_model_parallel_size", "context_parallel_size"


def test_nothing_wrong(base: dict[str, dict[str, Any]]) -> None:
    assert found_in(base) == []
    assert found_in(base, Hardware(world_size=4)) == []
    assert found_in(base, reference="resident") == []
    assert found_in(base, reference="adapter_off", lora__rank=4) == []


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"model__restore_from_path": None}, "model.restore_from_path", "is not set"),
    ({"model__restore_from_path": "/nowhere"}, "model.restore_from_path", "does not exist"),
    ({"data__train_path": None}, "data.train_path", "is not set"),
    *(
        (
            {"data__format": "unpaired", "objective": objective},
            "data.format",
            "compares two responses to one prompt, and unpaired rows have one",
        )
        for objective in (
            {"name": "dpo"},
            {"name": "ipo"},
            {"name": "odpo"},
            {"name": "adpo"},
            {"name": "spl"},
            {"name": "gdpo", "balance": "tb"},
        )
    ),
    (
        {
            "data__format": "unpaired",
            "data__prefix_sharing": True,
            "objective": {"name": "gdpo", "balance": "db"},
        },
        "data.prefix_sharing",
        "unpaired rows have no prompt in common",
    ),
    (
        {
            "data__format": "unpaired",
            "data__weight_column": "w",
            "objective": {"name": "gdpo", "balance": "db"},
        },
        "data.weight_column",
        "a row of data.format=unpaired is no pair",
    ),
    ({"data__label_threshold": 0.5}, "data.label_threshold", "nothing reads it"),
    (
        {"data__margin_column": "m", "objective": {"name": "adpo"}},
        "data.margin_column",
        "with objective=adpo, the policy's own verdict may turn the pair",
    ),
    (
        {"data__margin_column": "m", "objective": {"name": "dpo", "label_smoothing": 0.1}},
        "data.margin_column",
        "label_smoothing also learns from the turned pair",
    ),
    (
        {"data__margin_column": "m", "data__weight_column": "m"},
        "data.margin_column",
        "m is data.weight_column, too",
    ),
    (
        {"data__weight_column": "w", "data__preset": "odpo_json"},
        "data.weight_column",
        "a row of odpo_json is no pair",
    ),
    ({"data__train_path": "/nowhere.jsonl"}, "data.train_path", "does not exist"),
    ({"data__validation_path": "/no.jsonl"}, "data.validation_path", "does not exist"),
    ({"data__chat_template": "/no.jinja"}, "data.chat_template", "is not a file"),
    (
        {f"model__{TP}": 16},
        f"model.{TP}",
        "16 does not divide the model's 8 key-value groups; choose one of 1, 2, 4, 8",
    ),
    (
        {f"model__{TP}": 3},
        f"model.{TP}",
        "3 does not divide the model's 32 attention heads",
    ),
    ({f"model__{PP}": 3}, f"model.{PP}", "3 does not divide the model's 32 layers"),
    (
        {f"model__{PP}": 2, f"model__{VPP}": 3, "model__global_batch_size": 8},
        f"model.{VPP}",
        "PP2 x 3 chunks do not divide the model's 32 layers",
    ),
    ({f"model__{VPP}": 2}, f"model.{VPP}", "more than one pipeline rank"),
    (
        {f"model__{PP}": 4, f"model__{VPP}": 2, "model__global_batch_size": 6},
        "model.global_batch_size",
        "6 micro-batches a rank, and a virtual pipeline on PP4 needs a multiple of 4; set it to 8",
    ),
    ({"model__sequence_parallel": True}, "model.sequence_parallel", "nothing to split"),
    (
        {f"model__{CP}": 2, "data__max_length": 1022},
        "data.max_length",
        "1022 cannot be cut into 4 equal pieces, as CP2 needs; set it to 1020 or 1024",
    ),
    (
        {
            f"model__{CP}": 2,
            f"model__{TP}": 4,
            "model__sequence_parallel": True,
            "data__max_length": 1032,
        },
        "data.max_length",
        "1032 cannot be cut into 16 equal pieces",
    ),
    (
        {"model__micro_batch_size": 3},
        "model.global_batch_size",
        "micro-batches of 3 on 1 data-parallel ranks; set it to 6 or 9, or change",
    ),
    (
        {"trainer__devices": 3},
        "model.global_batch_size",
        "micro-batches of 1 on 3 data-parallel ranks",
    ),
    (
        {"trainer__devices": 3, f"model__{TP}": 2},
        "trainer.devices",
        "3 ranks cannot be cut into copies of TP2 x PP1 x CP1 = 2; use a multiple of 2",
    ),
    (
        {"objective__name": "gdpo", "objective__balance": "tb", "objective__reward": "tokenwise"},
        "objective.reward",
        "compares whole responses",
    ),
    (
        {"objective__name": "gdpo", "objective__balance": "db", "objective__subtb_lambda": 0.9},
        "objective.subtb_lambda",
        "nothing reads it with balance=db",
    ),
    (
        {"objective__name": "odpo", "data__preset": "anthropic_hh"},
        "data.preset",
        "has no scores, and odpo grades pairs by them",
    ),
    (
        {"objective__name": "odpo", "data__format": "nemo_rl"},
        "data.format",
        "ranks but no scores",
    ),
    (
        {"reference": "resident", "reference_cache_dir": "/cache"},
        "reference_cache_dir",
        "nothing reads it",
    ),
    (
        {"reference": "swap", "reference_cache_dir": "/cache"},
        "reference_cache_dir",
        "nothing reads it with reference=swap",
    ),
    (
        {"reference": "swap", "precision": "fp8_tensorwise"},
        "reference",
        "swap puts other weights into layers that keep theirs in FP8",
    ),
    ({"data__max_prompt_length": 1024}, "data.max_prompt_length", "leaves no room"),
    ({"data__prefix_sharing": True}, "data.prefix_sharing", "in packed rows only"),
    (
        {f"model__{CP}": 2, "data__packing": True, "data__prefix_sharing": True},
        "data.prefix_sharing",
        "not cut over context-parallel ranks",
    ),
    ({"data__pack_tokens": 512}, "data.pack_tokens", "nothing reads it with data.packing=false"),
    (
        {"data__preset": "anthropic_hh", "data__format": "trl"},
        "data.format",
        "trl would be ignored",
    ),
    ({"trainer__max_steps": None}, "trainer.max_steps", "says when to stop"),
    (
        {"optim__sched": {"warmup_steps": 10}},
        "optim.sched.warmup_steps",
        "10 steps are not fewer than trainer.max_steps=10",
    ),
    ({"optim__sched": {"min_lr": 1e-3}}, "optim.sched.min_lr", "0.001 is above optim.lr=5e-07"),
    (
        {"optim__sched": {"name": "constant", "min_lr": 1e-9}},
        "optim.sched.min_lr",
        "nothing reads it with a constant schedule",
    ),
    ({"trainer__val_check_interval": 5}, "trainer.val_check_interval", "nothing to validate on"),
    ({"trainer__limit_val_batches": 5}, "trainer.limit_val_batches", "nothing to validate on"),
    ({"logger__wandb_project": "x"}, "logger.wandb_project", "nothing reads it"),
    ({"logger__mlflow_experiment": "x"}, "logger.mlflow_experiment", "logger.mlflow=false"),
    ({"logger__mlflow_tracking_uri": "x"}, "logger.mlflow_tracking_uri", "logger.mlflow=false"),
    ({"logger__mlflow": True}, "logger.mlflow", "install nemo_gdpo with the extra mlflow"),
    ({"logger__every_n_steps": 0}, "logger.every_n_steps", "greater than or equal to 1"),
    ({"logger__peak_tflops": 0}, "logger.peak_tflops", "greater than 0"),
    ({"logger__wandb": True}, "logger.wandb", "export WANDB_API_KEY"),
]


@pytest.mark.parametrize(("changes", "key", "message"), CASES)
def test_each_problem_alone(
    base: dict[str, dict[str, Any]],
    changes: dict[str, Any],
    key: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # Two checks of TP may both speak; the one that is looked for is there, and no other key's.
    found = found_in(base, **changes)
    assert {line.split(": ")[0] for line in found} == {key}
    assert any(message in line for line in found), found


def test_a_password_in_an_address_is_not_repeated(base: dict[str, dict[str, Any]]) -> None:
    uri = "https://me:hidden@mlflow.example"
    found = found_in(base, logger__mlflow=True, logger__mlflow_tracking_uri=uri)
    (line,) = [line for line in found if line.startswith("logger.mlflow_tracking_uri: ")]
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert "hidden" not in line


def test_wandb_with_a_key_is_fine(
    base: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "from the environment")
    assert found_in(base, logger__wandb=True, logger__wandb_project="x") == []


def test_positions_of_the_model(base: dict[str, dict[str, Any]]) -> None:
    config = parse_config(mapping_of(base))
    found = problems(config, None, {**LLAMA, "max_position_embeddings": 512})
    assert [p.key for p in found] == ["data.max_length"]
    assert "1024 is beyond the 512 positions" in found[0].reason


def test_fewer_key_value_groups_are_optional(base: dict[str, dict[str, Any]]) -> None:
    """Without num_key_value_heads every head is its own group."""
    config = parse_config(mapping_of(base, model__tensor_model_parallel_size=4))
    assert problems(config, None, {"num_attention_heads": 8, "num_hidden_layers": 2}) == []


def test_world_that_was_started(base: dict[str, dict[str, Any]]) -> None:
    assert found_in(base, Hardware(world_size=3), model__tensor_model_parallel_size=2) == [
        "model: 3 ranks cannot be cut into copies of TP2 x PP1 x CP1 = 2; use a multiple of 2 "
        "ranks, or change the sizes"
    ]
    disagree = found_in(base, Hardware(world_size=2), trainer__devices=4)
    assert [line.split(": ")[0] for line in disagree] == ["trainer.devices"]
    assert "but 2 ranks were started" in disagree[0]


def test_gpus_of_this_node(base: dict[str, dict[str, Any]]) -> None:
    found = found_in(base, Hardware(gpus=2), trainer__devices=4)
    assert len(found) == 1
    assert "4 ranks a node are needed, but this one has 2 GPUs" in found[0]


def test_precision_of_this_machine(base: dict[str, dict[str, Any]]) -> None:
    assert found_in(base, Hardware(), precision="bf16") == []
    assert found_in(base, Hardware(), precision="fp8_tensorwise") == [
        "precision: this machine runs bf16, fp32 only; use bf16, fp32"
    ]
    words = Hardware(precision_reason="precision=fp8_tensorwise needs a GPU")
    assert found_in(base, words, precision="fp8_tensorwise") == [
        "precision: needs a GPU; use bf16, fp32"
    ]
    able = Hardware(precisions=frozenset({"fp8_tensorwise"}))
    assert found_in(base, able, precision="fp8_tensorwise") == []


def test_layers_against_the_precision(base: dict[str, dict[str, Any]]) -> None:
    """On no machine: the local layers ignore FP8, Transformer Engine multiplies fp32 in TF32."""
    for world in (None, Hardware(precisions=frozenset({"fp32", "fp8_mxfp8"}))):
        local = found_in(base, world, precision="fp8_mxfp8", model__layers="local")
        assert len(local) == 1
        assert local[0].startswith("model.layers: local ones would train unquantised without a")
        exact = found_in(base, world, precision="fp32", model__layers="transformer_engine")
        assert len(exact) == 1
        assert exact[0].startswith("model.layers: Transformer Engine multiplies fp32 in TF32")
    assert found_in(base, precision="bf16", model__layers="local") == []
    assert found_in(base, precision="bf16", model__layers="transformer_engine") == []


def test_layers_of_this_machine(base: dict[str, dict[str, Any]]) -> None:
    missing = Hardware(layers=None, layers_problem=Problem("model.layers", "no TE", "get it"))
    assert found_in(base, missing, precision="bf16") == ["model.layers: no TE; get it"]
    # The precision says it already.
    assert [line.split(":")[0] for line in found_in(base, missing, precision="fp8_mxfp8")] == [
        "precision"
    ]


def test_attention_back_end_that_nothing_reads(base: dict[str, dict[str, Any]]) -> None:
    gpu = Hardware(layers="transformer_engine")
    told = "model.attention_backend: flash would not be read: this run is built of the local layers"
    for world, changes in (
        (None, {"precision": "fp32"}),
        (None, {"precision": "bf16", "model__layers": "local"}),
        (Hardware(), {"precision": "bf16"}),
    ):
        found = found_in(base, world, model__attention_backend="flash", **changes)
        assert len(found) == 1
        assert found[0].startswith(told)
    assert found_in(base, None, precision="bf16", model__attention_backend="flash") == []
    assert found_in(base, gpu, precision="bf16", model__attention_backend="local") == []
    lacking = replace(gpu, attention_reason="cannot run: no flash-attn")
    assert found_in(base, lacking, precision="bf16", model__attention_backend="flash") == [
        "model.attention_backend: flash cannot run: no flash-attn; set it to auto"
    ]


@pytest.mark.parametrize(
    ("backend", "exported", "told"),
    [
        ("auto", {}, None),
        ("auto", {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "1"}, None),
        ("flash", {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "0"}, None),
        ("local", {"NVTE_FLASH_ATTN": "0"}, None),
        (
            "auto",
            {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
            "model.attention_backend: auto contradicts NVTE_FLASH_ATTN=0, NVTE_UNFUSED_ATTN=0 in "
            "the environment; unset NVTE_FLASH_ATTN, NVTE_UNFUSED_ATTN, or set it to fused",
        ),
        (
            "flash",
            {"NVTE_FUSED_ATTN": "1"},
            "model.attention_backend: flash contradicts NVTE_FUSED_ATTN=1 in the environment; "
            "unset NVTE_FUSED_ATTN, or set it to auto",
        ),
        (
            "auto",
            {"NVTE_FLASH_ATTN": "2"},
            "model.attention_backend: auto contradicts NVTE_FLASH_ATTN=2 in the environment; unset "
            "NVTE_FLASH_ATTN",
        ),
        (
            "auto",
            {"NVTE_APPLY_QK_LAYER_SCALING": "1"},
            "model.layers: NVTE_APPLY_QK_LAYER_SCALING=1 is in the environment, which would scale "
            "the scores of attention by layer; unset NVTE_APPLY_QK_LAYER_SCALING",
        ),
    ],
)
def test_exported_variables_that_contradict_the_run(
    base: dict[str, dict[str, Any]],
    backend: str,
    exported: dict[str, str],
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """megatron-core would end with an AssertionError while it builds the model."""
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    changes = {"precision": "bf16", "model__attention_backend": backend}
    gpu = Hardware(layers="transformer_engine")
    assert found_in(base, gpu, **changes) == ([] if told is None else [told])
    assert found_in(base, None, **changes) == []  # another machine has another environment


def test_fp8_pipeline_with_recomputation(base: dict[str, dict[str, Any]]) -> None:
    changes = {
        "precision": "fp8_tensorwise",
        "model__pipeline_model_parallel_size": 2,
        "model__activations_checkpoint_granularity": "selective",
    }
    found = found_in(base, None, **changes)
    assert len(found) == 1
    assert "NaN" in found[0]
    assert found_in(base, None, **{**changes, "model__pipeline_model_parallel_size": 1}) == []


def test_all_problems_at_once(base: dict[str, dict[str, Any]]) -> None:
    """Those of the schema and those behind it, in one go; a faulty key is named once."""
    mapping = mapping_of(
        base,
        seed="x",
        model__restore_from_path=None,
        model__micro_batch_size=0,
        model__sequence_parallel=True,
        data__max_prompt_length=4096,
        optim__lr=-1.0,
        trainer__max_steps=None,
        objective__name="gdpo",
        objective__balance="tb",
        objective__reward="tokenwise",
        objective__alhpa=1.0,
    )
    _, found = problems_of_mapping(mapping)
    assert sorted(problem.key for problem in found) == [
        "data.max_prompt_length",
        "model.micro_batch_size",
        "model.restore_from_path",
        "model.sequence_parallel",
        "objective.alhpa",
        "objective.reward",
        "optim.lr",
        "seed",
        "trainer.max_steps",
    ]


def test_elsewhere_looks_at_no_files(base: dict[str, dict[str, Any]]) -> None:
    mapping = mapping_of(base, model__restore_from_path="/there", data__train_path="/there.jsonl")
    _, found = problems_of_mapping(mapping, files=False)
    assert found == []
    assert len(problems_of_mapping(mapping)[1]) == 2


def test_ranks_that_a_configuration_needs() -> None:
    mesh = {TP: 4, PP: 2}
    config = parse_config({"model": mesh})
    assert (ranks_per_node(config), configured_world_size(config)) == (8, 8)
    config = parse_config({"model": mesh, "trainer": {"num_nodes": 2}})
    assert (ranks_per_node(config), configured_world_size(config)) == (4, 8)
    config = parse_config({"model": mesh, "trainer": {"num_nodes": 2, "devices": 8}})
    assert configured_world_size(config) == 16
