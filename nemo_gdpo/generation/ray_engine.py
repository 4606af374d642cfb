"""Many engines at once: vLLM in Ray actors, work handed out as they ask for it.

Ray places the engines, finds out which are lost and carries the rows. Ray Data's ready-made vLLM
processor is not used, because its rows have no finish reason and keep the first of several outputs
only (ray 2.60), and because it cannot be told to finish what it has begun and stop; see
docs/generation.md.

Every row carries its key, the prompt's id and the sampling point. The driver takes each key once,
hands out again what a lost engine had not given back, and counts at the end. Seeds come with the
requests, so that it does not matter which engine does which row, or does it twice.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from nemo_gdpo.config.generation import RayConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.errors import GenerationError
from nemo_gdpo.generation.ray_cluster import (
    Cluster,
    check_version,
    cluster_info,
    connect,
    disconnect,
    last_line,
)
from nemo_gdpo.generation.ray_worker import Failed, Replica, Started, model_files
from nemo_gdpo.generation.types import (
    Completed,
    EngineSettings,
    NotMade,
    Request,
    SamplingPoint,
)

POLL_SECONDS = 0.5
"""Greatest delay before a signal is noticed."""
MAX_BATCH_ROWS = 4096
"""Rows of one batch, which is sent in one piece."""
Key = tuple[str, SamplingPoint]


def key_of(request: Request) -> Key:
    """The key that tells a row from all others of a run."""
    return request.id, request.sampling


def _log(text: str) -> None:
    """Write a line to stderr without breaking a progress bar."""
    tqdm.write(text, file=sys.stderr)


def ray_info(config: RayConfig, tensor_parallel_size: int) -> dict[str, str]:
    """Versions and devices on the cluster, which is joined or started for it.

    Raises:
        UserError: the cluster does not answer, or the engines do not fit on it.
    """
    return cluster_info(connect(config, tensor_parallel_size))


@dataclass(eq=False)
class _Worker:
    """An engine on the cluster as the driver sees it."""

    number: int
    actor: Any
    reply: Any
    """What is waited for: the reference of `start`, then the stream of a batch; None is idle."""
    batch: dict[Key, Request] = field(default_factory=dict)
    """Rows handed out and not given back."""
    node: str | None = None
    """None until it has started."""


class RayEngine:
    """An `Engine` of several, which run on a Ray cluster."""

    def __init__(self, settings: EngineSettings, config: RayConfig) -> None:
        """Start the engines. They load the model while `generate` already waits for the first.

        Raises:
            UserError: the cluster does not answer, or the engines do not fit on it.
        """
        self._settings = settings
        self._config = config
        self._cluster: Cluster = connect(config, settings.tensor_parallel_size)
        self._info = cluster_info(self._cluster)
        self._files = model_files(settings.model)
        self._stopping = False
        self._false_starts: Counter[int] = Counter()
        """Engine's number -> how often it was lost before it was up."""
        self._workers = [self._start(number) for number in range(config.replicas)]

    def describe(self) -> dict[str, str]:
        return self._info

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        disconnect()

    def generate(self, requests: Sequence[Request]) -> Iterator[Completed | NotMade]:
        """See `Engine.generate`.

        Raises:
            UserError: an engine does not start with this model or these settings.
            GenerationError: rows were lost with their engines too often, or no engine comes up.
        """
        work = Work(requests, self._config)
        told = False
        alone_since = time.monotonic()
        while work.unfinished:
            if self._stopping and not told:
                told = True
                for worker in self._workers:
                    worker.actor.stop.options(concurrency_group="control").remote()
            if told and not any(worker.batch for worker in self._workers):
                return
            for worker in self._workers:
                if worker.node is not None and worker.reply is None and not told:
                    self._hand_out(worker, work)
            yield from self._collect(work)
            if any(worker.node is not None for worker in self._workers):
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > self._config.startup_timeout:
                raise GenerationError(
                    f"no engine came up in {self._config.startup_timeout:.0f} s; look at `ray "
                    "status`, and at generation.ray.startup_timeout if the model loads slowly"
                )

    def _start(self, number: int) -> _Worker:
        import ray

        remote = ray.remote(
            **self._cluster.resources(self._settings.tensor_parallel_size),
            concurrency_groups={"control": 1},
            scheduling_strategy="SPREAD",
            # The driver itself hands the rows out again, to any engine, and starts another one:
            # Ray would keep them for the lost one's successor.
            max_restarts=0,
            max_task_retries=0,
        )
        actor = remote(Replica).remote()
        return _Worker(number, actor, actor.start.remote(self._settings, self._files))

    def _hand_out(self, worker: _Worker, work: Work) -> None:
        batch = work.take(len(self._workers))
        if not batch:
            return
        worker.batch = {key_of(request): request for request in batch}
        plain = [request.to_dict() for request in batch]
        worker.reply = worker.actor.sample.options(num_returns="streaming").remote(plain)

    def _collect(self, work: Work) -> Iterator[Completed | NotMade]:
        """Whatever has come in, waiting a moment for it."""
        import ray

        waited = {worker.reply: worker for worker in self._workers if worker.reply is not None}
        if not waited:
            time.sleep(POLL_SECONDS)
            return
        ray.wait(list(waited), timeout=POLL_SECONDS)
        # All that is there: or a quick engine would keep the others waiting.
        ready, _ = ray.wait(list(waited), num_returns=len(waited), timeout=0)
        for reply in ready:
            worker = waited[reply]
            try:
                if worker.node is None:
                    self._accept_started(worker, ray.get(reply))
                    continue
                row = ray.get(next(reply))
            except StopIteration:
                worker.reply = None
                if worker.batch and not self._stopping:
                    raise GenerationError(
                        f"engine {worker.number} ended a batch {len(worker.batch)} rows short"
                    ) from None
                worker.batch = {}
            except ray.exceptions.RayError as error:
                self._replace_lost(worker, work, last_line(error))
            else:
                if isinstance(row, Failed):
                    raise GenerationError(row.problem)
                found = row if isinstance(row, NotMade) else Completed.from_dict(row)
                worker.batch.pop(key_of(found.request), None)
                if work.finish(found):
                    yield found

    def _accept_started(self, worker: _Worker, started: Started) -> None:
        if started.problem is not None:
            raise UserError(started.problem)
        check_version(started.info, started.node)
        info = {name: value for name, value in started.info.items() if name != "nemo_gdpo"}
        if info != self._info:
            raise UserError(
                f"generation.ray: the engine on {started.node} is {info}, and the run began with "
                f"{self._info}; samples would depend on where they are made: use equal nodes"
            )
        worker.node, worker.reply = started.node, None
        _log(
            f"engine {worker.number} of {self._config.replicas} is up on {started.node}, process "
            f"{started.pid}"
        )

    def _replace_lost(self, worker: _Worker, work: Work, reason: str) -> None:
        """Take back what it had, and start another engine in its place."""
        import ray

        if worker.node is None:
            _log(f"nemo-gdpo: engine {worker.number} was lost before it was up ({reason})")
        else:
            _log(
                f"nemo-gdpo: engine {worker.number} on {worker.node} was lost ({reason}); "
                f"{len(worker.batch)} rows are handed out again"
            )
        work.take_back(list(worker.batch.values()), reason)
        ray.kill(worker.actor)
        place = self._workers.index(worker)
        if worker.node is None:
            self._false_starts[worker.number] += 1
        if self._stopping or self._false_starts[worker.number] > self._config.retries:
            del self._workers[place]
        else:
            self._workers[place] = self._start(worker.number)
        if not self._workers and not self._stopping:
            raise GenerationError(f"no engine comes up; the last was lost for: {reason}")


