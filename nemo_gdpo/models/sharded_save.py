"""`dist_checkpointing.save` in steps: planned together, written by each rank, finished together.

Megatron's own way makes all ranks wait at a barrier of the computation until the slowest disk has
written; here they wait in the control group, or do not wait: once the tensors are copied, `write`
may run in a thread while training goes on. Megatron's own callers run it in a process, which is
forked from one with CUDA, NCCL's and gloo's threads in it, or spawned and given the tensors through
CUDA or shared memory. A thread needs neither: torch and hashlib leave Python's lock alone while
they write, and a thread cannot outlive its rank.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item

from nemo_gdpo.control import on_every_rank
from nemo_gdpo.control.failure import Wrap, describe
from nemo_gdpo.io.hashed_file import HashedFile
from nemo_gdpo.io.manifest import Entry

Results = queue.Queue[dict[int, list[Any]]]
Bucket = tuple[str, str, tuple[list[Any], list[tuple[Any, Tensor]]]]
"""Path, name, and what goes into a file: (bytes, tensors), each with its place in the plan."""


@contextlib.contextmanager
def _results_in(results: Results) -> Iterator[None]:
    """Writers that are planned in the block look for their results in this queue.

    Megatron's own is served by a process of its own, which a signal to all processes of the job
    ends: no later checkpoint could be written, not even the one before the end.
    """
    before = filesystem_async._results_queue
    filesystem_async._results_queue = results
    try:
        yield
    finally:
        filesystem_async._results_queue = before


class ShardedSave:
    """This rank's part of a distributed checkpoint in the making."""

    def __init__(self, request: Any, results: Results) -> None:
        """Of megatron's request, whose results belong into the queue."""
        self._request = request
        self._results = results
        self._buckets: list[Bucket] = []
        self.files: dict[str, Entry] = {}
        """Size and SHA-256 of the files that `write` wrote, by name."""

    @classmethod
    def plan(cls, state: dict[str, Any], directory: Path, metadata: dict[str, Any]) -> ShardedSave:
        """Agree on who writes what. Collective.

        Args:
            state: the sharded state of this rank.
            directory: to write to; exists.
            metadata: what the checkpoint says of its content.
        """
        results: Results = queue.Queue()
        with _results_in(results):
            request = dist_checkpointing.save(
                state,
                str(directory),
                content_metadata=dict(metadata),
                async_sharded_save=True,
                async_strategy="mcore",
            )
        return cls(request, results)

    def stage(self, *, copy: bool = False, fresh: str | None = None) -> None:
        """Bring the tensors to the host.

        Args:
            copy: also those that are there already: training goes on before they are written.
            fresh: beginning of the names of those that were made for this checkpoint, which nobody
                changes.
        """
        if self._request.preload_fn is None:
            return  # other ranks hold the same
        planned = self._request.async_fn_args[1]
        own = {id(tensor) for *_, (_, tensors) in planned for _, tensor in tensors}

        def on_host(item: Any, tensor: Tensor) -> Tensor:
            is_fresh = id(tensor) not in own or (fresh and item.index.fqn.startswith(fresh))
            return tensor if is_fresh or not copy else tensor.clone()

        for path, name, (data, tensors) in self._request.preload_fn():
            staged = [(item, on_host(item, tensor)) for item, tensor in tensors]
            self._buckets.append((path, name, (data, staged)))
        for *_, (_, tensors) in planned:
            tensors.clear()  # what is written can go: megatron counts the files only

    def write(self) -> None:
        """Write and hash what was staged; in any thread.

        Raises:
            OSError: it cannot be written.
            RuntimeError: a tensor cannot.
        """
        if self._request.async_fn is None:
            return
        [transforms] = self._request.async_fn.args[0]
        results: dict[int, list[Any]] = {}
        for number, (path, name, (data, tensors)) in enumerate(self._buckets):
            file = HashedFile(Path(path))
            try:
                with file:
                    results[number] = [
                        _write_item(
                            transforms, file, content, item, name,
                            serialization_format=SerializationFormat.TORCH_SAVE,
                        )
                        for item, content in (*data, *tensors)
                    ]  # fmt: skip
            except Exception:  # torch wraps what the file raised; everything is raised again
                if file.failure is not None:
                    raise file.failure from None
                raise
            self.files[name] = file.entry
        self._buckets.clear()
        self._results.put(results)

    @property
    def bytes(self) -> int:
        """Size of the tensors that this rank has staged and not written yet."""
        return sum(
            tensor.numel() * tensor.element_size()
            for *_, (_, tensors) in self._buckets
            for _, tensor in tensors
        )

    @property
    def finish(self) -> list[Callable[[], None]]:
        """What is left once all ranks have written, in order. Collective."""
        return list(self._request.finalize_fns)


def save_sharded(
    state: Callable[[], dict[str, Any]],
    directory: Path,
    metadata: dict[str, Any],
    wrap: Wrap,
    reason: Callable[[BaseException], str] = describe,
) -> None:
    """All steps, one after the other. Collective.

    Args:
        state: makes the sharded state of this rank; may be collective.
        directory: to write to; exists.
        metadata: what the checkpoint says of its content.
        wrap: makes the error that all ranks raise when one cannot write.
        reason: see `on_every_rank`.
    """
    together = partial(on_every_rank, wrap=wrap, reason=reason)
    sharded = together("gathering the state", state)
    save = together(
        "planning the checkpoint", lambda: ShardedSave.plan(sharded, directory, metadata)
    )
    together("copying the tensors", save.stage)
    together("writing the tensors", save.write)
    for finish in save.finish:
        together("finishing the checkpoint", finish)
