"""The tokens that generation stops on, from the files beside a model."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import read_json_object


def assets_of(model: Path) -> Path:
    """The directory with tokenizer and configs: of a Megatron checkpoint its `hf_assets`."""
    inner = model / "hf_assets"
    return inner if inner.is_dir() else model


def stop_token_ids(assets: Path) -> list[int] | None:
    """The ids of `eos_token_id` in generation_config.json, else in config.json; None in neither.

    Raises:
        UserError: a file is damaged, or names no tokens.
    """
    return _eos_of(assets / "generation_config.json") or _eos_of(assets / "config.json")


def end_token_candidates(assets: Path) -> list[int]:
    """The ids that a response may end in: those that generation stops on.

    Raises:
        UserError: a file is damaged, or names no tokens.
    """
    return stop_token_ids(assets) or []


def _eos_of(path: Path) -> list[int] | None:
    if not path.is_file():
        return None
    values = read_json_object(path)
    inner = values.get("text_config")  # of models that read more than text
    found = values.get("eos_token_id")
    if found is None and isinstance(inner, dict):
        found = inner.get("eos_token_id")
    if found is None:
        return None
    ids = found if isinstance(found, list) else [found]
    if not ids or not all(type(one) is int and one >= 0 for one in ids):
        raise UserError(
            f"{path}: eos_token_id is {found!r}, not a token's id or a list of them; correct it"
        )
    return ids
