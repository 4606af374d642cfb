"""The report of a run of rounds."""

from __future__ import annotations

from nemo_gdpo.config.rounds import RoundsConfig


def show(config: RoundsConfig, *, printed: bool = True) -> None:
    """Write it."""
