"""Intervals over seeds and prompts: both are drawn anew with replacement, the same for both sides.

Percentile bootstrap. So that what makes a prompt easy, or a seed's pairs telling, cancels in a
difference, two sides are always given the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.film_reviews.evidence.records import Values

LEVEL = 0.95
SEED = 20261128


@dataclass(frozen=True)
class Interval:
    """The figure of the data themselves, and the bounds that hold 95 % of the draws."""

    mean: float
    low: float
    high: float

    def change(self) -> str:
        """`+0.031 [+0.010, +0.052]`, for a difference."""
        return f"{self.mean:+z.3f} [{self.low:+z.3f}, {self.high:+z.3f}]"

    def plain(self) -> str:
        """`0.531 [0.510, 0.552]`, with as many digits as a reader wants."""
        digits = 1 if abs(self.mean) >= 100 else 2 if abs(self.mean) >= 10 else 3
        return f"{self.mean:z.{digits}f} [{self.low:z.{digits}f}, {self.high:z.{digits}f}]"


class Draws:
    """How often each seed and each prompt is drawn; row 0 is the data themselves."""

    def __init__(self, seeds: int, prompts: int, resamples: int) -> None:
        random = np.random.default_rng(SEED)
        self.seed_RS = _counts(random, seeds, resamples)
        self.prompt_RP = _counts(random, prompts, resamples)

    def means(self, value_SP: Values) -> Values:
        """The mean of every draw, [resamples + 1].

        Args:
            value_SP: nan where a value is missing, which a mean leaves out; a draw that holds no
                value is nan.
        """
        known_SP = np.isfinite(value_SP)
        total = self._weighted(np.where(known_SP, value_SP, 0.0))
        count = self._weighted(known_SP.astype(np.float64))
        means: Values = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return means

    def _weighted(self, value_SP: Values) -> Values:
        weighted: Values = ((self.seed_RS @ value_SP) * self.prompt_RP).sum(axis=1)
        return weighted


def _counts(random: np.random.Generator, size: int, resamples: int) -> Values:
    drawn: npt.NDArray[np.int64] = random.multinomial(size, np.full(size, 1.0 / size), resamples)
    return np.vstack([np.ones(size), drawn.astype(np.float64)])


def interval(value_R: Values) -> Interval:
    """Of draws whose first is the data's own; draws that are nan are left out.

    Raises:
        ValueError: there is no draw to take an interval of.
    """
    if not np.isfinite(value_R[0]) or not np.isfinite(value_R[1:]).any():
        raise ValueError("no value to take an interval of")
    outside = (1.0 - LEVEL) / 2.0
    low, high = np.nanquantile(value_R[1:], [outside, 1.0 - outside])
    return Interval(float(value_R[0]), float(low), float(high))
