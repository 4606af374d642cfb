"""Process groups that write down what is asked of them, and have no other ranks.

Every call returns at once, as though all ranks had this rank's tensors. Tensors without storage are
welcome: nothing here reads one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.gpu_path.fakes.calls import Call

BACKEND = "recording"


class Record:
    """What this rank asked of all its groups, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.batch: int | None = None
        """Number of the batch of point-to-point calls that is open."""
        self._batches = 0

    @contextlib.contextmanager
    def batched(self) -> Iterator[None]:
        """Sends and receives in here are one call, as NCCL groups them."""
        self._batches += 1
        self.batch = self._batches
        yield
        self.batch = None


def _reduction(options: Any) -> str:
    kinds = dist.ReduceOp.RedOpType.__members__.items()
    return next(name for name, kind in kinds if options.reduceOp == kind)


def _done(tensors: Any) -> dist.Work:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(tensors)
    bindings: Any = torch._C._distributed_c10d
    work: dist.Work = bindings._create_work_from_future(future)
    return work


class RecordingGroup(dist.ProcessGroup):
    """One group of this rank."""

    def __init__(self, name: str, rank: int, ranks: tuple[int, ...], record: Record) -> None:
        super().__init__(rank, len(ranks))  # type: ignore[call-arg]
        self._name = name
        self.ranks = ranks
        self.record = record

    @property
    def group_name(self) -> str:  # type: ignore[override]
        return self._name

    def getBackendName(self) -> str:
        return BACKEND

    def _note(self, kind: str, tensors: list[torch.Tensor], detail: str = "") -> None:
        sizes = tuple(tensor.numel() for tensor in tensors)
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        call = Call(kind, self.ranks, sizes, dtype, detail)
        self.record.calls.append(call)

    def _note_peer(self, kind: str, tensor: torch.Tensor, peer: int) -> None:
        batch = "" if self.record.batch is None else str(self.record.batch)
        dtype = str(tensor.dtype).removeprefix("torch.")
        pair = (dist.get_rank(), self.ranks[peer])
        self.record.calls.append(Call(kind, pair, (tensor.numel(),), dtype, batch))

    # -- sums ------------------------------------------------------------------------------------

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]
        self._note("all_reduce", tensors, _reduction(opts))
        return _done(tensors)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> dist.Work:
        self._note("all_reduce", tensors, _reduction(opts))
        return _done(tensors)

    def reduce_scatter_single(self, output: Any, input: Any, opts: Any = None) -> dist.Work:
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Any, inputs: Any, opts: Any = None
    ) -> dist.Work:
        self._check_parts(outputs, inputs)
        self._note("reduce_scatter", inputs, _reduction(opts))
        return _done(outputs)

    # -- copies ----------------------------------------------------------------------------------

    def all_gather_single(self, output: Any, input: Any, opts: Any = None) -> dist.Work:
        return self.all_gather_single_coalesced([output], [input], opts)

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        del opts
        self._check_parts(inputs, outputs)
        self._note("all_gather", inputs)
        return _done(outputs)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        del opts
        for parts, tensor in zip(outputs, inputs, strict=True):
            assert [part.shape for part in parts] == [tensor.shape] * len(self.ranks)
            for part in parts:
                part.copy_(tensor)
        self._note("all_gather", inputs)
        return _done(outputs)

    def broadcast(self, tensors: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]
        self._note("broadcast", tensors, f"from {self.ranks[opts.rootRank]}")
        return _done(tensors)

    def barrier(self, opts: Any = None) -> dist.Work:
        del opts
        self._note("barrier", [])
        return _done([])

    # -- from rank to rank -----------------------------------------------------------------------

    def send(self, tensors: Any, dst: int, tag: int) -> dist.Work:
        del tag
        self._note_peer("send", tensors[0], dst)
        return _done(tensors)

    def recv(self, tensors: Any, src: int, tag: int) -> dist.Work:
        del tag
        self._note_peer("recv", tensors[0], src)
        return _done(tensors)

    def _check_parts(self, parts: list[torch.Tensor], wholes: list[torch.Tensor]) -> None:
        for part, whole in zip(parts, wholes, strict=True):
            if part.numel() * len(self.ranks) != whole.numel():
                raise RuntimeError(f"{part.shape} x {len(self.ranks)} ranks are not {whole.shape}")
            if part.dtype != whole.dtype:
                raise RuntimeError(f"{part.dtype} and {whole.dtype}")


class _World:
    """Replacements for the functions of torch.distributed that would look for other ranks."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.record = Record()
        self._init, self._new_group = dist.init_process_group, dist.new_group
        self._batch = dist.batch_isend_irecv

    def make(self, options: Any, _: Any) -> RecordingGroup:
        """The group that torch asks the backend for."""
        ranks = tuple(options.global_ranks_in_group) or tuple(range(self.size))
        return RecordingGroup(options.group_id, options.group_rank, ranks, self.record)

    def init(self, backend: str, *, timeout: datetime.timedelta) -> None:
        """No arguments besides: one of them makes torch split the world for every subgroup."""
        del backend
        self._init(
            BACKEND, store=FakeStore(), rank=self.rank, world_size=self.size, timeout=timeout
        )

    def new_group(self, *args: Any, **named: Any) -> Any:
        """Gloo's twins of the groups are like the others here."""
        return self._new_group(*args, **{**named, "backend": BACKEND, "pg_options": None})

    def batch(self, operations: Any) -> Any:
        """Torch groups them for NCCL only."""
        with self.record.batched():
            return self._batch(operations)

    def all_gather_object(self, found: list[Any], mine: Any, group: Any = None) -> None:
        """Sizes of pickled objects would be numbers in tensors, and are needed at once."""
        ranks = tuple(dist.get_process_group_ranks(group))
        self.record.calls.append(Call("all_gather", ranks, (), "object"))
        found[:] = [mine] * len(ranks)


@contextlib.contextmanager
def world(rank: int, size: int, per_node: int) -> Iterator[Record]:
    """A process that joins a world in here becomes this rank of it, alone."""
    fake = _World(rank, size)
    dist.Backend.register_backend(BACKEND, fake.make, extended_api=True, devices=["cpu", "gpu"])
    place = {"RANK": rank, "LOCAL_RANK": rank % per_node, "WORLD_SIZE": size}
    with (
        mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()}),
        mock.patch.object(dist, "init_process_group", fake.init),
        mock.patch.object(dist, "new_group", fake.new_group),
        mock.patch.object(dist, "batch_isend_irecv", fake.batch),
        mock.patch.object(dist, "all_gather_object", fake.all_gather_object),
    ):
        yield fake.record
