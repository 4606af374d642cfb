"""Several GPUs against one: every kind of parallelism trains the same model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from nemo_gdpo.gpu_check.findings import Measurement, NotHereError, at_most
from nemo_gdpo.gpu_check.layers import BF16_TE, FP32, expected
from nemo_gdpo.gpu_check.probe import write_model, write_pairs
from nemo_gdpo.gpu_check.watched import Watched, probe_config, train
from nemo_gdpo.platform import current_platform, detect_capabilities
from nemo_gdpo.training.mesh import join_world

TP2 = "model.tensor_model_parallel_size=2"
LAYOUTS = {
    "TP2": (TP2,),
    "TP2 SP": (TP2, "model.sequence_parallel=true"),
    "PP2": ("model.pipeline_model_parallel_size=2",),
    "CP2": ("model.context_parallel_size=2",),
    "DP, distributed optimizer": ("optim.use_distributed_optimizer=true",),
}
"""The remaining ranks are data-parallel copies in each."""
FP32_LIMIT, BF16_LIMIT = 1e-4, 0.1


def against_one(folder: Path) -> Iterator[Measurement]:
    """Trajectories over all GPUs in every layout against plain data parallelism's.

    Data parallelism in fp32 is itself held against the numbers of one CPU rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2 or size % 2:
        raise NotHereError(f"{size} GPU; two or more, an even number, are needed")
    model, pairs = _shared_inputs(folder)
    kinds = [("fp32", FP32, FP32_LIMIT)]
    if detect_capabilities().transformer_engine.ok:
        kinds.append(("bf16", BF16_TE, BF16_LIMIT))
    for kind, settings, limit in kinds:
        plain = _train(model, pairs, folder / kind / "plain", *settings)
        if kind == "fp32":
            one = Watched({}, [{**step, "step": i} for i, step in enumerate(expected())])
            yield at_most(f"{kind} DP{size} to one rank", plain.drift(one), limit)
        for name, overrides in LAYOUTS.items():
            found = _train(model, pairs, folder / kind / _word(name), *settings, *overrides)
            yield at_most(f"{kind} {name}", found.drift(plain), limit)


def _train(model: Path, pairs: Path, place: Path, *settings: str) -> Watched:
    return train(probe_config(model, pairs, place, *settings, "model.micro_batch_size=1"))


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _shared_inputs(folder: Path) -> tuple[Path, Path]:
    """Model and pairs, written by rank 0 before the others read them. Collective."""
    join_world(current_platform())
    model, pairs = folder / "model", folder / "pairs.jsonl"
    if dist.get_rank() == 0:
        write_model(model)
        write_pairs(pairs)
    dist.barrier()
    return model, pairs
