"""The order of training depends on the seed and nothing of the mesh."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_gdpo.data import SENTINEL, PreferenceSampler
from nemo_gdpo.errors import UserError


def test_every_epoch_is_its_own_permutation() -> None:
    sampler = PreferenceSampler(12, seed=5, fingerprint="f")
    stream = [index for _ in range(9) for index in sampler.next_global_batch(4)]
    epochs = [stream[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert sampler.consumed_pairs == 36
    other = PreferenceSampler(12, seed=6, fingerprint="f")
    assert other.global_batch(0, 12) != epochs[0]


def test_the_order_is_pinned() -> None:
    # A change of the generator would silently reorder every run that resumes.
    order = PreferenceSampler(10, seed=1234, fingerprint="f").global_batch(0, 10)
    assert order == [8, 9, 5, 0, 2, 6, 4, 7, 1, 3]


@given(
    consumed=st.integers(0, 500),
    num_pairs=st.integers(1, 40),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_batches_are_slices_of_one_stream(
    consumed: int, num_pairs: int, size: int, seed: int
) -> None:
    sampler = PreferenceSampler(num_pairs, seed, "f")
    if size > num_pairs:
        with pytest.raises(UserError, match=rf"model\.global_batch_size={size}"):
            sampler.global_batch(consumed, size)
        return
    one_by_one = [sampler.global_batch(consumed + k, 1)[0] for k in range(size)]
    assert sampler.global_batch(consumed, size) == one_by_one


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_any_mesh_cuts_the_same_global_batches(micro: int) -> None:
    batch = PreferenceSampler(50, seed=0, fingerprint="f").global_batch(24, 24)
    for dp_size in (1, 2, 4):
        shares = [PreferenceSampler.micro_batches(batch, r, dp_size, micro) for r in range(dp_size)]
        assert all(len(share) == 24 // (dp_size * micro) for share in shares)
        assert all(len(part) == micro for share in shares for part in share)
        # Step by step over the ranks: exactly the batch, in its order.
        rejoined = [i for step in zip(*shares, strict=True) for part in step for i in part]
        assert rejoined == batch


def test_a_batch_that_the_mesh_cannot_split() -> None:
    message = r"model\.global_batch_size=6 does not divide into 2 .* micro-batches of 2; .* of 4"
    with pytest.raises(UserError, match=message):
        PreferenceSampler.micro_batches(range(6), 0, 2, 2)


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 8])
def test_resuming_anywhere_continues_the_stream(stop: int) -> None:
    whole = PreferenceSampler(13, seed=3, fingerprint="f")
    expected = [whole.next_global_batch(5) for _ in range(10)]
    first = PreferenceSampler(13, seed=3, fingerprint="f")
    got = [first.next_global_batch(5) for _ in range(stop)]
    state = first.state_dict()
    assert state == {"consumed_pairs": 5 * stop, "fingerprint": "f", "seed": 3, "num_pairs": 13}
    second = PreferenceSampler(13, seed=3, fingerprint="f")
    second.load_state_dict(state)
    got += [second.next_global_batch(5) for _ in range(10 - stop)]
    assert got == expected


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PreferenceSampler(13, 3, "g"), "has fingerprint f, this run has g; give the data"),
        (PreferenceSampler(14, 3, "f"), "has num_pairs 13, this run has 14; give the data"),
        (PreferenceSampler(13, 4, "f"), r"has seed 3, this run has 4; set data\.seed=3"),
    ],
)
def test_another_data_set_or_seed_is_refused(other: PreferenceSampler, message: str) -> None:
    state = PreferenceSampler(13, 3, "f").state_dict()
    with pytest.raises(UserError, match=message):
        other.load_state_dict({**state, "consumed_pairs": 5})
    assert other.consumed_pairs == 0


def test_validation_sees_every_pair_once() -> None:
    sampler = PreferenceSampler(7, 0, "f")
    batches = list(sampler.validation_batches(3))
    assert batches == [[0, 1, 2], [3, 4, 5], [6, SENTINEL, SENTINEL]]
    assert list(sampler.validation_batches(3, limit_batches=2)) == batches[:2]
    assert list(PreferenceSampler(2, 0, "f").validation_batches(4)) == [[0, 1, -1, -1]]


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="no pair"):
        PreferenceSampler(0, 0, "f")
    with pytest.raises(UserError, match=r"data\.seed=-1"):
        PreferenceSampler(3, -1, "f")


@given(consumed=st.integers(0, 60), groups=st.integers(1, 12), seed=st.integers(0, 99))
def test_groups_stay_together(consumed: int, groups: int, seed: int) -> None:
    """Three pairs a group: whole groups, each in the order of the file, each once an epoch."""
    sampler = PreferenceSampler(3 * groups, seed, "f", together=3)
    batch = sampler.global_batch(3 * consumed, 3 * groups)
    blocks = [batch[start : start + 3] for start in range(0, len(batch), 3)]
    assert all(block == [block[0], block[0] + 1, block[0] + 2] for block in blocks)
    assert all(block[0] % 3 == 0 for block in blocks)
    epoch = sampler.global_batch(0, 3 * groups)
    assert sorted(epoch) == list(range(3 * groups))


def test_pairs_that_are_no_whole_groups() -> None:
    with pytest.raises(UserError, match=r"data\.group_size=6: 7 pairs are no whole number"):
        PreferenceSampler(7, 0, "f", together=3)
