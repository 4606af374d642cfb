"""Sizes and hashes of a directory's files: how a half-written or damaged one is recognised.

Two checks of different cost. `why_incomplete` looks at the names and sizes of all files, and reads
the manifest alone. `why_damaged` reads what it is given: of a large directory, ranks share it out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nemo_gdpo.io.files import digest_of, file_sha256, fsync_path, write_file

T = TypeVar("T")
Entry = dict[str, object]
"""`bytes` and `sha256` of one file."""
MANIFEST = "manifest.json"
LOCK = ".lock"
"""Lock file of the writer of an unfinished directory."""
_THREADS = 4
"""Files that one process reads at a time. Hashing leaves Python's lock alone."""
_VERSION = 2


@dataclass(frozen=True)
class Listed:
    """A file as the manifest has it."""

    bytes: int
    sha256: str


class DamagedManifestError(Exception):
    """A manifest is missing, or is not as it was written. The message is the reason."""


def list_files(directory: Path) -> list[str]:
    """All files below `directory`, relative, sorted; without the manifest and a writer's lock."""
    found = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in found if name not in (LOCK, MANIFEST))


def describe(directory: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Size in bytes and SHA-256 of each file, which is forced to disk first."""

    def described(name: str) -> tuple[str, Entry]:
        path = directory / name
        fsync_path(path)
        return name, {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    return dict(_at_once(described, names))


def _at_once(action: Callable[[str], T], names: Iterable[str]) -> list[T]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        return list(pool.map(action, names))


def write_manifest(directory: Path, files: Mapping[str, Entry]) -> None:
    """Write the manifest, force it and its directory to disk. It has a hash of itself."""
    content: dict[str, Any] = {"version": _VERSION, "files": dict(files)}
    content["sha256"] = digest_of(content["files"])
    write_file(directory / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_manifest(directory: Path) -> dict[str, Listed]:
    """What the manifest lists, by path within.

    Raises:
        DamagedManifestError: there is none, or it is not as it was written.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise DamagedManifestError(f"it has no {MANIFEST}: it was not finished")
    try:
        content = json.loads(path.read_text())
        files = dict(content["files"])
        listed = {name: Listed(int(e["bytes"]), str(e["sha256"])) for name, e in files.items()}
        # Earlier versions wrote none.
        is_whole = content.get("version", 1) < _VERSION or content["sha256"] == digest_of(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        listed, is_whole = {}, False
    if not listed or not is_whole:
        raise DamagedManifestError(f"its {MANIFEST} is damaged")
    return listed


def why_incomplete(directory: Path, required: Collection[str] = ()) -> str | None:
    """Why a directory is not what its manifest lists, by names and sizes; None when it is.

    A file that the manifest does not know was never checked, and whoever reads the directory might
    read it: below its folders there may be none. Beside them a file that nobody asks for may lie.

    Args:
        directory: with its manifest.
        required: paths that it has to list.

    Raises:
        OSError: it cannot be read.
    """
    try:
        listed = read_manifest(directory)
        found = {name: (directory / name).stat().st_size for name in list_files(directory)}
    except DamagedManifestError as error:
        return str(error)
    for name, entry in sorted(listed.items()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != entry.bytes:
            return f"{name} has {found[name]} bytes instead of {entry.bytes}"
    unlisted = sorted(name for name in found.keys() - listed.keys() if "/" in name)
    unlisted += sorted(set(required) - listed.keys())
    return f"its {MANIFEST} does not list {unlisted[0]}" if unlisted else None


def why_damaged(directory: Path, files: Mapping[str, Listed]) -> str | None:
    """Which of these files has other contents than the manifest says; None when none has.

    Raises:
        OSError: one cannot be read.
    """

    def is_whole(name: str) -> bool:
        return file_sha256(directory / name) == files[name].sha256

    names = sorted(files)
    for name, whole in zip(names, _at_once(is_whole, names), strict=True):
        if not whole:
            return f"{name} is damaged (its SHA-256 differs)"
    return None


def why_invalid(directory: Path, required: Collection[str] = ()) -> str | None:
    """The reason why `directory` is not complete, or None when it is. Reads all of it."""
    return why_incomplete(directory, required) or why_damaged(directory, read_manifest(directory))
