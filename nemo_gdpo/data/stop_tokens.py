"""The tokens that generation stops on, from the files beside a model."""

from __future__ import annotations

import json
from pathlib import Path


def assets_of(model: Path) -> Path:
    """The directory with tokenizer and configs: of a Megatron checkpoint its `hf_assets`."""
    inner = model / "hf_assets"
    return inner if inner.is_dir() else model


def stop_token_ids(assets: Path) -> list[int] | None:
    """The ids of `eos_token_id` in generation_config.json; None when it does not say."""
    path = assets / "generation_config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    if found is None:
        return None
    return [found] if isinstance(found, int) else list(found)
