"""One of two ranks that meet in the control group; writes what it saw to `FOLDER/rank<N>.json`."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.control.world import CONTROL_TIMEOUT, control_group
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.mesh import build_mesh, join_world, leave_mesh, leave_world

LIMIT = datetime.timedelta(seconds=3)
"""Of the computation's collectives."""


def _time_limit(group: dist.ProcessGroup) -> datetime.timedelta:
    limit: datetime.timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return limit


def _raised(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - reported
        return f"{type(error).__name__}: {error}"
    return None


def main(folder: Path) -> None:
    """Every check, in one world."""
    join_world(current_platform(), timeout_minutes=5)
    # Only now: the ranks may start minutes apart on a busy machine.
    dist.distributed_c10d._set_pg_timeout(LIMIT)
    rank, group = dist.get_rank(), control_group()
    found: dict[str, object] = {
        "is its own": group is not dist.group.WORLD,
        "limits": [_time_limit(group) == CONTROL_TIMEOUT, _time_limit(dist.group.WORLD) == LIMIT],
    }
    for tensor in (2, 1):
        build_mesh(ParallelLayout(tensor=tensor), current_platform(), seed=0)
        leave_mesh()
    found["outlives meshes"] = control_group() is group
    found["gathered"] = gathered({"rank": rank})
    # Both arrive after the limit of the computation: whoever waits must not be ended by it.
    slow = 2 * LIMIT.total_seconds()

    def slowly() -> list[int]:
        time.sleep(slow)
        return [7]

    found["from the main rank"] = from_main_rank("converting", slowly)
    on_every_rank("loading", lambda: time.sleep(slow if rank == 1 else 0.0))
    found["out of step"] = _raised(
        lambda: on_every_rank("one thing" if rank == 0 else "another", lambda: None)
    )
    found["none"] = on_every_rank("nothing", lambda: None)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
