"""The estimate of memory beside what is held: small Llamas on a CPU, a world of one.

Bytes of parameters, gradients and optimizer are those of all tensors that are alive and were not
before; what layers keep is what autograd packs for backward.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nemo_gdpo.platform import current_platform

current_platform()

import torch  # noqa: E402

from nemo_gdpo.config.lora import TARGETS  # noqa: E402
from nemo_gdpo.config.memory import setup_of  # noqa: E402
from nemo_gdpo.config.recipes import change  # noqa: E402
from nemo_gdpo.config.schema import RunConfig  # noqa: E402
from nemo_gdpo.models.builder import ParallelLayout  # noqa: E402
from nemo_gdpo.models.preference_model import PreferenceModel  # noqa: E402
from nemo_gdpo.objectives import DPO  # noqa: E402
from nemo_gdpo.plan.memory import Memory, layer_bytes, memory_of_stages, stacked_bytes  # noqa: E402
from nemo_gdpo.plan.shape import Shape  # noqa: E402
from nemo_gdpo.training.forecast import as_megatron  # noqa: E402
from nemo_gdpo.training.mesh import build_mesh, join_world, layout_of, leave_world  # noqa: E402
from nemo_gdpo.training.optimizer import build_optimizer  # noqa: E402

SHAPES = {
    "untied": Shape(2, 128, 4, 2, 32, 384, 1000),
    "tied": Shape(3, 96, 4, 4, 24, 256, 2000, tied=True),
    "deep": Shape(6, 64, 4, 1, 16, 192, 500),
}
ROWS, LENGTH = 2, 64
LORA = {"lora.rank": 32}


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    join_world(current_platform(), timeout_minutes=2)
    build_mesh(ParallelLayout(), current_platform(), seed=1)
    yield
    leave_world()


def storages() -> dict[int, int]:
    """Address -> bytes of all memory of tensors that are alive."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def config_of(precision: str, **changes: Any) -> RunConfig:
    given = {
        "precision": precision, "data.max_length": LENGTH, "data.max_prompt_length": 32,
        "model.global_batch_size": 1, "model.restore_from_path": "/nowhere",
        "model.layers": "local",
    }  # fmt: skip
    return change(RunConfig(), given | changes)


def policy(shape: Shape, config: RunConfig) -> PreferenceModel:
    described = replace(
        as_megatron(shape), tie_word_embeddings=shape.tied, max_position_embeddings=LENGTH,
        rotary_base=10000.0, layernorm_epsilon=1e-5,
    )  # fmt: skip
    return PreferenceModel(
        config, objective=DPO(), model_config=described, layout=layout_of(config), end_token_id=2
    )


def estimate(shape: Shape, config: RunConfig) -> Memory:
    (found,) = memory_of_stages(shape, setup_of(config, 1))
    return found


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_static_bytes(name: str, precision: str, distributed: bool) -> None:
    compare_static(SHAPES[name], precision, distributed=distributed, reference="cache")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_static_bytes_with_a_resident_reference(precision: str) -> None:
    compare_static(SHAPES["untied"], precision, distributed=True, reference="resident")


@pytest.mark.parametrize("reference", ["adapter_off", "resident"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_static_bytes_with_adapters(precision: str, reference: str) -> None:
    """Gradients and moments are the adapters', which are no small part of so small a model."""
    compare_static(SHAPES["untied"], precision, distributed=True, reference=reference, **LORA)


@pytest.mark.parametrize("changes", [{}, LORA])
def test_bytes_in_host_memory_of_a_swapped_reference(changes: dict[str, Any]) -> None:
    config = config_of("bf16", reference="swap", **changes)
    model = policy(SHAPES["untied"], config)
    model.attach_swapped_reference()
    assert model.swapped_reference is not None
    told = estimate(SHAPES["untied"], config).host
    assert model.swapped_reference.host_bytes == pytest.approx(told, rel=0.01)


def compare_static(
    shape: Shape, precision: str, *, distributed: bool, reference: str, **changes: Any
) -> None:
    config = config_of(
        precision, reference=reference,
        **{"optim.use_distributed_optimizer": distributed}, **changes,
    )  # fmt: skip
    before = storages()
    model = policy(shape, config)
    if reference == "resident":
        model.attach_resident_reference()
    model.prepare_for_training()
    optimizer = build_optimizer(config, model.policy_chunks)
    model.prepare_for_training_step()
    optimizer.step()  # makes the moments
    held = sum(size for place, size in storages().items() if before.get(place) != size)
    assert held == pytest.approx(estimate(shape, config).static, rel=0.05)


def kept_bytes(shape: Shape, config: RunConfig) -> int:
    """What autograd keeps of one micro-batch, parameters apart."""
    model = policy(shape, config)
    model.prepare_for_training()
    (chunk,) = model.policy_chunks
    own = {p.untyped_storage().data_ptr() for p in chunk.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # no other may take its place
        return tensor

    tokens = torch.randint(3, 90, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunk(
            input_ids=tokens,
            position_ids=torch.arange(LENGTH).expand_as(tokens),
            attention_mask=None,
            labels=None,
            output_processor=lambda **given: given["hidden_states"],
            output_processor_context=None,
        )
    return sum(kept.values())


@pytest.mark.parametrize("recompute", [None, "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_a_layer_keeps(name: str, precision: str, recompute: str | None) -> None:
    compare_layer(name, precision, **{"model.activations_checkpoint_granularity": recompute})


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "o_proj"), ("up_proj",), ("down_proj",)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_a_layer_with_adapters_keeps(
    name: str, precision: str, targets: tuple[str, ...]
) -> None:
    compare_layer(name, precision, **LORA, **{"lora.targets": targets})


def compare_layer(name: str, precision: str, **changes: Any) -> None:
    """Of a model with two layers more, less that of the model itself."""
    shape = SHAPES[name]
    config = config_of(precision, **changes)
    more = replace(shape, layers=shape.layers + 2)
    of_two = kept_bytes(more, config) - kept_bytes(shape, config)
    setup = setup_of(config, 1)
    told = ROWS * LENGTH * layer_bytes(shape, setup) + stacked_bytes(shape, setup)
    assert of_two / 2 == pytest.approx(told, rel=0.05)
