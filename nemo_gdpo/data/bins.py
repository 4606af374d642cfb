"""Pairs of a global batch into packed rows: few rows, none over its limit, all about as full.

Two classic heuristics (Garey and Johnson 1979, Coffman et al. 1978): first-fit decreasing finds how
few rows will do, within 11/9 of the least; longest-processing-time-first then spreads the pairs
over that many, so that rows, and ranks, finish together.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def bins_needed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: positions in `lengths`, in as few bins as it finds.

    Args:
        lengths: none greater than `capacity`.
        capacity: of a bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in _longest_first(lengths):
        for index, left in enumerate(room):
            if lengths[item] <= left:
                bins[index].append(item)
                room[index] -= lengths[item]
                break
        else:
            if lengths[item] > capacity:
                raise ValueError(f"an item of {lengths[item]} in bins of {capacity}")
            bins.append([item])
            room.append(capacity - lengths[item])
    return bins


def level_bins(
    lengths: Sequence[int], capacity: int, *, multiple: int, least: int = 1
) -> list[list[int]]:
    """The items in level bins, none over `capacity`; a multiple of `multiple` bins.

    The same on every rank. Bins are empty where there are fewer items than bins.

    Args:
        lengths: none greater than `capacity`.
        capacity: of a bin.
        multiple: of the number of bins.
        least: bins.
    """
    fitted = bins_needed(lengths, capacity)
    count = -(-max(len(fitted), least) // multiple) * multiple
    spread = _spread(lengths, count, most=len(lengths))
    if max(_loads(lengths, spread)) <= capacity:
        return spread
    # Rare: what fits tightly is left as it was found.
    return fitted + [[] for _ in range(count - len(fitted))]


def share_bins(loads: Sequence[int], ranks: int) -> list[list[int]]:
    """Which bins each rank gets: as many each, and about the same load; the fullest first.

    Args:
        loads: of the bins; `ranks` divides their number.
        ranks: data-parallel ones.
    """
    return _spread(loads, ranks, most=len(loads) // ranks)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))


def _loads(lengths: Sequence[int], bins: Sequence[Sequence[int]]) -> list[int]:
    return [sum(lengths[item] for item in one) for one in bins]


def _spread(lengths: Sequence[int], count: int, *, most: int) -> list[list[int]]:
    """Longest first, each into the bin with the least; at most `most` items a bin."""
    bins: list[list[int]] = [[] for _ in range(count)]
    least = [(0, 0, index) for index in range(count)]
    heapify(least)
    for item in _longest_first(lengths):
        load, items, index = heappop(least)
        bins[index].append(item)
        if items + 1 < most:
            # Of bins with one load the one with fewer items: zero-length ones spread as well.
            heappush(least, (load + lengths[item], items + 1, index))
    return bins
