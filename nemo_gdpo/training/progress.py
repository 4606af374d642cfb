"""Progress bars on the main rank: what is done, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*, total: int, unit: str, label: str, enabled: bool, initial: int = 0) -> Any:
    """A tqdm bar on stderr. In a log file (no terminal) it prints a line every ten seconds only."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=label,
        disable=not enabled,
        dynamic_ncols=terminal,
        mininterval=0.5 if terminal else 10.0,
        ncols=None if terminal else 120,
        ascii=not terminal,
    )
