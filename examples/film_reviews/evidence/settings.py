"""What all arms share: the model, the pairs, the budget, the prompts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from examples.film_reviews.evidence.writer import Size


@dataclass(frozen=True)
class Settings:
    """Everything that decides a number, beside the arm and the seed."""

    writer: Size | None = field(default_factory=Size)
    """None: SmolLM2-135M-Instruct, as it ships."""
    pairs: int = 1280
    """Of a seed."""
    validation: int = 32
    updates: int = 100
    batch: int = 16
    micro_batch: int = 16
    learning_rate: float = 2.0e-4
    warmup: int = 10
    saves: tuple[int, ...] = (25, 50, 100)
    """Updates after which the model is measured. Checkpoints are written at all multiples of their
    greatest common divisor."""
    prompt_words: int = 3
    """First words of a held-out snippet, which the model goes on from."""
    max_tokens: int = 40
    prompts: int = 32
    responses: int = 8
    modes: int = 16
    """Most probable responses to a prompt, whose coverage is measured."""
    temperatures: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    """Of the untouched model: what lowering the temperature alone does."""
    last_temperatures: tuple[float, ...] = (1.25, 1.5)
    """At which arms that are scaled by temperature are sampled as well, after the last update."""
    answers: int = 6
    """To each prompt of the pairs that are selected for diversity."""
    label_temperature: float = 0.1
    """Of the Bradley-Terry labels, in units of the reward: how often the lower one is preferred."""
    score_scale: float = 5.0
    """Scores in the data are so many times the reward: ODPO's offset is log(score gap)."""

    def plain(self) -> dict[str, Any]:
        """Plain values for records and the page."""
        return asdict(self)


FULL = Settings()
QUICK = Settings(
    writer=Size(
        vocabulary=2048, hidden=64, layers=2, heads=2, intermediate=128, epochs=4, snippets=3000
    ),
    pairs=16,
    validation=8,
    updates=4,
    batch=8,
    micro_batch=4,
    warmup=0,
    saves=(2, 4),
    max_tokens=60,
    prompts=4,
    responses=3,
    modes=2,
    temperatures=(0.7, 1.0),
    last_temperatures=(1.25,),
    answers=4,
)
"""Settings to try the program, not the methods."""
GPU = Settings(
    writer=None,
    pairs=2048,
    updates=200,
    batch=32,
    micro_batch=16,
    learning_rate=5.0e-6,
    saves=(40, 80, 120, 160, 200),
    prompts=64,
    responses=16,
)
"""SmolLM2-135M on one GPU."""
SETTINGS = {"cpu": FULL, "quick": QUICK, "gpu": GPU}
