"""Writes Megatron's `torch_dist` checkpoint from a stream, with torch's own distributed checkpoint.

Megatron's `dist_checkpointing.save` needs CUDA (or a stand-in), a process group and all tensors in
memory at once. The format underneath is torch's; written directly, a small file's worth is enough.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from nemo_gdpo.conversion.engine import TensorSpec

COMMON_STATE = "common_state/shard_0_1"
"""Where Megatron keeps what is no tensor; empty in a converted model."""
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


def write_dist_checkpoint(
    directory: Path,
    specs: Sequence[TensorSpec],
    fetch: Callable[[str], Tensor],
    extra_states: Sequence[str] = (),
) -> None:
    """Write a distributed checkpoint that megatron-core loads under any mesh.

    Args:
        directory: new or empty.
        specs: all tensors, whole.
        fetch: reads one of them by name; called once for each, in order.
        extra_states: modules that get an empty extra state.

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
    results: list[list[WriteResult]] = []
    try:
        # Each part is written as if by a rank of its own, to its own file.
        for part in writer.prepare_global_plan(plans):
            results.append(writer.write_data(part, planner).wait())
    except RuntimeError as error:
        # torch.save reports a full disk so, with the cause behind it or in its text.
        if "PytorchStreamWriter failed" in str(error) or isinstance(error.__context__, OSError):
            raise OSError(f"writing the tensors failed: {str(error).splitlines()[0]}") from error
        raise
    writer.finish(metadata, results)
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (directory / DIST_CONFIG).write_text(json.dumps(config))
