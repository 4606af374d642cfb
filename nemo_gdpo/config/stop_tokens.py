"""The tokens that generation stops on, from the files beside a model."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.io.files import read_json_object


def assets_of(model: Path) -> Path:
    """The directory with tokenizer and configs: of a Megatron checkpoint its `hf_assets`."""
    inner = model / "hf_assets"
    return inner if inner.is_dir() else model


def stop_token_ids(assets: Path) -> list[int] | None:
    """The ids of `eos_token_id` in generation_config.json; None when it does not say.

    Raises:
        UserError: the file is damaged.
    """
    return _eos_of(assets / "generation_config.json")


def end_token_candidates(assets: Path) -> list[int]:
    """The ids that a response may end in: those generation stops on, otherwise config.json's EOS.

    Raises:
        UserError: a file is damaged.
    """
    return stop_token_ids(assets) or _eos_of(assets / "config.json") or []


def _eos_of(path: Path) -> list[int] | None:
    if not path.is_file():
        return None
    found = read_json_object(path).get("eos_token_id")
    if found is None:
        return None
    return [found] if isinstance(found, int) else list(found)
