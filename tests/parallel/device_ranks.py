"""One of two ranks that join a world whose GPUs are not enough for them."""

from __future__ import annotations

import os
import sys

import torch

from nemo_gdpo.control.start import refuse_to_start
from nemo_gdpo.errors import UserError
from nemo_gdpo.platform import current_platform
from nemo_gdpo.platform.cuda import device_index

VISIBLE = {"one": {0: 1, 1: 1}, "too few": {0: 4, 1: 0}}
"""Case -> GPUs that each rank can see."""


class _Gpu:
    """CUDA's choice of a device, over gloo and on a CPU."""

    distributed_backend = "gloo"

    def __init__(self, visible: dict[int, int]) -> None:
        self._visible = visible
        self._index = -1

    def device(self, local_rank: int) -> torch.device:
        self._index = device_index(local_rank, self._visible[local_rank], {})
        return torch.device("cpu")

    def device_identity(self) -> str | None:
        return f"gpu {self._index}"

    def settle_arithmetic(self) -> list[str]:
        return []


def main(case: str) -> None:
    """Print what the rank is told."""
    current_platform()
    from nemo_gdpo.training.mesh import join_world

    platform: object = _Gpu(VISIBLE[case])
    try:
        join_world(platform, timeout_minutes=3.0)  # type: ignore[arg-type]
    except UserError as error:
        # What a rank's program does with an error that the others have not heard of.
        told = error if error.agreed else refuse_to_start(error)
        print(f"rank {os.environ['RANK']} told: {told}")
        return
    print("joined")


if __name__ == "__main__":
    main(sys.argv[1])
