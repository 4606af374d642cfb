"""What all benchmarks share: parts that are kept, peaks of live tensors, exponents."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import Parts, exponent, peak_live_bytes, spread


def asked(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Parts.options(parser)
    return parser.parse_args(argv)


def test_a_peak_is_of_what_lives_at_one_time() -> None:
    """1 MiB, gone; then 2 and 1 at once. What was there before does not count."""
    before = torch.zeros(1 << 20)

    def work() -> None:
        one = torch.zeros(1 << 18)
        del one
        two, three = torch.zeros(1 << 19), torch.zeros(1 << 18)
        del two, three

    assert peak_live_bytes(work) == 3 << 20
    assert before.numel() == 1 << 20


def test_a_peak_counts_gradients_of_a_backward_pass() -> None:
    """The product [512, 256], the sum, the sum's gradient of as many, and the weight's [128, 256].

    expand() makes the gradient of the sum, without memory of its own."""
    weight = torch.ones(128, 256, requires_grad=True)
    rows = torch.ones(512, 128)

    def work() -> None:
        (rows @ weight).sum().backward()  # type: ignore[no-untyped-call]

    found = peak_live_bytes(work)
    assert weight.grad is not None
    assert 4 * 512 * 256 <= found <= 2 * 4 * 512 * 256 + 4 * 128 * 256 + 4096


def test_what_is_printed_by_others_during_a_peak_comes_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    peak_live_bytes(lambda: torch.zeros(8))
    assert capfd.readouterr().err == ""

    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


@pytest.mark.parametrize(("power", "factor"), [(0.0, 3.0), (1.0, 0.5), (2.0, 7.0)])
def test_an_exponent_of_a_power_law(power: float, factor: float) -> None:
    sizes = [1, 2, 8, 64]
    assert exponent(sizes, [factor * size**power for size in sizes]) == pytest.approx(power)


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([2.0], "2"), ([3.0, 1.0, 2.0], "2 [1, 3]")]
)
def test_spread(values: Sequence[float], text: str) -> None:
    assert spread(values) == text


def counted(done: list[str], name: str) -> Any:
    def work() -> int:
        done.append(name)
        return len(done)

    return (name, work)


def test_parts_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    done: list[str] = []
    path, settings = tmp_path / "new" / "results.json", {"sizes": (1, 2)}

    def stopped() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parts(path, settings, asked()).run([counted(done, "a, 0"), ("a, 1", stopped)])
    parts = Parts(path, settings, asked())
    assert parts.run([counted(done, "a, 0"), counted(done, "a, 1"), counted(done, "b, 0")])
    assert done == ["a, 0", "a, 1", "b, 0"]
    assert parts.of("a, ") == [1, 2]
    assert json.loads(path.read_text())["parts"] == {"a, 0": 1, "a, 1": 2, "b, 0": 3}


@pytest.mark.parametrize(
    ("argv", "settings"), [(["--again"], {"size": 1}), ([], {"size": 2}), ([], {})]
)
def test_parts_of_another_measurement_are_not_taken(
    tmp_path: Path, argv: list[str], settings: dict[str, Any]
) -> None:
    done: list[str] = []
    path = tmp_path / "results.json"
    Parts(path, {"size": 1}, asked()).run([counted(done, "a")])
    Parts(path, settings, asked(*argv)).run([counted(done, "a")])
    assert done == ["a", "a"]


def test_no_part_begins_after_the_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    parts = Parts(tmp_path / "results.json", {}, asked("--minutes", "-1"))
    assert not parts.run([counted(done, "a")])
    assert done == []
    assert "minutes are over before a; the same command goes on there" in capsys.readouterr().err
