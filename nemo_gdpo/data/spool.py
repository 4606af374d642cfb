"""Tokens on disk while they are made: what is held in memory is one chunk of pairs.

The files have no name: a start that is refused, or killed, leaves nothing behind.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nemo_gdpo.data.dataset import OPTIONAL, PairArrays
from nemo_gdpo.data.names import NameColumn, NameFile, line_of
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.tensor_file import map_numbers

_BUFFER = 1 << 20
_COLUMNS: dict[str, npt.DTypeLike] = {
    "tokens": np.int32, "offsets": np.int64, "complete": np.bool_, "scores": np.float64,
}  # fmt: skip


def _parents(output: Path | None) -> tuple[Path, ...]:
    return () if output is None else (output, *output.resolve().parents)


def _place(output: Path | None) -> Path:
    """The file system that the pairs will be on, which has room for them; else the usual one."""
    for parent in _parents(output):
        if parent.is_dir():
            try:
                with tempfile.TemporaryFile(dir=parent):
                    return parent
            except OSError:
                break
    return Path(tempfile.gettempdir())


class Spool:
    """Takes pairs chunk by chunk, and maps all of them in the end."""

    def __init__(self, output: Path | None = None) -> None:
        """Open the files.

        Args:
            output: directory that the pairs are written to later; it need not be there.

        Raises:
            RunError: they cannot be made.
        """
        self._place = _place(output)
        self._output = output if self._place in _parents(output) else None
        self._tokens = 0
        self._pairs = 0
        self._second_tokens = 0
        try:
            self._files = {name: self._file() for name in (*_COLUMNS, "names")}
            self._files["offsets"].write(np.zeros(1, dtype=np.int64).tobytes())
        except OSError as error:
            raise self._failed(error) from None

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._place, buffering=_BUFFER)

    def _failed(self, error: OSError) -> RunError:
        """In the words of the writing, of which this is the first half."""
        where = self._output or f"{self._place} (TMPDIR)"
        return RunError(
            f"{where}: cannot be written ({error.strerror or error}); free space or choose another "
            "place, then start again"
        )

    def __len__(self) -> int:
        return self._pairs

    def append(self, chunk: PairArrays) -> None:
        """Write pairs behind those that are there.

        Raises:
            RunError: they cannot be written.
        """
        columns: dict[str, npt.NDArray[Any]] = {
            "tokens": chunk.tokens,
            "offsets": chunk.offsets[1:] + self._tokens,
            "complete": chunk.complete,
            "scores": chunk.scores,
            **chunk.optional,
        }
        if chunk.second_offsets is not None and chunk.second_tokens is not None:
            columns["second_offsets"] = chunk.second_offsets[1:] + self._second_tokens
            self._second_tokens += len(chunk.second_tokens)
        try:
            for name, column in columns.items():
                if name not in self._files:
                    self._files[name] = self._file()
                    if name == "second_offsets":
                        self._files[name].write(np.zeros(1, dtype=np.int64).tobytes())
                self._files[name].write(column.tobytes())
            lines = (line_of(*row) for row in zip(chunk.ids, chunk.metas, strict=True))
            self._files["names"].write(b"".join(lines))
        except OSError as error:
            raise self._failed(error) from None
        self._tokens += len(chunk.tokens)
        self._pairs += len(chunk.ids)

    def finish(self) -> PairArrays:
        """All pairs, mapped. The files are gone once nobody holds them any more.

        Raises:
            RunError: what was to be written was not.
        """
        shapes = {
            "tokens": (self._tokens,), "offsets": (3 * self._pairs + 1,),
            "complete": (self._pairs, 2), "scores": (self._pairs, 2),
        }  # fmt: skip
        optional = {
            "weights": (self._pairs,), "margins": (self._pairs,), "labels": (self._pairs, 2),
            "second_tokens": (self._second_tokens,), "second_offsets": (self._pairs + 1,),
        }  # fmt: skip
        shapes |= {name: optional[name] for name in OPTIONAL if name in self._files}
        try:
            mapped = {name: self._map(name, shape) for name, shape in shapes.items()}
            names = NameFile(self._files["names"])
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self.close()
        return PairArrays(ids=NameColumn(names, "id"), metas=NameColumn(names, "meta"), **mapped)

    def _map(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        file = self._files[name]
        file.flush()
        size = file.seek(0, 2)
        return map_numbers(file, {**_COLUMNS, **OPTIONAL}[name], shape, 0, size)

    def close(self) -> None:
        """Close the files; what is mapped stays."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:  # a full disk, which was told of before
                continue
