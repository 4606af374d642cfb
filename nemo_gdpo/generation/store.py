"""Rows on disk: appended one by one, read back after any end, never written twice.

`generations-00000.jsonl`, `generations-00001.jsonl`, ... hold one JSON object a line. There is one
writer at a time. A line counts once it ends in a new line; what a crash left of the last one is cut
away and sampled again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.manifest import (
    MANIFEST,
    check_manifest,
    read_manifest,
    write_manifest,
)
from nemo_gdpo.generation.rows import parse_sampling
from nemo_gdpo.generation.types import Prompt, SamplingPoint
from nemo_gdpo.io.output_lock import hold
from nemo_gdpo.io.remedies import remedy_of
from nemo_gdpo.io.rows import RowFile, complete_lines, encode_row, repair

SKIPPED = "skipped.jsonl"
"""What the last run made no row of."""
_SHARD = re.compile(r"generations-(\d{5,})\.jsonl")

Key = tuple[str, SamplingPoint]
"""A row: which prompt, at which point of the sweep."""


def shards(directory: Path) -> list[Path]:
    """The shards in the order of their numbers."""
    if not directory.is_dir():
        return []
    found = [(int(m[1]), p) for p in directory.iterdir() if (m := _SHARD.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def read_generations(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its place (file and line). A torn last line is left out.

    Raises:
        UserError: a line is not a JSON object.
    """
    for shard in shards(directory):
        for number, line in complete_lines(shard):
            yield f"{shard}, line {number}", _row(line, f"{shard}, line {number}")


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: damaged ({error}); remove the line, and it is sampled again"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: not a JSON object; remove the line, and it is sampled again")
    return found


def row_key(row: Mapping[str, Any], where: str) -> Key:
    """The key of a row.

    Raises:
        UserError: it says neither id nor sampling.
    """
    try:
        return str(row["id"]), parse_sampling(row["sampling"], where)
    except (KeyError, UserError):
        raise UserError(
            f"{where}: no row of samples (id and sampling are missing or wrong); remove the line"
        ) from None


class Store:
    """The directory of one or several runs, locked while it is open."""

    def __init__(self, directory: Path, manifest: Mapping[str, Any], rows_per_shard: int) -> None:
        """Lock the directory, check that its samples are of the same kind, repair and read it.

        Args:
            directory: made if needed.
            manifest: see `nemo_gdpo.generation.manifest`.
            rows_per_shard: a new shard begins after so many.

        Raises:
            UserError: another run is at work there, or left samples of another kind, or the
                directory cannot be written.
            GenerationError: the disk is full.
        """
        self.directory = directory
        self.done: set[Key] = set()
        """The rows that are there."""
        self.repaired = 0
        """Bytes of torn lines that were cut away."""
        self._rows_per_shard = rows_per_shard
        self._model_hash = str(manifest["model"]["hash"])
        self._prompts: dict[str, tuple[Prompt, str]] = {}
        self._file: RowFile | None = None
        self._number = 0
        self._rows = 0
        try:
            self._lock = hold(directory)
        except RunError as error:
            raise UserError(str(error)) from None
        try:
            self._check(manifest)
            self.done = self._read()
            self._explain_write_errors(lambda: write_manifest(directory, manifest))
        except BaseException:
            self._lock.undo()
            raise

    def _check(self, manifest: Mapping[str, Any]) -> None:
        if shards(self.directory) and read_manifest(self.directory) is None:
            raise UserError(
                f"output_dir: {self.directory} holds samples and no {MANIFEST}, so what they are "
                "of is unknown; choose another output_dir"
            )
        check_manifest(self.directory, manifest)

    def _read(self) -> set[Key]:
        found = shards(self.directory)
        for shard in found:
            self.repaired += repair(shard)
        done: dict[Key, str] = {}
        for where, row in read_generations(self.directory):
            key = row_key(row, where)
            if key in done:
                raise UserError(f"{where}: the same row as {done[key]}; remove one of them")
            if row.get("model_hash") != self._model_hash:
                raise UserError(f"{where}: a sample of another model; remove the line")
            done[key] = where
            self._prompts[key[0]] = (row.get("prompt", ""), where)
        if found:
            match = _SHARD.fullmatch(found[-1].name)
            assert match is not None
            self._number = int(match[1])
            with found[-1].open("rb") as lines:
                self._rows = sum(1 for _ in lines)
        return set(done)

    def check_prompts(self, prompts: Mapping[str, Prompt], places: Mapping[str, str]) -> None:
        """Refuse prompts that have an id of the store's and another text.

        Args:
            prompts: id -> text or messages.
            places: id -> file and line.

        Raises:
            UserError: naming both places.
        """
        for key, prompt in prompts.items():
            if key in self._prompts and self._prompts[key][0] != prompt:
                raise UserError(
                    f"{places[key]}: id {key!r} has another prompt than in {self._prompts[key][1]};"
                    " give the new prompt a new id, or choose another output_dir"
                )

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is safe from a crash of this process when this returns.

        Raises:
            GenerationError: the disk is full, or failed. Rows before it are intact.
        """
        key = row_key(row, "new row")
        if key in self.done:
            raise GenerationError(f"the engine gave the row of prompt {key[0]!r} twice")
        line = encode_row(row)
        self._explain_write_errors(lambda: self._write(line))
        self.done.add(key)

    def _write(self, line: bytes) -> None:
        if self._file is not None and self._rows >= self._rows_per_shard:
            self._close_shard()
        if self._file is None:
            if self._rows >= self._rows_per_shard:
                self._number, self._rows = self._number + 1, 0
            path = self.directory / f"generations-{self._number:05d}.jsonl"
            self._file = RowFile(path)
        self._file.append(line)
        self._rows += 1

    def _close_shard(self) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        file.close()

    def _explain_write_errors(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise GenerationError(
                f"{self.directory} cannot be written ({error.strerror or error}); the "
                f"{len(self.done)} rows there are intact: {remedy_of(error)}, and run the same "
                "command again to make the rest"
            ) from error

    def close(self) -> None:
        """Sync and unlock.

        Raises:
            GenerationError: the disk failed.
        """
        try:
            if self._file is not None:
                self._explain_write_errors(self._close_shard)
        finally:
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(GenerationError):  # the first failure is the one to report
            self.close()
