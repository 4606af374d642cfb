"""Seeds: worked out by hand from SHA-256, and independent of everything but the sample."""

from __future__ import annotations

import hashlib

import pytest

from nemo_gdpo.generation.seeds import SEED_BITS, sample_seed, sample_seeds
from nemo_gdpo.generation.types import SamplingPoint

POINT = SamplingPoint(temperature=0.7)
# sha256sum of the text in the middle, without a new line: its first 16 hexadecimal digits.
BY_HAND = [
    (1, "p1", POINT, 0, '[1,"p1",0.7,1.0,0.0,0,0]', "91c33475df24a637"),
    (1, "p1", POINT, 7, '[1,"p1",0.7,1.0,0.0,0,7]', "b243e0980719fd12"),
    (2, "Grüße", SamplingPoint(1.0, 0.9, 0.05, 50), 0,
     '[2,"Gr\\u00fc\\u00dfe",1.0,0.9,0.05,50,0]', "509fd4b8e2ae916e"),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "prompt_id", "point", "sample", "text", "digest"), BY_HAND)
def test_by_hand(
    seed: int, prompt_id: str, point: SamplingPoint, sample: int, text: str, digest: str
) -> None:
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    assert sample_seed(seed, prompt_id, point, sample) == int(digest, 16) // 2**11


def test_whole_numbers_and_reals_are_the_same_setting() -> None:
    one = SamplingPoint(temperature=1, top_p=1, min_p=0, top_k=0)
    assert sample_seed(1, "a", one, 0) == sample_seed(1, "a", SamplingPoint(), 0)


def test_more_samples_keep_the_first_ones() -> None:
    assert sample_seeds(1, "a", POINT, 8)[:3] == sample_seeds(1, "a", POINT, 3)


def test_no_two_alike_and_none_too_large() -> None:
    """Seeds of two runs, twenty prompts, three points and fifty samples."""
    points = [SamplingPoint(t) for t in (0.7, 1.0, 1.3)]
    seeds = [
        seed
        for run in (1, 2)
        for prompt in range(20)
        for point in points
        for seed in sample_seeds(run, str(prompt), point, 50)
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 20 * 3 * 50
    assert 2 ** (SEED_BITS - 4) < max(seeds) < 2**SEED_BITS


def test_the_id_cannot_pass_for_other_values() -> None:
    assert sample_seed(1, 'a",0.7', POINT, 0) != sample_seed(1, "a", POINT, 0)
    assert sample_seed(1, "1", POINT, 1) != sample_seed(11, "", POINT, 1)