class Work:
    """The rows of a run: to be handed out, out, or done."""

    def __init__(self, requests: Sequence[Request], config: RayConfig) -> None:
        self._waiting = deque(requests)
        self._again: deque[Request] = deque()
        """Rows of engines that were lost: handed out in small batches, in case one is the cause."""
        self._open = {key_of(request) for request in requests}
        self._lost: Counter[Key] = Counter()
        self._config = config

    @property
    def unfinished(self) -> bool:
        return bool(self._open)

    def take(self, engines: int) -> list[Request]:
        """The next batch: half of an equal share of what is left, within limits.

        Large at first, so that engines stay full; small at last, so that they end together.
        """
        least = self._config.batch_size
        if self._again:
            return [self._again.popleft() for _ in range(min(least, len(self._again)))]
        share = math.ceil(len(self._waiting) / (2 * engines))
        size = max(least, min(share, MAX_BATCH_ROWS))
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def take_back(self, requests: Sequence[Request], reason: str) -> None:
        """Rows whose engine was lost.

        Raises:
            GenerationError: one of them has now been lost too often.
        """
        for request in requests:
            key = key_of(request)
            self._lost[key] += 1
            if self._lost[key] > self._config.retries:
                raise GenerationError(
                    f"the row of prompt {request.id!r} was with {self._lost[key]} engines that "
                    f"were lost, the last for: {reason}; what was written is intact"
                )
            self._again.append(request)

    def finish(self, completed: Completed | NotMade) -> bool:
        """Take a row off the open ones; False if it was done already."""
        key = key_of(completed.request)
        if key not in self._open:
            return False
        self._open.remove(key)
        return True
