"""The log of one rank: `output_dir/logs/rank_00003.jsonl`, one JSON object a line.

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "stage": "model", "message": "..."}

It holds what the terminal leaves out: stages, the libraries' warnings, tracebacks of known errors.
Every start of a run begins with a record of host, device, versions and the Slurm job, and appends.
What comes before the output directory may be written is kept until then. Writing never fails: on a
full disk records are counted and left out.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from nemo_gdpo import __version__

PACKAGES = ("torch", "megatron-core", "transformer-engine", "nemo-toolkit")
"""Distributions whose versions a start records, those that are installed."""
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NODELIST",
)
"""Variables of a Slurm job that a start records."""
_KEPT = 1000
"""Records that wait for the file at most."""


def _now() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def start_record(**more: Any) -> dict[str, Any]:
    """What tells this start from others: host, process, versions, Slurm's variables.

    Args:
        more: what the caller knows besides, as plain JSON.
    """
    versions = {"nemo_gdpo": __version__}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "versions": versions,
        "slurm": {name: os.environ[name] for name in SLURM if name in os.environ},
        **more,
    }


class _ToRankLog(logging.Handler):
    """What libraries log goes to the rank's log."""

    def __init__(self, log: RankLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        more = {}
        if record.exc_info is not None and record.exc_info[1] is not None:
            more["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        message = record.getMessage()
        self._log.write(record.levelname.lower(), message, logger=record.name, **more)


class RankLog:
    """A file that is appended to, or records that wait for it."""

    def __init__(self) -> None:
        self.stage = "starting"
        """What the run is at; it stands in every record."""
        self._file: int | None = None
        self._waiting: list[bytes] = []
        self._lost = 0
        self._torn = False
        self._undo: list[Callable[[], object]] = []

    def write(self, level: str, message: str, **more: Any) -> None:
        """Add a record.

        Args:
            level: `info`, `warning` or `error`.
            message: of any length.
            more: further fields, plain JSON.
        """
        entry = {"time": _now(), "level": level, "stage": self.stage, "message": message, **more}
        line = json.dumps(entry, ensure_ascii=False, default=str)
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._file is not None:
            self._append(self._file, data)
        elif len(self._waiting) < _KEPT:
            self._waiting.append(data)

    def _append(self, file: int, data: bytes) -> None:
        if self._lost:
            told = f"{self._lost} records could not be written"
            before = {"time": _now(), "level": "warning", "stage": self.stage, "message": told}
            data = json.dumps(before).encode() + b"\n" + data
        try:
            # What a full disk took half of is a line of its own, and no part of the next one.
            written = os.write(file, (b"\n" if self._torn else b"") + data)
        except OSError:
            self._lost += 1
            return
        self._torn = written < len(data)
        self._lost = self._lost + 1 if self._torn else 0

    def open(self, folder: Path, rank: int, start: Mapping[str, Any]) -> None:
        """Append to this rank's file from now on, beginning with a record of this start.

        Args:
            folder: made if needed.
            rank: of this process.
            start: of `start_record`.
        """
        waiting, self._waiting = self._waiting, []
        path = folder / f"rank_{rank:05d}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # A killed run may have left half a line.
            self._torn = os.fstat(self._file).st_size > 0 and not _ends_well(path)
        except OSError:
            self.close()
            return
        self.write("info", "start", **start)
        for data in waiting:
            self._append(self._file, data)
        self._capture()

    def _capture(self) -> None:
        """Take the warnings that nobody sees otherwise; what a terminal shows stays."""
        shown = warnings.showwarning
        verbose = os.environ.get("NEMO_GDPO_VERBOSE") == "1"

        def take(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: str | None = None,
        ) -> None:
            where = f"{filename}:{lineno}"
            self.write("warning", str(message), category=category.__name__, where=where)
            if verbose:
                shown(message, category, filename, lineno, file, line)

        def put_back() -> None:
            warnings.showwarning = shown
            if ours in warnings.filters:  # and not what libraries have added since
                cast("list[object]", warnings.filters).remove(ours)

        warnings.filterwarnings("default")
        ours = warnings.filters[0]
        warnings.showwarning = take
        root, handler = logging.getLogger(), _ToRankLog(self)
        # With a handler, Python's last resort no longer prints errors: this one does.
        terminal = [] if root.handlers else [logging.StreamHandler()]
        for one in terminal:
            one.setLevel(logging.ERROR)
        added: list[logging.Handler] = [handler, *terminal]
        for added_handler in added:
            root.addHandler(added_handler)
        self._undo = [put_back, *(partial(root.removeHandler, one) for one in added)]

    def close(self) -> None:
        """Let go of the file and of what was captured; what waits is dropped."""
        for undo in self._undo:
            undo()
        self._undo = []
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file, self._waiting, self._lost, self._torn = None, [], 0, False
        self.stage = "starting"


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


_log = RankLog()
"""Of this process: a rank has one run at a time."""


def end() -> None:
    """Let go of the run's file; the next run in this process has its own."""
    _log.close()


def open_log(folder: Path, *, rank: int, **start: Any) -> None:
    """Write to `folder` from now on; see `RankLog.open` and `start_record`."""
    _log.open(folder, rank, start_record(rank=rank, **start))


def enter_stage(stage: str) -> None:
    """What the run is at from now on."""
    if stage != _log.stage:
        _log.stage = stage
        _log.write("info", "begins")


def record(message: str, *, level: str = "info", **more: Any) -> None:
    """Add a record to this rank's log."""
    _log.write(level, message, **more)


def record_failure(error: BaseException) -> None:
    """Add an error with its traceback and what led to it."""
    trace = "".join(traceback.format_exception(error))
    _log.write("error", f"{type(error).__name__}: {error}", traceback=trace)
