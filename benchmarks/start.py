"""From the command to the first update: `make bench BENCH=start`, or `python -m benchmarks.start`.

Starts `nemo-gdpo train` on the model and the pairs of `benchmarks.peers`, and looks for the line of
the first update in metrics.jsonl; wall and CPU seconds of the command and all that it started.

cold        a Hugging Face directory, an empty cache, a new output directory
converting  the same with `model.cache_converted=true`, which writes the converted model
cached      the same again: converted model and reference are there, the output directory is new
resumed     the command of `cold` again with one more update: from its checkpoint
TRL         the program of `benchmarks.peers`: import, model, pairs, first update; no checkpoint,
            no record of the run, and so no counterpart of `resumed`

The files lie in the kernel's cache: a first start after a boot reads them from the disk as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, RUNS, Parts, markdown, spread
from benchmarks.peers.__main__ import TRL_ARMS, TRL_PROGRAM, environment
from benchmarks.peers.ours import overrides
from benchmarks.peers.workloads import WORKLOADS, prepare
from nemo_gdpo.errors import EXIT_REQUEUE

OUR_STARTS = ("cold", "converting", "cached", "resumed")
LOOKED, DEADLINE = 0.02, 600.0
"""Seconds between two looks, and of one start at most."""


def cpu_seconds(pid: int) -> float:
    """Of a process, of all below it, and of those that have ended there."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            total += sum(one.cpu_times()[:4])  # own, and of children that were waited for
    except psutil.NoSuchProcess:  # it has ended just now
        pass
    return total


def lines_of(path: Path) -> int:
    """Whole lines of a file; none where there is no file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def first_line(
    command: Sequence[str], environ: Mapping[str, str], path: Path, log: Path
) -> dict[str, float]:
    """Seconds until `path` has one more line; the command then runs to its end.

    Raises:
        SystemExit: it failed, or the line did not come.
    """
    before, begun = lines_of(path), time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, env=dict(environ), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while lines_of(path) == before:
                # The line may have come since, and the end after it.
                if process.poll() is not None and lines_of(path) == before:
                    raise SystemExit(f"bench: no update, status {process.returncode}, see {log}")
                if time.perf_counter() - begun > DEADLINE:
                    raise SystemExit(f"bench: no update in {DEADLINE:g} seconds, see {log}")
                time.sleep(LOOKED)
            found = {"wall": time.perf_counter() - begun, "cpu": cpu_seconds(process.pid)}
            if process.wait(timeout=DEADLINE):
                raise SystemExit(f"bench: status {process.returncode}, see {log}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return found


def ours(kind: str, material: Path, place: Path) -> dict[str, float]:
    """A start of `nemo-gdpo train`.

    Args:
        kind: one of `OUR_STARTS`.
        material: what `prepare` wrote.
        place: of the round; `cold` and `converting` make their parts of it anew.
    """
    output = place / ("cold" if kind == "resumed" else kind)
    # Of the cold start nothing is kept but its run; the others share what was converted.
    cache = place / ("cache-of-cold" if kind in ("cold", "resumed") else "cache")
    if kind != "resumed":
        shutil.rmtree(output, ignore_errors=True)
    if kind in ("cold", "converting"):
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(place / f"reference-{cache.name}", ignore_errors=True)
    steps = 1 + (lines_of(output / "metrics.jsonl") if kind == "resumed" else 0)
    converted = str(kind in ("converting", "cached")).lower()
    command = [
        sys.executable, "-m", "nemo_gdpo.cli", "train", *overrides(material, output),
        "reference=cache",
        f"reference_cache_dir={place / f'reference-{cache.name}'}",
        f"model.cache_converted={converted}",
        f"trainer.max_steps={steps}",
    ]  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "NEMO_GDPO_CACHE": str(cache), "OMP_NUM_THREADS": "1",
               "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return first_line(command, environ, output / "metrics.jsonl", place / f"{kind}.log")


def trl(arm: str, material: Path, place: Path, asked: argparse.Namespace) -> dict[str, float]:
    """A start of TRL's program."""
    place.mkdir(parents=True, exist_ok=True)
    lines = place / "trl.lines"
    command = [asked.trl_python, str(TRL_PROGRAM), str(material), arm, str(place / "trl.json")]
    log = place / f"{arm.replace(', ', '-')}.log"
    return first_line([*command, str(lines)], environment(arm, "cpu", asked), lines, log)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    on_a_cpu = sorted(name for name, one in WORKLOADS.items() if one.settings.device == "cpu")
    parser.add_argument("--workload", choices=on_a_cpu, default="quick", help="its model and pairs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", nargs="+", choices=[*OUR_STARTS, *TRL_ARMS], help="by name")
    parser.add_argument("--trl-python", default=sys.executable, help="has TRL; or --trl-path")
    parser.add_argument("--trl-path", help="folder of packages that PYTHONPATH gives TRL's Python")
    parser.add_argument("--folder", type=Path, help="runs, logs, results.json")
    Parts.options(parser)
    asked = parser.parse_args(argv)
    asked.rounds = 1 if asked.quick else asked.rounds
    asked.starts = asked.starts or [*OUR_STARTS, *TRL_ARMS]
    for kind, needed in (("resumed", "cold"), ("cached", "converting")):
        if kind in asked.starts and needed not in asked.starts:
            parser.error(f"--starts {kind} goes on where {needed} ended: name both")
    return asked


def rows(parts: Parts, starts: Sequence[str]) -> Iterator[list[str]]:
    """Lines of the table; ratios of CPU seconds, round by round."""
    base = parts.of(f"{TRL_ARMS[0]}, round ")
    for kind in starts:
        found = parts.of(f"{kind}, round ")
        yield [
            kind,
            spread([one["wall"] for one in found]),
            spread([one["cpu"] for one in found]),
            spread([own["cpu"] / other["cpu"] for own, other in zip(found, base, strict=False)]),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and tell; returns the exit status."""
    asked = parse(argv)
    folder = (asked.folder or RUNS / f"start{'-quick' if asked.quick else ''}").absolute()
    material = folder / asked.workload
    prepare(asked.workload, material)
    parts = Parts(folder / "results.json", {"workload": asked.workload}, asked)
    todo: list[tuple[str, Callable[[], Any]]] = []
    for number in range(asked.rounds):
        place = folder / f"round-{number}"
        for kind in asked.starts:
            one = partial(trl, kind, material, place, asked) if kind in TRL_ARMS else None
            todo.append((f"{kind}, round {number}", one or partial(ours, kind, material, place)))
    whole = parts.run(todo)
    print(f"\n{parts.heading()}\n")
    heads = ("to the first update", "seconds", "CPU seconds", f"times {TRL_ARMS[0]}")
    print(*markdown(heads, list(rows(parts, asked.starts))), sep="\n")
    return 0 if whole else EXIT_REQUEUE


if __name__ == "__main__":
    sys.exit(main())
