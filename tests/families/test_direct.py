"""A Hugging Face directory read straight into the ranks gives the weights of its conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_gdpo.conversion.bridge import ModelBridge
from tests.support import models

OnMesh = Callable[[int, int], Path]
CASES = [
    (ranks, mesh, kind)
    for ranks, meshes in models.MESHES.items()
    for mesh, (_, kinds, _) in meshes.items()
    for kind in kinds
]


@pytest.mark.parametrize(("ranks", "mesh", "kind"), CASES)
def test_bit_equal(on_mesh: OnMesh, ranks: int, mesh: str, kind: str) -> None:
    folder = on_mesh(1, 1) if ranks == 1 else on_mesh(2, 2)
    found = json.loads((folder / f"direct{ranks}.json").read_text())[f"{mesh} {kind}"]
    assert list(found) == list(models.MESHES[ranks][mesh][2])
    bridge = ModelBridge.from_hf(folder / kind / "hf")
    for case in found.values():
        assert case["unequal"] == []
        # Tensor- and data-parallel ranks have their own of each; a tied head is held twice.
        assert case["parameters"] >= len(bridge.mappings) * max(1, ranks // 2)
        assert case["read_directly"] and case["same_source"] and case["same_assets"]


@pytest.mark.parametrize(
    ("case", "prefix", "pattern"),
    [
        ("main rank", "/", r"cut/model\.safetensors is damaged"),
        ("read", "rank 3: ", r"gone/model\.safetensors is damaged"),
        ("other files", "rank 3: ", "this rank sees other files than rank 0"),
        ("not seen", "rank 3: ", "rank 0 sees this model and this rank does not"),
    ],
)
def test_what_one_rank_finds_all_ranks_say(
    on_mesh: OnMesh, case: str, prefix: str, pattern: str
) -> None:
    """No rank waits for one that has left; the rank is named unless it is the main one."""
    complaints = json.loads((on_mesh(2, 2) / "direct4.json").read_text())["refusals"][case]
    assert len(complaints) == 4 and len(set(complaints)) == 1
    assert complaints[0].startswith(prefix)
    assert re.search(pattern, complaints[0])
    assert "\n" not in complaints[0]
