"""Which checkpoints are whole, which are kept, and how ranks share their reading."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import pytest

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.config.training import TrainerConfig
from nemo_gdpo.config.validate import problems
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.hashed_file import HashedFile
from nemo_gdpo.io.manifest import Listed, describe, list_files, why_incomplete, write_manifest
from nemo_gdpo.training import checkpoint_check
from nemo_gdpo.training.checkpoint import Checkpointer, find_newest_whole, step_directory
from nemo_gdpo.training.checkpoint_check import share_of, why_damaged_together
from tests.training.test_manifest import make


def cut(checkpoint: Path) -> None:
    (checkpoint / "dist" / "a.distcp").write_bytes(b"weigh")


def flip(checkpoint: Path) -> None:
    (checkpoint / "dist" / "a.distcp").write_bytes(b"weightS")


def checkpointer(root: Path, keep: int, *, full: bool = True) -> Checkpointer:
    """One that has no run."""
    nothing = cast(Any, None)
    return Checkpointer(
        root, nothing, nothing, nothing, write_assets=nothing, keep=keep, full_check=full
    )


def kept_after(saving: Checkpointer, step: int) -> list[int]:
    """Steps of the checkpoints that are left after that of `step` was written."""
    written = make(step_directory(saving.root, step))
    saving._is_whole[written.name] = True
    saving._remove_older_than(written)
    return sorted(int(path.name[5:]) for path in saving.root.glob("step_*"))


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize(
    ("keep", "left"), [(1, [50, 98, 99]), (2, [40, 50, 98, 99]), (3, [30, 40, 50, 98, 99])]
)
def test_damaged_ones_with_newer_numbers_do_not_count(
    tmp_path: Path, damage: Any, keep: int, left: list[int]
) -> None:
    """By number alone, a `keep` of 1 or 2 kept these and removed what was just written."""
    for step in (20, 30, 40, 98, 99):
        make(step_directory(tmp_path, step))
    for step in (98, 99):
        damage(step_directory(tmp_path, step))
    assert kept_after(checkpointer(tmp_path, keep), 50) == left


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_one_between_is_no_reason_to_remove_an_older_one(
    tmp_path: Path, damage: Any
) -> None:
    for step in (20, 30, 40):
        make(step_directory(tmp_path, step))
    damage(step_directory(tmp_path, 40))
    saving = checkpointer(tmp_path, 2)
    assert kept_after(saving, 50) == [30, 40, 50]
    assert kept_after(saving, 60) == [50, 60]  # nothing is kept that is older than both


def test_one_that_was_cut_after_it_was_written_does_not_count(tmp_path: Path) -> None:
    saving = checkpointer(tmp_path, 2)
    kept_after(saving, 10)
    kept_after(saving, 20)
    cut(step_directory(tmp_path, 20))
    assert kept_after(saving, 30) == [10, 20, 30]


def test_what_this_run_wrote_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = checkpointer(tmp_path, 2)
    monkeypatch.setattr(
        checkpoint_check, "why_damaged", lambda *_: pytest.fail("read what it has written")
    )
    assert [kept_after(saving, step) for step in (1, 2, 3)] == [[1], [1, 2], [2, 3]]


def test_one_that_cannot_be_read_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    for step in (30, 40):
        make(step_directory(tmp_path, step))
    monkeypatch.setattr(checkpoint_check, "why_damaged", broken)
    assert kept_after(checkpointer(tmp_path, 2), 50) == [30, 40, 50]
    with pytest.raises(RunError, match="Input/output error"):
        find_newest_whole(tmp_path)


def test_sizes_alone_are_looked_at_where_that_is_asked_for(tmp_path: Path) -> None:
    for step in (30, 40):
        make(step_directory(tmp_path, step))
    flip(step_directory(tmp_path, 40))
    found = find_newest_whole(tmp_path, full=False)
    assert found.path == step_directory(tmp_path, 40)
    found = find_newest_whole(tmp_path)
    assert found.path == step_directory(tmp_path, 30)
    assert found.skipped == (
        "checkpoint step_00000040 skipped: dist/a.distcp is damaged (its SHA-256 differs)",
    )
    cut(step_directory(tmp_path, 30))
    assert find_newest_whole(tmp_path).path is None
    assert len(find_newest_whole(tmp_path).skipped) == 2


@pytest.mark.parametrize("omitted", ["dist/a.distcp", "trainer_state.json"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_manifest_that_leaves_a_file_out(tmp_path: Path, omitted: str, version: int) -> None:
    """With it out of the list, whatever the file held was passed."""
    checkpoint = make(step_directory(tmp_path, 1))
    content = json.loads((checkpoint / "manifest.json").read_text())
    del content["files"][omitted]
    if version == 1:  # as it was written before manifests had a hash of themselves
        content = {"version": 1, "files": content["files"]}
    (checkpoint / "manifest.json").write_text(json.dumps(content))
    (checkpoint / omitted).write_bytes(b"other contents")
    reason = why_incomplete(checkpoint, ("trainer_state.json",))
    assert reason == (
        "its manifest.json is damaged" if version == 2
        else f"its manifest.json does not list {omitted}"
    )  # fmt: skip
    assert find_newest_whole(tmp_path).path is None


def test_a_file_that_came_later_is_not_part_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = make(step_directory(tmp_path, 1))
    (checkpoint / "notes.txt").write_text("the good one")
    assert why_incomplete(checkpoint) is None
    (checkpoint / "dist" / "b.distcp").write_bytes(b"weights")
    assert why_incomplete(checkpoint) == "its manifest.json does not list dist/b.distcp"


def test_manifests_of_earlier_versions_are_read(tmp_path: Path) -> None:
    checkpoint = make(step_directory(tmp_path, 1))
    content = json.loads((checkpoint / "manifest.json").read_text())
    old = {"version": 1, "files": content["files"]}
    (checkpoint / "manifest.json").write_text(json.dumps(old))
    assert find_newest_whole(tmp_path).path == checkpoint
    flip(checkpoint)
    assert find_newest_whole(tmp_path).path is None


def test_ranks_share_the_bytes(tmp_path: Path) -> None:
    sizes = {"a": 100, "b": 60, "c": 50, "d": 1, "e": 0}
    files = {name: Listed(size, "") for name, size in sizes.items()}
    shares = [share_of(files, rank, 2) for rank in range(2)]
    assert [sorted(share) for share in shares] == [["a", "d", "e"], ["b", "c"]]
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(file.bytes for file in share.values()) for share in shares]
    assert sorted(loads) == [101, 110]
    assert share_of(files, 0, 1) == files
    assert share_of({}, 3, 8) == {}


def test_a_damaged_file_is_found_whoever_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    listed = {"a": Listed(7, hashlib.sha256(b"weights").hexdigest())}
    assert why_damaged_together(tmp_path, listed) is None
    (tmp_path / "a").write_bytes(b"weightS")
    assert why_damaged_together(tmp_path, listed) == "a is damaged (its SHA-256 differs)"


@pytest.mark.parametrize("size", [0, 1000, (1 << 20) - 1, 1 << 20, 3_000_001])
def test_a_file_is_hashed_while_it_is_written(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    with HashedFile(tmp_path / "a") as file:
        assert file.write(b"head") == 4
        assert file.write(memoryview(content)[:size]) == size
        assert file.tell() == size + 4
    written = b"head" + content[:size]
    assert (tmp_path / "a").read_bytes() == written
    assert file.entry == {"bytes": size + 4, "sha256": hashlib.sha256(written).hexdigest()}
    assert file.entry == describe(tmp_path, ["a"])["a"]


def test_a_full_disk_is_remembered() -> None:
    file = HashedFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"), file:
        file.write(b"x" * (1 << 21))
    assert file.failure is not None and file.failure.errno == 28
    assert file.closed


def test_a_manifest_has_a_hash_of_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    write_manifest(tmp_path, describe(tmp_path, list_files(tmp_path)))
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"bytes": 7', '"bytes": 8'))
    (tmp_path / "a").write_bytes(b"weights8")
    assert why_incomplete(tmp_path) == "its manifest.json is damaged"


def test_saving_beside_training_needs_something_to_save() -> None:
    def told(**trainer: Any) -> list[str]:
        config = RunConfig(trainer=TrainerConfig(max_steps=9, **trainer))
        return [str(p) for p in problems(config, files=False) if "async_save" in str(p)]

    assert len(told(async_save=True)) == 1
    assert told(async_save=True, save_interval=2) == told() == []
