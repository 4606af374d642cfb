"""Checkpoints that are written while training goes on, by two ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.io.manifest import list_files
from nemo_gdpo.training.checkpoint import find_newest_whole
from tests.parallel.async_ranks import MODEL
from tests.parallel.settings import save_models
from tests.support.ranks import run_ranks


def _ranks(root: Path, case: str) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    """What each rank found, its exit status, and all that it said."""
    logs = [root / case / f"rank{rank}.log" for rank in range(2)]
    save_models(root / case, MODEL)
    codes = run_ranks("tests.parallel.async_ranks", [str(root), case], logs, deadline=300)
    said = [log.read_text() for log in logs]
    lines = [line for text in said for line in text.splitlines() if line.startswith("found ")]
    return [json.loads(line.removeprefix("found ")) for line in lines], codes, said


@pytest.mark.parametrize("case", [pytest.param("plain", marks=pytest.mark.nightly), "zero"])
def test_it_is_the_checkpoint_of_its_step(tmp_path: Path, case: str) -> None:
    """Two more updates change every tensor, in place, before a byte is written."""
    found, codes, said = _ranks(tmp_path, case)
    assert codes == [0, 0], said
    for rank in found:
        assert rank["there"] == [False, False, True, False]
        assert rank["weights"]
        assert rank["threads"] == [] and rank["children"] == 0
        assert {"gather", "plan", "copy", "write", "publish"} == rank["timings"].keys()
    for step in ("step_00000002", "step_00000004"):
        one, other = (tmp_path / case / name / "checkpoints" / step for name in ("sync", "async"))
        assert list_files(one) == list_files(other)
        for name in list_files(one):
            # Of torch's list of tensors each has its own number.
            if name not in ("dist/.metadata", "trainer_state.json"):
                assert (one / name).read_bytes() == (other / name).read_bytes(), name
        manifests = [json.loads((path / "manifest.json").read_text()) for path in (one, other)]
        shards = [{n: e for n, e in m["files"].items() if "distcp" in n} for m in manifests]
        assert shards[0] == shards[1] and len(shards[0]) == (2 if case == "plain" else 1)
        assert find_newest_whole(one.parent).skipped == ()
    assert any("checkpoint step_00000004: " in line for line in said[0].splitlines())
    assert "beside training" in said[0] and "beside training" not in said[1]


def test_a_failure_in_the_background_is_told_by_all(tmp_path: Path) -> None:
    found, codes, said = _ranks(tmp_path, "fails")
    assert codes == [0, 0], said
    checkpoints = tmp_path / "fails" / "fails" / "checkpoints"
    for rank in found:
        kind, line = rank["told"]
        assert kind == "CheckpointError"
        assert line.startswith(f"could not write a checkpoint in {checkpoints} (rank 1: ")
        assert "No space left on device" in line
    newest = find_newest_whole(checkpoints)
    assert newest.path is not None and newest.path.name == "step_00000001"
    assert newest.skipped == ()
    assert (checkpoints / "latest").read_text() == "step_00000001\n"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step_00000001"]


@pytest.mark.nightly
def test_an_error_of_training_waits_for_it(tmp_path: Path) -> None:
    found, codes, said = _ranks(tmp_path, "error")
    assert codes == [0, 0], said
    assert [rank["told"] for rank in found] == ["the loss is not finite"] * 2
    newest = find_newest_whole(tmp_path / "error" / "error" / "checkpoints").path
    assert newest is not None and newest.name == "step_00000001"


def test_killed_in_the_middle_the_one_before_is_whole(tmp_path: Path) -> None:
    _, codes, said = _ranks(tmp_path, "killed")
    assert codes == [-signal.SIGKILL] * 2, said
    checkpoints = tmp_path / "killed" / "killed" / "checkpoints"
    newest = find_newest_whole(checkpoints)
    assert newest.path is not None and newest.path.name == "step_00000001"
    assert newest.skipped == ()
    (left,) = checkpoints.glob(".step_00000002.*.tmp")
    assert any(path.stat().st_size for path in (left / "dist").glob("*.distcp"))
    assert (checkpoints / "latest").read_text() == "step_00000001\n"
