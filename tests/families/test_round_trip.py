"""Hugging Face -> Megatron -> Hugging Face, for every family and on two meshes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.families import FAMILIES
from tests.support import models

OnMesh = Callable[[int, int], Path]
MESHES = [(1, 1), (2, 2)]


def test_every_family_is_in_the_zoo(converted: Path) -> None:
    kinds = {models.configuration(kind).model_type for kind in models.KINDS}
    assert kinds == {family.model_type for family in FAMILIES.values()}


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize(("tensor", "pipeline"), MESHES)
def test_logits_are_those_of_transformers(
    on_mesh: OnMesh, kind: str, tensor: int, pipeline: int
) -> None:
    root = on_mesh(tensor, pipeline) / kind
    found = load_file(root / f"tp{tensor}pp{pipeline}" / "logits.safetensors")["logits"]
    with torch.no_grad():
        expected = models.load(root / "hf")(models.tokens()).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize(("tensor", "pipeline"), MESHES)
def test_the_export_is_bit_equal_and_reloads(
    on_mesh: OnMesh, tmp_path: Path, kind: str, tensor: int, pipeline: int
) -> None:
    """Exported from what the mesh itself has saved, not from the first conversion."""
    root = on_mesh(tensor, pipeline) / kind
    convert_megatron_to_hf(root / f"tp{tensor}pp{pipeline}", tmp_path / "hf")
    before = load_file(root / "hf" / "model.safetensors")
    after = load_file(tmp_path / "hf" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    model = models.load(tmp_path / "hf")
    with torch.no_grad():
        logits, expected = (m(models.tokens()).logits for m in (model, models.load(root / "hf")))
    assert torch.equal(logits, expected)
    assert model.config.to_dict() == models.load(root / "hf").config.to_dict() | {
        "_name_or_path": model.config.to_dict()["_name_or_path"]
    }
