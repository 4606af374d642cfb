"""Writes Megatron's `torch_dist` checkpoint from a stream, with torch's own distributed checkpoint.

Megatron's `dist_checkpointing.save` needs CUDA (or a stand-in), a process group and all tensors in
memory at once. The format underneath is torch's; written directly, a small file's worth is enough.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.io.progress_file import ProgressFile

COMMON_STATE = "common_state/shard_0_1"
"""Entry in which Megatron keeps what is not a tensor; empty in a converted model."""
EXTRA_STATE = "{module}._extra_state/shard_0_1"
DIST_CONFIG = "metadata.json"
_FILE_BYTES = 1 << 28
"""Data in one file, which torch's writer keeps in memory until the file is closed."""


class _StreamingPlanner(DefaultSavePlanner):
    """Plans with tensors that hold no data, and fetches each when it is written."""

    def __init__(self, fetch: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._fetch = fetch

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The tensor itself."""
        if write_item.type is WriteItemType.BYTE_IO:
            stored: Any = super().resolve_data(write_item)
            return stored  # type: ignore[no-any-return]
        tensor = self._fetch(write_item.index.fqn)
        assert write_item.tensor_data is not None
        planned = (write_item.tensor_data.size, write_item.tensor_data.properties.dtype)
        if (tensor.shape, tensor.dtype) != planned:
            raise RuntimeError(
                f"{write_item.index.fqn}: {planned} was planned, and "
                f"{(tensor.shape, tensor.dtype)} came"
            )
        return tensor.contiguous()


class _Writer(FileSystemWriter):
    """Leaves paths and random ids out, so that the same weights give the same files."""

    def storage_meta(self) -> StorageMeta | None:
        """Nothing."""
        return None


def _in_files(plan: SavePlan) -> list[SavePlan]:
    """Cut a plan, in order, so that each part makes one file."""
    parts: list[list[WriteItem]] = [[]]
    used = 0
    for item in plan.items:
        data = item.tensor_data
        size = 0 if data is None else data.size.numel() * data.properties.dtype.itemsize
        if parts[-1] and used + size > _FILE_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(item)
        used += size
    return [replace(plan, items=part) for part in parts]


def _to_json(results: Sequence[WriteResult]) -> list[dict[str, Any]]:
    """Positions of the tensors in one file: what the checkpoint's metadata needs of it."""
    return [
        {
            "name": result.index.fqn,
            "offset": None if result.index.offset is None else list(result.index.offset),
            "index": result.index.index,
            "size": result.size_in_bytes,
            "file": result.storage_data.relative_path,
            "start": result.storage_data.offset,
            "length": result.storage_data.length,
        }
        for result in results
    ]


def _from_json(values: Sequence[dict[str, Any]], part: SavePlan) -> list[WriteResult]:
    """The results of a part, the same bytes in `.metadata` whether it was written now or before.

    What is stored there depends on which strings are one object: names are those of the plan, and
    a file has one name.
    """
    names = {item.index.fqn: item.index.fqn for item in part.items}
    files = {value["file"]: value["file"] for value in values}
    return [
        WriteResult(
            index=MetadataIndex(names[value["name"]], value["offset"], value["index"]),
            size_in_bytes=value["size"],
            storage_data=_StorageInfo(files[value["file"]], value["start"], value["length"]),
        )
        for value in values
    ]


class _Parts:
    """Writes part by part, each to its own file, and notes each in the progress file."""

    def __init__(self, directory: Path, writer: _Writer, planner: _StreamingPlanner) -> None:
        self._directory = directory
        self._writer = writer
        self._planner = planner

    def write(self, part: SavePlan) -> list[WriteResult]:
        """Write a part as if it came from a separate rank.

        Raises:
            OSError: the disk is full or read-only.
        """
        try:
            written: list[WriteResult] = self._writer.write_data(part, self._planner).wait()
        except RuntimeError as error:
            # torch.save reports a full disk so, with the cause behind it or in its text.
            cause = error.__context__
            if "PytorchStreamWriter failed" in str(error) or isinstance(cause, OSError):
                number = cause.errno if isinstance(cause, OSError) else None
                text = f"writing the tensors failed: {str(error).splitlines()[0]}"
                if isinstance(cause, OSError) and cause.strerror:
                    text = f"writing the tensors failed: {cause.strerror}"
                raise OSError(number or errno.EIO, text) from error
            raise
        return written


def write_dist_checkpoint(
    directory: Path,
    specs: Sequence[TensorSpec],
    fetch: Callable[[str], Tensor],
    extra_states: Sequence[str] = (),
    progress_file: ProgressFile | None = None,
) -> None:
    """Write a distributed checkpoint that megatron-core loads under any mesh.

    Args:
        directory: new or empty, or with what `progress_file` says is finished.
        specs: all tensors, complete.
        fetch: reads one of them by name; called once for each that is not finished, in order.
        extra_states: modules that get an empty extra state.
        progress_file: of the directory above `directory`.

    Raises:
        OSError: the disk is full or read-only.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # `meta` tensors have a shape and a type and take no memory.
    state: dict[str, Any] = {
        spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in specs
    }
    state[COMMON_STATE] = [{}]
    state |= {EXTRA_STATE.format(module=module): [None] for module in extra_states}
    planner = _StreamingPlanner(fetch)
    writer = _Writer(directory, thread_count=1)
    planner.set_up_planner(state, is_coordinator=True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan(_in_files(plan))
    parts = _Parts(directory, writer, planner)
    results: list[list[WriteResult]] = []
    for number, part in enumerate(writer.prepare_global_plan(plans)):
        name = f"{directory.name}/__{number}_0.distcp"
        finished = None if progress_file is None else progress_file.get(name)
        if finished is None:
            details = _to_json(parts.write(part))
            if {value["file"] for value in details} != {Path(name).name}:
                raise RuntimeError(f"torch wrote another file than {name}")
            if progress_file is not None:
                progress_file.add(name, details)
        else:
            details = finished.details
        results.append(_from_json(details, part))
    writer.finish(metadata, results)
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (directory / DIST_CONFIG).write_text(json.dumps(config))
