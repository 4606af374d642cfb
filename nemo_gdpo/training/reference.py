"""Reference policies: log-probs computed once before training, or a resident second copy."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.control.failure import Wrap
from nemo_gdpo.control.watch import moved_on
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.sampler import SENTINEL, PreferenceSampler
from nemo_gdpo.data.types import TokenizedPair
from nemo_gdpo.errors import RunError, Stopped
from nemo_gdpo.io.late import sizes_of, wait_for_files
from nemo_gdpo.io.locks import BusyError
from nemo_gdpo.io.staged import StagedDirectory
from nemo_gdpo.launch.signals import StopRequest
from nemo_gdpo.models.batch import PreferenceMicroBatch
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.progress import progress_bar
from nemo_gdpo.training.batches import BatchBuilder
from nemo_gdpo.training.mesh import Mesh
from nemo_gdpo.training.metrics import NotFiniteError
from nemo_gdpo.training.reference_key import Cut, ReferenceKey
from nemo_gdpo.training.reference_shards import (
    PATTERN,
    Shard,
    ShardError,
    ShardWriter,
    finished_batches,
    verify_shard,
)
from nemo_gdpo.training.reference_store import (
    ReferenceStore,
    finish_cache,
    keep_only,
    open_store,
    start_cache,
    verify_share,
)
from nemo_gdpo.training.signals import Stopping, stopped_together

STARTING, WRITING, FINISHING, LOOKING, READING = (
    f"{doing} the reference cache"
    for doing in ("starting", "writing", "finishing", "looking for", "reading")
)
"""Stages, as errors name them."""
ROWS_PER_SHARD = 4096
"""Rows that a rank holds at most before all write what they have."""
FLUSH_SECONDS = 60.0
"""Seconds after which they do so whatever they have: a killed computation loses no more."""
_POLL_SECONDS = 1.0
SHARE = "set reference_cache_dir, or output_dir, to a directory that all nodes share"


class ReferenceWriteError(RunError):
    """The cache could not be written; what was finished of it is kept."""


def _write_error(directory: Path, told: str) -> ReferenceWriteError:
    return ReferenceWriteError(
        f"the reference cache {directory} could not be written ({told}); what was finished is "
        "kept: free space or fix the permissions, then start again"
    )


def response_lengths(pairs: Sequence[TokenizedPair]) -> Sequence[int]:
    """Response tokens of row 2i (chosen) and 2i + 1 (rejected)."""
    if isinstance(pairs, PreferenceDataset):
        return array("q", pairs.lengths_B3()[:, 1:].tobytes())
    return [n for pair in pairs for n in (len(pair.chosen.ids), len(pair.rejected.ids))]


def _split_rows(values_TC: Tensor, micro_batch: PreferenceMicroBatch) -> list[Tensor]:
    lengths = micro_batch.rows.response_lengths_N.tolist()
    return list(values_TC.split(lengths))  # type: ignore[no-untyped-call]


@dataclass
class _Computation:
    """One computation of a cache; the same on every rank but for `staged`."""

    model: PreferenceModel
    mesh: Mesh
    builder: BatchBuilder
    directory: Path
    key: ReferenceKey
    cut: Cut
    stop: StopRequest
    label: str
    lengths: Sequence[int]
    """Response tokens of all rows."""
    wrap: Wrap
    staged: StagedDirectory | None = None
    """On the main rank: the directory in the making."""

    def say(self, text: str) -> None:
        """Print a line for the user, from the main rank."""
        if self.mesh.is_main:
            print(f"{self.label}: {text}", flush=True)

    def begin(self) -> Path | None:
        """On the main rank: a directory to write to, or None once another run has made the cache.

        Raises:
            OSError: it cannot be made.
            Stopped: this run's time is up while it waits.
        """
        has_said, limit = False, self.stop.limit
        while True:
            try:
                self.staged = start_cache(self.directory, self.key, self.cut, say=self.say)
            except BusyError:
                if not has_said:
                    self.say(f"waiting for another run, which computes {self.directory}")
                    has_said = True
                if limit is not None and time.time() > limit.end - limit.margin:
                    raise Stopped(
                        f"stopped by the end of its time ({limit.key}) while another run computes "
                        f"{self.directory}; the same command goes on"
                    ) from None
                moved_on()  # it may take as long as it takes, and is no rank that is stuck
                time.sleep(_POLL_SECONDS)
                continue
            if not self.directory.exists():
                return self.staged.path
            self.staged.discard()  # another run has finished it while this one looked
            self.staged = None
            return None

    def end(self) -> None:
        """Let go of the directory: what is finished in it is continued by the next computation."""
        if self.staged is not None and not self.staged.ended:
            # Without locks it has a name that nobody would continue.
            resumable = self.staged.path.name.endswith(".partial")
            self.staged.leave() if resumable else self.staged.discard()


def compute_cache(
    model: PreferenceModel,
    mesh: Mesh,
    builder: BatchBuilder,
    directory: Path,
    key: ReferenceKey,
    *,
    cut: Cut,
    stop: StopRequest,
    label: str,
) -> bool:
    """Forward every pair once, in the training run's own micro-batches, and write the cache.

    Global batches that a stopped or killed computation has finished are not computed again. While
    another run computes the same cache, this one waits. Collective.

    Returns:
        False when another run has made it.

    Raises:
        Stopped: a signal came, or the time is up; what was finished is kept.
        NotFiniteError: a log-prob is not finite; names the pairs.
        ReferenceWriteError: a rank could not write.
    """
    lengths, wrap = response_lengths(builder.pairs), partial(_write_error, directory)
    work = _Computation(model, mesh, builder, directory, key, cut, stop, label, lengths, wrap)
    try:
        shared = from_main_rank(STARTING, work.begin, wrap=wrap)
        if shared is None:
            return False
        on_every_rank(STARTING, lambda: wait_for_files(shared, {}, SHARE), wrap=wrap)
        kept = _finished_before(work, shared)
        written = _compute_rows(work, shared, kept)
        shards = kept + [shard for part in gathered(written) for shard in part]
        from_main_rank(FINISHING, lambda: _finish(work, shared, shards), wrap=wrap)
        return True
    finally:
        work.end()


def _finish(work: _Computation, shared: Path, shards: Sequence[Shard]) -> None:
    staged = work.staged
    assert staged is not None
    wait_for_files(shared, {shard.name: shard.bytes for shard in shards}, SHARE)
    try:
        finish_cache(staged, work.key, work.lengths, shards)
    except RuntimeError:
        staged.discard()  # what does not fit together should not be continued
        raise


def _finished_before(work: _Computation, shared: Path) -> list[Shard]:
    """The shards that can be used; the others are removed. Verified by all ranks between them."""
    rank, size = work.mesh.rank, work.mesh.world_size
    sizes = from_main_rank(
        STARTING,
        lambda: {path.name: path.stat().st_size for path in shared.glob(PATTERN)},
        wrap=work.wrap,
    )
    if not sizes:
        return []
    mine = {name: sizes[name] for name in sorted(sizes)[rank::size]}

    def verify() -> list[Shard]:
        wait_for_files(shared, mine, SHARE)
        return [shard for name in mine if (shard := _usable(work, shared / name)) is not None]

    parts = gathered(on_every_rank(STARTING, verify, wrap=work.wrap))
    found = sorted((shard for part in parts for shard in part), key=lambda shard: shard.name)
    _, unusable = finished_batches(shard.name for shard in found)
    kept = [shard for shard in found if shard.name not in unusable]
    names = {shard.name for shard in kept}
    from_main_rank(STARTING, lambda: keep_only(shared, names), wrap=work.wrap)
    pairs = sum(len(shard.rows) for shard in kept) // 2
    work.say(f"continuing, {pairs} of {len(work.builder.pairs)} pairs were computed before")
    return kept


def _usable(work: _Computation, path: Path) -> Shard | None:
    try:
        return verify_shard(path, work.key.digest(), work.lengths)
    except ShardError:
        return None


def _compute_rows(work: _Computation, shared: Path, kept: Sequence[Shard]) -> list[Shard]:
    """Forward what is missing and write this rank's rows; raises as `compute_cache` does."""
    model, mesh, builder = work.model, work.mesh, work.builder
    # All ranks of a copy have outputs; one of them writes.
    writer = ShardWriter(
        shared, work.key.digest(), columns=len(work.key.columns),
        part=mesh.data_rank, parts=mesh.data_size,
    ) if model.holds_loss else None  # fmt: skip
    done, _ = finished_batches(shard.name for shard in kept)
    count = len(builder.pairs)
    computed = sum(len(shard.rows) for shard in kept) // 2
    stopping = Stopping(work.stop)

    def flush() -> None:
        on_every_rank(WRITING, lambda: None if writer is None else writer.flush(), wrap=work.wrap)

    flushed, previous = time.monotonic(), None
    with (
        work.stop.deferred(),
        progress_bar(
            total=count, initial=computed, unit="pair", label=work.label, enabled=mesh.is_main
        ) as bar,
    ):
        # In the order of the file: the cache serves every seed.
        batches = PreferenceSampler(count, 0, "").validation_batches(work.cut.global_batch_size)
        for batch, indices in enumerate(batches):
            if batch in done:
                continue
            held = 0 if writer is None else writer.rows_held
            full = held >= ROWS_PER_SHARD or time.monotonic() - flushed > FLUSH_SECONDS
            why, is_due = stopping.turn(full or previous not in (None, batch - 1))
            if why is not None or is_due:
                flush()
                flushed = time.monotonic()
            if why is not None:
                raise stopped_together(
                    f"stopped by {why}; {work.label}: {computed} of {count} pairs are kept in "
                    f"{shared}, and the same command computes the rest"
                )
            micro_batches = builder.build(indices, None)
            outputs = model.get_reference_logprobs(micro_batches)
            _refuse_not_finite(model, mesh, micro_batches, outputs, builder, indices)
            if writer is not None:
                writer.begin(batch)
                for micro_batch, values in zip(micro_batches, outputs, strict=True):
                    _hold_rows(writer, micro_batch, values, indices)
            real = sum(index != SENTINEL for index in indices)
            computed, previous = computed + real, batch
            bar.update(real)
        flush()
    return [] if writer is None else writer.written


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


