"""The command line as a process: run it, watch it, read what it wrote."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.launch.ports import free_port
from tests.support.ranks import ROOT, clean_environment

DEADLINE = 150.0
"""Seconds after which a command is taken to hang."""
QUIET = ["logger.tensorboard=false", "export_hf=false"]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """Lines in which the program itself speaks of an error."""
        return [line for line in self.err.splitlines() if line.startswith("nemo-gdpo: ")]


@contextlib.contextmanager
def started(verb: str, *overrides: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command line in a separate process; killed with its ranks if a test fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nemo_gdpo.cli", verb, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # only when the test failed: the command stops its own ranks
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=DEADLINE)
    return Result(process.returncode, out, err)


def cli(verb: str, *overrides: str, cwd: Path | None = None) -> Result:
    with started(verb, *overrides, cwd=cwd) as process:
        return finish(process)


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    """Until metrics.jsonl has the line of `step`."""
    path = output / "metrics.jsonl"
    limit = time.monotonic() + DEADLINE
    while time.monotonic() < limit:
        if path.is_file() and f'"step": {step},' in path.read_text():
            return
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{process.stderr.read()}")  # type: ignore[union-attr]
        time.sleep(0.005)
    raise AssertionError(f"step {step} did not come")


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def without_timing(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if not k.startswith("perf/")} for e in entries]


def several(directory: Path, cases: dict[str, list[str]], *, ranks: int = 1) -> dict[str, Result]:
    """Run command lines one after the other in one process, or in one world of `ranks` processes.

    See `tests.support.run_commands`. The results are rank 0's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = [
        {
            "argv": argv,
            "out": str(directory / f"{n}.out"),
            "err": str(directory / f"{n}.err"),
            "port": free_port(),
        }
        for n, argv in enumerate(cases.values())
    ]
    listing = directory / "cases.json"
    listing.write_text(json.dumps(described))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.run_commands", str(listing)]
            + ([str(rank), str(ranks)] if ranks > 1 else []),
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            cwd=ROOT,
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=2 * DEADLINE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    statuses = json.loads(printed[0].splitlines()[-1])
    return {
        name: Result(status, Path(case["out"]).read_text(), Path(case["err"]).read_text())
        for name, status, case in zip(cases, statuses, described, strict=True)
    }


def common(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Overrides that every tiny run has: batches of 4 pairs, a rate that shows."""
    return [
        f"model.restore_from_path={model}",
        f"data.train_path={data}",
        f"output_dir={output}",
        "model.global_batch_size=4",
        "model.micro_batch_size=2",
        "data.packing=false",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim.lr=1e-3",
        *QUIET,
        *more,
    ]


def steps(number: int) -> list[str]:
    return [f"trainer.max_steps={number}", "trainer.max_epochs=null"]
