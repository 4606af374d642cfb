"""Positions computed for each useful token, by batching mode: `python -m benchmarks.batching`.

The project's own cut of global batches on synthetic lengths, without a model; deterministic.
Lengths are log-normal, and their means are assumptions, named after the data sets that they
resemble.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

import torch

from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.batches import BatchBuilder

PAIRS, BATCH, LONGEST, SPREAD = 4096, 128, 2048, 0.8
"""`SPREAD` is the standard deviation of a length's logarithm."""
DATA_RANKS = 8


@dataclass(frozen=True)
class Shape:
    """Mean tokens of prompt, chosen and rejected response."""

    name: str
    prompt: int
    chosen: int
    rejected: int


SHAPES = (
    Shape("dialogues (HH)", 102, 82, 75),
    Shape("instructions (UltraFeedback)", 190, 340, 290),
    Shape("summaries (TL;DR)", 380, 40, 40),
)


def pairs_of(shape: Shape, seed: int = 1) -> list[TokenizedPair]:
    """Pairs of such lengths, responses cut so that a sequence has `LONGEST` tokens at most."""
    draw = random.Random(seed)

    def length(mean: int, most: int) -> int:
        drawn = draw.lognormvariate(log(mean) - SPREAD**2 / 2, SPREAD)
        return max(2, min(round(drawn), most))

    found = []
    for number in range(PAIRS):
        prompt = length(shape.prompt, LONGEST // 2)
        chosen, rejected = (
            TokenizedResponse((5,) * length(mean, LONGEST - prompt), complete=True)
            for mean in (shape.chosen, shape.rejected)
        )
        found.append(TokenizedPair(str(number), (5,) * prompt, chosen, rejected))
    return found


def useful(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens of both sequences of every pair."""
    return sum(2 * len(p.prompt_ids) + len(p.chosen.ids) + len(p.rejected.ids) for p in pairs)


def fixed(pairs: Sequence[TokenizedPair]) -> int:
    """What rows of the greatest length take."""
    return 2 * LONGEST * len(pairs)


def measured(builder: BatchBuilder) -> tuple[int, float]:
    """(positions, the busiest rank's share over an equal share) over all global batches."""
    slots, busiest = 0, 0
    rows = 1 if builder.pack_tokens else 2 * builder.micro_batch_size
    for start in range(0, PAIRS, BATCH):
        plan = builder.plan(range(start, start + BATCH))
        loads = [rows * sum(one.length for one in share) for share in plan]
        slots += sum(loads)
        busiest += max(loads)
    return slots, busiest * builder.data_size / slots


def main() -> None:
    """Print the table."""
    padded = BatchBuilder(
        pairs=(), pad_token_id=0, layout=ParallelLayout(), precision="bf16", micro_batch_size=4,
        pack_tokens=None, prefix_sharing=False, data_rank=0, data_size=DATA_RANKS,
        device=torch.device("cpu"),
    )  # fmt: skip
    packed = replace(padded, pack_tokens=2 * 4 * LONGEST)
    shared = replace(packed, prefix_sharing=True)
    modes = {
        "padded to the longest of the global batch": padded,
        "packed": packed,
        "packed, PP4": replace(packed, layout=ParallelLayout(pipeline=4)),
        "packed, CP4": replace(packed, layout=ParallelLayout(context=4)),
        "packed, prompts shared": shared,
        "packed, prompts shared, PP4": replace(shared, layout=ParallelLayout(pipeline=4)),
    }
    print(f"| positions for a useful token | {' | '.join(shape.name for shape in SHAPES)} |")
    print("|---|" + "---|" * len(SHAPES))
    data = [pairs_of(shape) for shape in SHAPES]
    cells = [f"{fixed(pairs) / useful(pairs):.2f}" for pairs in data]
    print(f"| padded to {LONGEST} | {' | '.join(cells)} |")
    for name, builder in modes.items():
        found = [(measured(replace(builder, pairs=pairs)), useful(pairs)) for pairs in data]
        cells = [f"{slots / tokens:.3f} ({worst:.2f})" for (slots, worst), tokens in found]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nIn brackets: the busiest of {DATA_RANKS} data-parallel ranks over an equal share.")


if __name__ == "__main__":
    main()
