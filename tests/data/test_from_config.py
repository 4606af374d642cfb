"""Pairs as the `data` section asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.config.data import DataConfig
from nemo_gdpo.data import build_dataset
from nemo_gdpo.data.from_config import build_split
from nemo_gdpo.errors import UserError


def test_every_key_of_the_section_reaches_the_pairs(
    llama3: Any, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [
        {"prompt": "one two three four ", "chosen": "five six seven", "rejected": "eight nine"},
        {"prompt": "one ", "chosen": "", "rejected": "two"},
    ]
    path = write_jsonl(rows)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [llama3.eos_token_id]})
    )
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    section = DataConfig(
        train_path=str(path),
        format="trl",
        max_prompt_length=3,
        max_length=5,
        truncation_mode="keep_start",
        on_bad_pair="drop",
        chat_template=str(template),
    )
    built = build_split(section, "train", llama3, tmp_path, require_scores=False)
    same = build_dataset(
        path,
        llama3,
        format="trl",
        max_prompt_length=3,
        max_length=5,
        truncation_mode="keep_start",
        stop_token_ids=[llama3.eos_token_id],
        chat_template=template.read_text(),
        on_bad_pair="drop",
    )
    assert built is not None
    assert (built.fingerprint, built.settings) == (same.fingerprint, same.settings)
    assert len(built[0].prompt_ids) == 3 and built.stats.bad_dropped == {"empty response": 1}
    assert build_split(section, "validation", llama3, tmp_path, require_scores=False) is None
    with pytest.raises(UserError, match="no scores, and this objective needs them"):
        build_split(section, "train", llama3, tmp_path, require_scores=True)


def test_a_chat_template_that_is_not_there(llama3: Any, tmp_path: Path) -> None:
    section = DataConfig(train_path="pairs.jsonl", chat_template=str(tmp_path / "gone.jinja"))
    message = r"data\.chat_template=.*gone\.jinja does not exist; correct the path"
    with pytest.raises(UserError, match=message):
        build_split(section, "train", llama3, tmp_path, require_scores=False)
