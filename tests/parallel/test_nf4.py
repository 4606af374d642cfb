"""Adapters over a base in four bits train as over its matrices rounded, and so on every mesh.

The layers' own code, over gloo; the kernels are bitsandbytes' for CPUs, or a stand-in for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_gdpo.config.lora import TARGETS
from tests.parallel.nf4_ranks import MODELS, SEED, output_of
from tests.parallel.settings import STEPS
from tests.support import models
from tests.support.checkpoints import stored
from tests.support.commands import metrics
from tests.support.nf4 import rounded
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.parallel, pytest.mark.nightly]


def save_rounded(source: Path, target: Path, dtype: torch.dtype) -> None:
    """The model with NF4's numbers in its layers' matrices, worked out without bitsandbytes."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in TARGETS:
                module.weight.copy_(rounded(module.weight))
    model.save_pretrained(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all cases leave, on one rank and on two."""
    root = tmp_path_factory.mktemp("nf4")
    for kind, changes in MODELS.items():
        models.save(kind, root / kind, seed=SEED, **changes)
        save_rounded(root / kind, root / f"{kind}-rounded", torch.float32)
    save_rounded(root / "qwen2", root / "qwen2-rounded-bf16", torch.bfloat16)
    for size in (1, 2):
        logs = [root / f"of{size}.rank{rank}.log" for rank in range(size)]
        codes = run_ranks("tests.parallel.nf4_ranks", [str(root)], logs)
        assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return root


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    found = metrics(output_of(folder, name))
    assert len(found) == STEPS
    return found


def assert_same(folder: Path, name: str, other: str, tolerance: float) -> None:
    for one, two in zip(lines(folder, name), lines(folder, other), strict=True):
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(two[key], rel=tolerance), (key, one["step"])


def test_as_over_the_matrices_rounded(folder: Path) -> None:
    assert_same(folder, "nf4", "rounded", 1e-6)
    assert_same(folder, "some", "some, rounded", 1e-6)
    assert_same(folder, "gemma2", "gemma2, rounded", 1e-6)
    assert_same(folder, "nf4, bf16", "rounded, bf16", 1e-6)


def test_it_is_another_model_than_the_base(folder: Path) -> None:
    first, other = lines(folder, "nf4")[0], lines(folder, "as it is")[0]
    assert abs(first["loss"] - other["loss"]) > 1e-3 * abs(other["loss"])


@pytest.mark.parametrize("name", ["cache", "swap", "recompute full"])
def test_the_reference_and_recomputation_change_nothing(folder: Path, name: str) -> None:
    assert_same(folder, name, "nf4", 1e-6)


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("TP2", "nf4"),
        ("TP2 SP", "nf4"),
        ("TP2 SP recompute full", "nf4"),
        ("PP2", "nf4"),
        ("DP2", "nf4"),
        ("gemma2, TP2 SP", "gemma2"),
    ],
)
def test_the_same_on_every_mesh(folder: Path, name: str, alone: str) -> None:
    assert_same(folder, name, alone, 1e-5)


def test_taken_up_on_another_mesh(folder: Path) -> None:
    """One update on one rank, then two on two: the base is quantised anew to the same."""
    assert_same(folder, "half", "nf4", 1e-5)


def test_checkpoints_hold_the_adapters_alone(folder: Path) -> None:
    found = stored(output_of(folder, "nf4") / "checkpoints" / f"step_{STEPS:08d}")
    assert found
    assert all("lora_" in name or "optimizer" in name for name in found), sorted(found)
