"""Where a model lies: names that a user writes in the place of its directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from nemo_gdpo.config.base import PathText

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STEP = re.compile(r"step_\d+")
LATEST = "latest"
"""File of a run's checkpoints with the name of the newest."""


def checkpoint_place(path: Path) -> Path:
    """The checkpoint that `checkpoints/latest`, `checkpoints` or a run's directory stands for.

    Args:
        path: anything; what is none of these is returned as it is.
    """
    if path.name == LATEST and path.is_file():
        return _newest(path.parent) or path
    for folder in (path, path / "checkpoints"):
        if folder.is_dir() and any(_STEP.fullmatch(p.name) for p in folder.iterdir()):
            return _newest(folder) or path
    return path


def _newest(folder: Path) -> Path | None:
    """The complete checkpoint that `latest` names, else the one of the highest step."""
    steps = sorted(p for p in folder.iterdir() if _STEP.fullmatch(p.name))
    complete = [step for step in steps if (step / "manifest.json").is_file()]
    note = folder / LATEST
    named = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else ""
    chosen = [step for step in complete if step.name == named]
    return next(iter([*chosen, *reversed(complete)]), None)


def cached_snapshot(name: str) -> Path | None:
    """The directory of a model of the hub in this machine's cache; nothing is downloaded.

    Args:
        name: `owner/model`.
    """
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    if not snapshots.is_dir():
        return None
    reference = repository / "refs" / "main"
    if reference.is_file():
        found = snapshots / reference.read_text(encoding="utf-8").strip()
        return found if found.is_dir() else None
    several = [path for path in snapshots.iterdir() if path.is_dir()]
    return several[0] if len(several) == 1 else None


def model_place(configured: str) -> str:
    """The Hugging Face directory that a setting stands for.

    A run's directory stands for its export `hf`, a name of the hub for its snapshot in the cache.
    """
    path = Path(configured)
    if path.is_dir():
        export = path / "hf"
        is_run = not (path / "config.json").is_file() and (export / "config.json").is_file()
        return str(export) if is_run else configured
    if path.exists() or _HUB_NAME.fullmatch(configured) is None:
        return configured
    return str(cached_snapshot(configured) or configured)


def start_place(configured: str) -> str:
    """The directory that a setting of the model to start from stands for.

    As `model_place`; where a run has no export, or its checkpoints are named, the newest of these.
    """
    place = model_place(configured)
    return place if place != configured else str(checkpoint_place(Path(configured)))


ModelPath = Annotated[PathText, AfterValidator(model_place)]
"""A Hugging Face directory, a run's directory with its export, or a hub's name in the cache."""

StartPath = Annotated[PathText, AfterValidator(start_place)]
"""The same, or a Megatron checkpoint, a run's checkpoints or their `latest`, or a `.nemo`."""
