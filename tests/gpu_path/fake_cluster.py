"""Ranks of the cluster experiments, one after the other, on a machine without a GPU.

    python -m tests.gpu_path.fake_cluster gdpo_llama3_8b [key=value ...] --rank 0,1,15

Tensors have no memory and groups no other ranks: see `tests.gpu_path.fakes`. What was found of each
rank is printed, and with --json written; what the ranks asked of each other is compared.

`--jobs FILE` takes a list of jobs instead, for the tests, and tries out configurations besides.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu_path.fakes.agreement import disagreements, stuck
from tests.gpu_path.fakes.jobs import Job

os.environ.setdefault("OMP_NUM_THREADS", "1")


def _ranks(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_path.fake_cluster")
    parser.add_argument("experiment", nargs="?", help="name of a preset of conf/experiment")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--rank", type=_ranks, default=[0], help="such as 0, 0,1,15 or 0-15")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--apex", action="store_true", help="with NVIDIA Apex's kernels")
    parser.add_argument("--json", type=Path, help="file for all that was found")
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(arguments)


def _tree() -> Path:
    """Transformer Engine's Python layer, unpacked for this run."""
    from tests.gpu_path import source
    from tools.environments.recipes import cache_root

    scratch = Path(tempfile.mkdtemp(prefix="transformer_engine_"))
    atexit.register(shutil.rmtree, scratch)
    return source.unpack(source.fetch(cache_root() / "downloads"), scratch)


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.jobs is not None:
        return [Job.read(one) for one in json.loads(options.jobs.read_text())]
    return [
        Job(
            options.experiment,
            rank,
            options.precision,
            options.layers,
            tuple(options.overrides),
            options.micro_batches,
            options.steps,
            options.apex,
        )
        for rank in options.rank
    ]


def _say(found: dict[str, Any]) -> None:
    job, memory = found["job"], found["memory"]
    gib = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())
    print(
        f"rank {job['rank']}: {found['parameters']['own'] / 1e9:.3f} B parameters; GiB: {gib}; "
        f"{len(found['collectives'])} calls of groups; {found['seconds']:.0f} s"
    )
    if job["micro_batches"]:
        print(f"  rows {found['reference']['rows']}; {found['calls']}")


def main(arguments: Sequence[str]) -> int:
    """Run the jobs; 1 where their ranks would not have understood each other."""
    options = _parse(arguments)
    from tests.gpu_path.fakes import device

    device.start(options.tree or _tree())
    from tests.gpu_path.fakes.rank import Rehearsal

    rehearsal = Rehearsal()
    found = []
    for job in _jobs(options):
        found.append(rehearsal.run(job))
        _say(found[-1])
    everything: dict[str, Any] = {"ranks": found}
    if options.jobs is not None:
        from tests.gpu_path.fakes.configurations import construct_all

        everything["configurations"] = construct_all()
    if options.json is not None:
        options.json.write_text(json.dumps(everything))
    if options.jobs is not None:
        return 0
    calls = {one["job"]["rank"]: one["collectives"] for one in found}
    wrong = disagreements(calls) or stuck(calls)
    print("\n".join(wrong) or f"{len(calls)} ranks agree on all calls")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
