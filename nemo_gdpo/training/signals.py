"""The agreement of all ranks to stop at the same step."""

from __future__ import annotations

import torch
import torch.distributed as dist

from nemo_gdpo.control.watch import waiting
from nemo_gdpo.control.world import control_group
from nemo_gdpo.launch.signals import StopRequest


def any_rank_stopped(stop: StopRequest) -> bool:
    """Whether any rank has been asked to stop. Collective.

    Ranks receive a signal at different moments; leaving the loop at different steps would hang.
    Between two steps rank 0 alone writes logs, which may take long: the others wait for it here, in
    the control group.
    """
    flag = torch.tensor([stop.received or 0], dtype=torch.int32, device="cpu")
    with waiting("between steps"):
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=control_group())
    return bool(flag.item())
