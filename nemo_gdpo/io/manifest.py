"""Sizes and hashes of a checkpoint's files: how a half-written or damaged one is recognised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from nemo_gdpo.training.reference_store import file_sha256

MANIFEST = "manifest.json"


def list_files(directory: Path) -> list[str]:
    """All files below `directory` but the manifest, relative, sorted."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MANIFEST
    )


def fsync_path(path: Path) -> None:
    """Force a file or a directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    path = directory / MANIFEST
    path.write_text(json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n")
    fsync_path(path)
    fsync_path(directory)


def why_invalid(directory: Path) -> str | None:
    """The reason why `directory` is no whole checkpoint, or None when it is one."""
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
