"""Ranks that srun started: their place, from Slurm's variables to torchrun's, which everything else
reads; and the status that they end with.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from nemo_gdpo.errors import EXIT_DONE, EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from nemo_gdpo.launch.ports import JOB_PORTS

STATUS_FILE = "NEMO_GDPO_STATUS_FILE"
"""Variable with the path of a file for the status of a step, on a disk that all nodes see. The job
script sets it, and reads the file once the step is over."""

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


def step_status(status: int, environ: Mapping[str, str]) -> int:
    """The status to end with as a task of a step; the file of the job's script gets the true one.

    `srun --kill-on-bad-exit=1` ends all tasks as soon as one ends with anything but 0, and gives
    the highest status, which then is that of a task that it killed: 143. So a rank that stopped as
    it was asked to ends with 0, and leaves its neighbours the time to do the same; and of a mistake
    in the input, for which a rank takes the others down, the script learns from the file.

    Args:
        status: of the verb.
        environ: has `STATUS_FILE` in a step whose script reads it; nothing is done without.
    """
    if STATUS_FILE not in environ or status not in (EXIT_REQUEUE, EXIT_USER_ERROR):
        return status
    # The first one counts: what it ended with is why the others end.
    with contextlib.suppress(FileExistsError), Path(environ[STATUS_FILE]).open("x") as file:
        file.write(f"{status}\n")
    return EXIT_DONE if status == EXIT_REQUEUE else status
