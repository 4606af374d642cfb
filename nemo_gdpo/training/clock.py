"""Wall time of a run by stage, over all its starts: `output_dir/logs/starts.json`.

A start that is killed keeps what it had noted last, so that time spent twice counts twice. That is
why this is no part of a checkpoint, which goes back in time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_gdpo.io.files import write_json
from nemo_gdpo.launch import rank_log

STAGES = (
    "starting", "model", "tokenising", "reference", "training", "validation", "checkpoints",
    "export",
)  # fmt: skip
"""In the order of a run."""
STARTING, MODEL, TOKENISING, REFERENCE, TRAINING, VALIDATION, CHECKPOINTS, EXPORT = STAGES
STARTS = "starts.json"
NOTE_SECONDS = 60.0
"""What a killed start may lose of its time."""


class RunClock:
    """What a start is at, and how long it was at each stage. The main rank keeps it in a file."""

    def __init__(self) -> None:
        """Begin, at the stage `STARTING`."""
        self.stage = STARTING
        self.seconds: dict[str, float] = {}
        """Seconds of this start by stage, without what passed of the present one."""
        self.latest: dict[str, float] = {}
        """Seconds of the last visit to a stage."""
        self._since = time.perf_counter()
        self._path: Path | None = None
        self._earlier: list[dict[str, Any]] = []
        self._start: dict[str, Any] = {}
        self._noted = time.perf_counter()

    def enter(self, stage: str) -> None:
        """End the present stage and begin another."""
        now = time.perf_counter()
        self.latest[self.stage] = now - self._since
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = stage, now
        rank_log.enter_stage(stage)

    @contextlib.contextmanager
    def within(self, stage: str) -> Iterator[None]:
        """Another stage inside the present one, whose time stands still meanwhile."""
        outer = self.stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(outer)

    def totals(self) -> dict[str, float]:
        """Seconds of this start by stage, up to now."""
        running = time.perf_counter() - self._since
        return self.seconds | {self.stage: self.seconds.get(self.stage, 0.0) + running}

    def keep_in(self, logs: Path, *, world_size: int) -> None:
        """Keep this start in the file below `logs`, beside those before it.

        Args:
            logs: made if needed.
            world_size: ranks of this start.
        """
        begun = datetime.datetime.now(datetime.UTC) - datetime.timedelta(
            seconds=sum(self.totals().values())
        )
        self._path = logs / STARTS
        self._earlier = _read(self._path)
        self._start = {
            "begun": begun.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "host": os.uname().nodename,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "world_size": world_size,
            "first_step": None,
            "steps": None,
            "ended": None,
        }
        self.note(force=True)

    def note(
        self, steps: int | None = None, *, ended: str | None = None, force: bool = False
    ) -> None:
        """Write how far this start is, once in `NOTE_SECONDS`. A failing disk is left to others.

        Args:
            steps: updates of the run so far; None before training.
            ended: how it ended.
            force: now.
        """
        if self._path is None:
            return
        if steps is not None:
            if self._start["first_step"] is None:
                self._start["first_step"] = steps
            self._start["steps"] = steps
        now = time.perf_counter()
        if not force and ended is None and now - self._noted < NOTE_SECONDS:
            return
        self._noted = now
        self._start["ended"] = ended
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"starts": self.starts()})

    def starts(self) -> list[dict[str, Any]]:
        """All starts of the run, this one last, as plain JSON; each has its `seconds` by stage."""
        seconds = {stage: round(value, 3) for stage, value in self.totals().items()}
        return [*self._earlier, self._start | {"seconds": seconds}]


def by_stage(starts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all starts together, by stage in the order of a run."""
    found: dict[str, float] = {}
    for start in starts:
        for stage, seconds in start["seconds"].items():
            found[stage] = found.get(stage, 0.0) + seconds
    return {stage: found[stage] for stage in STAGES if stage in found}


def _read(path: Path) -> list[dict[str, Any]]:
    """The starts of a file; none where it is missing or damaged: it is a record, no state."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["starts"]
        return [start for start in found if isinstance(start["seconds"], dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
