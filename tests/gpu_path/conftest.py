"""Transformer Engine's Python layer, and one launch for all cases of each kind of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gpu_path import cases, source
from tests.gpu_path.fakes import worlds
from tests.gpu_path.launch import Found, launch
from tools.environments.recipes import cache_root

DOWNLOADS = cache_root() / "downloads"
"""Of the user; the tests' own cache is set later, for a session."""
PROBES = ("multiples", "own reference")


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `transformer_engine`."""
    return source.unpack(source.fetch(DOWNLOADS), tmp_path_factory.mktemp("transformer_engine"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and the pairs."""
    root = tmp_path_factory.mktemp("gpu_path")
    cases.save_inputs(root)
    return root


@pytest.fixture(scope="session")
def local(folder: Path) -> Found:
    """What the local layers do."""
    return launch(folder, [case.key for case in cases.LOCAL], ranks=1, tree=None)


@pytest.fixture(scope="session")
def rehearsed(folder: Path, tree: Path) -> Found:
    """What Transformer Engine's layers do, and single layers of it."""
    keys = [*(case.key for case in cases.REHEARSED), *PROBES]
    return launch(folder, keys, ranks=cases.RANKS, tree=tree)


@pytest.fixture(scope="session")
def cluster(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ranks of the experiments for 16 GPUs do, on fake tensors; see `worlds.rehearse`."""
    return worlds.rehearse(tmp_path_factory.mktemp("cluster"), tree)
