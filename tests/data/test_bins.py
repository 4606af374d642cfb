"""Pairs into packed rows: each once, none over the limit, level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_gdpo.data.bins import bins_needed, level_bins, share_bins


def loads(lengths: list[int], bins: list[list[int]]) -> list[int]:
    return [sum(lengths[item] for item in one) for one in bins]


def test_first_fit_decreasing_by_hand() -> None:
    # 7 and 3, 6 and 4, 5 and 2: three bins of 10, which hold 27.
    lengths = [3, 7, 2, 6, 5, 4]
    assert loads(lengths, bins_needed(lengths, 10)) == [10, 10, 7]


def test_rows_are_levelled_by_hand() -> None:
    # Three bins would be needed; of four, which is a multiple of two, each gets 6 or 7 of 27.
    lengths = [3, 7, 2, 6, 5, 4]
    assert level_bins(lengths, 10, multiple=2) == [[1], [3], [4, 2], [5, 0]]
    assert loads(lengths, level_bins(lengths, 10, multiple=1)) == [9, 9, 9]


def test_what_fits_tightly_is_left_as_it_was_found() -> None:
    # Levelled, 6 5 5 4 4 would be 6 + 4 + 4 = 14 and 5 + 5; they fit as 6 + ... only one way.
    lengths = [8, 7, 6, 5, 4]
    bins = level_bins(lengths, 15, multiple=1)
    assert loads(lengths, bins) == [15, 15]


def test_more_rows_than_are_needed_for_the_pipeline() -> None:
    assert sorted(map(len, level_bins([5, 4, 3], 100, multiple=2, least=4))) == [0, 1, 1, 1]


def test_ranks_get_as_many_rows_and_as_much() -> None:
    rows = [10, 9, 8, 3, 2, 1]
    share = share_bins(rows, 3)
    assert [len(own) for own in share] == [2, 2, 2]
    assert loads(rows, share) == [11, 11, 11]
    assert [rows[own[0]] for own in share] == [10, 9, 8]  # the fullest first


def test_an_item_that_no_bin_holds() -> None:
    with pytest.raises(ValueError, match="an item of 11 in bins of 10"):
        bins_needed([3, 11], 10)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(50, 200),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_each_once_and_none_over_the_limit(
    lengths: list[int], capacity: int, multiple: int, least: int
) -> None:
    bins = level_bins(lengths, capacity, multiple=multiple, least=least)
    assert sorted(item for one in bins for item in one) == list(range(len(lengths)))
    assert max(loads(lengths, bins)) <= capacity
    assert len(bins) % multiple == 0 and len(bins) >= least
    # No two bins could have been one.
    fewest = sorted(loads(lengths, bins_needed(lengths, capacity)))
    assert len(fewest) == 1 or fewest[0] + fewest[1] > capacity
    share = share_bins(loads(lengths, bins), multiple)
    assert sorted(row for own in share for row in own) == list(range(len(bins)))
    assert {len(own) for own in share} == {len(bins) // multiple}
