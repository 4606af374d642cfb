"""The summary of a run: best and last validation, counts, time, speed, places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.training.summary import (
    Ending,
    summarise,
    summary_lines,
    validations,
    write_summary,
)


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 0.6 - 0.1 * step,
        "rewards/margins": 0.5,
        "consumed_pairs": 4 * (step + 1),
        "epoch": 0.25 * (step + 1),
        "num_tokens": 100 * (step + 1),
        "perf/step_seconds": 1.0 + step,
        "perf/tokens_per_second_per_gpu": 100.0 / (1.0 + step),
        "perf/model_tflops_per_gpu": 6.0 / (1.0 + step),
        **more,
    }


LINES = [
    line(0),
    line(1, **{"val/loss": 0.40, "val/rewards/margins": 1.5}),
    line(2, **{"val/loss": 0.45, "val/rewards/margins": 1.25}),
]
STARTS = [
    {"seconds": {"starting": 1.0, "training": 100.0}, "ended": None},
    {"seconds": {"training": 50.0, "checkpoints": 20.5}, "ended": "done"},
]


def made(folder: Path, lines: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "outcome": "done",
        "total_steps": 3,
        "objective": "adpo",
        "precision": "fp32",
        "why_no_mfu": "",
        "checkpoint": folder / "checkpoints" / "step_00000003",
    }
    return summarise(Ending(**(given | changes)), lines, STARTS, folder)


def test_validations() -> None:
    found = validations(LINES)
    assert found == {
        "best": {"step": 2, "loss": 0.40, "rewards/margins": 1.5},
        "last": {"step": 3, "loss": 0.45, "rewards/margins": 1.25},
    }
    assert validations([line(0)]) is None


def test_numbers(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    summary = made(tmp_path, LINES)
    assert (summary["steps"], summary["pairs"], summary["tokens"]) == (3, 12, 300)
    assert summary["seconds"] == {
        "total": 171.5,
        "by_stage": {"starting": 1.0, "training": 150.0, "checkpoints": 20.5},
    }
    # 300 tokens and 18 TFLOP in 1 + 2 + 3 seconds.
    assert summary["speed"]["tokens_per_second_per_gpu"] == pytest.approx(50.0)
    assert summary["speed"]["model_tflops_per_gpu"] == pytest.approx(3.0)
    assert summary["hf"] == str(tmp_path / "hf")
    assert summary["checkpoint"] is None  # the one that is named does not exist
    assert summary["nemo"] is None
    assert summary["label_queries"] is None


def test_an_update_without_time_is_no_speed(tmp_path: Path) -> None:
    """An update that was left out has no numbers of its own."""
    bare = {"step": 3, "consumed_pairs": 16, "epoch": 1.0, "num_tokens": 300}
    summary = made(tmp_path, [*LINES, bare])
    assert (summary["steps"], summary["pairs"]) == (4, 16)
    assert summary["speed"]["tokens_per_second_per_gpu"] == pytest.approx(50.0)


def test_utilisation_is_null_with_its_reason(tmp_path: Path) -> None:
    summary = made(tmp_path, LINES, why_no_mfu="the peak of cpu is not known")
    assert summary["speed"]["mfu"] is None
    assert summary["speed"]["why_no_mfu"] == "the peak of cpu is not known"
    told = "\n".join(summary_lines(summary))
    assert "no MFU (the peak of cpu is not known)" in told


def test_what_is_printed(tmp_path: Path) -> None:
    lines = [one | {"adpo/queries_total": 7, "perf/mfu": 0.4} for one in LINES]
    told = list(summary_lines(made(tmp_path, lines, outcome="stopped", total_steps=9)))
    assert told == [
        "stopped: 3 of 9 steps",
        "  seen         12 pairs (0.75 epochs), 300 tokens, 7 label queries",
        "  last step    loss 0.4000, margin 0.500",
        "  best val.    loss 0.4000, margin 1.500 (after 2 steps)",
        "  last val.    loss 0.4500, margin 1.250 (after 3 steps)",
        "  wall time    2 min 52 s in 2 starts: "
        "starting 1 s, training 2 min 30 s, checkpoints 20 s",
        "  per device   50 tokens/s, 3 TFLOP/s, 40.0% MFU",
    ]


def test_a_rehearsal_is_called_one_at_the_end(tmp_path: Path) -> None:
    made_by = made(tmp_path, LINES, precision="fp8_rehearsal_tensorwise")
    told = list(summary_lines(made_by))
    assert told[1] == f"  precision    {made_by['precision']}"
    assert "FP8 rehearsal" in told[1] and "not FP8 on hardware" in told[1]


def test_a_run_that_was_stopped_before_training(tmp_path: Path) -> None:
    summary = made(tmp_path, [], outcome="stopped", checkpoint=None)
    assert (summary["steps"], summary["validation"], summary["last_step"]) == (0, None, {})
    told = list(summary_lines(summary))
    assert told[0] == "stopped: 0 of 3 steps"
    assert not any("per device" in text for text in told)
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
