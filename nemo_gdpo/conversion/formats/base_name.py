"""The base model's name on the Hugging Face hub, where its directory tells it; never a path."""

from __future__ import annotations

import json
import re
from pathlib import Path

from nemo_gdpo.conversion.formats.assets import CONFIG, README

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/")
_BASE_LINE = re.compile(
    r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([\w.-]+/[\w.-]+)[\"']?[ \t]*$", re.MULTILINE
)
_FOLDERS = frozenset(
    {
        "checkpoint", "checkpoints", "ckpt", "ckpts", "data", "exp", "experiments", "export",
        "exports", "home", "hf", "llm", "mnt", "model", "models", "output", "outputs", "results",
        "root", "run", "runs", "scratch", "tmp", "weights", "work", "workspace",
    }
)  # fmt: skip
"""Folders that a relative path begins with: `runs/sft` would pass for a name otherwise."""


def _is_name(text: object) -> bool:
    """Whether `text` reads as `owner/name` and as no path of anybody's machine."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        return False
    return text.partition("/")[0].lower() not in _FOLDERS and not Path(text).exists()


def hub_name(directory: Path) -> str | None:
    """`owner/name` of a model, from the first that tells it; None where nothing does.

    Its place in a Hugging Face cache; `_name_or_path` of config.json, which transformers wrote when
    it saved what it had loaded; `base_model` of its card, which names the model before it.

    Args:
        directory: with config.json.
    """
    # Not resolved: the files of a cache are links to blobs without a name.
    found = _SNAPSHOT.search(f"{directory.absolute().as_posix()}/")
    if found is not None:
        return f"{found[1]}/{found[2]}"
    for name in (_of_config(directory / CONFIG), _of_card(directory / README)):
        if _is_name(name):
            return str(name)
    return None


def _of_config(file: Path) -> object:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("_name_or_path") if isinstance(found, dict) else None


def _of_card(file: Path) -> str | None:
    if not file.is_file():
        return None
    parts = file.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    found = _BASE_LINE.search(parts[1])
    return found[1] if found else None


def base_name(directory: Path) -> str:
    """What a card calls the model in `directory`: its name on the hub, else the directory's."""
    return hub_name(directory) or directory.absolute().name
