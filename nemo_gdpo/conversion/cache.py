"""Converted models, kept for the next run: one directory for each source, under a key of its bytes.

ROOT/models/NAME-KEY/            a Megatron checkpoint
ROOT/models/.NAME-KEY.lock       held while it is made
ROOT/fingerprints/HASH.json      what hashing a source gave, with sizes and times of its files
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.atomic import MARKER, why_incomplete
from nemo_gdpo.conversion.fingerprint import hash_files
from nemo_gdpo.conversion.formats.assets import asset_files
from nemo_gdpo.conversion.formats.megatron_io import FORMAT_VERSION
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of, file_sha256, write_json
from nemo_gdpo.io.locks import held

ENVIRONMENT = "NEMO_GDPO_CACHE"
_SETTLED_NS = 2 * 10**9
"""A file younger than this may change without another time of change: its hash is not kept."""


@dataclass(frozen=True)
class CachedModel:
    """One converted model."""

    name: str
    path: Path
    bytes: int
    last_used: datetime.datetime


def cache_root() -> Path:
    """`$NEMO_GDPO_CACHE`, otherwise `nemo_gdpo` in the user's cache directory."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nemo_gdpo"


def _models_directory() -> Path:
    return cache_root() / "models"


def _file_stats(files: list[Path]) -> list[list[Any]]:
    found = [(path, path.stat()) for path in files]
    return [[p.name, s.st_size, s.st_mtime_ns, s.st_ino] for p, s in found]


def source_fingerprint(source: Path, files: list[Path], *, progress: bool = False) -> str:
    """SHA-256 (hex) of a source's weight files, from the last time if they are unchanged.

    Unchanged means: same names, sizes, times of change and inodes.

    Args:
        source: the model that is hashed.
        files: its weight files.
        progress: show a bar.
    """
    name = digest_of({"source": str(source.absolute())})[:32]
    note = cache_root() / "fingerprints" / f"{name}.json"
    before = _file_stats(files)
    try:
        known = json.loads(note.read_text())
        if known["files"] == before:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or cut off: hash again
    now = time.time_ns()
    sha256 = hash_files(files, progress=progress)
    settled = all(now - mtime > _SETTLED_NS for _, _, mtime, _ in before)
    if settled and _file_stats(files) == before:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"files": before, "sha256": sha256})
    return sha256


def assets_digest(source: Path) -> str:
    """SHA-256 (hex) of config, tokenizer, template and licence of a Hugging Face directory."""
    return digest_of({name.as_posix(): file_sha256(source / name) for name in asset_files(source)})


def get_or_convert(
    source: Path,
    key: dict[str, Any],
    convert: Callable[[Path], object],
) -> tuple[Path, bool]:
    """The converted form of a source, from the cache or converted now, by one process at a time.

    Args:
        source: names the entry.
        key: everything that the converted form depends on, as plain JSON.
        convert: writes it to the directory it is given.

    Returns:
        The Megatron checkpoint, and whether it was there already.

    Raises:
        UserError: it cannot be made, or the cache cannot be written.
    """
    digest = digest_of({**key, "format": FORMAT_VERSION})[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", source.name).strip(".") or "model"
    directory = _models_directory() / f"{stem}-{digest}"
    lock = directory.with_name(f".{directory.name}.lock")
    try:
        with held(lock, waiting=f"waiting for another process to convert {source}"):
            if directory.exists():
                reason = why_incomplete(directory)
                if reason is None:
                    os.utime(directory / MARKER)  # the last use
                    return directory, True
                print(f"{directory}: converting again, {reason}", flush=True)
                shutil.rmtree(directory)
            convert(directory)
            return directory, False
    except OSError as error:
        raise UserError(
            f"{directory}: the cache of converted models cannot be used "
            f"({error.strerror or error}); set {ENVIRONMENT} to a directory that all ranks share"
        ) from None


def entries() -> list[CachedModel]:
    """All converted models, the one that was used last first."""
    found = []
    for path in _models_directory().glob("*"):
        marker = path / MARKER
        if path.name.startswith(".") or not marker.is_file():
            continue
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        used = datetime.datetime.fromtimestamp(marker.stat().st_mtime)
        found.append(CachedModel(path.name, path, size, used))
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def remove(name: str) -> list[str]:
    """Remove an entry, or `all`; leftovers of interrupted conversions go with `all`.

    Raises:
        UserError: the cache has no entry of that name.
    """
    present = entries()
    chosen = [entry for entry in present if name in ("all", entry.name)]
    if not chosen and name != "all":
        raise UserError(
            f"{name}: the cache {_models_directory()} has no entry of that name; list its entries "
            "with `nemo-gdpo convert cache`"
        )
    for entry in chosen:
        shutil.rmtree(entry.path)
    if name == "all":
        shutil.rmtree(cache_root() / "fingerprints", ignore_errors=True)
        for left in _models_directory().glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return [entry.name for entry in chosen]
