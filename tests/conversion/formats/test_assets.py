"""The files beside the weights: which are carried along, and whose chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.conversion.formats.assets import asset_files, copy_assets, tokenizer_files
from nemo_gdpo.errors import UserError
from tests.support.models import llama3_tokenizer

TRAINED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\r\n{{ eos_token }}"


def _directory(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {"config.json": "{}", **files}.items():
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    return path


@pytest.mark.parametrize(
    "name", ["tekken.json", "tokenizer.model.v3", "tokenizer.model.v7m1", "sentencepiece.bpe.model"]
)
def test_vocabularies_of_mistral_and_others_are_carried_along(tmp_path: Path, name: str) -> None:
    source = _directory(tmp_path / "a", **{name: "{}", "modeling_x.py": "", "x.bin": ""})
    assert tokenizer_files(source) == [source / name]
    copy_assets(source, tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", name]


def test_no_other_file_of_that_kind(tmp_path: Path) -> None:
    source = _directory(tmp_path / "a", **{"tokenizer.model.bak": "", "tokenizer.model.v": ""})
    assert asset_files(source) == [Path("config.json")]


def test_the_trained_template_takes_the_place_of_all_others(tmp_path: Path) -> None:
    source = tmp_path / "a"
    llama3_tokenizer().save_pretrained(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    _directory(
        source,
        **{
            "tokenizer_config.json": json.dumps(settings | {"chat_template": "old", "é": "ü"}),
            "chat_template.jinja": "old",
            "chat_template.json": '{"chat_template": "old"}',
            "additional_chat_templates/tool_use.jinja": "old",
        },
    )
    target = tmp_path / "b"
    copy_assets(source, target, chat_template=TRAINED)
    assert (target / "chat_template.jinja").read_bytes() == TRAINED.encode()
    assert AutoTokenizer.from_pretrained(target).chat_template == TRAINED.replace("\r\n", "\n")
    assert "old" not in "".join(p.read_text() for p in target.rglob("*") if p.is_file())
    kept = json.loads((target / "tokenizer_config.json").read_text())
    assert kept == settings | {"é": "ü"}
    # Without one the files are as they were.
    copy_assets(source, tmp_path / "c")
    assert (tmp_path / "c" / "chat_template.jinja").read_text() == "old"
    assert (tmp_path / "c" / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_damaged_settings_of_a_tokenizer_are_a_line(tmp_path: Path) -> None:
    source = _directory(tmp_path / "a", **{"tokenizer_config.json": "{"})
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read as JSON"):
        copy_assets(source, tmp_path / "b", chat_template=TRAINED)
