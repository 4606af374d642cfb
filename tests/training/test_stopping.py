"""When a loop ends early, by a clock that the test turns."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.launch.time_limit import TimeLimit
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import signals
from nemo_gdpo.training.mesh import join_world, leave_world
from nemo_gdpo.training.signals import Stopping, first_save, highest, stopped_together

END = 10_000.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    join_world(current_platform())
    assert dist.get_world_size() == 1
    yield
    leave_world()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(signals.time, "time", clock.time)
    return clock


def limited(margin: float = 60.0) -> Stopping:
    return Stopping(StopRequest(limit=TimeLimit(END, margin, "trainer.max_minutes")))


def turns(stopping: Stopping, clock: Clock, seconds: float, *, save: float = 0.0) -> float:
    """Turns of equal length, each with a checkpoint; returns the time at which the loop ends."""
    for _ in range(10_000):
        if stopping.due():
            return clock.now
        clock.now += seconds
        if save:
            with stopping.saving():
                clock.now += save
    raise AssertionError("no end")


def test_one_more_step_and_the_first_checkpoint_fit(clock: Clock) -> None:
    """No checkpoint was seen: as much as the margin is kept free for it."""
    ended = turns(limited(), clock, 100.0)
    assert ended + 60.0 <= END - 60.0
    assert ended + 100.0 + 60.0 + 60.0 > END  # and no earlier than needed
    assert ended == 9800.0


def test_one_more_step_and_the_longest_checkpoint_fit(clock: Clock) -> None:
    ended = turns(limited(), clock, 100.0, save=300.0)
    # 400 s a turn with its checkpoint: 24 of them, and 100 + 300 + 60 s do not fit any more.
    assert ended == 9600.0


def test_the_longest_of_all_counts(clock: Clock) -> None:
    stopping = limited()
    assert stopping.due() is None
    clock.now += 3000.0  # a validation, say
    assert stopping.due() is None
    assert turns(stopping, clock, 10.0) == 6890.0


def test_a_checkpoint_is_no_part_of_a_turn(clock: Clock) -> None:
    stopping = limited()
    assert stopping.due() is None
    clock.now += 10.0
    with stopping.saving():
        clock.now += 500.0
    assert stopping.due() is None
    assert turns(stopping, clock, 10.0) == 9440.0  # 10 + 500 + 60 s are too much from here on


def test_why(clock: Clock) -> None:
    stopping = limited()
    clock.now = END
    assert stopping.due() == "the end of its time (trainer.max_minutes)"
    assert stopping.why == stopping.due()
    with StopRequest((signal.SIGINT, signal.SIGTERM)) as stop:
        both = Stopping(stop)
        assert both.due() is None
        signal.raise_signal(signal.SIGINT)
        assert both.due() == "Ctrl-C"
        signal.raise_signal(signal.SIGTERM)
        assert both.due() == "SIGTERM"


def test_the_first_checkpoint_takes_as_long_as_what_was_read_says(clock: Clock) -> None:
    """Fourteen bytes are written once where each replica read two; of a short time a tenth."""
    assert first_save(30.0, 1) == 210.0
    assert first_save(30.0, 4) == 52.5
    assert first_save(30.0, 64) == 30.0
    stopping = limited()
    stopping.expect_save(first_save(30.0, 1))
    ended = turns(stopping, clock, 10.0)
    assert END - 60.0 - 210.0 - 10.0 <= ended <= END - 60.0 - 210.0
    clock.now = 0.0
    stopping = limited()
    stopping.expect_save(1e6)
    assert END - 60.0 - 1000.0 - 10.0 <= turns(stopping, clock, 10.0) <= END - 60.0 - 1000.0
    clock.now = 0.0
    stopping = limited()
    stopping.expect_save(1e6)  # is forgotten once one was made
    assert turns(stopping, clock, 10.0, save=1.0) > END - 60.0 - 1.0 - 10.0 - 11.0


def test_without_a_limit_time_does_not_matter(clock: Clock) -> None:
    clock.now = 1e12
    assert Stopping(StopRequest()).due() is None


def test_wishes_travel_with_the_turn() -> None:
    stopping = Stopping(StopRequest())
    assert stopping.turn(True) == (None, True)
    assert stopping.turn(False) == (None, False)
    assert highest(3, 0, 7) == [3, 0, 7]
    assert stopped_together("x").agreed
    assert time.time() > 0
