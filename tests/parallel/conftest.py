"""The models, and one launch for every size of world, shared by all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from tests.parallel.launch import launch
from tests.parallel.settings import MODELS, save_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<kind>/{reference,policy}` in Hugging Face's form, `<kind>/megatron/...` in Megatron's."""
    root = tmp_path_factory.mktemp("parallel")
    for kind in MODELS:
        save_models(root, kind)
        for name in ("reference", "policy"):
            convert_hf_to_megatron(root / kind / name, root / kind / "megatron" / name)
    return root


@pytest.fixture(scope="session")
def world(folder: Path) -> Callable[[int], dict[str, Any]]:
    """Number of ranks -> the results of all its cases; started when first asked for."""

    kept: dict[int, dict[str, Any] | AssertionError] = {}

    def results(size: int) -> dict[str, Any]:
        if size not in kept:
            try:
                kept[size] = launch(folder, size)
            except AssertionError as error:
                kept[size] = error  # every test of this world fails at once, without a new launch
        found = kept[size]
        if isinstance(found, AssertionError):
            raise found
        return found

    return results
