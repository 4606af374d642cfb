"""The benchmark of heads in small, and that a head which gives other values fails it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.heads import __main__ as heads
from benchmarks.heads.arms import ARMS, FULL, OURS, Arm, Inputs, Scored, from_logps, ours


def measured(folder: Path, *arms: str) -> int:
    """The quick form."""
    return heads.main(["--quick", "--folder", str(folder), "--arms", *arms])


def cells(out: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both heads at both sizes, in one table, with equal values; ours never holds full logits."""
    assert measured(tmp_path, FULL, OURS) == 0
    out = capsys.readouterr().out
    rows = cells(out)
    assert [(row["vocabulary"], row["head"]) for row in rows] == [
        (size, arm) for size in ("1000", "2000") for arm in (FULL, OURS)
    ]
    for row in rows:
        assert float(row["log p, nats"]) < 2e-5
        assert (row["log p, nats"] == "0e+00") == (row["head"] == FULL)
        assert (float(row[f"memory, of {FULL}"]) < 1) == (row["head"] == OURS)
    # Logits, log-softmax and the gradient of logits, [4, 24, V] each, and the gradient of [V, 32].
    most = 4 * (3 * 4 * 24 * 2000 + 2000 * 32) / 2**20
    assert float(rows[2]["peak, MiB"]) == pytest.approx(most, rel=0.1)
    assert f"goal at 2000, {OURS} over {FULL}: memory " in out


def test_other_values_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(inputs: Inputs) -> Scored:
        logps_ST = ours(inputs).logps_ST
        assert logps_ST is not None
        return from_logps(logps_ST * 1.001)

    monkeypatch.setitem(ARMS, OURS, lambda: off)
    assert measured(tmp_path, FULL, OURS) == 1
    told = capsys.readouterr().err
    for what in ("log p", "sum", "hidden grad", "weight grad"):
        assert f"round 0: {OURS}: {what} differs from {FULL} by " in told


def test_a_head_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Arm:
        raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setitem(ARMS, "Liger, DPO loss", missing)
    assert measured(tmp_path, FULL, "Liger, DPO loss") == 1
    said = capsys.readouterr()
    assert "bench: Liger, DPO loss: not run: No module named 'nowhere'" in said.err
    assert [row["head"] for row in cells(said.out)] == [FULL, FULL]


def test_what_is_compared_with_has_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        heads.main(["--arms", OURS])
    assert f'--arms has to have "{FULL}"' in capsys.readouterr().err


def test_it_runs_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    monkeypatch.setattr(common.torch, "set_num_threads", threads.append)
    measured(tmp_path, FULL)
    assert threads == [1]