def _hold_rows(
    writer: ShardWriter,
    micro_batch: PreferenceMicroBatch,
    values_TC: Tensor,
    indices: Sequence[int],
) -> None:
    """Hold a micro-batch's rows; sentinels are passed over."""
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
    cut: Cut,
    stop: StopRequest,
    label: str,
) -> tuple[ReferenceStore, bool]:
    """The cache at `directory`, made first where it is missing; and whether it was there already.

    Every rank verifies a share of it, and then reads the rows of its own pairs alone. Collective.

    Raises:
        UserError: what is there is incomplete, damaged or foreign.
        Stopped: see `compute_cache`.
    """
    # One rank looks, all act alike: a shared file system may show the directory late elsewhere.
    reused = from_main_rank(LOOKING, directory.exists) or not compute_cache(
        model, mesh, builder, directory, key, cut=cut, stop=stop, label=label
    )
    sizes = from_main_rank(LOOKING, lambda: sizes_of(directory))
    lengths = response_lengths(builder.pairs)

    def verify() -> list[Shard]:
        wait_for_files(directory, sizes, SHARE)
        return verify_share(directory, key, lengths, (mesh.rank, mesh.world_size))

    parts = gathered(on_every_rank(READING, verify))
    shards = [shard for part in parts for shard in part]
    return on_every_rank(READING, lambda: open_store(directory, lengths, shards)), reused
