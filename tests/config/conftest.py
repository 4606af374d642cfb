"""For the tests of configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.config.changed import LLAMA


@pytest.fixture
def base(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A configuration without problems."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "train.jsonl").write_text("{}\n")
    return {
        "model": {"restore_from_path": str(model)},
        "data": {"train_path": str(tmp_path / "train.jsonl"), "packing": False},
        "trainer": {"max_steps": 10, "max_epochs": None},
        "top": {"output_dir": str(tmp_path / "out")},
    }
