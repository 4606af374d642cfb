"""Positions computed for each useful token, by batching mode: `python -m benchmarks.batching`.

The project's own cut of global batches on synthetic lengths, without a model; deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from nemo_gdpo.gpu_check.lengths import (
    DIALOGUES,
    INSTRUCTIONS,
    LONGEST,
    SUMMARIES,
    Lengths,
    draw_lengths,
)
from nemo_gdpo.models.builder import ParallelLayout
from nemo_gdpo.training.batches import BatchBuilder

PAIRS, BATCH, DATA_RANKS = 4096, 128, 8
SHAPES = {
    "dialogues (HH)": DIALOGUES,
    "instructions (UltraFeedback)": INSTRUCTIONS,
    "summaries (TL;DR)": SUMMARIES,
}


def pairs_of(mean: Lengths, seed: int = 1) -> list[TokenizedPair]:
    """Pairs of such lengths, all of the same token."""

    def response(length: int) -> TokenizedResponse:
        return TokenizedResponse((5,) * length, complete=True)

    return [
        TokenizedPair(str(number), (5,) * one.prompt, response(one.chosen), response(one.rejected))
        for number, one in enumerate(draw_lengths(mean, PAIRS, seed))
    ]


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
    print(f"| positions for a useful token | {' | '.join(SHAPES)} |")
    print("|---|" + "---|" * len(SHAPES))
    data = [pairs_of(mean) for mean in SHAPES.values()]
    cells = [f"{fixed(pairs) / useful(pairs):.2f}" for pairs in data]
    print(f"| padded to {LONGEST} | {' | '.join(cells)} |")
    for name, builder in modes.items():
        found = [(measured(replace(builder, pairs=pairs)), useful(pairs)) for pairs in data]
        cells = [f"{slots / tokens:.3f} ({worst:.2f})" for (slots, worst), tokens in found]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nIn brackets: the busiest of {DATA_RANKS} data-parallel ranks over an equal share.")


if __name__ == "__main__":
    main()
