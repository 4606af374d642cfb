"""Metric loggers: JSONL always; TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from nemo_gdpo.config.checks_settings import wandb_can_log_in
from nemo_gdpo.config.training import LoggerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.rows import RowFile

METRICS, SUPERSEDED = "metrics.jsonl", "metrics.superseded.jsonl"
"""Files of output_dir: each step once; and lines of steps that were done again, as they were."""


class _Writer(Protocol):
    """Somewhere else that the numbers go."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        del failed
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, config: LoggerConfig, folder: Path, run_name: str) -> None:
        if not wandb_can_log_in():
            raise UserError(
                "logger.wandb=true, but no key was found: export WANDB_API_KEY, or "
                "WANDB_MODE=offline, or set logger.wandb=false"
            )
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.wandb_project, name=config.wandb_name or run_name, dir=str(folder)
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        # Waits for its service to write what it was sent: the process may end right after.
        self._run.finish(exit_code=int(failed))


def _writers(config: LoggerConfig, output_dir: Path) -> list[_Writer]:
    folder, found = output_dir / "logs", list[_Writer]()
    if config.tensorboard:
        found.append(_TensorBoard(folder))
    if config.wandb:
        found.append(_WeightsAndBiases(config, folder, output_dir.name))
    return found


class MetricsLog:
    """One JSON object a step in `metrics.jsonl`, and the same numbers to the other loggers."""

    def __init__(
        self, config: LoggerConfig, output_dir: Path, *, enabled: bool, resume_step: int
    ) -> None:
        """Open the log on the main rank.

        Args:
            config: the `logger` section.
            output_dir: of the run.
            enabled: False on all ranks but the main one, where nothing is written.
            resume_step: first step to come; lines of later steps, which a resumed run writes
                again, go to metrics.superseded.jsonl.
        """
        self._file: RowFile | None = None
        self._writers: list[_Writer] = []
        if not enabled:
            return
        path = output_dir / METRICS
        there = path.read_bytes() if path.is_file() else None
        kept, superseded = self._split_at(there or b"", resume_step)
        if superseded:
            with RowFile(output_dir / SUPERSEDED) as file:  # first: nothing is lost in between
                file.append(superseded)
        if kept != there:
            write_file(path, kept)
        self._file = RowFile(path)
        self._writers = _writers(config, output_dir)

    @staticmethod
    def _split_at(lines: bytes, step: int) -> tuple[bytes, bytes]:
        """Lines of earlier steps; and all others, a torn last one of a killed run among them."""
        parts: dict[bool, list[bytes]] = {True: [], False: []}
        for line in lines.splitlines(keepends=True):
            try:
                is_earlier = json.loads(line)["step"] < step
            except (ValueError, TypeError, KeyError):
                is_earlier = False
            parts[is_earlier].append(line if line.endswith(b"\n") else line + b"\n")
        return b"".join(parts[True]), b"".join(parts[False])

    def write(self, entry: dict[str, Any]) -> None:
        """Append one step. `entry` has `step` and numbers."""
        if self._file is None:
            return
        self._file.append((json.dumps(entry) + "\n").encode())
        numbers = {k: v for k, v in entry.items() if k != "step"}
        for writer in self._writers:
            writer.log(numbers, entry["step"])

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            writer.close(failed=kind is not None)
        if self._file is not None:
            self._file.close()
