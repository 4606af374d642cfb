"""Runs the stages one after the other, each in processes of its own, and keeps every result."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_gdpo.gpu_check.findings import StageResult, Status, markdown
from nemo_gdpo.gpu_check.machine import describe_machine
from nemo_gdpo.gpu_check.stage import RESULT
from nemo_gdpo.gpu_check.stages import Stage
from nemo_gdpo.io.files import write_file
from nemo_gdpo.launch.ports import free_port
from nemo_gdpo.launch.ranks import rank_variables

SHORTEST_S = 20.0
"""Seconds under which no further stage is begun."""


@dataclass(frozen=True)
class Check:
    """One acceptance test: where results go, and how long it may take."""

    folder: Path
    limit_s: float
    say: Callable[[str], None]
    module: str = "nemo_gdpo.gpu_check.stage"
    """The program of a stage; called with its name and folder."""

    def run(self, stages: Sequence[Stage], *, gpus: int) -> list[StageResult]:
        """Run what has no result yet for this machine and these versions.

        A failed stage is run again. After every stage `results.json` and `results.md` are complete.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + self.limit_s
        machine = describe_machine()
        results: list[StageResult] = []
        for stage in stages:
            kept = self._kept(stage, machine)
            left = end - time.monotonic()
            if kept is not None:
                result = kept
            elif left < SHORTEST_S:
                reason = f"{self.limit_s / 60:.0f} minutes were over; start again for the rest"
                result = StageResult(stage.name, Status.NOT_RUN, 0.0, (), reason, machine)
            else:
                result = self._run_stage(stage, min(left, stage.limit_s), gpus)
            again = " (kept)" if kept is not None else ""
            reason = f": {result.reason}" if result.reason else ""
            self.say(f"{stage.name:<16} {result.status}{again} {result.seconds:5.0f} s{reason}")
            results.append(result)
            self._write(results, machine)
        return results

    def _stage_folder(self, stage: Stage) -> Path:
        return self.folder / stage.name

    def _kept(self, stage: Stage, machine: dict[str, str]) -> StageResult | None:
        """An earlier result that still holds."""
        try:
            text = (self._stage_folder(stage) / RESULT).read_text(encoding="utf-8")
            result = StageResult.from_dict(json.loads(text))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        holds = result.status in (Status.PASSED, Status.NOT_HERE) and result.machine == machine
        return result if holds else None

    def _run_stage(self, stage: Stage, limit_s: float, gpus: int) -> StageResult:
        folder = self._stage_folder(stage)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun = time.monotonic()
        size = max(gpus, 1) if stage.all_gpus else 1
        log = folder / "log.txt"
        ended = _run_ranks([sys.executable, "-m", self.module, stage.name, str(folder)],
                           size, log, limit_s)  # fmt: skip
        seconds = time.monotonic() - begun
        try:
            return StageResult.from_dict(json.loads((folder / RESULT).read_text(encoding="utf-8")))
        except OSError:
            how = f"ended with {ended}" if ended is not None else f"took more than {limit_s:.0f} s"
            reason = f"{how}; {_last_words(log)} ({log})"
            return StageResult(stage.name, Status.FAILED, seconds, (), reason, describe_machine())

    def _write(self, results: Sequence[StageResult], machine: dict[str, str]) -> None:
        document = {"machine": machine, "stages": [r.to_dict() for r in results]}
        write_file(self.folder / "results.json", json.dumps(document, indent=1) + "\n")
        facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
        write_file(self.folder / "results.md", f"{facts}\n\n{markdown(results)}")


def _run_ranks(command: list[str], size: int, log: Path, limit_s: float) -> int | None:
    """Run the ranks of a stage; the first status that is not 0, or 0; None when time was over."""
    port = free_port()
    end = time.monotonic() + limit_s
    with log.open("wb") as output:
        ranks = [
            subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                env=_environment(rank, size, port),
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            while (left := end - time.monotonic()) > 0:
                statuses = [rank.poll() for rank in ranks]
                if any(statuses) or None not in statuses:
                    return next((status for status in statuses if status), 0)
                time.sleep(min(0.2, left))
            return None
        finally:
            for rank in ranks:
                _kill(rank)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    # A stage of one rank builds its worlds itself.
    world = rank_variables(rank, size, port) if size > 1 else {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | world


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a rank and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it printed nothing"
