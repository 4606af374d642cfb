"""A checkpoint is whole, or the reason is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_gdpo.io.manifest import describe, list_files, why_invalid, write_manifest
from nemo_gdpo.training.checkpoint import find_newest_whole, step_directory


def make(directory: Path) -> Path:
    (directory / "dist").mkdir(parents=True)
    (directory / "dist" / "a.distcp").write_bytes(b"weights")
    (directory / "trainer_state.json").write_text("{}")
    write_manifest(directory, describe(directory, list_files(directory)))
    return directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make(tmp_path / "step_00000001")


def test_a_complete_one_has_no_reason(checkpoint: Path) -> None:
    assert why_invalid(checkpoint) is None
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert sorted(listed) == ["dist/a.distcp", "trainer_state.json"]
    assert listed["dist/a.distcp"]["bytes"] == 7


def test_reasons(checkpoint: Path) -> None:
    weights, manifest = checkpoint / "dist" / "a.distcp", checkpoint / "manifest.json"
    weights.write_bytes(b"weightS")
    assert why_invalid(checkpoint) == "dist/a.distcp is damaged (its SHA-256 differs)"
    weights.write_bytes(b"weight")
    assert why_invalid(checkpoint) == "dist/a.distcp has 6 bytes instead of 7"
    weights.unlink()
    assert why_invalid(checkpoint) == "dist/a.distcp is missing"
    manifest.unlink()
    assert why_invalid(checkpoint) == "it has no manifest.json: it was not finished"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"a": 1}}', "\x00"],
)
def test_a_damaged_manifest_is_a_reason(checkpoint: Path, content: str) -> None:
    (checkpoint / "manifest.json").write_text(content)
    assert why_invalid(checkpoint) == "its manifest.json is damaged"


def test_the_newest_complete_one_is_found_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        make(step_directory(tmp_path, step))
    (step_directory(tmp_path, 1000) / "manifest.json").unlink()
    (step_directory(tmp_path, 100) / "trainer_state.json").unlink()
    make(tmp_path / ".step_00002000.tmp")
    (tmp_path / "step_latest").mkdir()
    (tmp_path / "latest").write_text("step_00001000\n")
    found = find_newest_whole(tmp_path)
    assert found.path == step_directory(tmp_path, 10)
    assert [line.split(": ", 1)[0] for line in found.skipped] == [
        "checkpoint step_00001000 skipped",
        "checkpoint step_00000100 skipped",
    ]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    found = find_newest_whole(tmp_path / "checkpoints")
    assert found.path is None
    assert found.skipped == ()
