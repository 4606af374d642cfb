"""Sizes and hashes of a directory's files: how a half-written or damaged one is recognised."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from nemo_gdpo.io.files import file_sha256, fsync_path, write_file

MANIFEST = "manifest.json"
LOCK = ".lock"
"""Lock file of the writer of an unfinished directory."""


def list_files(directory: Path) -> list[str]:
    """All files below `directory`, relative, sorted; without the manifest and a writer's lock."""
    found = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sorted(name for name in found if name not in (LOCK, MANIFEST))


def describe(directory: Path, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """Size in bytes and SHA-256 of each file, which is forced to disk first."""
    described: dict[str, dict[str, object]] = {}
    for name in names:
        path = directory / name
        fsync_path(path)
        described[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return described


def write_manifest(directory: Path, files: dict[str, dict[str, object]]) -> None:
    """Write the manifest, force it and its directory to disk."""
    text = json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n"
    write_file(directory / MANIFEST, text)


def why_invalid(directory: Path) -> str | None:
    """The reason why `directory` is not complete, or None when it is."""
    path = directory / MANIFEST
    if not path.is_file():
        return f"it has no {MANIFEST}: it was not finished"
    try:
        files = json.loads(path.read_text())["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in dict(files).items()}
    except (ValueError, KeyError, TypeError):
        wanted = {}
    if not wanted:
        return f"its {MANIFEST} is damaged"
    for name, (size, sha256) in sorted(wanted.items()):
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if file_sha256(file) != sha256:
            return f"{name} is damaged (its SHA-256 differs)"
    return None
