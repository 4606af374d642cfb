"""Progress bars: what is done, how fast, how long still. Shown once something takes a while."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY_SECONDS = 3.0


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None,
    unit: str,
    label: str,
    enabled: bool,
    initial: int = 0,
    unit_scale: bool = False,
) -> Any:
    """A tqdm bar on stderr that appears after three seconds.

    In a log file (no terminal) it prints a line every ten seconds at most.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=unit_scale,
        desc=label,
        disable=not enabled,
        delay=DELAY_SECONDS,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 10.0,
        ncols=None if terminal else 120,
        ascii=not terminal,
    )
