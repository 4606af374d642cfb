"""Every writer of the package behind one interface, so that one test of faults goes through all.

python -m tests.io.writers kill NAME DIRECTORY       kills it before each step that reaches the disk
python -m tests.io.writers limit NAME DIRECTORY N    writes with files limited to N bytes
python -m tests.io.writers several NAME DIRECTORY    four processes write at once

Prints one JSON value. A version is a letter; what is written of it is that letter, many times.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io import arrays, files, locks, rows, staged
from nemo_gdpo.io.progress_file import ProgressFile

SIZE = 60_000
"""Bytes of a version."""
KNOWN = (OSError, UserError, RunError)
"""How a writer may end when the disk fails."""


def _whole(text: str) -> str:
    """The version that `text` is, every byte of it."""
    assert len(text) == SIZE and len(set(text)) == 1, f"{len(text)} bytes of {sorted(set(text))}"
    return text[0]


def _write_file(place: Path, version: str) -> None:
    files.write_file(place, version * SIZE)


def _read_file(place: Path) -> list[str]:
    return [_whole(place.read_text())] if place.exists() else []


def _write_json(place: Path, version: str) -> None:
    files.write_json(place, {"value": version * SIZE})


def _read_json(place: Path) -> list[str]:
    return [_whole(files.read_json_object(place)["value"])] if place.exists() else []


def _write_output(place: Path, version: str) -> None:
    files.write_output(place, version * SIZE)


def _fill(directory: Path, version: str) -> None:
    (directory / "inner").mkdir(exist_ok=True)
    for name in ("first", "inner/second"):
        (directory / name).write_text(version * SIZE)


def _read_directory(place: Path) -> list[str]:
    if not place.exists():
        return []
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    # A kill between the move into place and the removal of the lock may leave these two.
    assert found - {".lock", ".journal.json"} == {"first", "inner/second"}
    first, second = (_whole((place / name).read_text()) for name in ("first", "inner/second"))
    assert first == second
    return [first]


def _end(directory: staged.StagedDirectory, *, replace: bool) -> None:
    try:
        directory.publish(replace=replace)
    finally:
        directory.discard()


def _replace_directory(place: Path, version: str) -> None:
    directory = staged.stage(place)
    try:
        _fill(directory.path, version)
    except OSError:
        directory.discard()
        raise
    _end(directory, replace=True)


def _replace_in_two_renames(place: Path, version: str) -> None:
    with mock.patch.object(staged, "_exchange", lambda first, second: False):
        _replace_directory(place, version)


def _make_directory(place: Path, version: str) -> None:
    directory = staged.stage(place)
    try:
        _fill(directory.path, version)
    except OSError:
        directory.discard()
        raise
    _end(directory, replace=False)


def _resume_directory(place: Path, version: str) -> None:
    directory = staged.stage_resumable(place)
    try:
        progress = ProgressFile(directory.path, version, kept=frozenset({".lock"}))
        (directory.path / "inner").mkdir(exist_ok=True)
        for name in ("first", "inner/second"):
            if progress.get(name) is None:
                (directory.path / name).write_text(version * SIZE)
                progress.add(name)
    except OSError:
        directory.discard()
        raise
    _end(directory, replace=True)


def _append_row(place: Path, version: str) -> None:
    rows.SYNC_SECONDS = 0.0
    with rows.RowFile(place, lock=True) as file:
        rows.repair(place)
        file.append(rows.encode_row({"value": version * SIZE}))


def _read_rows(place: Path) -> list[str]:
    if not place.exists():
        return []
    return [_whole(json.loads(line)["value"]) for _, line in rows.complete_lines(place)]


def _put_array(place: Path, version: str) -> None:
    with arrays.Cache(place) as cache:
        cache.put({version: np.full(SIZE // 8, float(ord(version)))})


def _read_arrays(place: Path) -> list[str]:
    if not place.exists():
        return []
    with arrays.Cache(place) as cache:
        found = cache.get([chr(code) for code in range(ord("a"), ord("z") + 1)])
    for version, value in found.items():
        assert value.shape == (SIZE // 8,) and set(value.tolist()) == {float(ord(version))}
    return sorted(found)


@dataclass(frozen=True)
class Writer:
    """One way to write to a place."""

    name: str
    write: Callable[[Path, str], None]
    read: Callable[[Path], list[str]]
    """The versions that a reader finds; fails on one that is not whole."""
    then: Callable[[list[str], str], list[str]]
    """(versions before, version written) -> versions after."""


def _replaced(before: list[str], version: str) -> list[str]:
    del before
    return [version]


def _kept(before: list[str], version: str) -> list[str]:
    return before or [version]


def _added(before: list[str], version: str) -> list[str]:
    return [*before, version]


def _united(before: list[str], version: str) -> list[str]:
    return sorted({*before, version})


WRITERS = {
    writer.name: writer
    for writer in (
        Writer("file", _write_file, _read_file, _replaced),
        Writer("json", _write_json, _read_json, _replaced),
        Writer("output", _write_output, _read_file, _replaced),
        Writer("directory", _replace_directory, _read_directory, _replaced),
        Writer("two-renames", _replace_in_two_renames, _read_directory, _replaced),
        Writer("exclusive", _make_directory, _read_directory, _kept),
        Writer("resumable", _resume_directory, _read_directory, _replaced),
        Writer("rows", _append_row, _read_rows, _added),
        Writer("arrays", _put_array, _read_arrays, _united),
    )
}


def hidden(directory: Path) -> list[str]:
    """What writers left beside their places."""
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


# --- in separate processes ------------------------------------------------------------------


def _die_at(step: int) -> None:
    """Kill this process before its `step`-th call that changes what is on the disk, from 0."""
    left = [step]

    def count(*_: object) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            count()
            return call(*arguments, **named)

        return counting

    for name in ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    staged._exchange = counted(staged._exchange)
    connect = sqlite3.connect

    def traced(*arguments: Any, **named: Any) -> Any:
        database = connect(*arguments, **named)
        database.set_trace_callback(count)
        return database

    sqlite3.connect = traced


def _in_child(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - the status says it, and stderr what
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def kill(writer: Writer, directory: Path) -> list[dict[str, object]]:
    """What a reader finds after a kill at each step, and after the next writer."""
    found: list[dict[str, object]] = []
    for step in range(200):
        place = directory / str(step) / "place"
        place.parent.mkdir()
        if writer.name != "exclusive":
            writer.write(place, "a")
        before = writer.read(place)

        def work(step: int = step, place: Path = place) -> None:
            _die_at(step)
            writer.write(place, "b")

        status = os.waitstatus_to_exitcode(os.waitpid(_in_child(work), 0)[1])
        # Between two renames nothing is at the place until the next writer comes.
        interim = writer.read(place)
        writer.write(place, "c")
        found.append(
            {
                "status": status,
                "before": before,
                "interim": interim,
                "after": writer.read(place),
                "hidden": hidden(place.parent),
            }
        )
        if status == 0:
            break
    return found


def limit(writer: Writer, directory: Path, size: int) -> str:
    """The error of a write that the kernel cuts off in the middle."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        writer.write(directory / "place", "b")
    except KNOWN as error:
        return f"{type(error).__name__}: {error}"
    return ""


def several(writer: Writer, directory: Path) -> list[int]:
    """Exit statuses of four processes that write five times each, taking turns where they must."""

    def work(version: str) -> None:
        for _ in range(5):
            while True:
                try:
                    writer.write(directory / "place", version)
                    break
                except locks.BusyError:
                    time.sleep(0.002)

    children = [_in_child(partial(work, version)) for version in "abcd"]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    what, name, where, *rest = sys.argv[1:]
    chosen = WRITERS[name]
    if what == "kill":
        print(json.dumps(kill(chosen, Path(where))))
    elif what == "limit":
        print(json.dumps(limit(chosen, Path(where), int(rest[0]))))
    else:
        print(json.dumps(several(chosen, Path(where))))
