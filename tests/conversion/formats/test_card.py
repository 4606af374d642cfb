"""Cards as the hub reads them, and the base model's name, which is never a path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from nemo_gdpo.conversion.formats.assets import has_chat_template
from nemo_gdpo.conversion.formats.base_name import base_name, hub_name
from nemo_gdpo.conversion.formats.card import render_card, usage_of


def test_the_hub_reads_the_header() -> None:
    card = ModelCard(
        render_card(
            {
                "base_model": "org/base-8B",
                "licence": "llama3: community",
                "data": {"name": "org/pairs", "hub_name": "org/pairs", "pairs": 7},
                "objective": {"name": "gdpo", "alpha": 0.1},
                "usage": usage_of(chat=True),
            }
        )
    )
    data = card.data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "llama3: community",
        "base_model": "org/base-8B",
        "datasets": ["org/pairs"],
        "tags": ["nemo_gdpo", "gdpo"],
    }
    assert "The base model's licence applies to these weights, too." in card.text
    assert "apply_chat_template" in card.text


def test_what_is_not_known_is_not_in_the_header() -> None:
    card = ModelCard(render_card({"data": {"name": "train.jsonl"}}))
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    for absent in ("## Usage", "## Best validation", "## Validation data"):
        assert absent not in card.text
    assert "## Training\n\nnot recorded" in card.text


@pytest.mark.parametrize(
    ("config", "readme", "expected"),
    [
        ({"_name_or_path": "meta-llama/Llama-3.1-8B"}, None, "meta-llama/Llama-3.1-8B"),
        ({"_name_or_path": "/home/someone/llama"}, None, None),
        ({"_name_or_path": "./llama"}, None, None),
        ({"_name_or_path": "../models/llama"}, None, None),
        ({"_name_or_path": "runs/sft"}, None, None),
        ({"_name_or_path": "models/a/b"}, None, None),
        ({"_name_or_path": "gpt2"}, None, None),
        ({"_name_or_path": ""}, None, None),
        ({"_name_or_path": 3}, None, None),
        ({}, "---\nbase_model: org/base\n---\n", "org/base"),
        ({}, '---\nlicense: mit\nbase_model: "org/base"\n---\n', "org/base"),
        ({}, "---\nbase_model:\n- org/base\ntags: [x]\n---\n", "org/base"),
        ({}, "---\nbase_model: /data/models/base\n---\n", None),
        ({}, "---\ntags: [x]\n---\nbase_model: org/base\n", None),
        ({"_name_or_path": "org/first"}, "---\nbase_model: org/base\n---\n", "org/first"),
        ({"_name_or_path": "/local"}, "---\nbase_model: org/base\n---\n", "org/base"),
        (None, None, None),
    ],
)
def test_the_name_on_the_hub(
    tmp_path: Path, config: dict[str, Any] | None, readme: str | None, expected: str | None
) -> None:
    model = tmp_path / "my-llama"
    model.mkdir()
    if config is not None:
        (model / "config.json").write_text(json.dumps(config))
    if readme is not None:
        (model / "README.md").write_text(readme)
    assert hub_name(model) == expected
    assert base_name(model) == (expected or "my-llama")


def test_the_place_in_a_cache_is_a_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--meta-llama--Llama-3.2-1B" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"_name_or_path": "other/name"}')
    assert hub_name(snapshot) == "meta-llama/Llama-3.2-1B"


def test_a_folder_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama" / "base").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"_name_or_path": "llama/base"}')
    assert hub_name(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "content", "there"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer_config.json", "{", False),
        ("config.json", "{}", False),
    ],
)
def test_chat_templates_are_found(tmp_path: Path, file: str, content: str, there: bool) -> None:
    (tmp_path / file).write_text(content)
    assert has_chat_template(tmp_path) is there
