"""Lengths of preference pairs, drawn to resemble what people train on.

Lengths are log-normal, and their means are assumptions, named after the data sets that they
resemble.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import log

LONGEST, SPREAD = 2048, 0.8
"""Tokens of a sequence at most; standard deviation of a length's logarithm."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompt, chosen and rejected response: of one pair, or their means."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def useful(self) -> int:
        """Tokens of both sequences."""
        return 2 * self.prompt + self.chosen + self.rejected


DIALOGUES = Lengths(102, 82, 75)
"""Like HH."""
INSTRUCTIONS = Lengths(190, 340, 290)
"""Like UltraFeedback."""
SUMMARIES = Lengths(380, 40, 40)
"""Like TL;DR."""


def draw_lengths(mean: Lengths, count: int, seed: int = 1) -> list[Lengths]:
    """Lengths of `count` pairs, responses cut so that a sequence has `LONGEST` tokens at most."""
    draw = random.Random(seed)

    def length(expected: int, most: int) -> int:
        drawn = draw.lognormvariate(log(expected) - SPREAD**2 / 2, SPREAD)
        return max(2, min(round(drawn), most))

    found = []
    for _ in range(count):
        prompt = length(mean.prompt, LONGEST // 2)
        chosen, rejected = (length(m, LONGEST - prompt) for m in (mean.chosen, mean.rejected))
        found.append(Lengths(prompt, chosen, rejected))
    return found
