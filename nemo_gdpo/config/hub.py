"""Names on the Hugging Face hub, told apart from paths."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def may_be_hub_name(path: str) -> bool:
    """Whether `path` reads as `owner/name` and nothing here contradicts it.

    A suffix (`pairs/train.jsonl`) or a folder of the owner's name makes it a path. Only the hub
    knows whether the name exists.
    """
    file = Path(path)
    return _NAME.fullmatch(path) is not None and not file.suffix and not file.parent.exists()
