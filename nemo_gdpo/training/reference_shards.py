"""Shards of a reference cache: rows of one data-parallel rank, in a file that says whose they are.

A shard is written whole or not at all. It carries the digest of its key, the global batches that it
is of, and which of how many ranks wrote it: a batch is there when the shards of all ranks are.

    shard-FIRST-LAST-PART-of-PARTS.safetensors    batches FIRST to LAST, its own included

    rows      int64 [R]    2i is the chosen response of pair i, 2i + 1 the rejected one
    lengths   int64 [R]    tokens of each
    values    float32 [T, C]    one row after the other
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.tensor_file import with_ordered_metadata

_NAME = re.compile(r"shard-(\d+)-(\d+)-(\d+)-of-(\d+)\.safetensors")
PATTERN = "shard-*.safetensors"
KEY, CONTENT = "key", "content"
"""Names in a shard's metadata: of the digest of its key, and of the SHA-256 of its tensors."""


class ShardError(RuntimeError):
    """A shard cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Shard:
    """A shard, as the rank knows it that wrote or verified it."""

    name: str
    bytes: int
    sha256: str
    """Of the file."""
    rows: npt.NDArray[np.int64]
    """In the order of its values."""


@dataclass(frozen=True)
class Place:
    """What a shard's name says."""

    first: int
    last: int
    part: int
    parts: int

    @classmethod
    def of(cls, name: str) -> Place | None:
        """None for the name of something else."""
        matched = _NAME.fullmatch(name)
        return None if matched is None else cls(*map(int, matched.groups()))

    @property
    def name(self) -> str:
        """Of the file."""
        return (
            f"shard-{self.first:08d}-{self.last:08d}-{self.part:05d}-of-{self.parts:05d}"
            ".safetensors"
        )


class ShardWriter:
    """Collects the rows that one data-parallel rank computes, and writes them as shards."""

    def __init__(
        self, directory: Path, digest: str, *, columns: int, part: int = 0, parts: int = 1
    ) -> None:
        """Write to a directory that all ranks share.

        Args:
            directory: exists.
            digest: of the key.
            columns: C.
            part: this rank, of those that write.
            parts: number of ranks that write.
        """
        self._directory, self._digest, self._columns = directory, digest, columns
        self._part, self._parts = part, parts
        self._rows: list[tuple[int, Tensor]] = []
        self._batches: list[int] = []
        self.written: list[Shard] = []

    @property
    def rows_held(self) -> int:
        """Rows that are not written yet."""
        return len(self._rows)

    @property
    def last_batch(self) -> int | None:
        """The newest global batch that is not written yet."""
        return self._batches[-1] if self._batches else None

    def begin(self, batch: int) -> None:
        """The rows to come are of this global batch; what is held is of the batches before it."""
        self._batches.append(batch)

    def add(self, row: int, values_TC: Tensor) -> None:
        """Hold row 2i (chosen) or 2i + 1 (rejected) of pair i."""
        self._rows.append((row, values_TC.float().cpu()))

    def flush(self) -> None:
        """Write what is held as one shard, forced to disk; a rank without rows writes one, too.

        Raises:
            OSError: it cannot be written.
        """
        if not self._batches:
            return
        place = Place(self._batches[0], self._batches[-1], self._part, self._parts)
        values = [v for _, v in self._rows] or [torch.zeros(0, self._columns)]
        rows = torch.tensor([row for row, _ in self._rows], dtype=torch.int64)
        tensors = {
            "rows": rows,
            "lengths": torch.tensor([v.shape[0] for _, v in self._rows], dtype=torch.int64),
            "values": torch.cat(values).contiguous(),
        }
        metadata = {KEY: self._digest, CONTENT: content_of(tensors)}
        content = with_ordered_metadata(save(tensors, metadata=metadata))
        write_file(self._directory / place.name, content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.written.append(Shard(place.name, len(content), sha256, rows.numpy()))
        self._rows, self._batches = [], []


def content_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the bytes of a shard's tensors: an unfinished cache has no manifest yet."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def verify_shard(
    path: Path, digest: str, lengths: Sequence[int], *, sha256: str | None = None
) -> Shard:
    """Read a shard, and look at all that is in it.

    Args:
        path: of the file.
        digest: of the key that it has to be of.
        lengths: response tokens of row 2i (chosen) and 2i + 1 (rejected) of every pair.
        sha256: that the file has to have; None where it is not known.

    Raises:
        ShardError: it is damaged, of another key, or does not fit the pairs.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ShardError("is missing") from None
    except OSError as error:
        raise ShardError(f"cannot be read ({error})") from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ShardError("is damaged")
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        tensors = load(content)
        rows, own, values = tensors["rows"], tensors["lengths"], tensors["values"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise ShardError(f"cannot be read ({error})") from None
    if metadata.get(KEY) != digest:
        raise ShardError("is of another key")
    if metadata.get(CONTENT) != content_of(tensors):
        raise ShardError("is damaged")
    for row, length in zip(rows.tolist(), own.tolist(), strict=True):
        if not 0 <= row < len(lengths):
            raise ShardError(f"has row {row} of {len(lengths)}")
        if length != lengths[row]:
            raise ShardError(f"row {row} has {length} values for {lengths[row]} tokens")
    if int(own.sum()) != values.shape[0]:
        raise ShardError(f"has {values.shape[0]} values for {int(own.sum())} tokens")
    if not bool(torch.isfinite(values).all()):
        raise ShardError("some values are not finite")
    return Shard(path.name, len(content), found, rows.numpy())


def finished_batches(names: Iterable[str]) -> tuple[dict[int, str], list[str]]:
    """Which global batches a set of shards holds completely.

    Returns:
        Batch -> a name of its shards, for each that all ranks have written; and the names of the
        shards of batches that not all have, or that other shards hold as well.
    """
    groups: dict[tuple[int, int, int], dict[int, str]] = {}
    for name in sorted(names):
        place = Place.of(name)
        if place is not None:
            groups.setdefault((place.first, place.last, place.parts), {})[place.part] = name
    done: dict[int, str] = {}
    unusable: list[str] = []
    for (first, last, parts), members in groups.items():
        batches = range(first, last + 1)
        if len(members) == parts and not any(batch in done for batch in batches):
            done.update(dict.fromkeys(batches, members[0]))
        else:
            unusable += members.values()
    return done, unusable


def check_complete(shards: Iterable[Shard], rows: int) -> None:
    """Refuse shards that do not hold every row once.

    Raises:
        RuntimeError: rows are missing or doubled; the first are named.
    """
    seen = np.zeros(rows, dtype=np.int64)
    for shard in shards:
        np.add.at(seen, shard.rows, 1)
    wrong = np.flatnonzero(seen != 1)
    if len(wrong):
        raise RuntimeError(
            f"{len(wrong)} rows are missing or doubled, the first {wrong[:3].tolist()}"
        )
