"""How time and memory grow: `make bench BENCH=growth`, or `python -m benchmarks.growth`.

length  an update of always as many tokens, in ever longer sequences (packed, the reference cached);
        CPU seconds of the update, and the high-water mark of the process
pairs   loading prepared pairs, on the main rank and on any other (the steps of `benchmarks.ingest`)
ranks   an update of always as many pairs on more ranks, over gloo: wall seconds, and the memory of
        all ranks; data parallel

Prints tables, and the exponent of a power law through the medians: 1 is in proportion, 0 is flat.
Every number is of a process that did nothing else; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ingest
from benchmarks.common import ROOT, RUNS, Parts, exponent, markdown, spread
from benchmarks.peers.ours import overrides
from benchmarks.peers.workloads import SMALL, TINY, Settings, Workload, prepare
from nemo_gdpo.errors import EXIT_REQUEUE
from nemo_gdpo.gpu_check.lengths import Lengths

KINDS = ("length", "pairs", "ranks")
GIB = 2**30
Task = tuple[str, Callable[[], Any]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    add("--tokens", type=int, default=8192, help="of an update; default: %(default)s")
    add("--pairs", type=int, default=2000, help="tokenised once; default: %(default)s")
    add("--times", type=int, nargs="+", default=[1, 10, 100], help="copies that are loaded")
    add("--ranks", type=int, nargs="+", default=[1, 2])
    add("--rounds", type=int, default=3)
    add("--folder", type=Path, help="models, pairs, runs, results.json")
    Parts.options(parser)
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.lengths, asked.tokens, asked.rounds = [64, 128], 256, 1
        asked.pairs, asked.times = 40, [1, 4]
    if any(asked.tokens % (2 * length) for length in asked.lengths):
        parser.error(f"--tokens {asked.tokens} is no multiple of twice each of --lengths")
    return asked


def even(asked: argparse.Namespace, length: int) -> Workload:
    """Pairs of sequences of exactly this length, half of it prompt; two updates."""
    model = (TINY if asked.quick else SMALL) | {"max_position_embeddings": max(asked.lengths)}
    batch = asked.tokens // (2 * length)
    settings = Settings("fp32", "cpu", batch, micro=1, updates=2, max_length=length)
    settings = replace(settings, short_warm_ups=True)
    half = Lengths(length // 2, length // 2, length // 2)
    return Workload(half, model, settings, loss_tolerance=1e-4, is_even=True)


def of_length(asked: argparse.Namespace, folder: Path, length: int) -> dict[str, float]:
    """An update's CPU seconds and the process's peak."""
    place = folder / f"length-{length}"
    prepare(f"length {length}", place, even(asked, length))
    result = place / "result.json"
    result.unlink(missing_ok=True)
    program = [sys.executable, "-m", "benchmarks.peers.ours", str(place), "ours, packed"]
    _run([*program, str(result), f"data.pack_tokens={asked.tokens}"], place / "log")
    found = json.loads(result.read_text(encoding="utf-8"))
    return {"seconds": found["steps"][-1]["cpu"], "bytes": found["peak_bytes"]}


def prepared(asked: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Copies -> fingerprint of the prepared pairs below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    source, one = folder / "pairs.jsonl", folder / "pairs-1"
    lines = (json.dumps(row) + "\n" for row in ingest.rows(asked.pairs))
    source.write_text("".join(lines), encoding="utf-8")
    for old in folder.glob("pairs-*"):
        shutil.rmtree(old)
    ingest.alone("--tokenise", source, "--to", one, "--workers", 1)
    found = {}
    for times in asked.times:
        target = folder / f"pairs-times-{times}"
        made = ingest.alone("--multiply", one, "--to", target, "--times", times)
        found[str(times)] = made["fingerprint"]
    return found


def of_pairs(folder: Path, times: int, rank: str, parts: Parts) -> dict[str, float]:
    """Loading that many copies: CPU seconds and bytes that no file backs."""
    verified = parts.parts["pairs, prepared"][str(times)] if rank == "other" else ""
    found = ingest.alone("--load", folder / f"pairs-times-{times}", "--verified", verified)
    return {"seconds": found["cpu"], "bytes": found["bytes"]}


def of_ranks(asked: argparse.Namespace, folder: Path, ranks: int) -> dict[str, float]:
    """A later update's wall seconds, and the memory of all ranks."""
    work = even(asked, min(asked.lengths))
    settings = replace(work.settings, batch=max(work.settings.batch, 2), updates=3)
    place, output = folder / "ranks", folder / "ranks" / f"run-{ranks}"
    prepare("ranks", place, replace(work, settings=settings))
    shutil.rmtree(output, ignore_errors=True)
    # Fewer tokens than the default in a row: every rank has as many rows, whatever their number.
    row = asked.tokens // max(asked.ranks)
    command = [
        sys.executable, "-m", "nemo_gdpo.cli", "train", *overrides(place, output),
        "data.packing=true", f"data.pack_tokens={row}", f"trainer.devices={ranks}",
    ]  # fmt: skip
    _run(command, place / f"log-{ranks}")
    lines = [json.loads(one) for one in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": statistics.median(one["perf/step_seconds"] for one in lines[1:]),
        "bytes": lines[-1]["perf/peak_memory_gib_all_ranks"] * GIB,
    }


