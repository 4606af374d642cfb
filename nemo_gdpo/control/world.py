"""The control group: gloo over all ranks, with its own long limit, whatever computes."""

from __future__ import annotations

import datetime

import torch.distributed as dist

CONTROL_TIMEOUT = datetime.timedelta(hours=24)
"""For what one rank does alone while the others wait. Converting, hashing or tokenising may take
hours on a slow disk, and nothing but the job's own limit should end it."""

_made: tuple[dist.ProcessGroup | None, dist.ProcessGroup] | None = None
"""The default group of the world that the control group is of, and the control group."""


def control_group() -> dist.ProcessGroup:
    """The control group of the present world; made when it is first asked for, by all ranks alike.

    A group of its own on CPUs as well: there the default group is gloo, too, but its limit is the
    computation's.
    """
    global _made
    world = dist.group.WORLD
    if _made is None or _made[0] is not world:
        _made = (world, dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    return _made[1]


def is_control_group(group: dist.ProcessGroup) -> bool:
    """Whether a group is the control group, which outlives the meshes of its world."""
    return _made is not None and _made[1] is group


def rank_and_size() -> tuple[int, int]:
    """Of the world that is joined; a process that has joined none is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def forget_control_group() -> None:
    """Let go of the control group of a world that has ended; its threads end with it."""
    global _made
    _made = None
