"""Records with figures that a pencil can follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence.records import Records, read_records

Metrics = Mapping[str, Sequence[float | None]]
PROMPTS = ("a", "b", "c", "d")
SPREAD = (-0.02, -0.01, 0.01, 0.02)
"""By prompt, around a mean: sums to 0."""
FULL = {"valid": [1.0] * 4, "perplexity": [100.0] * 4}


def around(mean: float) -> list[float]:
    """One value a prompt, whose mean this is."""
    return [round(mean + by, 5) for by in SPREAD]


def point(
    update: int, reward: float, diversity: float, temperature: float = 1.0, /, **more: Any
) -> dict[str, Any]:
    """Of a record: reward and semantic diversity by their means, other metrics value by value."""
    metrics = {"reward": around(reward), "semantic_diversity": around(diversity), **FULL, **more}
    return {"update": update, "temperature": temperature, "responses": 8, "metrics": metrics}


def record(
    arm: str,
    points: Sequence[Mapping[str, Any]],
    seed: int = 1,
    *,
    family: str | None = None,
    labels: int = 100,
    **more: Any,
) -> dict[str, Any]:
    """As a job writes it."""
    return {
        "schema": 1,
        "identity": {"settings": {"updates": 40}},
        "arm": arm,
        "family": family or arm,
        "seed": seed,
        "day": "2026-11-28",
        "labels": labels,
        "pairs": labels,
        "seconds": {"train": 60.0},
        "prompts": list(PROMPTS),
        "points": list(points),
        **more,
    }


def write(directory: Path, *records: Mapping[str, Any]) -> Path:
    """One file each."""
    directory.mkdir(parents=True, exist_ok=True)
    for one in records:
        path = directory / f"{one['arm']}--seed-{one['seed']}.json"
        path.write_text(json.dumps(one), encoding="utf-8")
    return directory


def made(directory: Path, *records: Mapping[str, Any]) -> Records:
    """Written and read."""
    return read_records(write(directory, *records))


def base(seed: int = 1, **more: Any) -> dict[str, Any]:
    """The untouched model: reward 0, diversity 0.8; at temperature 0.5 reward 0.2 and 0.6."""
    return record("base", [point(0, 0.0, 0.8, **more), point(0, 0.2, 0.6, 0.5)], seed, labels=0)


def run(
    arm: str, *ends: tuple[float, float], seed: int = 1, family: str | None = None, **more: Any
) -> dict[str, Any]:
    """Measured every 20 updates: (reward, diversity)."""
    points = [point(20 * n, *end, **more) for n, end in enumerate(ends, 1)]
    return record(arm, points, seed, family=family)
