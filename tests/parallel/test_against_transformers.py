"""Log-probs, gradients and updates are those of transformers, autograd and torch's AdamW."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.merge import export_peft
from tests.parallel import plain_training
from tests.parallel.meshes import ADAPTED, is_run
from tests.parallel.settings import FAMILIES, MODELS, OBJECTIVES, STEPS, dataset
from tests.support import models

pytestmark = pytest.mark.parallel

World = Callable[[int], dict[str, Any]]
Train = Callable[[str, str], plain_training.Trajectory]

Exported = Callable[[str, str, str], dict[str, Tensor]]

ADAPTED_KINDS = [f"{model} with adapters" for model in ADAPTED]
TRAINED = [
    (objective, kind)
    for objective, kind in (
        *((objective, kind) for kind in ("tied", *FAMILIES) for objective in OBJECTIVES),
        *(("gdpo_db", kind) for kind in ADAPTED_KINDS),
    )
    if is_run(1, f"{objective}/{kind}/plain")
]
MESHES = {
    "one rank": (1, "plain"),
    "TP2": (2, "TP2"),
    "TP2 with SP": (2, "TP2 SP"),
    "TP2 x PP2 with SP": (4, "TP2 PP2 SP"),
    "TP2 x PP2 with SP, packed": (4, "TP2 PP2 SP packed"),
}
GRADIENTS = [
    (mesh, objective, kind)
    for mesh, objective, kind in (
        *(("one rank", objective, kind) for objective, kind in TRAINED),
        *(("TP2 x PP2 with SP", objective, "tied") for objective in OBJECTIVES),
        *(("TP2 x PP2 with SP, packed", "gdpo_db", kind) for kind in FAMILIES),
        *(
            (mesh, "gdpo_db", "tied with adapters")
            for mesh in ("TP2", "TP2 with SP", "TP2 x PP2 with SP")
        ),
        ("TP2 x PP2 with SP, packed", "gdpo_db", "qwen2 with adapters"),
    )
    if is_run(MESHES[mesh][0], f"{objective}/{kind}/{MESHES[mesh][1]}")
]
ON_FOUR = {"tied": "TP2 PP2 SP", "untied": "TP2 PP2", "llama3": "TP2 PP2"}
"""Model -> the mesh of four ranks that it is run on; a family on another."""
LOG_PROBS = [
    (size, kind, name)
    for kind in MODELS
    for size, name in ((1, "plain"), (4, ON_FOUR.get(kind, "TP2 PP2 SP packed")))
    if is_run(size, f"gdpo_db/{kind}/{name}")
]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Train:
    """(objective's setting, model) -> its trajectory in plain torch."""

    @cache
    def train(name: str, kind: str) -> plain_training.Trajectory:
        model, _, _ = kind.partition(" with adapters")
        return plain_training.train(name, folder / model, dataset(), adapters=model != kind)

    return train


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """(mesh, objective, model) -> the trainer's first gradient, under transformers' names."""

    @cache
    def gradient(mesh: str, objective: str, kind: str) -> dict[str, Tensor]:
        size, name = MESHES[mesh]
        target = tmp_path_factory.mktemp("gradient") / "hf"
        found = world(size)[f"{objective}/{kind}/{name}"]["gradient"]
        if "with adapters" in kind:
            export_peft(Path(found), target)
            return load_file(target / "adapter_model.safetensors")
        convert_megatron_to_hf(Path(found), target)
        return load_file(target / "model.safetensors")

    return gradient


@pytest.mark.parametrize(("objective", "kind"), TRAINED)
def test_three_updates(world: World, trained: Train, objective: str, kind: str) -> None:
    found, expected = world(1)[f"{objective}/{kind}/plain"], trained(objective, kind)
    for step in range(STEPS):
        entry, per_pair = found["entries"][step], found["per_pair"][step]
        assert entry["loss"] == pytest.approx(expected.losses[step], rel=1e-4), step
        assert entry["grad_norm"] == pytest.approx(expected.grad_norms[step], rel=1e-4), step
        losses = expected.per_pair_losses[step]
        assert per_pair["loss"] == pytest.approx(losses, rel=1e-3, abs=1e-3), step
        for side, sums in expected.logps[step].items():
            assert per_pair[f"logps/{side}"] == pytest.approx(sums, abs=1e-3), (step, side)


@pytest.mark.parametrize(("mesh", "objective", "kind"), GRADIENTS)
def test_gradient_of_every_parameter(
    exported: Exported, trained: Train, mesh: str, objective: str, kind: str
) -> None:
    found = exported(mesh, objective, kind)
    expected = trained(objective, kind).gradient
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-3, name
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, f"{name}: {difference:.1e}"


def test_each_objective_changes_the_weights_in_its_own_way(exported: Exported) -> None:
    flat = {
        objective: torch.cat(
            [g.flatten() for _, g in sorted(exported("one rank", objective, "tied").items())]
        )
        for objective in OBJECTIVES
    }
    for one, other in itertools.combinations(OBJECTIVES, 2):
        cosine = torch.cosine_similarity(flat[one], flat[other], dim=0)
        assert cosine < 0.995, f"{one} and {other} pull in the same direction ({cosine:.4f})"


@pytest.mark.parametrize(("size", "kind", "name"), LOG_PROBS)
def test_log_probs_of_every_token(
    world: World, folder: Path, size: int, kind: str, name: str
) -> None:
    """Label and tempered EOS, which are what is cached, at every response position."""
    found = world(size)[f"gdpo_db/{kind}/{name}"]["reference"]
    model = models.load(folder / kind / "reference")
    data = dataset()
    assert len(found) == len(data)
    for values, pair in zip(found, data, strict=True):
        with torch.no_grad():
            parts = [
                plain_training.columns(model, pair, s, 0.7) for s in (pair.chosen, pair.rejected)
            ]
        expected = torch.cat(parts)[:, [0, 2]]
        torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=1e-4)


def test_rope_scaling_matters_at_these_lengths(folder: Path) -> None:
    """Otherwise the test above would pass without any scaling."""
    directory = folder / "llama3" / "reference"
    scaled = LlamaForCausalLM.from_pretrained(directory)
    plain = LlamaForCausalLM.from_pretrained(
        directory, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    pair = max(dataset(), key=lambda p: len(p.prompt_ids) + len(p.chosen.ids))
    with torch.no_grad():
        one, other = (plain_training.columns(m, pair, pair.chosen, 1.0) for m in (scaled, plain))
    assert (one - other).abs().max() > 0.05
