"""Metric loggers: JSONL always; TensorBoard, Weights & Biases and MLflow when asked for.

A logger that was asked for and cannot start keeps a new run from starting. Later none of them ends
a run: it is left out from then on, and one line says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_gdpo.config.training import LoggerConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_file
from nemo_gdpo.io.rows import RowFile
from nemo_gdpo.launch import rank_log
from nemo_gdpo.launch.failures import say
from nemo_gdpo.training.trackers import MLflow, Place, TensorBoard, Tracker, WeightsAndBiases

METRICS, SUPERSEDED = "metrics.jsonl", "metrics.superseded.jsonl"
"""Files of output_dir: each step once; and lines of steps that were done again, as they were."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none without one. A torn line of a killed run is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            found.append(entry)
    return found


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _open(
    key: str, make: Callable[[LoggerConfig, Place], Tracker], config: LoggerConfig, place: Place
) -> Tracker | None:
    """A tracker; None where it cannot go on with a run that has begun.

    Raises:
        UserError: it cannot begin.
    """
    try:
        return make(config, place)
    except UserError:
        raise
    except Exception as error:
        rank_log.record_failure(error)
        if place.resume_step == 0:
            raise UserError(
                f"{key}=true, but it cannot start ({_one_line(error)}); repair that, or set "
                f"{key}=false"
            ) from error
        say(f"{key}: cannot go on with its run ({_one_line(error)}); training goes on without it")
        return None


class MetricsLog:
    """One JSON object a step in `metrics.jsonl`, and the same numbers to the other loggers."""

    def __init__(
        self,
        config: LoggerConfig,
        output_dir: Path,
        *,
        enabled: bool,
        resume_step: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log on the main rank.

        Args:
            config: the `logger` section.
            output_dir: of the run.
            enabled: False on all ranks but the main one, where nothing is written.
            resume_step: first step to come; lines of later steps, which a resumed run writes
                again, go to metrics.superseded.jsonl.
            settings: the run's configuration, for loggers that show one.

        Raises:
            UserError: a logger that was asked for cannot begin.
        """
        self._file: RowFile | None = None
        self._trackers: dict[str, Tracker] = {}
        if not enabled:
            return
        path = output_dir / METRICS
        logged = max((line["step"] + 1 for line in read_metrics(path)), default=0)
        place = Place(output_dir / "logs", output_dir.name, resume_step, logged, settings or {})
        try:
            self._open_trackers(config, place)
            self._set_aside(path, resume_step)
            self._file = RowFile(path)
        except BaseException:
            self._close_trackers(failed=True)
            raise

    def _set_aside(self, path: Path, resume_step: int) -> None:
        """Take the lines of steps that come again out of the file."""
        there = path.read_bytes() if path.is_file() else None
        kept, superseded = self._split_at(there or b"", resume_step)
        if superseded:
            with RowFile(path.with_name(SUPERSEDED)) as file:  # first: nothing is lost in between
                file.append(superseded)
        if kept != there:
            write_file(path, kept)

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

    def _open_trackers(self, config: LoggerConfig, place: Place) -> None:
        for key, is_on, make in (
            ("logger.tensorboard", config.tensorboard, TensorBoard),
            ("logger.wandb", config.wandb, WeightsAndBiases),
            ("logger.mlflow", config.mlflow, MLflow),
        ):
            tracker = _open(key, make, config, place) if is_on else None
            if tracker is not None:
                self._trackers[key] = tracker

    def write(self, entry: dict[str, Any]) -> None:
        """Append one step. `entry` has `step` and numbers."""
        if self._file is None:
            return
        self._file.append((json.dumps(entry) + "\n").encode())
        numbers = {k: v for k, v in entry.items() if k != "step"}
        self._on_each(lambda tracker: tracker.log(numbers, entry["step"]))

    def flush(self) -> None:
        """Write what waits, before a checkpoint after which its steps do not come again."""
        self._on_each(lambda tracker: tracker.flush())

    def _on_each(self, action: Callable[[Tracker], None]) -> None:
        """Do it with every tracker; one that fails is left out from then on."""
        for key, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 - whatever a service's own client raises
                del self._trackers[key]
                rank_log.record_failure(error)
                say(f"{key}: failed ({_one_line(error)}); training goes on without it")

    def _close_trackers(self, *, failed: bool) -> None:
        for key, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:  # noqa: BLE001 - whatever a service's own client raises
                rank_log.record_failure(error)
                say(f"{key}: did not end well ({_one_line(error)})")
        self._trackers = {}

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_trackers(failed=kind is not None)
        if self._file is not None:
            self._file.close()
