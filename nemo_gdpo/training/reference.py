"""Reference policies: log-probs computed once before training, or a resident second copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.control.failure import Wrap
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.errors import RunError, Stopped
from nemo_gdpo.io.late import sizes_of, wait_for_files
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

STARTING, WRITING, FINISHING, LOOKING, READING = (
    f"{doing} the reference cache"
    for doing in ("starting", "writing", "finishing", "looking for", "reading")
)
"""Stages, as errors name them."""
SHARE = "set reference_cache_dir, or output_dir, to a directory that all nodes share"


class ReferenceWriteError(RunError):
    """The cache could not be written; nothing of it is used."""


def _write_error(directory: Path, told: str) -> ReferenceWriteError:
    return ReferenceWriteError(
        f"the reference cache {directory} could not be written ({told}); free space or fix the "
        "permissions, then start again"
    )


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
    wrap = partial(_write_error, directory)
    staged: StagedDirectory | None = None

    def start() -> Path:
        nonlocal staged
        staged = start_cache(directory)
        return staged.path

    try:
        shared = from_main_rank(STARTING, start, wrap=wrap)
        writer = ReferenceShardWriter(shared, f"{mesh.data_rank:04d}")
        on_every_rank(STARTING, lambda: wait_for_files(shared, {}, SHARE), wrap=wrap)
        _compute_rows(
            model,
            mesh,
            builder,
            writer,
            wrap,
            global_batch_size=global_batch_size,
            stop=stop,
            label=label,
        )
        lengths = response_lengths(builder.pairs)
        shards = {name: size for part in gathered(writer.written) for name, size in part.items()}

        def finish() -> None:
            assert staged is not None
            wait_for_files(shared, shards, SHARE)
            finish_cache(staged, key, lengths)

        from_main_rank(FINISHING, finish, wrap=wrap)
    finally:
        if staged is not None:  # nothing of it, once it is in its place
            staged.discard()


def _compute_rows(
    model: PreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    writer: ReferenceShardWriter,
    wrap: Wrap,
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
            if any_rank_stopped(stop):
                raise Stopped
            micro_batches = builder.build(indices, None)
            outputs = model.get_reference_logprobs(micro_batches)
            _refuse_not_finite(model, mesh, micro_batches, outputs, builder, indices)
            # All ranks of a copy have outputs; one of them writes.
            mine = (micro_batches, outputs) if model.holds_loss else ([], [])
            on_every_rank(WRITING, partial(_write_all, writer, *mine, indices), wrap=wrap)
            bar.update(sum(index != SENTINEL for index in indices))
    on_every_rank(WRITING, writer.flush, wrap=wrap)


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
    reused = from_main_rank(LOOKING, directory.exists)
    if not reused:
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
    sizes = from_main_rank(LOOKING, lambda: sizes_of(directory))

    def load() -> ReferenceStore:
        wait_for_files(directory, sizes, SHARE)
        return load_cache(directory, key, response_lengths(builder.pairs))

    return on_every_rank(READING, load), reused
