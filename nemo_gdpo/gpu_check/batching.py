"""Padded, packed and shared rows on pairs of unequal lengths: time for the same pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.gpu_check.findings import Measurement
from nemo_gdpo.gpu_check.lengths import INSTRUCTIONS, Lengths, draw_lengths
from nemo_gdpo.gpu_check.shape import LLAMA3_8B, Speed, measure, random_pair, require_engine

LAYERS, PAIRS = 4, 32
"""So few layers that activations of rows with 16,384 positions fit beside the head."""
PADDED = ("data.packing=false", "model.micro_batch_size=4")
PACKED = ("data.packing=true", "data.pack_tokens=16384")
SHARED = (*PACKED, "data.prefix_sharing=true")
MODES = {
    # Padded in both orders: what a card's warmth does shows in the difference.
    "padded": ("precision=bf16", *PADDED),
    "packed": ("precision=bf16", *PACKED),
    "shared": ("precision=bf16", *SHARED),
    "padded again": ("precision=bf16", *PADDED),
    "packed, FP8": ("precision=fp8_tensorwise", *PACKED),
    "shared, FP8": ("precision=fp8_tensorwise", *SHARED),
}


def unequal_pairs(vocabulary: int, count: int = PAIRS) -> tuple[list[TokenizedPair], int]:
    """Pairs with the lengths of instructions, and the tokens that both sequences have together."""
    draw = torch.Generator().manual_seed(3)
    lengths: list[Lengths] = draw_lengths(INSTRUCTIONS, count)
    pairs = [random_pair(draw, vocabulary, one.prompt, one.chosen, one.rejected) for one in lengths]
    return pairs, sum(one.useful for one in lengths)


def speed(folder: Path) -> Iterator[Measurement]:
    """The same pairs in every mode, in rows of equal room: up to 16,384 positions."""
    del folder
    require_engine()
    shape = dataclasses.replace(LLAMA3_8B, num_layers=LAYERS)
    pairs, useful = unequal_pairs(shape.vocab_size)
    yield Measurement("layers", LAYERS, f"of {LLAMA3_8B.num_layers}")
    yield Measurement("useful tokens in an update", useful)
    first: Speed | None = None
    for name, settings in MODES.items():
        found = measure(shape, pairs, *settings)
        first = first or found
        yield Measurement(f"{name}: update", found.step_seconds, "s")
        yield Measurement(f"{name}: slowest update", found.slowest_seconds, "s")
        yield Measurement(f"{name}: useful tokens", useful / found.step_seconds, "tokens/s")
        yield Measurement(f"{name}: peak memory", found.peak_bytes / 2**30, "GiB")
        yield Measurement(f"{name} over padded", first.step_seconds / found.step_seconds, "times")
