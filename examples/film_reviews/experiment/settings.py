"""The budget that all arms share, and the prompts they are asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

UNSEEN = (
    "Write a single sentence about a thriller you watched.",
    "What would a critic say about a comedy? Answer in one sentence.",
    "Say in one sentence whether a movie is worth the ticket.",
    "Review a documentary in one sentence.",
    "Tell a friend in one sentence about a film you have seen.",
    "Comment on the plot of a film in one sentence.",
    "Write one sentence about a remake of a classic film.",
    "Give one sentence on the dialogue of a recent movie.",
)
"""Instructions that no pair has; like those of the pairs, none asks for praise or blame."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a number, beside the arm and the seed."""

    updates: int = 30
    pairs: int = 240
    """Each is seen once: updates x batch."""
    batch: int = 8
    micro_batch: int = 2
    learning_rate: float = 1.0e-5
    warmup: int = 5
    temperatures: tuple[float, ...] = (0.7, 1.0, 1.3)
    samples: int = 8
    max_tokens: int = 48
    prompts: int = 16
    """The pairs' 8 instructions and the first of `UNSEEN`. Exact KL of every response costs as much
    as training does, so there are not more."""
    resamples: int = 2000

    def plain(self) -> dict[str, Any]:
        """Plain values for manifests and the report."""
        return asdict(self)


FULL = Settings()
QUICK = Settings(
    updates=2,
    pairs=8,
    batch=4,
    warmup=0,
    temperatures=(0.7, 1.3),
    samples=3,
    max_tokens=8,
    prompts=3,
    resamples=200,
)
"""Settings to try the program, not the methods."""
