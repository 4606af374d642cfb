"""Every writer of the package under the same faults: the old stays, or the new is complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.arrays import Cache
from nemo_gdpo.io.files import own_name, read_json_object, write_file
from nemo_gdpo.io.locks import BusyError
from nemo_gdpo.io.manifest import describe, list_files, why_invalid, write_manifest
from nemo_gdpo.io.progress_file import PROGRESS, ProgressFile
from nemo_gdpo.io.rows import RowFile, complete_lines, encode_row, repair
from nemo_gdpo.io.staged import stage, stage_resumable

from .writers import KNOWN, SIZE, WRITERS, Writer, hidden

ROOT = Path(__file__).parents[2]

every_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=list(WRITERS))


def _in_process(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.io.writers", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the disk fails --------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not permitted here; the test of the size limit covers the path")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@every_writer
def test_a_disk_that_is_full_in_the_middle(small_disk: Path, writer: Writer) -> None:
    place = small_disk / "place"
    if writer.name != "exclusive":
        writer.write(place, "a")
    before = writer.read(place)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - SIZE // 2))
    with pytest.raises(KNOWN) as caught:
        writer.write(place, "b")
    assert len(str(caught.value).splitlines()) == 1
    assert writer.read(place) == before
    assert hidden(small_disk) == []
    filler.unlink()
    writer.write(place, "b")
    assert writer.read(place) == writer.then(before, "b")


@every_writer
def test_a_limit_on_file_sizes_in_the_middle(tmp_path: Path, writer: Writer) -> None:
    """The kernel refuses to write more, as a quota does; no mounting is needed for it."""
    place = tmp_path / "place"
    if writer.name != "exclusive":
        writer.write(place, "a")
    before = writer.read(place)
    # What is appended to has the first version already.
    size = place.stat().st_size + SIZE // 2 if place.is_file() else SIZE // 2
    if writer.name in ("file", "json", "output"):
        size = SIZE // 2
    reason = _in_process("limit", writer.name, str(tmp_path), str(size))
    assert reason and "\n" not in reason
    assert writer.read(place) == before
    assert hidden(tmp_path) == []
    writer.write(place, "b")
    assert writer.read(place) == writer.then(before, "b")


# --- the process dies ------------------------------------------------------------------------


@every_writer
def test_a_kill_before_each_step_that_reaches_the_disk(tmp_path: Path, writer: Writer) -> None:
    found = _in_process("kill", writer.name, str(tmp_path))
    *killed, last = found
    assert last["status"] == 0 and last["interim"] == writer.then(last["before"], "b")
    assert len(killed) >= 2 and {entry["status"] for entry in killed} == {-9}
    for entry in killed:
        allowed = [entry["before"], writer.then(entry["before"], "b")]
        if writer.name == "two-renames":
            allowed.append([])  # until the next writer comes
        assert entry["interim"] in allowed
        # The next writer finds nothing in its way, and clears up behind the dead.
        assert entry["after"] == writer.then(entry["interim"] or entry["before"], "c")
        assert entry["hidden"] == []
    if writer.name == "two-renames":
        assert [] in [entry["interim"] for entry in killed]


def test_stop_between_two_renames_is_recovered(tmp_path: Path) -> None:
    WRITERS["directory"].write(tmp_path / "place", "a")
    (tmp_path / "place").rename(tmp_path / ".place.old")
    stage(tmp_path / "place").discard()
    assert WRITERS["directory"].read(tmp_path / "place") == ["a"]
    assert hidden(tmp_path) == []


def test_what_a_live_writer_has_in_the_making_stays(tmp_path: Path) -> None:
    first = stage(tmp_path / "place")
    (first.path / "mine").write_text("x")
    second = stage(tmp_path / "place")
    assert (first.path / "mine").read_text() == "x"
    first.leave()
    third = stage(tmp_path / "place")
    assert not first.path.exists() and second.path.exists()
    second.discard()
    third.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [".other.host-1-0a1b2c3d.tmp", ".place.tmp", ".place.1.tmp", ".place.host-1-xyz.tmp"]
)
def test_what_is_not_a_writers_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    write_file(tmp_path / "place", "x")
    stage(tmp_path / "directory").discard()
    assert (tmp_path / name).read_text() == "mine"


def test_leftovers_of_other_destinations_go_when_asked_for(tmp_path: Path) -> None:
    for number in (1, 2):
        stage(tmp_path / f"step_{number}").leave()
    stage(tmp_path / "step_3").discard()
    assert len(hidden(tmp_path)) == 2
    stage(tmp_path / "step_3", also="step_*").discard()
    assert hidden(tmp_path) == []


# --- several writers -------------------------------------------------------------------------


@every_writer
def test_four_writers_at_once(tmp_path: Path, writer: Writer) -> None:
    assert _in_process("several", writer.name, str(tmp_path)) == [0, 0, 0, 0]
    found = writer.read(tmp_path / "place")
    if writer.name == "rows":
        assert sorted(found) == sorted("abcd" * 5)
    elif writer.name == "arrays":
        assert found == list("abcd")
    else:
        assert len(found) == 1
    assert hidden(tmp_path) == []


def test_the_second_of_two_keeps_what_the_first_published(tmp_path: Path) -> None:
    first, second = stage(tmp_path / "place"), stage(tmp_path / "place")
    (first.path / "a").write_text("first")
    (second.path / "a").write_text("second")
    assert first.publish(replace=False)
    assert not second.publish(replace=False)
    assert (tmp_path / "place" / "a").read_text() == "first"
    assert second.publish(replace=True)
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["a"]
    assert (tmp_path / "place" / "a").read_text() == "second"
    assert hidden(tmp_path) == []


def test_a_resumable_directory_and_a_row_file_have_one_writer(tmp_path: Path) -> None:
    directory = stage_resumable(tmp_path / "place")
    with pytest.raises(BusyError):
        stage_resumable(tmp_path / "place")
    directory.leave()
    stage_resumable(tmp_path / "place").discard()
    with RowFile(tmp_path / "rows", lock=True), pytest.raises(BusyError):
        RowFile(tmp_path / "rows", lock=True)
    RowFile(tmp_path / "rows", lock=True).close()


# --- what is there cannot be used -------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"a": 1', b"{", b"\xff\xfe", b"x" * 200_000])
@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_torn_last_line_is_left_out_and_cut_away(tmp_path: Path, torn: bytes, whole: int) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [encode_row({"a": number}) for number in range(whole)]
    path.write_bytes(b"".join(lines) + torn)
    assert [line for _, line in complete_lines(path)] == lines
    assert repair(path) == len(torn)
    assert repair(path) == 0
    with RowFile(path) as file:
        file.append(encode_row({"a": "new"}))
    assert [json.loads(line)["a"] for _, line in complete_lines(path)] == [*range(whole), "new"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist; do this"),
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[1]", "is not a JSON object"),
        ("directory", "cannot be read as JSON .*directory"),
    ],
)
def test_an_unreadable_object_is_one_line(
    tmp_path: Path, content: bytes | str | None, reason: str
) -> None:
    path = tmp_path / "object.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(UserError, match=reason) as caught:
        read_json_object(path, missing="do this")
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["file", "json", "output", "rows", "arrays", "exclusive"])
def test_a_place_that_is_something_else(tmp_path: Path, name: str) -> None:
    """A directory in the place of a file, a file in the place of a directory: neither is lost.

    What a directory may replace is for its caller to say.
    """
    writer, place = WRITERS[name], tmp_path / "place"
    if name == "exclusive":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(KNOWN):
        writer.write(place, "a")
    assert (place if place.is_file() else place / "mine").read_text() == "mine"
    assert hidden(tmp_path) == []


@every_writer
def test_a_parent_that_is_a_file(tmp_path: Path, writer: Writer) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(KNOWN) as caught:
        writer.write(tmp_path / "file" / "place", "a")
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["empty", "another version", "another key", "a shorter file", "another file"]
)
def test_a_progress_file_that_cannot_be_used_starts_afresh(tmp_path: Path, damage: str) -> None:
    progress = ProgressFile(tmp_path, "key")
    (tmp_path / "part").write_bytes(b"part")
    progress.add("part", {"n": 1})
    again = ProgressFile(tmp_path, "key")
    assert again.get("part") == progress.get("part") and not again.is_afresh
    file, key = tmp_path / PROGRESS, "key"
    if damage == "empty":
        file.write_text("")
    elif damage == "another version":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 0}))
    elif damage == "another key":
        key = "other"
    elif damage == "a shorter file":
        (tmp_path / "part").write_bytes(b"par")
    else:
        (tmp_path / "part").write_bytes(b"tart")
    found = ProgressFile(tmp_path, key)
    assert len(found) == 0 and found.is_afresh
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]


def test_an_array_cache_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"not a database, and long enough to be taken for one" * 99)
    with pytest.raises(UserError, match="damaged"):
        Cache(tmp_path / "cache")
    (tmp_path / "directory").mkdir()
    with pytest.raises((UserError, RunError)):
        Cache(tmp_path / "directory")


def test_a_manifest_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"weights")
    (tmp_path / ".lock").write_text("")
    assert list_files(tmp_path) == ["inner/a"]
    write_manifest(tmp_path, describe(tmp_path, list_files(tmp_path)))
    assert why_invalid(tmp_path) is None
    (tmp_path / "inner" / "a").write_bytes(b"weightS")
    assert why_invalid(tmp_path) == "inner/a is damaged (its SHA-256 differs)"


def test_names_of_two_writers_differ(tmp_path: Path) -> None:
    first, second = own_name(tmp_path / "a"), own_name(tmp_path / "a")
    assert first != second
    assert f"-{os.getpid()}-" in first.name and first.name.startswith(f".a.{os.uname().nodename}-")
