"""The files beside the weights: configs, tokenizer, chat template, licence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from nemo_gdpo.errors import UserError

ASSETS = "hf_assets"
CONFIG = "config.json"
README = "README.md"
TOKENIZER_FILES = frozenset(
    {"merges.txt", "spiece.model", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
)
"""Any of them holds a vocabulary."""
_NAMES = TOKENIZER_FILES | frozenset(
    {
        CONFIG,
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }
)
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_TEMPLATES = "additional_chat_templates"
_LICENCE_LINE = re.compile(r"^licen[sc]e(?:_name)?:\s*[\"']?([^\"'\n]+?)[\"']?\s*$", re.MULTILINE)


def _is_asset(path: Path) -> bool:
    return path.is_file() and (path.name in _NAMES or path.name.upper().startswith(_LEGAL))


def asset_files(source: Path) -> list[Path]:
    """The asset files of a model directory, relative to it. Weights and code are not among them."""
    found = [path.relative_to(source) for path in source.iterdir() if _is_asset(path)]
    found += [path.relative_to(source) for path in (source / _TEMPLATES).glob("*.jinja")]
    return sorted(found)


def copy_assets(source: Path, destination: Path, *, with_readme: bool = False) -> None:
    """Copy the asset files of a Hugging Face directory (or of a checkpoint's `hf_assets`).

    Args:
        source: has a config.json.
        destination: made if needed.
        with_readme: the model card too, which names the licence of the base model.

    Raises:
        UserError: `source` has no config.json.
    """
    if not (source / CONFIG).is_file():
        raise UserError(f"{source} has no {CONFIG}; give a complete model directory")
    destination.mkdir(parents=True, exist_ok=True)
    names = asset_files(source)
    if with_readme and (source / README).is_file():
        names.append(Path(README))
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        # Contents only: a Hugging Face cache is made of links and read-only files.
        shutil.copyfile(source / name, destination / name)


def has_chat_template(assets: Path) -> bool:
    """Whether transformers finds a chat template among the asset files."""
    if any((assets / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        config = json.loads((assets / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def base_licence(assets: Path) -> str | None:
    """The licence that the base model's card names, if it has a card."""
    card = assets / README
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = _LICENCE_LINE.search(parts[1])
    return found[1] if found else None
