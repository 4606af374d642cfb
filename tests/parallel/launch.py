"""Start the ranks of one world, and read what they found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE = 600.0
"""Seconds after which a launch is taken to hang."""
WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    values = (str(rank), str(size), str(rank), "127.0.0.1", str(port))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {
        **dict(zip(WORLD, values, strict=True)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def launch(folder: Path, size: int, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the cases of a world of `size` ranks; key of the case -> what rank 0 found.

    Raises:
        AssertionError: a rank failed outside of any case, or the launch hangs.
    """
    port = _free_port()
    logs = [folder / f"world{size}.rank{rank}.log" for rank in range(size)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.parallel.rank_main", str(folder), *keys],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=_environment(rank, size, port),
                    cwd=ROOT,
                )
            )
    limit = time.monotonic() + DEADLINE
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
            if any(rank.poll() for rank in ranks):
                # One failed; others that fail by themselves get a moment to say why.
                limit = min(limit, time.monotonic() + 5.0)
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    found = [folder / f"world{size}.rank{rank}.json" for rank in range(size)]
    results = [json.loads(path.read_text()) if path.is_file() else {} for path in found]
    for rank, result in enumerate(results):
        for key, value in result.items():
            if "error" in value:
                raise AssertionError(f"{key} failed on rank {rank} of {size}:\n{value['error']}")
    if any(rank.returncode for rank in ranks):
        last = "\n".join(log.read_text()[-2000:] for log in logs)
        codes = [rank.returncode for rank in ranks]
        raise AssertionError(f"{size} ranks ended with {codes}:\n{last}")
    return dict(results[0])
