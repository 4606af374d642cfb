"""Columns of numbers in a safetensors file: written from other files, read by mapping.

The library's own functions hold all of a file in memory; here nothing is held. The bytes are those
that the library writes: wide types first, then by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 20
"""Numbers that are in memory at once."""
_NAMES = {"I64": "<i8", "F64": "<f8", "I32": "<i4", "BOOL": "|b1"}
"""Type in the file -> of numpy; in the order of the file."""
_MOST_HEADER = 1 << 20


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """What a safetensors file begins with: the header's length, and the header up to a multiple of
    8 bytes."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_columns(file: IO[bytes], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write columns block by block; they may be mapped.

    Args:
        file: at its beginning.
        columns: name -> numbers of one of the four types that pairs are made of.

    Raises:
        OSError: it cannot be written.
    """
    types = {np.dtype(kind): name for name, kind in _NAMES.items()}
    ranks = list(_NAMES)
    order = sorted(columns, key=lambda name: (ranks.index(types[columns[name].dtype]), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        column = columns[name]
        begin, end = end, end + column.nbytes
        header[name] = {
            "dtype": types[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [begin, end],
        }
    file.write(header_bytes(header))
    for name in order:
        flat = columns[name].reshape(-1)
        for start in range(0, len(flat), BLOCK):
            file.write(flat[start : start + BLOCK].tobytes())


def with_ordered_metadata(content: bytes) -> bytes:
    """What safetensors' own functions made, with its metadata by name.

    They write it in an order that is drawn anew for each file, so that equal tensors with equal
    metadata would be files of different hashes.

    Args:
        content: of a whole file.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    return header_bytes(header) + content[8 + length :]


def map_columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a file, mapped read-only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no whole safetensors file of the types that pairs are made of.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise ValueError(f"{path.name} has no header of safetensors")
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError(f"{path.name} has no header of safetensors")
        header.pop("__metadata__", None)
        start, columns, ends = 8 + length, {}, [0]
        for name, spec in header.items():
            kind, shape = np.dtype(_NAMES[spec["dtype"]]), tuple(map(int, spec["shape"]))
            begin, end = spec["data_offsets"]
            if end - begin != kind.itemsize * math.prod(shape) or not 0 <= begin <= size - start:
                raise ValueError(f"{name} in {path.name} has another size than its header says")
            columns[name] = map_numbers(file, kind, shape, start + begin, size)
            ends.append(end)
    if max(ends) != size - start:
        raise ValueError(f"{path.name} has {size} bytes instead of {start + max(ends)}")
    return columns


def map_numbers(
    file: IO[bytes], kind: npt.DTypeLike, shape: tuple[int, ...], start: int, size: int
) -> npt.NDArray[Any]:
    """Numbers of an open file, mapped read-only; the file may be closed then.

    Raises:
        ValueError: the file ends before them.
    """
    if math.prod(shape) == 0:  # nothing cannot be mapped
        return np.empty(shape, dtype=kind)
    if start + math.prod(shape) * np.dtype(kind).itemsize > size:
        raise ValueError(f"it ends after {size} bytes, before its numbers do")
    mapped = np.memmap(file, dtype=kind, mode="r", offset=start, shape=shape)
    return mapped.view(np.ndarray)
