"""The progress file: which files of an unfinished directory are complete, to be continued."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.io.files import file_sha256, fsync_path, write_file

PROGRESS = ".journal.json"
_VERSION = 1


@dataclass(frozen=True)
class FinishedFile:
    """One file that is written and on disk."""

    bytes: int
    sha256: str
    details: Any
    """What its writer has to know about it later: plain JSON."""


class ProgressFile:
    """Finished files of one directory, under the key of what is being made there."""

    def __init__(self, directory: Path, key: str, *, kept: frozenset[str] = frozenset()) -> None:
        """Read what an interrupted run left; what belongs to another key, or is damaged, goes.

        Args:
            directory: exists.
            key: `digest_of` everything that the files depend on.
            kept: names in `directory` that are not this file's to remove.
        """
        self._directory = directory
        self._key = key
        self._files: dict[str, FinishedFile] = {}
        self.is_afresh = False
        """Whether there was something unfinished that could not be used."""
        path = directory / PROGRESS
        had_one = path.exists()
        found = _read(path, key)
        for name, file in (found or {}).items():
            if _is_whole(directory / name, file):
                self._files[name] = file
        self.is_afresh = had_one and not self._files and (found is None or bool(found))
        self._clear(kept)

    def _clear(self, kept: frozenset[str]) -> None:
        """Remove all that is not finished: it may be cut off."""
        for path in self._directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                inside = f"{path.name}/"
                if not any(name.startswith(inside) for name in self._files):
                    shutil.rmtree(path)
                    continue
                for inner in path.iterdir():
                    if inside + inner.name not in self._files:
                        shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            elif path.name not in self._files and path.name not in {PROGRESS, *kept}:
                path.unlink()
        self._write()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, name: str) -> FinishedFile | None:
        """A file that is finished, by its path within the directory, or None."""
        return self._files.get(name)

    def bytes_finished(self) -> int:
        """Size of all finished files together."""
        return sum(file.bytes for file in self._files.values())

    def add(self, name: str, details: Any = None) -> None:
        """Note that a file is complete, once it is on disk.

        Args:
            name: its path within the directory, with `/`.
            details: plain JSON for whoever continues.
        """
        path = self._directory / name
        fsync_path(path)
        self._files[name] = FinishedFile(path.stat().st_size, file_sha256(path), details)
        self._write()

    def _write(self) -> None:
        files = {name: asdict(file) for name, file in self._files.items()}
        text = json.dumps({"version": _VERSION, "key": self._key, "files": files})
        write_file(self._directory / PROGRESS, text)


def _is_whole(path: Path, file: FinishedFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    return file_sha256(path) == file.sha256


def _read(path: Path, key: str) -> dict[str, FinishedFile] | None:
    """The files of a progress file under this key; None without one that can be used."""
    try:
        values = json.loads(path.read_text())
        if values["version"] != _VERSION or values["key"] != key:
            return None
        return {str(name): FinishedFile(**file) for name, file in values["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # cut off, or by another version: what it lists is written again
