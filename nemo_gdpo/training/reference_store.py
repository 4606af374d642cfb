"""Reference log-probs on disk: per token, in safetensors shards, under a key that says of what.

A cache is used only when it is complete and belongs to this run's model, data, template,
truncation, precision and temperature; anything else is refused, because a foreign reference trains
quietly towards the wrong target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import file_sha256, fsync_path, write_json
from nemo_gdpo.io.staged import StagedDirectory, stage

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that the cached numbers depend on."""

    weights: str
    """SHA-256 of the reference model's weights."""
    data: str
    """Fingerprint of the tokenised pairs."""
    template: str
    """SHA-256 of the chat template, or `none`."""
    truncation: str
    precision: str
    eos_temperature: float
    columns: tuple[str, ...]
    """`label`, then `eos` and `tempered_eos` where the objective reads them."""

    def digest(self) -> str:
        """SHA-256 over all fields, hex."""
        text = json.dumps({"version": FORMAT_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class ReferenceStore:
    """Reference log-probs of every pair of a data set, in memory, float32."""

    def __init__(self, values_TC: Tensor, offsets: Tensor) -> None:
        """Hold the values of row 2i (chosen) and 2i + 1 (rejected) of pair i.

        Args:
            values_TC: [T, C] over all rows.
            offsets: int64 [2 * pairs + 1]; row r is values[offsets[r] : offsets[r + 1]].
        """
        self._values = values_TC
        self._offsets = offsets.tolist()

    def _row(self, row: int) -> Tensor:
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def columns(self, pair_indices: Sequence[int]) -> Tensor:
        """[T, C] of a micro-batch: all chosen rows, then all rejected rows."""
        rows = [2 * i for i in pair_indices] + [2 * i + 1 for i in pair_indices]
        return torch.cat([self._row(row) for row in rows])


class ReferenceShardWriter:
    """Collects the rows that one rank computed and writes them in shards of bounded size."""

    def __init__(self, directory: Path, writer: str, *, rows_per_shard: int = 4096) -> None:
        self._directory = directory
        self._writer = writer
        self._rows_per_shard = rows_per_shard
        self._rows: list[tuple[int, Tensor]] = []
        self.written: dict[str, int] = {}
        """Bytes of every shard by its name."""

    def add(self, row: int, values_TC: Tensor) -> None:
        """Queue row 2i (chosen) or 2i + 1 (rejected) of pair i."""
        self._rows.append((row, values_TC.float().cpu()))
        if len(self._rows) >= self._rows_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what is queued as one shard."""
        if not self._rows:
            return
        tensors = {
            "rows": torch.tensor([row for row, _ in self._rows], dtype=torch.int64),
            "lengths": torch.tensor([v.shape[0] for _, v in self._rows], dtype=torch.int64),
            "values": torch.cat([v for _, v in self._rows]).contiguous(),
        }
        name = f"shard-{self._writer}-{len(self.written):05d}.safetensors"
        path = self._directory / name
        save_file(tensors, path)
        fsync_path(path)  # here: another machine's cache is not the main rank's to force
        self.written[name] = path.stat().st_size
        self._rows = []


def start_cache(directory: Path) -> StagedDirectory:
    """An empty directory to write shards to; what killed writers left is removed.

    Raises:
        OSError: it cannot be made.
    """
    return stage(directory)


def finish_cache(
    staged: StagedDirectory, key: ReferenceKey, expected_lengths: Sequence[int]
) -> None:
    """Check that every row is there and finite, write the manifest, and move the cache into place.

    Where another run has put a cache meanwhile, that one stays: `load_cache` says whether it fits.

    Raises:
        RuntimeError: a row is missing, doubled, of the wrong length, or not finite.
        OSError: it cannot be written.
    """
    names = sorted(path.name for path in staged.path.glob("shard-*.safetensors"))
    _assemble(staged.path, names, expected_lengths)
    manifest = {
        "version": FORMAT_VERSION,
        "digest": key.digest(),
        "key": asdict(key),
        "rows": len(expected_lengths),
        "shards": {name: file_sha256(staged.path / name) for name in names},
    }
    write_json(staged.path / MANIFEST, manifest)
    if not staged.publish(replace=False):
        staged.discard()


def _assemble(directory: Path, names: Sequence[str], lengths: Sequence[int]) -> ReferenceStore:
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    values: Tensor | None = None
    seen = torch.zeros(len(lengths), dtype=torch.int64)
    for name in names:
        try:
            shard = load_file(directory / name)
        except (SafetensorError, OSError) as error:
            raise RuntimeError(f"shard {name} cannot be read ({error})") from error
        if values is None:
            values = torch.full((int(offsets[-1]), shard["values"].shape[1]), float("nan"))
        lengths_of_rows = shard["lengths"].tolist()
        rows = shard["values"].split(lengths_of_rows)  # type: ignore[no-untyped-call]
        for row, row_values in zip(shard["rows"].tolist(), rows, strict=True):
            start, stop = int(offsets[row]), int(offsets[row + 1])
            if row_values.shape[0] != stop - start:
                raise RuntimeError(
                    f"row {row} has {row_values.shape[0]} values for {stop - start} tokens"
                )
            values[start:stop] = row_values
            seen[row] += 1
    if values is None or bool((seen != 1).any()):
        wrong = (seen != 1).nonzero().flatten().tolist()
        raise RuntimeError(f"{len(wrong)} rows are missing or doubled, the first {wrong[:3]}")
    if not bool(torch.isfinite(values).all()):
        raise RuntimeError("some values are not finite")
    return ReferenceStore(values, offsets)


def load_cache(
    directory: Path, key: ReferenceKey, expected_lengths: Sequence[int]
) -> ReferenceStore:
    """Read a cache that is complete and belongs to `key`.

    Args:
        directory: holds the manifest and the shards.
        key: of this run.
        expected_lengths: response tokens of row 2i (chosen) and 2i + 1 (rejected) of every pair.

    Raises:
        UserError: it is incomplete, damaged, or of another model, data set or setting.
    """
    shards, remedy = _shards_of(directory, key), _remedy(directory)
    for name, expected in shards.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"reference cache {directory}: {name} is missing; {remedy}")
        if file_sha256(path) != expected:
            raise UserError(f"reference cache {directory}: {name} is damaged; {remedy}")
    try:
        return _assemble(directory, sorted(shards), expected_lengths)
    except RuntimeError as error:
        raise UserError(f"reference cache {directory}: {error}; {remedy}") from error


def refuse_foreign(directory: Path, key: ReferenceKey) -> None:
    """Refuse a cache that is there and incomplete, or not of `key`; its shards are not looked at.

    Raises:
        UserError: naming what differs.
    """
    if directory.exists():
        _shards_of(directory, key)


def _remedy(directory: Path) -> str:
    return f"delete {directory}, or set reference_cache_dir to another directory"


def _shards_of(directory: Path, key: ReferenceKey) -> dict[str, str]:
    """Shard -> SHA-256, out of the manifest of a cache that belongs to `key`."""
    remedy, manifest_path = _remedy(directory), directory / MANIFEST
    if not manifest_path.is_file():
        raise UserError(
            f"reference cache {directory} is incomplete (it has no {MANIFEST}); {remedy}"
        )
    try:
        manifest = json.loads(manifest_path.read_text())
        stored = dict(manifest["key"])
        shards: dict[str, str] = dict(manifest["shards"])
        digest = manifest["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"reference cache {directory}: {MANIFEST} is damaged; {remedy}") from error
    if digest != key.digest():
        own = json.loads(json.dumps(asdict(key)))
        differing = sorted(name for name in own if stored.get(name) != own[name])
        raise UserError(
            f"reference cache {directory} belongs to another run: it differs in "
            f"{', '.join(differing) or 'its format version'}; {remedy}"
        )
    return shards
