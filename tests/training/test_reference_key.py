"""A reference's key names every input of the function, by the name of what differs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.objectives import build_objective
from nemo_gdpo.training import reference_key as module
from nemo_gdpo.training.reference_key import Cut, ReferenceKey, model_identity, reference_key

ARCHITECTURE = MegatronModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=16,
    num_attention_heads=2,
    num_query_groups=1,
    kv_channels=4,
    vocab_size=101,
    max_position_embeddings=64,
    rotary_base=10000.0,
    layernorm_epsilon=1e-6,
)
CHANGED: dict[str, Any] = {
    "family": "gemma",
    "rotary_scaling": {"rope_type": "linear", "factor": 2.0},
    "activation": "gelu_tanh",
    "layer_windows": [4, None],
    "softmax_scale": 0.5,
}


def configured(*overrides: str) -> RunConfig:
    return TRAIN.parse(compose(["objective=gdpo", *overrides], TRAIN).plain)


def key(
    *overrides: str,
    architecture: MegatronModelConfig = ARCHITECTURE,
    layers: str = "local",
    device: str = "cpu",
    **given: str,
) -> ReferenceKey:
    config = configured(*overrides)
    objective = build_objective(config.objective)
    tempered = objective.reference_eos_temperature != 1.0
    model: Any = SimpleNamespace(
        model_config=architecture,
        objective=objective,
        megatron_config=SimpleNamespace(transformer_impl=layers),
        platform=SimpleNamespace(capabilities=SimpleNamespace(device_type=device)),
        reference_columns=("label", "tempered_eos" if tempered else "eos"),
    )
    return reference_key(config, model, **({"weights": "w", "data": "d", "template": "t"} | given))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: key(weights="x"), ["weights"]),
        (lambda: key(data="x"), ["data"]),
        (lambda: key(template="x"), ["template"]),
        (lambda: key("data.max_length=96"), ["truncation"]),
        (lambda: key("data.max_prompt_length=40"), ["truncation"]),
        (lambda: key("data.truncation_mode=keep_start"), ["truncation"]),
        (lambda: key("precision=bf16"), ["precision"]),
        (lambda: key("lora.rank=4", "lora.base_precision=nf4"), ["precision"]),
        (lambda: key(device="cuda"), ["device"]),
        (lambda: key("model.attention_backend=flash"), ["attention_backend"]),
        (lambda: key("objective.eos_temperature=0.5"), ["columns", "eos_temperature"]),
    ],
)
def test_a_key_differs_by_name(other: Any, named: list[str]) -> None:
    own, changed = key(), other()
    assert changed.digest() != own.digest()
    assert own.differing(json.loads(json.dumps(changed.plain()))) == named


def test_a_base_in_four_bits_is_said_and_no_other() -> None:
    """What was cached over a base as it is, keeps its key."""
    assert key("lora.rank=4").precision == "fp32"
    assert key("lora.rank=4", "lora.base_precision=nf4").precision == "fp32 over nf4"


@pytest.mark.parametrize("name", [field.name for field in fields(MegatronModelConfig)])
def test_every_field_of_the_architecture_is_in_it(name: str) -> None:
    before = getattr(ARCHITECTURE, name)
    if name in CHANGED:
        after = CHANGED[name]
    else:
        after = not before if isinstance(before, bool) else (before or 0) + 1
    other = key(architecture=replace(ARCHITECTURE, **{name: after}))
    assert key().differing(other.plain()) == [f"architecture.{name}"]
    changed = replace(ARCHITECTURE, **{name: after})
    assert model_identity("w", changed) != model_identity("w", ARCHITECTURE)


def test_layers_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cu130", "megatron-core": "0.19.2", "transformer-engine": "2.9.1"}
    monkeypatch.setattr(module, "version", versions.__getitem__)
    local, engine = key(), key(layers="transformer_engine")
    assert local.libraries == {"torch": "2.13", "megatron-core": "0.19"}
    assert engine.differing(local.plain()) == ["layers", "libraries.transformer-engine"]
    versions["torch"] = "2.13.1"
    assert key() == local  # a release that mends something keeps the caches
    versions["torch"] = "2.14.0"
    assert key().differing(local.plain()) == ["libraries.torch"]


def test_the_scorers_version_and_not_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr("nemo_gdpo.__version__", "9.9.9")
    assert key() == before
    monkeypatch.setattr(module, "SCORER", before.scorer + 1)
    assert key().differing(before.plain()) == ["scorer"]


@pytest.mark.parametrize(
    "override",
    [
        "model.tensor_model_parallel_size=2",
        "model.pipeline_model_parallel_size=2",
        "model.context_parallel_size=2",
        "model.micro_batch_size=2",
        "model.global_batch_size=16",
        "data.packing=false",
        "data.prefix_sharing=true",
        "model.logprob_chunk_tokens=7",
    ],
)
def test_what_only_rounds_differently_shares_a_cache_and_no_unfinished_work(override: str) -> None:
    assert key(override) == key()
    assert Cut.of(configured(override), 1) != Cut.of(configured(), 1)


def test_which_pairs_share_a_packed_row_depends_on_the_number_of_ranks() -> None:
    packed, padded = configured(), configured("data.packing=false")
    assert Cut.of(packed, 1) != Cut.of(packed, 2)
    assert Cut.of(padded, 1) == Cut.of(padded, 2)
    assert Cut.of(configured("data.pack_tokens=4096"), 1) != Cut.of(packed, 1)


@pytest.mark.parametrize("override", ["seed=7", "optim.lr=1e-3", "objective.alpha=3"])
def test_what_the_reference_does_not_depend_on(override: str) -> None:
    assert key(override) == key()
    assert Cut.of(configured(override), 1) == Cut.of(configured(), 1)
