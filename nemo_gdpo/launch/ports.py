"""TCP ports for the ranks of one machine."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from nemo_gdpo.errors import RunError

JOB_PORTS = range(20_000, 30_000)
"""For the ranks of Slurm's jobs: each takes the one of its number, without looking."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL = (32768, 60999)
_FIRST, _LAST = 10_000, 65_535
_ATTEMPTS = 1000


def free_port() -> int:
    """A TCP port of this machine that nothing listens on, and that only a choice can take.

    Whoever is told of the port listens on it seconds or minutes later. Until then the kernel hands
    out the ports of its ephemeral range to every connection, so a port of that range may be
    another program's by then, and ranks that wait there would wait for a stranger. This one is
    drawn at random from outside the range, and from outside `JOB_PORTS`.

    Raises:
        RunError: no port was free.
    """
    low, high = _ephemeral_range()
    ports = [
        port
        for port in range(_FIRST, _LAST + 1)
        if not low <= port <= high and port not in JOB_PORTS
    ]
    chosen = random.SystemRandom()  # a seed of the caller's would give each of its runs one port
    for _ in range(_ATTEMPTS):
        with socket.socket() as probe:
            try:
                # The kernel's choice where the range has been widened to everything.
                probe.bind(("127.0.0.1", chosen.choice(ports) if ports else 0))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RunError(
        f"none of {_ATTEMPTS} TCP ports of 127.0.0.1 between {_FIRST} and {_LAST} is free for the "
        "ranks to meet at; end what listens there, or start the ranks with torchrun"
    )


def _ephemeral_range() -> tuple[int, int]:
    """First and last port that the kernel gives to connections."""
    try:
        low, high = _EPHEMERAL.read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):  # no Linux, or a container without it
        return _USUAL_EPHEMERAL
