"""The memory that this process may still take."""

from __future__ import annotations

import math
from pathlib import Path

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.errors import UserError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_MARGIN = 1.15
"""Buffers of loading and the activations of one short prompt, as a factor on the weights."""


def _cgroup_bytes() -> int | None:
    """Bytes that the container may still take; None without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used


def available_bytes() -> int:
    """Memory of the machine, or of the container, that is free or can be freed at once."""
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            free = int(value.split()[0]) * 1024
            break
    else:
        raise RuntimeError(f"{_MEMINFO} has no MemAvailable")
    limit = _cgroup_bytes()
    return free if limit is None else min(free, limit)


def parameter_count(bridge: ModelBridge) -> int:
    """Number of weights of a model, without padding of the vocabulary."""
    return sum(math.prod(shape) for shape in bridge.hf_shapes().values())


def check_fits(bridge: ModelBridge, tokens: int, where: Path, free: int) -> None:
    """Refuse to run a model in float32 where it does not fit.

    Args:
        bridge: the model.
        tokens: number of tokens of all prompts together; both models' logits are kept for them.
        where: named in the error.
        free: bytes that may be taken.

    Raises:
        UserError: it does not fit.
    """
    needed = int(_MARGIN * 4 * parameter_count(bridge))
    needed += 3 * 4 * tokens * bridge.config.vocab_size
    if needed > free:
        raise UserError(
            f"{where}: running it in float32 takes {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB of memory are free; use a larger machine, or compare the "
            "tensors only with --tensors-only"
        )
