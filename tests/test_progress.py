"""In a log file: a line now and then, never a bar; on a terminal the bar as ever."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from nemo_gdpo import progress
from nemo_gdpo.progress import duration, progress_bar


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """An output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def work(clock: Clock, bar: Any, *, steps: int, seconds: float) -> None:
    for _ in range(steps):
        clock.now += seconds
        bar.update(20)


def test_a_log_file_gets_a_line_every_half_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = progress_bar(total=2000, unit="pair", label="reference train", enabled=True)
    with bar:
        work(clock, bar, steps=100, seconds=1.0)  # 20 pairs a second for 100 s
    written = capsys.readouterr().err
    assert "\r" not in written and "|" not in written and "\x1b" not in written
    assert written.splitlines() == [
        "reference train: 200 of 2000 pairs (10%), 20.0 pairs/s, 1 min 30 s left",
        "reference train: 800 of 2000 pairs (40%), 20.0 pairs/s, 1 min 00 s left",
        "reference train: 1400 of 2000 pairs (70%), 20.0 pairs/s, 30 s left",
        "reference train: 2000 of 2000 pairs (100%), 20.0 pairs/s, 0 s left",
        "reference train: 2000 of 2000 pairs in 1 min 40 s, 20.0 pairs/s",
    ]


def test_what_is_over_soon_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=10, unit="batch", label="validate", enabled=True) as bar:
        work(clock, bar, steps=9, seconds=1.0)
    assert capsys.readouterr().err == ""


def test_a_failure_ends_it_without_a_word(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError),
        progress_bar(total=500, unit="batch", label="validate", enabled=True) as bar,
    ):
        work(clock, bar, steps=11, seconds=1.0)
        raise RuntimeError
    assert capsys.readouterr().err.splitlines() == [
        "validate: 200 of 500 batches (40%), 20.0 batches/s, 15 s left"
    ]


def test_bytes_and_unknown_totals(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(
        total=8 << 30, unit="B", unit_scale=True, label="hash", enabled=True
    ) as hashed:
        clock.now += 16.0
        hashed.update(4 << 30)
    items = progress_bar(iter(range(3)), total=None, unit="pair", label="tokenise", enabled=True)
    for item in items:
        clock.now += 11.0 + item
    assert capsys.readouterr().err.splitlines() == [
        "hash: 4.00 GiB of 8.00 GiB (50%), 0.25 GiB/s, 16 s left",
        "hash: 4.00 GiB of 8.00 GiB in 16 s, 0.25 GiB/s",
        "tokenise: 1 pairs, 0.1 pairs/s",
        "tokenise: 3 pairs in 36 s, 0.1 pairs/s",
    ]


def test_what_was_done_before_is_no_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar(total=1000, initial=500, unit="answer", label="sampling", enabled=True)
    with bar:
        bar.set_postfix_str("2 failed", refresh=False)
        clock.now += 10.0
        bar.update(100)
    assert capsys.readouterr().err.splitlines()[0] == (
        "sampling: 600 of 1000 answers (60%), 10.0 answers/s, 40 s left, 2 failed"
    )


def test_disabled_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=10, unit="pair", label="reference", enabled=False) as bar:
        work(clock, bar, steps=60, seconds=1.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    with progress_bar(total=2, unit="pair", label="reference", enabled=True) as bar:
        bar.update(2)
    assert "\r" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (86400 + 4 * 3600 + 59, "1 d 4 h"),
    ],
)
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said
