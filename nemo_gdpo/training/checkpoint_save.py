"""One checkpoint on its way to its place: prepared, planned, staged, written, published.

Every step ends on all ranks in the same way. Between staging and publishing training may go on: a
thread writes the shards then, and whoever comes back later publishes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from nemo_gdpo.control import from_main_rank, gathered, on_every_rank
from nemo_gdpo.control.failure import describe
from nemo_gdpo.control.world import control_group, rank_and_size
from nemo_gdpo.errors import RunError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.late import wait_for_files
from nemo_gdpo.io.manifest import Entry, list_files, write_manifest
from nemo_gdpo.io.manifest import describe as describe_files
from nemo_gdpo.io.staged import StagedDirectory, stage
from nemo_gdpo.models.sharded_save import ShardedSave
from nemo_gdpo.models.weights import DIST, SHARDING_METADATA
from nemo_gdpo.training.checkpoint_check import SHARE

T = TypeVar("T")
RNG = "rng"
LATEST = "latest"
STATE = "trainer_state.json"
GATHER, PLAN, COPY, WRITE, PUBLISH = "gather", "plan", "copy", "write", "publish"
"""Stages, as the line about a checkpoint names them."""


class CheckpointError(RunError):
    """A checkpoint could not be written; the previous one is untouched."""


def _what_failed(error: BaseException, root: Path) -> str:
    """One line; of what is no OSError, with the free space: torch reports a full disk so, too."""
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    free = shutil.disk_usage(root if root.exists() else root.parent).free
    return f"{describe(error)}; {free / 2**20:.1f} MiB are free"


def rng_file(rank: int) -> str:
    """A rank's generator states, within a checkpoint."""
    return f"{RNG}/rank_{rank:05d}.safetensors"


def timed(seconds: dict[str, float], stage: str) -> contextlib.AbstractContextManager[None]:
    """Add the time of the block to a stage."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun

    return block()


def told(seconds: Mapping[str, float]) -> str:
    """`gather 0.2, write 1.3`."""
    return ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())


class _Writing(threading.Thread):
    """Writes this rank's shards."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)  # a rank that fails does not wait for it
        self._action = action
        self._error: BaseException | None = None
        self.seconds = 0.0

    def run(self) -> None:
        begun = time.perf_counter()
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._error = error
        self.seconds = time.perf_counter() - begun

    def result(self) -> None:
        """Wait for it.

        Raises:
            Exception: what the action raised.
        """
        self.join()
        if self._error is not None:
            raise self._error


