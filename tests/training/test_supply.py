"""Which pairs an update trains on while people answer: on paper, with six pairs in batches of two.

The order of the sampler is replaced by that of the file, so that it can be followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from nemo_gdpo.data.sampler import PreferenceSampler
from nemo_gdpo.training.supply import LabelledPairs

GAMMA = 1.0


class InOrder(PreferenceSampler):
    def global_batch(self, consumed: int, global_batch_size: int) -> list[int]:
        return [k % self.num_pairs for k in range(consumed, consumed + global_batch_size)]


class Desk:
    """Answers that are given by the test, and what was asked."""

    def __init__(self, budget: int | None = None) -> None:
        self.answered: set[int] = set()
        self.asked: list[int] = []
        self.budget = budget
        self._seen: set[int] = set()

    def refresh(self) -> None:
        self._seen = set(self.answered)

    def is_known(self, index: int) -> bool:
        return index in self._seen

    def ask(self, margins: Mapping[int, float]) -> set[int]:
        new = [index for index in margins if index not in self.asked]
        free = len(new) if self.budget is None else max(0, self.budget - len(self.asked))
        self.asked += new[:free]
        return {index for index in margins if index in self.asked}

    def described(self, waiting: int, *, used_up: bool) -> str:
        return f"{waiting} wait{', used up' if used_up else ''}"


class Setting:
    def __init__(
        self, sure: Sequence[int] = (), *, most_open: int | None = None, budget: int | None = None
    ) -> None:
        self.sure, self.forwarded, self.stops = set(sure), list[int](), False
        self.desk = Desk(budget)
        self.supply = LabelledPairs(
            InOrder(6, 0, "f"), 2, 6, self.desk, self.margins, GAMMA, most_open
        )

    def margins(self, indices: Sequence[int]) -> list[float] | None:
        if self.stops:
            return None
        self.forwarded += indices
        return [1.5 if index in self.sure else -1.0 for index in indices]


def test_sure_pairs_go_ahead_and_the_others_wait() -> None:
    """0 and 3 are sure: the first batch is (0, 3), while 1, 2 wait; |margin| = gamma is unsure."""
    s = Setting(sure=[0, 3])
    assert s.supply.next_batch() == [0, 3]
    assert (s.desk.asked, s.supply.waiting) == ([1, 2], [1, 2])
    s.desk.answered = {1, 2}
    assert s.supply.next_batch() == [1, 2]
    assert s.supply.next_batch() is None
    assert s.supply.waiting_for == "2 wait"
    s.desk.answered = {1, 2, 4, 5}
    assert s.supply.next_batch() == [4, 5]
    assert s.forwarded == [0, 1, 2, 3, 4, 5]


def test_answers_that_are_there_need_no_forward_pass() -> None:
    s = Setting()
    s.desk.answered = set(range(6))
    assert [s.supply.next_batch() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert (s.forwarded, s.desk.asked) == ([], [])


def test_no_more_than_may_be_open_are_asked() -> None:
    s = Setting(most_open=2)
    assert s.supply.next_batch() is None
    assert s.desk.asked == [0, 1]
    s.desk.answered = {1}
    assert s.supply.next_batch() is None  # 1 has its answer, 2 is asked, and two are open again
    assert (s.desk.asked, s.supply.held) == ([0, 1, 2], [1])
    s.desk.answered = {0, 1}
    assert s.supply.next_batch() == [0, 1]


def test_what_a_budget_does_not_allow_is_kept() -> None:
    s = Setting(budget=1)
    assert s.supply.next_batch() is None
    assert s.supply.waiting_for == "1 wait, used up"
    s.desk.answered, s.desk.budget = {0}, 6
    assert s.supply.next_batch() is None
    s.desk.answered = set(range(6))
    found = [s.supply.next_batch() for _ in range(3)]
    assert sorted(index for batch in found for index in batch or []) == list(range(6))


def test_every_pair_trains_once_whatever_comes_when() -> None:
    """Whoever is sure or answered when: six pairs in three batches, and then none."""
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
        s, batches = Setting(sure=[4], most_open=3), list[int]()
        for index in [*order, None, None, None]:
            batch = s.supply.next_batch()
            batches += batch or []
            if index is not None:
                s.desk.answered |= {index}
        assert sorted(batches) == list(range(6))


def test_a_run_goes_on_where_it_stopped() -> None:
    s = Setting(sure=[0, 3])
    s.supply.next_batch()
    s.stops = True
    assert s.supply.next_batch() is None
    assert s.supply.waiting_for is None
    state = s.supply.state()
    other = Setting(sure=[0, 3])
    other.supply._sampler.consumed_pairs = s.supply._sampler.consumed_pairs
    other.supply.restore(state)
    other.desk.answered = set(range(6))
    assert [other.supply.next_batch() for _ in range(2)] == [[1, 2], [4, 5]]


@pytest.mark.parametrize("most_open", [None, 1, 4])
def test_stopping_loses_nothing(most_open: int | None) -> None:
    s = Setting(sure=[1], most_open=most_open)
    for _ in range(3):
        s.stops = True
        assert s.supply.next_batch() is None
        s.stops = False
        s.supply.next_batch()
    s.desk.answered = set(range(6))
    left = [s.supply.next_batch() for _ in range(3)]
    assert sorted(index for batch in left for index in batch or []) == list(range(6))
