"""Per-sample seeds, derived from the content of the request alone."""

from __future__ import annotations

import hashlib
import json

from nemo_gdpo.generation.types import SamplingPoint

SEED_BITS = 53
"""JSON readers that know real numbers only keep integers of so many bits."""


def sample_seed(run_seed: int, prompt_id: str, point: SamplingPoint, sample: int) -> int:
    """The seed of one sample: 53 bits, the same wherever and whenever it is drawn.

    The first eight bytes of the SHA-256 of `[run seed, prompt id, temperature, top_p, min_p,
    top_k, sample]` as compact JSON in ASCII, most significant first, without their last 11 bits.

    Args:
        run_seed: `generation.seed`.
        prompt_id: of the prompt file.
        point: of the sweep.
        sample: counts from 0.
    """
    what = [
        int(run_seed),
        prompt_id,
        float(point.temperature),
        float(point.top_p),
        float(point.min_p),
        int(point.top_k),
        int(sample),
    ]
    text = json.dumps(what, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def sample_seeds(
    run_seed: int, prompt_id: str, point: SamplingPoint, count: int
) -> tuple[int, ...]:
    """The seeds of the samples 0 to count - 1."""
    return tuple(sample_seed(run_seed, prompt_id, point, number) for number in range(count))
