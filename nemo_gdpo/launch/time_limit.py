"""The end of a job's time, as far as it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_gdpo.errors import UserError

VARIABLES = ("NEMO_GDPO_END_TIME", "SLURM_JOB_END_TIME")
"""Variables with the end of the job, in Unix seconds; the first that is set counts. Slurm's stays
what it was when the job started, also when its limit is changed."""
KEY = "trainer.max_minutes"
MARGIN_SECONDS = 60.0
"""For what nobody has measured: loggers that send, processes that end. Of a short time a tenth."""


@dataclass(frozen=True)
class TimeLimit:
    """When a run has to have ended."""

    end: float
    """Unix seconds."""
    margin: float
    """Seconds to keep free before it."""
    key: str
    """Where it comes from."""


def time_limit(
    environ: Mapping[str, str], max_minutes: float | None, *, begun: float
) -> TimeLimit | None:
    """The earlier one of the job's end and of the run's own limit; None without any.

    Args:
        environ: may have one of `VARIABLES`.
        max_minutes: of the configuration, from `begun` on.
        begun: Unix seconds.

    Raises:
        UserError: a variable is no number.
    """
    ends = {}
    if max_minutes is not None:
        ends[KEY] = begun + 60.0 * max_minutes
    for name in VARIABLES:
        if environ.get(name):
            ends[name] = _seconds(name, environ[name])
            break
    if not ends:
        return None
    key = min(ends, key=ends.__getitem__)
    margin = min(MARGIN_SECONDS, max(ends[key] - begun, 0.0) / 10)
    return TimeLimit(ends[key], margin, key)


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name}={text} in the environment is not a time in Unix seconds; unset it")
    return value
