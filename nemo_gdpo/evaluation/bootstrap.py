"""Percentile bootstrap over prompts (Efron & Tibshirani 1993, ch. 13).

Prompts are the units that are drawn anew, not responses: K responses to one prompt are not K
independent observations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from nemo_gdpo.evaluation.results import Interval

_CHUNK_ELEMENTS = 1 << 22


def bootstrap_mean(
    values: Sequence[float | None], *, resamples: int, level: float, seed: int, name: str = ""
) -> Interval | None:
    """The mean over prompts and the interval of its bootstrap distribution.

    Args:
        values: one a prompt; None where the metric is not defined.
        resamples: drawn sets of prompts.
        level: share of the distribution inside the interval, such as 0.95.
        seed: of the draws.
        name: makes the draws of several metrics independent of each other's order and presence.

    Returns:
        None when no prompt has a value; an interval of no width for a single one.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    mixed = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big")
    generator = np.random.default_rng(mixed)
    means = np.empty(resamples)
    step = max(1, _CHUNK_ELEMENTS // known.size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, known.size, size=(rows, known.size))
        means[start : start + rows] = known[drawn].mean(axis=1)
    outside = (1.0 - level) / 2.0
    low, high = np.quantile(means, [outside, 1.0 - outside])
    return Interval(float(known.mean()), float(low), float(high), int(known.size))
