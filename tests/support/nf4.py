"""NF4 as the paper has it: Dettmers et al. 2023, appendix E, and blocks of 64 by their maximum."""

from __future__ import annotations

import torch
from torch import Tensor

TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def rounded(matrix: Tensor) -> Tensor:
    """Each number at the nearest of the sixteen, as a share of the largest of its 64."""
    table = torch.tensor(TABLE)
    done = []
    for block in matrix.float().flatten().split(64):
        most = block.abs().max()
        shares = block / most if most > 0 else block
        nearest = (shares[:, None] - table).abs().argmin(dim=1)
        done.append(table[nearest] * most)
    return torch.cat(done).reshape(matrix.shape).to(matrix.dtype)
