"""Preference pairs of made-up words, and files of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [
    "good",
    "bad",
    "dull",
    "long",
    "short",
    "film",
    "review",
    "liked",
    "very",
    "much",
    "and",
    "it",
    "was",
    "a",
    "fine",
    "answer",
]


def pairs(count: int, *, seed: int = 0, scores: bool = True) -> list[dict[str, Any]]:
    """Rows of messages with scores; responses of 2 to 9 words, never equal."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        chosen, rejected = (
            " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + f" {side} {number}"
            for side in ("one", "two")
        )
        row: dict[str, Any] = {
            "id": f"pair-{number}",
            "prompt": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=4))}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        if scores:
            row |= {"chosen_score": 2.0 + number % 3, "rejected_score": 1.0 - number % 2}
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path