class Saving:
    """A checkpoint in the making. All public methods are collective."""

    def __init__(self, final: Path) -> None:
        """For the place `final`; nothing is done yet."""
        self.final = final
        self.seconds: dict[str, float] = {}
        """Stage -> time that training stood still for it on this rank."""
        self.bytes = 0
        """Tensors that this rank writes."""
        self._root = final.parent
        self._staged: StagedDirectory | None = None
        """Directory that the main rank is writing."""
        self._temporary = final
        self._shards: ShardedSave | None = None
        self._writing: _Writing | None = None
        self._files: dict[str, Entry] = {}
        """What this rank has written and hashed."""

    # -- the steps -----------------------------------------------------------------------------

    def prepare(
        self,
        write_assets: Callable[[Path], None],
        trainer_state: Mapping[str, Any],
        rng: Mapping[str, Tensor],
    ) -> None:
        """Make the directory, and all small files in it.

        Args:
            write_assets: writes model_config.json and hf_assets/ into it.
            trainer_state: plain JSON.
            rng: generator states of this rank.
        """

        def on_main() -> Path:
            self._staged = stage(self.final, also="step_*")
            for name in (DIST, RNG):
                (self._staged.path / name).mkdir()
            write_assets(self._staged.path)
            text = json.dumps(trainer_state, indent=1) + "\n"
            (self._staged.path / STATE).write_text(text)
            return self._staged.path

        with timed(self.seconds, PLAN):
            self._temporary = self._on_main("start", on_main)
            self._on_every("start", lambda: wait_for_directories(self._temporary))
            self._on_every("write", lambda: self._write_rng(rng))

    def _write_rng(self, rng: Mapping[str, Tensor]) -> None:
        name = rng_file(rank_and_size()[0])
        save_file({key: value.clone() for key, value in rng.items()}, self._temporary / name)
        self._files |= describe_files(self._temporary, [name])

    def stage(
        self, state: Callable[[], dict[str, Any]], *, copy: bool, fresh: str | None = None
    ) -> None:
        """Bring all that is to be written to the host.

        Args:
            state: makes the sharded state of this rank; may be collective.
            copy: training goes on before it is written.
            fresh: see `ShardedSave.stage`.
        """
        with timed(self.seconds, GATHER):
            sharded = [self._together("gathering the state", state)]
        with timed(self.seconds, PLAN):
            shards = self._together(
                "planning the checkpoint",
                lambda: ShardedSave.plan(sharded.pop(), self._temporary / DIST, SHARDING_METADATA),
            )
        with timed(self.seconds, COPY):
            self._together("copying the tensors", lambda: shards.stage(copy=copy, fresh=fresh))
        self._shards, self.bytes = shards, shards.bytes
        self._writing = _Writing(shards.write)

    def start(self) -> None:
        """Write the shards in a thread."""
        assert self._writing is not None
        self._writing.start()

    def is_written(self) -> bool:
        """Whether every rank has written its shards, well or badly."""
        assert self._writing is not None
        is_done = not self._writing.is_alive()
        if rank_and_size()[1] == 1:
            return is_done
        flag = torch.tensor([is_done], dtype=torch.int32, device="cpu")
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=control_group())
        return bool(flag.item())

    def publish(self) -> None:
        """Wait for all shards, write the manifest, and put everything in its place."""
        assert self._shards is not None and self._writing is not None
        with timed(self.seconds, WRITE):
            self._together("writing the tensors", self._writing.result)
        with timed(self.seconds, PUBLISH):
            for finish in self._shards.finish:
                self._together("finishing the checkpoint", finish)
            self._files |= {f"{DIST}/{name}": e for name, e in self._shards.files.items()}
            described = {n: e for part in gathered(self._files) for n, e in part.items()}
            self._on_main("finish", lambda: self._move(described))

    def _move(self, described: dict[str, Entry]) -> None:
        assert self._staged is not None
        temporary = self._staged.path
        rest = [name for name in list_files(temporary) if name not in described]
        described |= describe_files(temporary, rest)
        # A network file system may show late what other ranks wrote; each has hashed its own.
        wait_for_files(temporary, {n: int(str(e["bytes"])) for n, e in described.items()}, SHARE)
        write_manifest(temporary, described)
        self._staged.publish(replace=True)
        write_file(self._root / LATEST, self.final.name + "\n")

    @property
    def background_seconds(self) -> float:
        """Time that the thread of this rank wrote."""
        return 0.0 if self._writing is None else self._writing.seconds

    # -- its end -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole_or_nothing(self) -> Iterator[None]:
        """When the block fails, what was written goes: a full disk should not stay full of it."""
        try:
            yield
        except BaseException:
            if self._staged is not None:
                self._staged.discard()
            raise

    def leave(self) -> None:
        """Let go of it, unpublished: the next writer removes it. Not collective."""
        if self._staged is not None:
            self._staged.leave()

    # -- errors --------------------------------------------------------------------------------

    def _error(self, what: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"could not {what} a checkpoint in {self._root} ({reason}); the previous checkpoint is "
            "untouched; free space or fix the permissions, then start again"
        )

    def _reason(self, error: BaseException) -> str:
        return _what_failed(error, self._root)

    def _together(self, stage: str, action: Callable[[], T], what: str = "write") -> T:
        wrap = partial(self._error, what)
        return on_every_rank(stage, action, wrap=wrap, reason=self._reason)

    def _on_every(self, what: str, action: Callable[[], T]) -> T:
        return self._together(f"{what} a checkpoint", action, what)

    def _on_main(self, what: str, action: Callable[[], T]) -> T:
        wrap = partial(self._error, what)
        return from_main_rank(f"{what} a checkpoint", action, wrap=wrap, reason=self._reason)


def wait_for_directories(temporary: Path) -> None:
    """Wait until this rank sees what the main rank has made."""
    for name in (DIST, RNG):
        wait_for_files(temporary / name, {}, SHARE)
