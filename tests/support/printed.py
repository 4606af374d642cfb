"""The shell blocks of a page, as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.ranks import ROOT

PAGES = ("README.md", "docs/operator.md")


def blocks(page: str) -> list[str]:
    """The fenced blocks of a page that are shell: those without a language, or with a shell's."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in ("", "bash", "sh", "console")]


def all_blocks() -> dict[str, str]:
    """`PAGE: first words` -> block, over all pages."""
    return {
        f"{Path(page).name}: {' '.join(block.split()[:3])}": block
        for page in PAGES
        for block in blocks(page)
    }
