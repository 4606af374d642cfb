"""Validation of what lies on the disk: model directories and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.model_files import read_model_config
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.config.validate import problems_of_mapping
from nemo_gdpo.errors import UserError
from tests.config.changed import found_in, mapping_of

parse_config = TRAIN.parse


def _model_problem(base: dict[str, dict[str, Any]], path: Path) -> list[str]:
    return found_in(base, model__restore_from_path=str(path))


def test_model_directories(base: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    found = _model_problem(base, folder)
    assert len(found) == 2
    assert "has no config.json" in found[0]
    assert "has no weights" in found[1]
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    [found_one] = _model_problem(base, folder)
    assert "pickled weights only (pytorch_model.bin)" in found_one
    assert "safetensors are needed" in found_one
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"x")
    [found_one] = _model_problem(base, folder)
    assert "lacks 1 of 2 weight files (model-2.safetensors)" in found_one
    (folder / "model-2.safetensors").write_bytes(b"x")
    assert _model_problem(base, folder) == []


def test_gguf_and_stray_files(base: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "m.gguf").write_bytes(b"x")
    assert "GGUF weights only" in _model_problem(base, folder)[0]
    assert "not a .nemo archive" in _model_problem(base, folder / "m.gguf")[0]
    archive = tmp_path / "m.nemo"
    archive.write_bytes(b"x")
    assert _model_problem(base, archive) == []


def test_megatron_checkpoint(base: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Its architecture is read from model_config.json, in it or beside the weights."""
    checkpoint = tmp_path / "step_00000040"
    (checkpoint / "dist").mkdir(parents=True)
    (checkpoint / "dist" / "__0_0.distcp").write_bytes(b"x")
    assert "without its model_config.json" in _model_problem(base, checkpoint)[0]
    own = {"num_layers": 30, "num_attention_heads": 9, "num_query_groups": 3}
    (checkpoint / "model_config.json").write_text(json.dumps(own))
    assert _model_problem(base, checkpoint) == []
    assert _model_problem(base, checkpoint / "dist") == []
    expected = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    assert read_model_config(checkpoint) == expected
    assert read_model_config(checkpoint / "dist") == expected
    mapping = mapping_of(
        base, model__restore_from_path=str(checkpoint), model__tensor_model_parallel_size=2
    )
    _, found = problems_of_mapping(mapping)
    assert [problem.key for problem in found] == ["model.tensor_model_parallel_size"] * 2


def test_model_config_that_cannot_be_read(base: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert read_model_config(tmp_path / "nothing") is None
    broken = Path(base["model"]["restore_from_path"]) / "config.json"
    broken.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        read_model_config(broken.parent)
    _, found = problems_of_mapping(mapping_of(base))
    assert [problem.key for problem in found] == ["model.restore_from_path"]


def test_empty_training_file(base: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert found_in(base, data__train_path=str(empty)) == [
        f"data.train_path: {empty} is empty; give a file with preference pairs"
    ]


def test_a_name_on_the_hub_is_left_to_the_reader(base: dict[str, dict[str, Any]]) -> None:
    assert found_in(base, data__train_path="some-org/some-pairs") == []
