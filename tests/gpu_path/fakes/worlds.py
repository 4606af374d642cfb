"""The worlds that the tests rehearse, and the one process that does it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.gpu_path.fakes.calls import Call
from tests.gpu_path.fakes.jobs import Job
from tests.support.ranks import ROOT, clean_environment
from tests.support.tiers import usual

GDPO = "gdpo_llama3_8b"
PIPELINE = ("parallel=tp4_pp2",)
CONTEXT = ("model.context_parallel_size=2",)
FULL = ("model.activations_checkpoint_granularity=full",)
LOCAL = ("model.layers=local",)
WHOLE = ("optim.use_distributed_optimizer=false", "optim.overlap_grad_reduce=false")
NONE = ("model.activations_checkpoint_granularity=null",)
PACKED = ("data.packing=true",)
SHARED = (*PACKED, "data.prefix_sharing=true")
MICRO_BATCHES = 2
WORLDS: dict[str, list[Job]] = {
    # Rank 1 shares layers with rank 0, rank 4 its part of the gradients; 15 is the last.
    "gdpo": [Job(GDPO, rank, layers=2, steps=2) for rank in (0, 1, 4, 15)],
    "odpo": [Job("odpo_llama3_8b", rank, layers=2, apex=True) for rank in (7,)],
    "adpo": [Job("adpo_llama3_8b", rank, layers=2, overrides=WHOLE) for rank in (15,)],
    "local": [Job(GDPO, 0, layers=2, overrides=LOCAL)],
    "fp32": [Job("odpo_llama3_8b", 4, "fp32", 2)],
    # Ranks 8 to 15 hold the second half of the layers.
    "pipeline": [Job(GDPO, rank, layers=2, overrides=PIPELINE + FULL) for rank in (0, 4, 8, 9, 15)],
    # Ranks 0 and 4 hold two halves of the same rows.
    "context": [Job(GDPO, rank, layers=2, overrides=CONTEXT) for rank in (0, 4)],
    "tensorwise": [Job(GDPO, rank, "fp8_tensorwise", 3) for rank in (0, 1, 15)],
    "blockwise": [Job(GDPO, rank, "fp8_blockwise", 3) for rank in (0, 3)],
    "tensorwise pipeline": [
        Job(GDPO, rank, "fp8_tensorwise", 4, overrides=PIPELINE + NONE) for rank in (0, 8)
    ],
    "whole": [Job(GDPO, 0, layers=32, micro_batches=0)],
}
PACKED_WORLDS: dict[str, list[Job]] = {
    # As the experiments are: rows of any length, and as many as the pairs need.
    "packed": [Job(GDPO, rank, layers=2, overrides=PACKED) for rank in (0, 1, 15)],
    "packed, shared": [Job(GDPO, rank, layers=2, overrides=SHARED) for rank in (0, 1, 15)],
    "packed pipeline": [
        Job(GDPO, rank, layers=2, overrides=PACKED + PIPELINE + FULL) for rank in (0, 8)
    ],
    "packed tensorwise": [
        Job(GDPO, rank, "fp8_tensorwise", 3, overrides=PACKED) for rank in (0, 1)
    ],
}
_NIGHTLY = {"adpo", "blockwise", "tensorwise pipeline", "packed tensorwise"}
"""Combinations of what other worlds have one by one; see `tests.support.tiers`."""
WORLDS, PACKED_WORLDS = (
    {name: some[name] for name in usual(some, lambda name: name not in _NIGHTLY)}
    for some in (WORLDS, PACKED_WORLDS)
)
ALL_WORLDS = WORLDS | PACKED_WORLDS


def rehearse(folder: Path, tree: Path) -> dict[str, Any]:
    """Run all jobs: `worlds`, name -> what its ranks found; and `configurations`.

    Args:
        folder: for what goes there and back.
        tree: Transformer Engine's Python layer.

    Raises:
        AssertionError: with what the process said last.
    """
    jobs = [(name, job) for name, world in ALL_WORLDS.items() for job in world]
    asked, answer = folder / "jobs.json", folder / "found.json"
    asked.write_text(json.dumps([asdict(job) for _, job in jobs]))
    command = [sys.executable, "-m", "tests.gpu_path.fake_cluster", "--jobs", str(asked)]
    done = subprocess.run(
        [*command, "--json", str(answer), "--tree", str(tree)],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(answer.read_text())
    worlds: dict[str, list[dict[str, Any]]] = {name: [] for name in ALL_WORLDS}
    for (name, _), result in zip(jobs, found["ranks"], strict=True):
        result["collectives"] = [_call(*one) for one in result["collectives"]]
        worlds[name].append(result)
    return {"worlds": worlds, "configurations": found["configurations"]}


def _call(kind: str, ranks: list[int], sizes: list[int], dtype: str, detail: str) -> Call:
    return Call(kind, tuple(ranks), tuple(sizes), dtype, detail)
