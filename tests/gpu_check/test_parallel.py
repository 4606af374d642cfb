"""The stage over several GPUs, with two ranks on a CPU: its fp32 half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


def test_every_layout_trains_the_same_model(tmp_path: Path) -> None:
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    folder = tmp_path / "parallel"
    folder.mkdir()
    statuses = run_ranks("nemo_gdpo.gpu_check.stage", ["parallel", str(folder)], logs)
    assert statuses == [0, 0], logs[0].read_text()[-3000:]
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "passed", result["reason"]
    names = [row["name"] for row in result["measurements"]]
    assert names == [
        "fp32 DP2 to one rank",
        "fp32 TP2",
        "fp32 TP2 SP",
        "fp32 PP2",
        "fp32 CP2",
        "fp32 DP, distributed optimizer",
    ]
    assert max(row["value"] for row in result["measurements"]) < 2e-5
