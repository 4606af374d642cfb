"""One tiny model and one data set for all system tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.data import pairs, write_jsonl
from tests.support.label_studio import LabelStudio, label_studio
from tests.support.models import save_model
from tests.support.ranks import ROOT

from .interrupted_runs import Sampling, prepare
from .sampled_runs import sampled, trained  # noqa: F401 - fixtures

# Installing Label Studio takes minutes, its first start two: only `make label-test` asks for it.
LABELS = bool(os.environ.get("NEMO_GDPO_LABEL_TEST"))
collect_ignore = [] if LABELS else ["test_label_studio.py", "test_label_studio_training.py"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", pairs(16))


@pytest.fixture(scope="session")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> Sampling:
    """What one vLLM engine makes of a tiny model."""
    return prepare(tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """One server with an empty database; each test makes a project of its own."""
    python = ROOT / ".venv" / "label-studio" / "bin" / "python"
    if not python.exists():
        pytest.fail("no environment: python3 tools/environment.py label-studio", pytrace=False)
    with label_studio(python, tmp_path_factory.mktemp("label-studio")) as started:
        yield started


@pytest.fixture(scope="session")
def personal_token(studio: LabelStudio) -> str:
    """Of the server's account, which may have one at a time."""
    return studio.personal_token()