def _run(command: Sequence[str], log: Path) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
               "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            command, env=environ, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise SystemExit(f"bench: status {done.returncode}, see {log}")


def tasks(asked: argparse.Namespace, folder: Path, parts: Parts) -> list[Task]:
    """All parts, round by round."""
    todo: list[Task] = []
    if "pairs" in asked.kinds:
        todo.append(("pairs, prepared", partial(prepared, asked, folder)))
    for number in range(asked.rounds):
        for length in asked.lengths if "length" in asked.kinds else ():
            todo.append((f"length, {length}, {number}", partial(of_length, asked, folder, length)))
        for times in asked.times if "pairs" in asked.kinds else ():
            for rank in ("main", "other"):
                name = f"{rank} rank, {times * asked.pairs}, {number}"
                todo.append((name, partial(of_pairs, folder, times, rank, parts)))
        for ranks in asked.ranks if "ranks" in asked.kinds else ():
            todo.append((f"ranks, {ranks}, {number}", partial(of_ranks, asked, folder, ranks)))
    return todo


def table(parts: Parts, kind: str, sizes: Sequence[int], heads: tuple[str, str]) -> Iterator[str]:
    """A row a size, and the exponents through the medians; of the sizes that were measured."""
    found = {size: parts.of(f"{kind}, {size}, ") for size in sizes}
    found = {size: rounds for size, rounds in found.items() if rounds}
    rows = [
        [str(size), spread([one["seconds"] for one in rounds]),
         spread([one["bytes"] / GIB for one in rounds])]
        for size, rounds in found.items()
    ]  # fmt: skip
    if len(found) > 1:
        rows.append(["exponent", _slope(found, "seconds"), _slope(found, "bytes")])
    yield from markdown((heads[0], heads[1], "GiB"), rows)
    yield ""


def _slope(found: Mapping[int, list[dict[str, float]]], what: str) -> str:
    """Through the medians; nothing where one of them is too small to be seen."""
    middle = [statistics.median(one[what] for one in rounds) for rounds in found.values()]
    return f"{exponent(list(found), middle):.2f}" if min(middle) > 0 else ""


def tell(asked: argparse.Namespace, parts: Parts) -> None:
    """Print all tables."""
    pairs = [times * asked.pairs for times in asked.times]
    tables = {
        "length": (asked.lengths, (f"length, {asked.tokens} tokens an update", "CPU seconds")),
        "main rank": (pairs, ("pairs, loaded by the main rank", "CPU seconds")),
        "other rank": (pairs, ("pairs, loaded by any other", "CPU seconds")),
        "ranks": (asked.ranks, ("ranks", "seconds an update")),
    }
    print(f"\n{parts.heading()}\n")
    for kind, (sizes, heads) in tables.items():
        if parts.of(f"{kind}, "):
            print(*table(parts, kind, sizes, heads), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and tell; returns the exit status."""
    asked = parse(argv)
    folder = (asked.folder or RUNS / f"growth{'-quick' if asked.quick else ''}").absolute()
    settings = {"tokens": asked.tokens, "pairs": asked.pairs, "copies": asked.times}
    parts = Parts(folder / "results.json", settings, asked)
    whole = parts.run(tasks(asked, folder, parts))
    tell(asked, parts)
    return 0 if whole else EXIT_REQUEUE


if __name__ == "__main__":
    sys.exit(main())
