"""Start the ranks of a world as processes, as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nemo_gdpo.launch.ports import free_port
from nemo_gdpo.launch.ranks import rank_variables

ROOT = Path(__file__).parents[2]
WORLD = tuple(rank_variables(0, 1, 0))
"""By which a process knows that it is one of several ranks."""
LAST_WORDS = 5.0
"""Seconds that the other ranks get to say why they fail, once one has failed."""


def clean_environment() -> dict[str, str]:
    """The variables of this process without those of a world that it may itself be a rank of.

    One thread a rank, and nothing from the network.
    """
    foreign = {*WORLD, "SLURM_PROCID"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for one rank."""
    kept = {name: v for name, v in clean_environment().items() if not name.startswith("SLURM_")}
    return kept | rank_variables(rank, size, port) | {"PYTHONPATH": str(ROOT)}


def run_ranks(
    module: str, arguments: Sequence[str], logs: Sequence[Path], *, deadline: float = 600.0
) -> list[int]:
    """Run `python -m MODULE ARGUMENTS` as one rank for each log; their exit statuses.

    When a rank fails, or after `deadline` seconds, the others are killed: their status is negative.
    """
    port, size = free_port(), len(logs)
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=rank_environment(rank, size, port),
                    cwd=ROOT,
                )
            )
    limit = time.monotonic() + deadline
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
            if any(rank.poll() for rank in ranks):
                limit = min(limit, time.monotonic() + LAST_WORDS)
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [rank.returncode for rank in ranks]
