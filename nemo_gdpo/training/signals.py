"""The agreement of all ranks to stop at the same step."""

from __future__ import annotations

import torch
import torch.distributed as dist

from nemo_gdpo.launch.signals import StopRequest


def any_rank_stopped(stop: StopRequest, device: torch.device) -> bool:
    """Whether any rank has been asked to stop. Collective.

    Ranks receive a signal at different moments; leaving the loop at different steps would hang.
    """
    flag = torch.tensor([stop.received or 0], dtype=torch.int32, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
