"""Numbers as a reader sees them: no minus before a zero, no interval where there is none."""

from __future__ import annotations

from nemo_gdpo.evaluation.results import Interval

ONE_PROMPT = "one prompt"
"""In the place of an interval: a bootstrap over one prompt has no width, which says nothing."""


def has_interval(value: Interval) -> bool:
    """Whether there is more than one prompt to draw from."""
    return value.n > 1


def plain_number(value: float) -> str:
    """Three figures after the point, fewer for large numbers."""
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:z.3f}"


def plain_interval(value: Interval) -> str:
    """`0.500 [0.400, 0.600]`."""
    if not has_interval(value):
        return f"{plain_number(value.mean)} ({ONE_PROMPT})"
    return f"{plain_number(value.mean)} [{plain_number(value.low)}, {plain_number(value.high)}]"


def number(value: float) -> str:
    """Three figures after the point for small numbers, fewer for large ones; a true minus."""
    size = abs(value)
    text = f"{value:z.1f}" if size >= 100 else f"{value:z.2f}" if size >= 10 else f"{value:z.3f}"
    return text.replace("-", "\N{MINUS SIGN}")
