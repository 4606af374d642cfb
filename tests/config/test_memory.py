"""What could fit on no device is refused, with the keys to change; everything else is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.memory import setup_of, shape_of
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.config.world import Hardware
from nemo_gdpo.plan.adapters import Adapters
from nemo_gdpo.plan.memory import Setup, fullest, memory_of_stages
from nemo_gdpo.plan.shape import KNOWN
from tests.support.ranks import ROOT

PRESETS = ROOT / "conf"
# Those of rounds are of another verb, and what they train is checked with theirs.
SHIPPED = sorted(
    path.stem
    for path in (PRESETS / "experiment").glob("*.yaml")
    if not path.stem.startswith(("_", "rounds_"))
)
NF4 = "lora.base_precision=nf4"
HUGE = ("parallel=tp8", "model.micro_batch_size=64", "data.max_length=131072")


def composed(*words: str) -> RunConfig:
    places = ["model.restore_from_path", "data.train_path", "data.validation_path"]
    given = [*words, *(f"{place}=/nowhere" for place in places)]
    return TRAIN.parse(compose(given, TRAIN).plain)


def told(*words: str) -> list[str]:
    return [str(problem) for problem in problems(composed(*words), files=False)]


def test_what_fits_nowhere_is_refused() -> None:
    (line,) = told("experiment=gdpo_llama3_8b", *HUGE)
    assert line.startswith(
        "model.micro_batch_size: 64 pairs of data.max_length=131072: a rank would need about "
    )
    assert "16,777,216 positions at once" in line
    assert "no known device has more than 288 GB" in line
    assert line.endswith("; set it to 4 or less, or lower data.max_length")


def test_what_it_is_told_to_do_is_accepted() -> None:
    assert told("experiment=gdpo_llama3_8b", *HUGE[:1], HUGE[2], "model.micro_batch_size=4") == []


def test_one_pair_that_is_too_long() -> None:
    words = ("experiment=gdpo_llama3_8b", "parallel=single", "data.max_length=4000000")
    (line,) = told(*words)
    assert line.startswith("data.max_length: 1 pairs of data.max_length=4000000: a rank would")
    assert "with model.micro_batch_size=1" in line


def test_a_packed_row_that_is_too_long() -> None:
    (line,) = told("experiment=gdpo_llama3_8b", "data.packing=true", "data.pack_tokens=100000000")
    assert line.startswith("data.pack_tokens: a rank would need about")


def test_weights_that_fit_nowhere() -> None:
    (line,) = told(
        "experiment=gdpo_llama3_70b", "parallel=single", "optim.use_distributed_optimizer=false"
    )
    assert line.startswith("model.tensor_model_parallel_size: a rank would need about 1,299 GB")
    # 18 bytes for each of 70.55e9 parameters.
    assert "(1,270 GB of weights, gradients and optimizer, " in line
    assert line.endswith(
        "raise model.tensor_model_parallel_size, model.pipeline_model_parallel_size or the number "
        "of ranks"
    )


def test_a_machine_that_is_there_is_not_judged_by_what_limits_allow() -> None:
    """Rows are as long as the pairs, which may all be short."""
    config = composed("experiment=gdpo_llama3_8b", *HUGE)
    here = Hardware(precisions=frozenset({"bf16"}))
    assert [p for p in problems(config, here, files=False) if "a rank would need" in str(p)] == []


def test_a_model_that_is_not_known_is_not_judged() -> None:
    assert told("experiment=gdpo_llama3_8b", *HUGE, "model.architecture=null") == []


@pytest.mark.parametrize("experiment", SHIPPED)
def test_what_is_shipped_stays_valid(experiment: str) -> None:
    assert told(f"experiment={experiment}") == []


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model_is_chosen_by_its_preset(name: str) -> None:
    config = composed(f"model={name}")
    assert config.model.architecture == name
    assert shape_of(config, None) == KNOWN[name]


def test_the_models_own_files_go_before_the_preset(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 16, "vocab_size": 100,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = shape_of(composed("model=llama3_8b"), values)
    assert found is not None
    assert (found.layers, found.hidden, found.groups) == (3, 8, 2)


def test_a_configuration_in_sizes() -> None:
    config = composed("experiment=gdpo_llama3_70b", "reference=resident")
    assert setup_of(config, 2) == Setup(
        tensor=8, pipeline=4, data=2, sequence_parallel=True, precision="bf16",
        recompute="selective", distributed_optimizer=True, resident=True, positions=4096, row=2048,
        micro_batches=64,
    )  # fmt: skip
    packed = composed("experiment=gdpo_llama3_8b", "data.packing=true", "data.pack_tokens=6000")
    assert setup_of(packed, 4).positions == 6000
    swapped = setup_of(composed("experiment=gdpo_llama3_8b", "reference=swap"), 4)
    assert swapped.swapped and not swapped.resident
    assert not setup_of(packed, 4).prefix_sharing
    shared = composed("experiment=gdpo_llama3_8b", "data.packing=true", "data.prefix_sharing=true")
    assert setup_of(shared, 4).prefix_sharing


def test_adapters_in_sizes() -> None:
    one = setup_of(composed("experiment=gdpo_llama3_8b_lora", "lora.targets=[v_proj,q_proj]"), 1)
    assert one.adapters == Adapters(16, ("q_proj", "v_proj"))
    assert not one.resident and not one.swapped and not one.four_bit
    assert setup_of(composed("experiment=gdpo_llama3_8b_lora", NF4), 1).four_bit
    assert setup_of(composed("experiment=gdpo_llama3_8b"), 1).adapters is None


def test_the_estimate_that_is_refused_is_the_plans() -> None:
    config = composed("experiment=gdpo_llama3_8b", *HUGE)
    found = fullest(memory_of_stages(KNOWN["llama3_8b"], setup_of(config, 2)))
    (line,) = told("experiment=gdpo_llama3_8b", *HUGE)
    assert f"{(found.static + found.activations) / 1e9:,.0f} GB (" in line
