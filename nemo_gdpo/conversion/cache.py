"""Converted models, kept for the next run: one directory for each source, under a key of its bytes.

ROOT/models/NAME-KEY/            a Megatron checkpoint
ROOT/models/.NAME-KEY.lock       held while it is made
ROOT/fingerprints/HASH.UID.json  what hashing a source gave, with sizes and times of its files
ROOT/verified/HASH.UID.json      a converted model that was read and is as it was written

Several users can share ROOT: what is made in it has its rights (`chmod 2770 ROOT` lets a group
share it), and each of them reads a model once before using it. Whoever may write to a shared
cache is trusted not to forge it; damage is found.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.conversion.atomic import MARKER, listed_files, why_incomplete
from nemo_gdpo.conversion.fingerprint import hash_files
from nemo_gdpo.conversion.formats.assets import asset_files
from nemo_gdpo.conversion.formats.megatron_io import FORMAT_VERSION
from nemo_gdpo.conversion.notes import Files, keep, note_of, recall
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of, file_sha256
from nemo_gdpo.io.locks import held
from nemo_gdpo.io.manifest import why_damaged
from nemo_gdpo.io.remedies import remedy_of, unwritable

ENVIRONMENT = "NEMO_GDPO_CACHE"


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


@contextlib.contextmanager
def _with_its_rights() -> Iterator[None]:
    """What is made in the block gets the rights that the cache itself gives to group and others.

    Otherwise one user's umask would keep the other users of a shared cache out.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    os.umask(before & ~(root.stat().st_mode & 0o077))
    try:
        yield
    finally:
        os.umask(before)


def source_fingerprint(source: Path, files: list[Path], *, progress: bool = False) -> str:
    """SHA-256 (hex) of a source's weight files, from the last time if they are unchanged.

    Unchanged means: same names, sizes, times of change and inodes; see `conversion.notes`.

    Args:
        source: the model that is hashed.
        files: its weight files.
        progress: show a bar.
    """
    note, before = note_of(cache_root() / "fingerprints", source), Files.of(files)
    known = recall(note, before)
    if known is not None:
        return known
    sha256 = hash_files(files, progress=progress)
    if before.are_settled():
        with _with_its_rights():
            keep(note, before, sha256)
    return sha256


def _why_not_whole(directory: Path) -> str | None:
    """Why a converted model is not as it was written, or None. All of it is read the first time."""
    reason = why_incomplete(directory)
    if reason is not None:
        return reason
    files = listed_files(directory)
    if files is None:
        return f"its {MARKER} has no hashes (it is of an earlier version)"
    note = note_of(cache_root() / "verified", directory)
    marker, before = file_sha256(directory / MARKER), Files.of(directory / name for name in files)
    if recall(note, before) == marker:
        return None
    reason = why_damaged(directory, files)
    if reason is None and before.are_settled():
        with contextlib.suppress(OSError), _with_its_rights():  # it is only read again, then
            keep(note, before, marker)
    return reason


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
        with (
            _with_its_rights(),
            held(lock, waiting=f"waiting for another process to convert {source}"),
        ):
            if directory.exists():
                reason = _why_not_whole(directory)
                if reason is None:
                    with contextlib.suppress(PermissionError):
                        os.utime(directory / MARKER)  # the last use
                    return directory, True
                print(f"{directory}: converting again, {reason}", flush=True)
                shutil.rmtree(directory)
            convert(directory)
            return directory, False
    except OSError as error:
        if isinstance(error, PermissionError) and _is_whole(directory):
            return directory, True  # of a cache that this user may only read
        raise unwritable(
            error,
            f"{directory}: the cache of converted models cannot be used "
            f"({error.strerror or error}); {remedy_of(error)}, or set {ENVIRONMENT} to a directory "
            "that all ranks share",
        ) from None


def _is_whole(directory: Path) -> bool:
    try:
        return _why_not_whole(directory) is None
    except OSError:
        return False


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
        for notes in ("fingerprints", "verified"):
            shutil.rmtree(cache_root() / notes, ignore_errors=True)
        for left in _models_directory().glob(".*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return [entry.name for entry in chosen]
