"""The table of `make bench`, and its check that all arms trained the same, on made-up numbers."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.__main__ import done_rounds
from benchmarks.peers.table import differences, disagreements, table

SETTINGS = {"device": "cpu", "batch": 2, "updates": 3, "warm_ups": 1}


def result(cpu: float, *, loss: float = 0.5, peak: float = 4.0, before: Any = None) -> Any:
    """An arm whose timed updates take `cpu` CPU seconds each, and twice that on the clock."""

    def step(cpu: float, loss: float) -> dict[str, float]:
        logps = {"logps/chosen": -100.0 * loss, "logps/rejected": -10.0}
        return {
            "wall": 2 * cpu,
            "cpu": cpu,
            "tokens": 30,
            "loss": loss,
            "rewards/margins": 0,
        } | logps

    return {
        "steps": [step(99.0, 0.75), step(cpu, loss), step(cpu, loss)],
        "reference": before,
        "peak_bytes": peak * 2**30,
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_the_median_and_spread_of_the_rounds() -> None:
    before = {"wall": 7.0, "cpu": 3.0}
    rounds = [
        {"TRL": result(8.0), "ours": result(2.0, peak=1.0, before=before)},
        {"TRL": result(9.0), "ours": result(1.0, peak=1.0, before=before)},
        {"TRL": result(10.0), "ours": result(4.0, peak=1.0, before=before)},
    ]
    heads, _, _, ours = (cells(line) for line in table(rounds, SETTINGS))
    row = dict(zip(heads, ours, strict=True))
    # Two pairs an update: 1, 0.5 and 2 CPU seconds a pair, half of that on the clock's rate. The
    # warm-up, of 99 seconds, counts nowhere.
    assert row["CPU-s a pair"] == "1 [0.5, 2]"
    assert row["pairs/s"] == "0.5 [0.25, 1]"
    # Round by round 8 / 2, 9 / 1, 10 / 4.
    assert row["times TRL"] == "4 [2.5, 9]"
    assert row["useful tokens/s"] == "8 [4, 15]"  # 30 tokens in 4, 2, 8 s
    assert row["memory, of TRL"] == "0.25 [0.25, 0.25]"
    # Of all six pairs, once.
    assert row["reference before, CPU-s a pair"] == "0.5 [0.5, 0.5]"
    assert row["first losses"] == "0.750000, 0.500000, 0.500000"


def test_a_gpu_is_timed_by_the_clock() -> None:
    rounds = [{"TRL": result(8.0), "ours": result(2.0)}]
    heads, _, _, ours = (cells(line) for line in table(rounds, SETTINGS | {"device": "cuda"}))
    assert dict(zip(heads, ours, strict=True))["GPU-s a pair"] == "2"


def test_an_arm_that_failed_is_a_row_and_no_success() -> None:
    rounds = [{"TRL": result(8.0), "ours": {"failed": "out of memory"}}]
    assert list(table(rounds, SETTINGS))[3].startswith("| ours | failed: out of memory |")
    assert list(disagreements(rounds, 1e-4)) == ["ours: failed in 1 of 1 rounds: out of memory"]


def test_arms_that_agree_say_nothing() -> None:
    rounds = [{"TRL": result(8.0), "ours": result(2.0, loss=0.5 + 1e-6)}]
    assert list(disagreements(rounds, 1e-4)) == []
    gaps = differences(rounds)["ours"]
    assert gaps["loss"] == pytest.approx(1e-6, rel=1e-3)
    # 1e-4 nats of 50.
    assert gaps["logps/chosen"] == pytest.approx(2e-6, rel=1e-3)


@pytest.mark.parametrize("loss", [0.501, float("nan")])
def test_another_loss_is_told(loss: float) -> None:
    rounds = [
        {"TRL": result(8.0), "ours": result(2.0)},
        {"TRL": result(8.0), "ours": result(2.0, loss=loss)},
    ]
    found = list(disagreements(rounds, 1e-4))
    assert found[0].startswith("ours: loss differs from TRL by ")
    assert found[0].endswith("more than 0.0001")


def test_other_tokens_are_told() -> None:
    ours = result(2.0)
    ours["steps"][2]["tokens"] = 31
    rounds = [{"TRL": result(8.0), "ours": ours}]
    assert list(disagreements(rounds, 1e-4)) == [
        "ours: [30, 30, 31] tokens an update, TRL has [30, 30, 30]"
    ]


def test_the_arms_that_are_asked_for_are_there() -> None:
    from benchmarks.peers import ours
    from benchmarks.peers.__main__ import OUR_ARMS, TRL_ARMS, TRL_PROGRAM

    assert tuple(ours.ARMS) == OUR_ARMS
    source = TRL_PROGRAM.read_text(encoding="utf-8")
    assert all(f'    "{arm}": {{' in source for arm in TRL_ARMS)
    assert "import nemo_gdpo" not in source and "from nemo_gdpo" not in source


def test_rounds_that_are_there_are_of_the_same_measurement(tmp_path: Path) -> None:
    path, rounds = tmp_path / "results.json", [{"TRL": result(8.0)}]
    report = {"machine": "this", "settings": SETTINGS, "set": [], "rounds": []}
    assert done_rounds(path, report) == []
    path.write_text(json.dumps(report | {"rounds": rounds}))
    assert done_rounds(path, report) == rounds
    assert done_rounds(path, report | {"machine": "another"}) == []
    assert done_rounds(path, report | {"settings": SETTINGS | {"batch": 4}}) == []


def test_arms_that_are_there_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rounds the first is there, and of the second the arm that failed runs again."""
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    ran: list[str] = []

    def run_arm(arm: str, *_: Any) -> Any:
        ran.append(arm)
        return result(1.0)

    monkeypatch.setattr(peers, "run_arm", run_arm)
    asked = Namespace(rounds=2, arms=["TRL", "ours"], minutes=1, set=[], go_on=False)
    whole = peers.measure(asked, tmp_path)["rounds"]
    whole[1]["ours"] = {"failed": "killed"}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rounds": whole}))
    ran.clear()
    asked.go_on = True
    again = peers.measure(asked, tmp_path)["rounds"]
    assert ran == ["ours"]
    assert [sorted(one) for one in again] == [["TRL", "ours"]] * 2
    assert "steps" in again[1]["ours"]
