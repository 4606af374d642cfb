"""Reference policies: log-probs computed once before training, or a resident second copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.errors import RunError, Stopped
from nemo_gdpo.io.staged import StagedDirectory
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.progress import progress_bar
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.metrics import NotFiniteError
from nemo_gdpo.training.reference_store import (
    ReferenceKey,
    ReferenceShardWriter,
    ReferenceStore,
    finish_cache,
    load_cache,
    start_cache,
)
from nemo_gdpo.training.signals import any_rank_stopped


class ReferenceWriteError(RunError):
    """The cache could not be written; nothing of it is used."""


def response_lengths(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Response tokens of row 2i (chosen) and 2i + 1 (rejected)."""
    return [n for pair in pairs for n in (len(pair.chosen.ids), len(pair.rejected.ids))]


def _split_rows(values_TC: Tensor, micro_batch: PreferenceMicroBatch) -> list[Tensor]:
    lengths = micro_batch.rows.response_lengths_N.tolist()
    return list(values_TC.split(lengths))  # type: ignore[no-untyped-call]


def compute_cache(
    model: PreferenceModel,
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
        NotFiniteError: a log-prob is not finite; names the pairs.
        ReferenceWriteError: a rank could not write.
    """
    staged: StagedDirectory | None = None

    def start() -> None:
        nonlocal staged
        staged = start_cache(directory)

    _raise_on_all_ranks(_reason_of(start) if mesh.is_main else "", mesh, directory)
    try:
        shared = [None if staged is None else staged.path]
        dist.broadcast_object_list(shared, src=0)
        assert shared[0] is not None
        writer = ReferenceShardWriter(shared[0], f"{mesh.data_rank:04d}")
        _compute_rows(
            model,
            mesh,
            builder,
            writer,
            directory,
            global_batch_size=global_batch_size,
            stop=stop,
            label=label,
        )
        lengths = response_lengths(builder.pairs)
        finish = None if staged is None else partial(finish_cache, staged, key, lengths)
        _raise_on_all_ranks("" if finish is None else _reason_of(finish), mesh, directory)
    finally:
        if staged is not None:  # nothing of it, once it is in its place
            staged.discard()


def _compute_rows(
    model: PreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    writer: ReferenceShardWriter,
    directory: Path,
    *,
    global_batch_size: int,
    stop: StopRequest,
    label: str,
) -> None:
    """Forward every pair and write this rank's rows; raises as `compute_cache` does."""
    count = len(builder.pairs)
    with progress_bar(total=count, unit="pair", label=label, enabled=mesh.is_main) as bar:
        # In the order of the file: the cache serves every seed.
        for indices in PreferenceSampler(count, 0, "").validation_batches(global_batch_size):
            if any_rank_stopped(stop, mesh.device):
                raise Stopped
            micro_batches = builder.build(indices, None)
            outputs = model.get_reference_logprobs(micro_batches)
            _refuse_not_finite(model, mesh, micro_batches, outputs, builder, indices)
            reason = ""
            if model.holds_loss:
                reason = _reason_of(partial(_write_all, writer, micro_batches, outputs, indices))
            _raise_on_all_ranks(reason, mesh, directory)
            bar.update(sum(index != SENTINEL for index in indices))
    _raise_on_all_ranks(_reason_of(writer.flush), mesh, directory)


def _reason_of(action: Callable[[], object]) -> str:
    """The reason why writing failed on this rank, or nothing."""
    try:
        action()
    except (OSError, RuntimeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _raise_on_all_ranks(reason: str, mesh: Mesh, directory: Path) -> None:
    """Raise on every rank when any could not write; nobody waits for a rank that has left.

    Raises:
        ReferenceWriteError: with the first reason.
    """
    failed = torch.tensor([float(bool(reason))], device=mesh.device)
    dist.all_reduce(failed)
    if not failed.item():
        return
    reasons: list[str] = [""] * mesh.world_size
    dist.all_gather_object(reasons, reason)
    raise ReferenceWriteError(
        f"the reference cache {directory} could not be written "
        f"({next(r for r in reasons if r)}); free space or fix the permissions, then start again"
    )


def _refuse_not_finite(
    model: PreferenceModel,
    mesh: Mesh,
    micro_batches: Sequence[PreferenceMicroBatch],
    outputs: Sequence[Tensor],
    builder: BatchBuilder,
    indices: Sequence[int],
) -> None:
    """Stop on every rank, naming the pairs, when a log-prob is not finite.

    Raises:
        NotFiniteError: with the ids.
    """
    bad = torch.zeros(len(indices), device=mesh.device)
    if model.holds_loss:
        for micro_batch, values in zip(micro_batches, outputs, strict=True):
            flags = [
                not bool(torch.isfinite(row).all()) for row in _split_rows(values, micro_batch)
            ]
            batch_indices = micro_batch.batch_index_B.tolist()
            for position, batch_index in enumerate(batch_indices):
                if batch_index != SENTINEL:
                    bad[batch_index] = float(
                        flags[position] or flags[position + len(batch_indices)]
                    )
    dist.all_reduce(bad)
    if bool(bad.any()):
        named = [builder.pairs[indices[i]].id for i in bad.nonzero().flatten().tolist()]
        raise NotFiniteError(
            f"the reference's log-probs are not finite for pairs {', '.join(named[:8])}"
            f"{' and more' if len(named) > 8 else ''}; check the model's weights and the precision"
        )


def _write_all(
    writer: ReferenceShardWriter,
    micro_batches: Sequence[PreferenceMicroBatch],
    outputs: Sequence[Tensor],
    indices: Sequence[int],
) -> None:
    for micro_batch, values in zip(micro_batches, outputs, strict=True):
        _write_rows(writer, micro_batch, values, indices)


def _write_rows(
    writer: ReferenceShardWriter,
    micro_batch: PreferenceMicroBatch,
    values_TC: Tensor,
    indices: Sequence[int],
) -> None:
    """Queue a micro-batch's rows; sentinels are passed over."""
    rows = _split_rows(values_TC, micro_batch)
    batch_indices = micro_batch.batch_index_B.tolist()
    for position, batch_index in enumerate(batch_indices):
        if batch_index == SENTINEL:
            continue
        index = indices[batch_index]
        writer.add(2 * index, rows[position])
        writer.add(2 * index + 1, rows[position + len(batch_indices)])


def cached_reference(
    model: PreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    directory: Path,
    key: ReferenceKey,
    *,
    global_batch_size: int,
    stop: StopRequest,
    label: str,
) -> tuple[ReferenceStore, bool]:
    """The cache at `directory`, made first where it is missing; and whether it was there already.

    Raises:
        UserError: what is there is incomplete, damaged or foreign.
    """
    # One rank looks, all act alike: a shared file system may show the directory late elsewhere.
    found = [directory.exists()]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        compute_cache(
            model,
            mesh,
            builder,
            directory,
            key,
            global_batch_size=global_batch_size,
            stop=stop,
            label=label,
        )
    return load_cache(directory, key, response_lengths(builder.pairs)), found[0]
