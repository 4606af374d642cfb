"""Lines of training in a log file."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from nemo_gdpo.training import console
from nemo_gdpo.training.console import StepReport
from tests.test_progress import Clock, Terminal


def entry(**more: Any) -> dict[str, Any]:
    return {
        "loss": 0.51234,
        "rewards/margins": 0.1239,
        "rewards/accuracies": 0.75,
        "learning_rate": 5e-7,
        "perf/tokens_per_second": 1234.4,
        "perf/peak_memory_gib": 12.34,
        **more,
    }


def lines_of(capsys: pytest.CaptureFixture[str], *, done: int, total: int, every: int) -> list[int]:
    with StepReport(total, done, every=every, enabled=True) as report:
        for _ in range(total - done):
            report.step(entry())
    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    return [int(line.split()[1]) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("done", "total", "every", "told"),
    [
        (0, 25, 10, [1, 10, 20, 25]),
        (12, 25, 10, [13, 20, 25]),
        (0, 3, 1, [1, 2, 3]),
        (24, 25, 10, [25]),
        (25, 25, 10, []),
    ],
)
def test_first_last_and_every_nth(
    capsys: pytest.CaptureFixture[str], done: int, total: int, every: int, told: list[int]
) -> None:
    assert lines_of(capsys, done=done, total=total, every=every) == told


def test_what_a_line_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with StepReport(101, 0, every=50, enabled=True) as report:
        for step in range(50):
            clock.now += 60.0 if step == 0 else 2.0  # the first compiles kernels
            report.step(
                entry(**({"val/loss": 0.6, "val/rewards/margins": 1} if step == 49 else {}))
            )
    values = "loss 0.5123, margin 0.124, accuracy 0.75, lr 5.00e-07, 1234 tokens/s, 12.3 GiB"
    assert capsys.readouterr().out.splitlines() == [
        f"step 1 of 101: {values}",
        f"step 50 of 101: {values}, 1 min 42 s left",
        "validation after 50 steps: loss 0.6000, margin 1.000",
    ]


def test_an_update_that_has_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with StepReport(2, 0, every=1, enabled=True) as report:
        report.step({"step": 0, "num_tokens": 0})
        report.step(entry())
    assert capsys.readouterr().out.splitlines()[0] == "step 1 of 2: no numbers"


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StepReport(2, 0, every=1, enabled=False) as report:
        report.step(entry())
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_the_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("nemo_gdpo.progress.DELAY_SECONDS", 0.0)
    with StepReport(2, 0, every=1, enabled=True) as report:
        report.step(entry())
        report.step(entry())
    assert capsys.readouterr().out == ""
    assert "loss 0.5123, margin 0.124, 1234 tokens/s" in terminal.getvalue()
