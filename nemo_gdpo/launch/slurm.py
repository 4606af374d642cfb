"""Ranks that srun started: from Slurm's variables to torchrun's, which everything else reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

from nemo_gdpo.errors import UserError
from nemo_gdpo.launch.ports import JOB_PORTS

WORLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""torchrun's variables without which nobody can join."""


def adopt_slurm_world(environ: MutableMapping[str, str]) -> bool:
    """Inside an srun step of several tasks, set torchrun's variables where they are missing.

    Returns True when this process is one of the step's ranks.

    Raises:
        UserError: this is the batch script of a job of several tasks, not one of the tasks.
    """
    if "RANK" in environ or "SLURM_PROCID" not in environ:
        return False
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1")))
    if tasks <= 1:
        return False
    if "SLURM_STEP_NUM_TASKS" not in environ and environ.get("SLURM_STEP_ID") is None:
        # sbatch sets SLURM_PROCID=0 in the script as well: joining would wait for ever.
        raise UserError(
            f"this is the script of a job of {tasks} tasks, not one of its tasks; put srun before "
            "nemo-gdpo train, or submit with --ntasks-per-node=1 on one node"
        )
    job = int(environ.get("SLURM_JOB_ID", "0"))
    step = environ.get("SLURM_STEP_ID", "0")
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    for name, value in {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_node(nodes),
        # The same on every node without talking, and different for jobs that share a node.
        "MASTER_PORT": str(JOB_PORTS[(job * 16 + int(step) % 16) % len(JOB_PORTS)]),
    }.items():
        environ.setdefault(name, value)
    return True


def first_node(nodelist: str) -> str:
    """The first host of a Slurm node list: `n[03-07,9],m1` -> `n03`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodelist} is not a node list; export MASTER_ADDR")
    return match.group(1) + (match.group(2) or "")


def is_invited(environ: Mapping[str, str]) -> bool:
    """Whether torchrun's variables name a world of several ranks, and where they meet."""
    named = all(environ.get(name) for name in WORLD)
    return named and int(environ["WORLD_SIZE"]) > 1
