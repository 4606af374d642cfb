"""Tokenising in several processes, with the result of one.

Reading, counting and all that depends on more than one pair stay in the process that asks. It
deals chunks out in turn and takes them back in the same order. What works on them are forks of it,
which have its tokenizer and template; a signal is its business, and they end when it does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from nemo_gdpo.data.dataset import PairArrays, collect_arrays
from nemo_gdpo.data.templates import PairEncoder
from nemo_gdpo.data.tokenize import Limits, Outcome, encode
from nemo_gdpo.data.types import RawPair
from nemo_gdpo.errors import RunError, UserError
from nemo_gdpo.io.processes import end_with_parent, usable_cpus
from nemo_gdpo.launch.signals import ALL_SIGNALS

CHUNK = 256
"""Pairs that are in one process at once."""
SMALL = 2048
"""Pairs up to which starting processes costs more than it saves."""
_SETTING = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Encoded:
    """A chunk of pairs, tokenised."""

    outcomes: list[Outcome]
    """Of every pair."""
    arrays: PairArrays
    """Of those that are kept."""


@dataclass(frozen=True)
class _Broken:
    """A defect of this program in a worker: its traceback."""

    trace: str


Dealt = tuple[list[str], Encoded]
"""The places of a chunk's pairs, and what became of them."""


def encoded_chunks(
    pairs: Iterable[RawPair], encoder: PairEncoder, limits: Limits, workers: int | None = 1
) -> Iterator[Dealt]:
    """Tokenise pairs, chunk by chunk in their order.

    Args:
        pairs: see `read_pairs`.
        encoder: tokenizer and template.
        limits: lengths.
        workers: processes; None: as many as there are CPUs for this one. A small file is tokenised
            by this process alone.

    Raises:
        UserError: what `pairs` raises, behind the pairs that were read before.
        RunError: a worker has ended.
    """
    count = usable_cpus() if workers is None else workers
    source = _Chunks(pairs)
    first = list(islice(source, -(-SMALL // CHUNK) + 1))
    chunks = chain(first, source)
    if count < 2 or len(first) * CHUNK <= SMALL or sys.platform != "linux":
        for chunk in chunks:
            yield _places(chunk), encode_chunk(chunk, encoder, limits)
    else:
        yield from _dealt(chunks, encoder, limits, count)
    if source.error is not None:
        raise source.error


def encode_chunk(pairs: Sequence[RawPair], encoder: PairEncoder, limits: Limits) -> Encoded:
    """Tokenise a chunk."""
    found = [encode(pair, encoder, limits) for pair in pairs]
    kept = collect_arrays(pair for _, pair in found if pair is not None)
    return Encoded([outcome for outcome, _ in found], kept)


def _places(chunk: Sequence[RawPair]) -> list[str]:
    return [pair.place for pair in chunk]


class _Chunks:
    """Pairs in lists; an error of the reader ends them, and is kept until those before are done."""

    def __init__(self, pairs: Iterable[RawPair]) -> None:
        self._pairs = iter(pairs)
        self.error: UserError | None = None

    def __iter__(self) -> Iterator[list[RawPair]]:
        return self

    def __next__(self) -> list[RawPair]:
        chunk: list[RawPair] = []
        try:
            while self.error is None and len(chunk) < CHUNK:
                chunk.append(next(self._pairs))
        except StopIteration:
            pass
        except UserError as error:
            self.error = error
        if not chunk:
            raise StopIteration
        return chunk


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection

    def send(self, chunk: Sequence[RawPair]) -> None:
        try:
            self.connection.send(chunk)
        except OSError:
            raise self._ended() from None

    def take(self) -> Encoded:
        try:
            found = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(found, _Broken):
            raise RuntimeError(f"in a process that tokenises:\n{found.trace}")
        assert isinstance(found, Encoded)
        return found

    def _ended(self) -> RunError:
        self.process.join(5.0)
        status = self.process.exitcode
        how = f"status {status}"
        if status is not None and status < 0:
            how = f"signal {signal.Signals(-status).name}"
        return RunError(
            f"a process that tokenises has ended ({how}); if memory ran out, set data.workers to "
            "fewer, then start again: nothing was written"
        )


def _dealt(
    chunks: Iterable[list[RawPair]], encoder: PairEncoder, limits: Limits, count: int
) -> Iterator[Dealt]:
    """Chunks through workers. Each has one at a time: neither side ever waits to be read."""
    workers: list[_Worker] = []
    waiting: deque[tuple[_Worker, list[str]]] = deque()
    try:
        for chunk in chunks:
            done = None
            if len(workers) < count:
                worker = _start(encoder, limits)
                workers.append(worker)
            else:
                worker, places = waiting.popleft()
                done = places, worker.take()
            worker.send(chunk)
            waiting.append((worker, _places(chunk)))
            if done is not None:
                yield done
        while waiting:
            worker, places = waiting.popleft()
            yield places, worker.take()
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _start(encoder: PairEncoder, limits: Limits) -> _Worker:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(there, encoder, limits, os.getpid()), name="tokenise", daemon=True
    )
    with _one_thread():
        process.start()
    there.close()
    return _Worker(process, here)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A fork begins with the tokenizers' own threads off: they are not there, and it would say so.

    It reads the environment for that, as it is while it forks.
    """
    before = os.environ.get(_SETTING)
    os.environ[_SETTING] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SETTING]
        else:
            os.environ[_SETTING] = before


def _serve(connection: Connection, encoder: PairEncoder, limits: Limits, parent: int) -> None:
    """Tokenise what comes, in a process of its own, until nobody is there any more."""
    # A terminal and a scheduler send signals to all; the parent obeys them, and ends this one.
    for number in ALL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    while os.getppid() == parent:
        try:
            chunk = connection.recv()
        except EOFError:
            return
        try:
            found: Encoded | _Broken = encode_chunk(chunk, encoder, limits)
        except Exception:  # noqa: BLE001 - whatever it is, the parent tells of it
            found = _Broken(traceback.format_exc())
        connection.send(found)
