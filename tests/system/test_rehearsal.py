"""A rehearsal of FP8 from the command line: its labels, meshes, adapters, delayed scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Result, common, metrics, several, steps, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

pytestmark = [pytest.mark.parallel, pytest.mark.nightly]

RECIPES = ("tensorwise", "blockwise", "delayed")
UNCHECKED = "trainer.check_initial_loss=false"
STEPS = 3


def run(root: Path, name: str, recipe: str | None, *more: str) -> list[str]:
    """The command line of a run of three updates of two micro-batches."""
    return [
        "train",
        *common(root / "model", root / "train.jsonl", root / name, "objective=gdpo"),
        f"precision={'fp32' if recipe is None else f'fp8_rehearsal_{recipe}'}",
        "optim=adamw_constant",
        "optim.lr=1e-3",
        *steps(STEPS),
        *more,
    ]


class Done:
    """The runs here, and how they ended."""

    def __init__(self, root: Path) -> None:
        self.root = root
        save_model(root / "model", num_hidden_layers=4)
        write_jsonl(root / "train.jsonl", pairs(24))
        one = {
            "fp32": run(root, "fp32", None),
            **{recipe: run(root, recipe, recipe, UNCHECKED) for recipe in RECIPES},
            "gate": run(root, "gate", "tensorwise", "export_hf=true"),
            "gate-delayed": run(root, "gate-delayed", "delayed"),
            "resident": run(root, "resident", "tensorwise", UNCHECKED, "reference=resident"),
            "adapters": run(root, "adapters", "blockwise", "lora.rank=4", "reference=adapter_off"),
            "shared": run(
                root, "shared", "blockwise", "data.packing=true", "data.prefix_sharing=true"
            ),
            "stopped": run(root, "stopped", "delayed", UNCHECKED),
            "resumed": run(root, "stopped", "delayed", UNCHECKED, "trainer.max_steps=4"),
        }
        two = {
            f"{recipe}-{name}": run(root, f"{recipe}-{name}", recipe, UNCHECKED, *mesh)
            for recipe in RECIPES
            for name, mesh in {
                "TP2": ("model.tensor_model_parallel_size=2",),
                "TP2-SP": (
                    "model.tensor_model_parallel_size=2",
                    "model.sequence_parallel=true",
                ),
                "PP2": ("model.pipeline_model_parallel_size=2",),
                "DP2": (),
            }.items()
        }
        self.results: dict[str, Result] = {
            **several(root / "one", one),
            **several(root / "two", two, ranks=2),
        }

    def lines(self, name: str) -> list[dict[str, Any]]:
        result = self.results[name]
        assert result.status == 0, f"{name}: {result.out}\n{result.err}"
        return without_timing(metrics(self.root / name))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("rehearsal"))


def test_it_is_labelled_everywhere(done: Done) -> None:
    done.lines("gate")
    root, label = done.root / "gate", "FP8 rehearsal: tensorwise scaling"
    said = done.results["gate"].out.splitlines()
    assert any(label in line and "not FP8 on hardware" in line for line in said)
    assert any(line == f"exported {root / 'hf'} (FP8 rehearsal)" for line in said)
    assert label in json.loads((root / "summary.json").read_text())["precision"]
    assert label in (root / "hf" / "README.md").read_text()
    checkpoint = root / "checkpoints" / f"step_{STEPS:08d}"
    assert label in json.loads((checkpoint / "model_card.json").read_text())["precision"]
    identity = json.loads((checkpoint / "trainer_state.json").read_text())["identity"]
    assert identity["precision"] == "fp8_rehearsal_tensorwise"
    assert "FP8" not in done.results["fp32"].out


@pytest.mark.parametrize("recipe", RECIPES)
def test_rounding_is_there(done: Done, recipe: str) -> None:
    plain, rounded = (done.lines(name)[-1] for name in ("fp32", recipe))
    assert plain["logps/chosen"] != rounded["logps/chosen"]
    assert rounded["logps/chosen"] == pytest.approx(plain["logps/chosen"], rel=0.2)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mesh", ["TP2", "TP2-SP", "PP2", "DP2"])
def test_meshes_train_alike(done: Done, recipe: str, mesh: str) -> None:
    """Scales that are powers of two do not change where a tensor is cut, but for the smallest
    numbers; those of delayed scaling are the greatest of all ranks'. Later updates amplify every
    number that is rounded to its other neighbour.
    """
    one, other = done.lines(recipe), done.lines(f"{recipe}-{mesh}")
    assert len(one) == len(other) == STEPS
    for mine, theirs in zip(one, other, strict=True):
        for name in ("logps/chosen", "logps/rejected"):
            assert theirs[name] == pytest.approx(mine[name], rel=3e-3), name
    if (recipe, mesh) != ("delayed", "DP2"):
        # There a rank has one micro-batch instead of two, all of them by the scales 1.
        for name in ("logps/chosen", "logps/rejected"):
            assert other[0][name] == pytest.approx(one[0][name], rel=1e-5), name
        assert other[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=5e-3)


def test_a_resident_reference_is_rounded_alike(done: Done) -> None:
    """The cache was computed on other rows, whose scales are other powers of two at most."""
    found = done.lines("resident")
    assert found[0]["rewards/margins"] == 0.0
    for one, other in zip(found, done.lines("tensorwise"), strict=True):
        assert other["reference_logps/chosen"] == pytest.approx(
            one["reference_logps/chosen"], rel=1e-4
        )


@pytest.mark.parametrize("name", ["adapters", "shared"])
def test_adapters_and_shared_prompts(done: Done, name: str) -> None:
    """They pass the check at step 0, and learn."""
    found = done.lines(name)
    assert found[-1]["loss"] < found[0]["loss"]


def test_delayed_scaling_is_called_what_it_is(done: Done) -> None:
    said = done.results["gate-delayed"].out
    assert "warning: precision=fp8_delayed itself is refused" in said


def test_delayed_scaling_does_not_resume(done: Done) -> None:
    done.lines("stopped")
    (line,) = done.results["resumed"].complaints
    assert "fp8_rehearsal_delayed cannot go on from a checkpoint" in line
