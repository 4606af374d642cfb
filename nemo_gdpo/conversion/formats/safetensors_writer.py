"""Writes safetensors shards tensor by tensor, so that a shard is never held in memory.

The file format: the header's length (8 bytes, little-endian), a JSON header with each tensor's
type, shape and byte range, then the bytes of the tensors in that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.conversion.formats.hf_source import INDEX, SINGLE
from nemo_gdpo.io.progress_file import ProgressFile
from nemo_gdpo.io.tensor_file import header_bytes

MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def plan_shards(specs: Sequence[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """Cut tensors, in order, into shards of at most `max_bytes`; a larger tensor gets its own."""
    shards: list[list[TensorSpec]] = [[]]
    used = 0
    for spec in specs:
        if shards[-1] and used + spec.nbytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.nbytes
    return shards


def _header(shard: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in shard:
        end = start + spec.nbytes
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    return header_bytes(entries)


def _write_tensor(file: BinaryIO, spec: TensorSpec, name: str, tensor: Tensor) -> None:
    if (name, tuple(tensor.shape), tensor.dtype) != (spec.name, spec.shape, spec.dtype):
        raise RuntimeError(
            f"{spec.name} {spec.shape} {spec.dtype} was planned, and {name} "
            f"{tuple(tensor.shape)} {tensor.dtype} came"
        )
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    file.write(flat.numpy().data)


def write_shards(
    directory: Path,
    specs: Sequence[TensorSpec],
    read: Callable[[Set[str]], Iterator[tuple[str, Tensor]]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress_file: ProgressFile | None = None,
) -> list[str]:
    """Write `model.safetensors`, or numbered shards with an index.

    Args:
        directory: exists; may hold the shards that `progress_file` says are finished.
        specs: all tensors, in order.
        read: (names) -> (name, tensor) of just those, in the order of `specs`, read one by one.
        max_shard_bytes: upper bound of a shard's data, except for a single larger tensor.
        progress_file: of `directory`.

    Returns:
        The names of the shards.
    """
    shards = plan_shards(specs, max_shard_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = [SINGLE] if count == 1 else names
    unfinished = {
        name: shard
        for name, shard in zip(names, shards, strict=True)
        if progress_file is None or progress_file.get(name) is None
    }
    tensors = read({spec.name for shard in unfinished.values() for spec in shard})
    for file_name, shard in unfinished.items():
        with (directory / file_name).open("wb") as file:
            file.write(_header(shard))
            for spec in shard:
                name, tensor = next(tensors)
                _write_tensor(file, spec, name, tensor)
        if progress_file is not None:
            progress_file.add(file_name)
    if count > 1:
        weight_map = {s.name: n for n, shard in zip(names, shards, strict=True) for s in shard}
        total = sum(spec.nbytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return names
