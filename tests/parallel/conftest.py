"""The models, and one launch for every size of world, shared by all tests of the folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.conversion.convert import convert_hf_to_megatron
from tests.parallel.cases import Case
from tests.parallel.launch import launch
from tests.parallel.material import MODELS, save_models

Find = Callable[[Case, int], dict[str, Any]]


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

    @cache
    def results(size: int) -> dict[str, Any]:
        return launch(folder, size)

    return results
