"""Reference log-probs on disk: per token, in safetensors shards, under a key that says of what.

A cache is used only when it is complete and belongs to this run (`reference_key.py`); anything else
is refused, because a foreign reference trains quietly towards the wrong target.

    DIRECTORY/              complete
      manifest.json         the key, sizes and SHA-256 of the shards; written last
      shard-*               see `reference_shards.py`
    .DIRECTORY.partial/     in the making, locked by whoever makes it; continued by the next one
      partial.json          the key and the cut, under which it is continued and no other
      shard-*
"""

from __future__ import annotations

import bisect
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_json
from nemo_gdpo.io.manifest import LOCK, MANIFEST
from nemo_gdpo.io.staged import StagedDirectory, stage_resumable
from nemo_gdpo.training.reference_key import FORMAT_VERSION, Cut, ReferenceKey
from nemo_gdpo.training.reference_shards import (
    Shard,
    ShardError,
    check_complete,
    verify_shard,
)

PARTIAL = "partial.json"


class Sliceable(Protocol):
    """Rows of numbers that can be cut out: a tensor [T, C], or files."""

    def __getitem__(self, place: slice) -> Tensor: ...


class ReferenceStore:
    """Reference log-probs of every pair of a data set, float32."""

    def __init__(
        self,
        values_TC: Sliceable,
        lengths: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Hold the values of row 2i (chosen) and 2i + 1 (rejected) of pair i.

        Args:
            values_TC: [T, C] over all rows.
            lengths: [2 * pairs], values of each row.
            starts: [2 * pairs], where it begins in `values_TC`; None: behind the row before it.
        """
        self._values = values_TC
        self._lengths = lengths
        self._starts = lengths.cumsum() - lengths if starts is None else starts

    def _row(self, row: int) -> Tensor:
        start = int(self._starts[row])
        return self._values[start : start + int(self._lengths[row])]

    def columns(self, pair_indices: Sequence[int]) -> Tensor:
        """[T, C] of a micro-batch: all chosen rows, then all rejected rows."""
        rows = [2 * i for i in pair_indices] + [2 * i + 1 for i in pair_indices]
        return torch.cat([self._row(row) for row in rows])


class _MappedShards:
    """The values of shards one after the other, each mapped into memory when it is first read.

    A rank reads the rows of its own pairs, and nothing else; ranks of one node share the pages.
    """

    def __init__(self, paths: Sequence[Path], values: Sequence[int]) -> None:
        self._paths = paths
        self._bases = [0, *itertools.accumulate(values)]
        self._open: dict[int, Any] = {}

    def __getitem__(self, place: slice) -> Tensor:
        index = bisect.bisect_right(self._bases, place.start) - 1
        if index not in self._open:
            opened: Any = safe_open(str(self._paths[index]), "pt")
            self._open[index] = opened.get_slice("values")
        base = self._bases[index]
        found: Tensor = self._open[index][place.start - base : place.stop - base]
        return found


def mapped_store(
    directory: Path, shards: Sequence[Shard], lengths: Sequence[int]
) -> ReferenceStore:
    """A store that reads shards which are verified and complete."""
    of_row = np.asarray(lengths, dtype=np.int64)
    counts = [of_row[shard.rows] for shard in shards]
    starts = np.zeros(len(of_row), dtype=np.int64)
    base = 0
    for shard, own in zip(shards, counts, strict=True):
        starts[shard.rows] = base + np.concatenate(([0], own.cumsum()[:-1])) if len(own) else 0
        base += int(own.sum())
    # A shard without values holds no row.
    full = [(directory / s.name, int(own.sum())) for s, own in zip(shards, counts, strict=True)]
    paths, sizes = zip(*((path, size) for path, size in full if size), strict=True)
    return ReferenceStore(_MappedShards(paths, sizes), of_row, starts)


# -- in the making -------------------------------------------------------------------------------


def start_cache(
    directory: Path, key: ReferenceKey, cut: Cut, *, say: Callable[[str], object] = print
) -> StagedDirectory:
    """The directory to write shards to; what a stopped or killed writer of this key left is in it.

    Args:
        directory: of the complete cache.
        key: of this run.
        cut: of this run; what is continued has to be of the same.
        say: told what is dropped.

    Raises:
        BusyError: another process is at it.
        OSError: it cannot be made.
    """
    staged = stage_resumable(directory)
    try:
        note = {"digest": key.digest(), "key": key.plain(), "cut": asdict(cut)}
        found = _read_note(staged.path / PARTIAL)
        if found != note:
            if found is not None:
                say(_dropped(staged.path, found, key, cut))
            _clear(staged.path)
            write_json(staged.path / PARTIAL, note)
    except BaseException:
        staged.leave()
        raise
    return staged


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _dropped(partial: Path, found: dict[str, Any], key: ReferenceKey, cut: Cut) -> str:
    stored, other = found.get("key"), found.get("cut")
    differing = key.differing(stored) if isinstance(stored, dict) else []
    if isinstance(other, dict):
        differing += [name for name, value in asdict(cut).items() if other.get(name) != value]
    return (
        f"{partial}: an unfinished reference that differs in "
        f"{', '.join(differing) or 'its format'} is dropped; starting afresh"
    )


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_only(directory: Path, names: set[str]) -> None:
    """Remove from a directory in the making what is not among `names`: it may be cut off."""
    for path in directory.iterdir():
        if path.name not in {LOCK, PARTIAL, *names}:
            path.unlink()


def finish_cache(
    staged: StagedDirectory, key: ReferenceKey, lengths: Sequence[int], shards: Sequence[Shard]
) -> None:
    """Check that every row is there, write the manifest, and move the cache into place.

    Where another run has put a cache meanwhile, that one stays: whoever loads it sees whether it
    fits.

    Args:
        staged: of `start_cache`.
        key: of the run.
        lengths: response tokens of row 2i (chosen) and 2i + 1 (rejected) of every pair.
        shards: verified by, or written by, any of the ranks.

    Raises:
        RuntimeError: a row is missing or doubled.
        OSError: it cannot be written.
    """
    check_complete(shards, len(lengths))
    manifest = {
        "version": FORMAT_VERSION,
        "digest": key.digest(),
        "key": key.plain(),
        "rows": len(lengths),
        "shards": {
            shard.name: {"bytes": shard.bytes, "sha256": shard.sha256}
            for shard in sorted(shards, key=lambda shard: shard.name)
        },
    }
    keep_only(staged.path, {shard.name for shard in shards})
    write_json(staged.path / MANIFEST, manifest)
    (staged.path / PARTIAL).unlink()
    if not staged.publish(replace=False):
        staged.discard()


# -- complete ------------------------------------------------------------------------------------


def remedy_for(directory: Path) -> str:
    """What to do about a cache that cannot be used."""
    return f"delete {directory}, or set reference_cache_dir to another directory"


def read_manifest(directory: Path, key: ReferenceKey) -> dict[str, str]:
    """SHA-256 of every shard of a complete cache of `key`, by name.

    Raises:
        UserError: it is incomplete, damaged, or of another model, data set or setting.
    """
    remedy = remedy_for(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(
            f"reference cache {directory} is incomplete (it has no {MANIFEST}); {remedy}"
        )
    try:
        manifest = json.loads(path.read_text())
        stored, digest = dict(manifest["key"]), manifest["digest"]
        version = manifest.get("version")
        shards = dict(manifest["shards"])
        known = {
            name: str(entry["sha256"] if version == FORMAT_VERSION else entry)
            for name, entry in shards.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"reference cache {directory}: {MANIFEST} is damaged; {remedy}") from error
    if digest != key.digest():
        differing = key.differing(stored) if version == FORMAT_VERSION else []
        raise UserError(
            f"reference cache {directory} belongs to another run: it differs in "
            f"{', '.join(differing) or 'its format version'}; {remedy}"
        )
    return known


def refuse_foreign(directory: Path, key: ReferenceKey) -> None:
    """Refuse a cache that is there and incomplete, or not of `key`; its shards are not looked at.

    Raises:
        UserError: naming what differs.
    """
    if directory.exists():
        read_manifest(directory, key)


def verify_share(
    directory: Path, key: ReferenceKey, lengths: Sequence[int], share: tuple[int, int] = (0, 1)
) -> list[Shard]:
    """Verify a share of a cache's shards: every `share[1]`-th, from the `share[0]`-th on.

    Raises:
        UserError: see `read_manifest`; or a shard is missing, damaged or does not fit the pairs.
    """
    known = read_manifest(directory, key)
    first, step = share
    found = []
    for name in sorted(known)[first::step]:
        try:
            found.append(verify_shard(directory / name, key.digest(), lengths, sha256=known[name]))
        except ShardError as error:
            raise UserError(
                f"reference cache {directory}: {name} {error}; {remedy_for(directory)}"
            ) from None
    return found


def open_store(directory: Path, lengths: Sequence[int], shards: Sequence[Shard]) -> ReferenceStore:
    """The store over the shards that all ranks have verified between them.

    Raises:
        UserError: they do not hold every row once.
    """
    shards = sorted(shards, key=lambda shard: shard.name)
    try:
        check_complete(shards, len(lengths))
    except RuntimeError as error:
        raise UserError(f"reference cache {directory}: {error}; {remedy_for(directory)}") from error
    return mapped_store(directory, shards, lengths)


def load_cache(directory: Path, key: ReferenceKey, lengths: Sequence[int]) -> ReferenceStore:
    """Verify and open a cache in one process.

    Args:
        directory: holds the manifest and the shards.
        key: of this run.
        lengths: response tokens of row 2i (chosen) and 2i + 1 (rejected) of every pair.

    Raises:
        UserError: it is incomplete, damaged, or of another model, data set or setting.
    """
    return open_store(directory, lengths, verify_share(directory, key, lengths))
