"""Reference policies: log-probs computed once before training, or a resident second copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import MegatronGPTPreferenceModel
from nemo_gdpo.progress import progress_bar
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.reference_store import (
    ReferenceKey,
    ReferenceShardWriter,
    ReferenceStore,
    finish_cache,
    load_cache,
    start_cache,
)
from nemo_gdpo.training.signals import StopRequest


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """A signal asked to stop; everything that should be kept is on disk."""


def response_lengths(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Response tokens of row 2i (chosen) and 2i + 1 (rejected)."""
    return [n for pair in pairs for n in (len(pair.chosen.ids), len(pair.rejected.ids))]


def _split_rows(values_TC: Tensor, micro_batch: PreferenceMicroBatch) -> list[Tensor]:
    lengths = micro_batch.rows.response_lengths_N.tolist()
    return list(values_TC.split(lengths))  # type: ignore[no-untyped-call]


def compute_cache(
    model: MegatronGPTPreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    directory: Path,
    key: ReferenceKey,
    *,
    global_batch_size: int,
    stop: StopRequest,
    label: str,
) -> None:
    """Forward every pair once, in the training run's own micro-batches, and write the cache.

    Raises:
        Stopped: a signal came; nothing is left behind.
        RuntimeError: a value is not finite.
    """
    if mesh.is_main:
        start_cache(directory)
    dist.barrier()
    partial = directory.with_name(directory.name + ".partial")
    writer = ReferenceShardWriter(partial, f"{mesh.data_rank:04d}")
    count = len(builder.pairs)
    with progress_bar(total=count, unit="pair", label=label, enabled=mesh.is_main) as bar:
        for indices in PreferenceSampler(count, 0, "").validation_batches(global_batch_size):
            if stop.agreed():
                raise Stopped
            micro_batches = builder.build(indices, None)
            outputs = model.get_reference_logprobs(micro_batches)
            if model.holds_loss:
                for micro_batch, values in zip(micro_batches, outputs, strict=True):
                    _write_rows(writer, micro_batch, values, indices)
            bar.update(sum(index != SENTINEL for index in indices))
    writer.flush()
    dist.barrier()
    if mesh.is_main:
        finish_cache(directory, key, response_lengths(builder.pairs))
    dist.barrier()


def _write_rows(
    writer: ReferenceShardWriter,
    micro_batch: PreferenceMicroBatch,
    values_TC: Tensor,
    indices: Sequence[int],
) -> None:
    rows = _split_rows(values_TC, micro_batch)
    slots = micro_batch.slot_B.tolist()
    for position, slot in enumerate(slots):
        if slot == SENTINEL:
            continue
        index = indices[slot]
        writer.add(2 * index, rows[position])
        writer.add(2 * index + 1, rows[position + len(slots)])


def cached_reference(
    model: MegatronGPTPreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    directory: Path,
    key: ReferenceKey,
    *,
    global_batch_size: int,
    stop: StopRequest,
    label: str,
) -> tuple[ReferenceStore, bool]:
    """The cache at `directory`, made first when there is none; and whether it was there already.

    Raises:
        UserError: what is there is incomplete, damaged or foreign.
    """
    # One rank looks, all act alike: a shared file system may show the directory late elsewhere.
    found = [directory.exists()]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        compute_cache(
            model, mesh, builder, directory, key,
            global_batch_size=global_batch_size, stop=stop, label=label,
        )  # fmt: skip
    return load_cache(directory, key, response_lengths(builder.pairs)), found[0]
