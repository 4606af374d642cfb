"""The part that runs on the cluster: one vLLM engine in a Ray actor, and what is asked of it.

Errors that a user can fix come back as values, so that the driver can tell them from a worker that
was lost.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo import __version__
from nemo_gdpo.errors import UserError
from nemo_gdpo.generation.types import EngineSettings, NotMade, Request


@dataclass(frozen=True)
class Started:
    """Result of starting an engine."""

    node: str
    pid: int
    info: dict[str, str]
    """Versions and devices of the engine, with the version of this package."""
    problem: str | None = None
    """Why it did not; for the user."""


@dataclass(frozen=True)
class Failed:
    """The last thing that comes from a batch which an error ended."""

    problem: str


def model_files(path: str) -> tuple[tuple[str, int], ...]:
    """(name, size in bytes) of a model's files: the same directory on every node, or not.

    Raises:
        UserError: the directory does not exist on this node.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(
            f"model.restore_from_path: {path} is not a directory on {socket.gethostname()}; put "
            "the model where every node sees it"
        )
    return tuple(
        sorted((file.name, file.stat().st_size) for file in directory.iterdir() if file.is_file())
    )


def worker_info() -> dict[str, str]:
    """`engine_info` of the process that this runs in, with the package's version."""
    from nemo_gdpo.generation.vllm_engine import engine_info

    return {**engine_info(), "nemo_gdpo": __version__}


class Replica:
    """One engine. `start` first, then `sample`; `stop` may come while `sample` runs."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._stopping = False

    def start(self, settings: EngineSettings, files: tuple[tuple[str, int], ...]) -> Started:
        """Load the model.

        Args:
            settings: how to start the engine.
            files: what `model_files` says where the run was started.
        """
        from nemo_gdpo.generation.vllm_engine import VLLMEngine

        # Slurm's name: its nodes may share a host.
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        pid = os.getpid()
        try:
            if model_files(settings.model) != files:
                raise UserError(
                    f"model.restore_from_path: {settings.model} on {node} holds other files than "
                    "where the run was started; put the same model there, or use a shared directory"
                )
            self._engine = VLLMEngine(settings)
        except UserError as error:
            return Started(node, pid, {}, str(error))
        return Started(node, pid, worker_info())

    def sample(self, requests: list[dict[str, Any]]) -> Iterator[dict[str, Any] | NotMade | Failed]:
        """Rows as they finish; after `stop` only those that were begun."""
        from nemo_gdpo.generation.errors import GenerationError

        if self._stopping:
            return
        try:
            for row in self._engine.generate([Request.from_dict(plain) for plain in requests]):
                yield row if isinstance(row, NotMade) else row.to_dict()
        except GenerationError as error:
            yield Failed(str(error))

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        if self._engine is not None:
            self._engine.stop()
