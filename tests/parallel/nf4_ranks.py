"""One rank that trains adapters over bases in four bits, where bitsandbytes may be a stand-in.

`python -m tests.parallel.nf4_ranks FOLDER` runs the cases of its size of world, one after the
other. That this platform can do so is put into its capabilities here, and only here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.platform import Support, current_platform
from nemo_gdpo.training.mesh import join_world, leave_mesh, leave_world
from nemo_gdpo.training.run import Run
from tests.parallel.meshes import OFF, PP2, SP, TP2, recompute
from tests.parallel.rank_main import stray
from tests.parallel.settings import ADAPTERS, dataset, overrides
from tests.support import bitsandbytes_stand_in

NF4 = ("lora.base_precision=nf4",)
KEPT = ("trainer.save_interval=1", "trainer.keep_checkpoints=10")
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
"""Half of each row, as two tensor-parallel ranks have it, is still whole blocks."""
MODELS = {"qwen2": SHAPE, "gemma2": {**SHAPE, "head_dim": 32}}
"""Biases; norms of what attention and MLP give."""
SEED = 12
"""Of their weights: none is so close to the middle between two numbers of NF4 that float32 decides
where it goes."""


@dataclass(frozen=True)
class Case:
    """A run: its base, in the folder, and its settings."""

    name: str
    overrides: tuple[str, ...] = ()
    base: str = "qwen2"
    output: str | None = None
    """Of another case, which it goes on with."""


CASES: dict[int, tuple[Case, ...]] = {
    1: (
        Case("nf4", NF4 + OFF + KEPT),
        Case("as it is", OFF),
        Case("rounded", OFF, "qwen2-rounded"),
        Case("rounded, bf16", (*OFF, "precision=bf16"), "qwen2-rounded-bf16"),
        Case("nf4, bf16", (*NF4, *OFF, "precision=bf16")),
        Case("cache", (*NF4, "reference=cache")),
        Case("swap", (*NF4, "reference=swap")),
        Case("recompute full", NF4 + OFF + recompute("full")),
        Case("some", (*NF4, *OFF, "lora.targets=[q_proj,down_proj]")),
        Case("some, rounded", (*OFF, "lora.targets=[q_proj,down_proj]"), "qwen2-rounded"),
        Case("half", (*NF4, *OFF, "trainer.max_steps=1")),
        Case("gemma2", NF4 + OFF, "gemma2"),
        Case("gemma2, rounded", OFF, "gemma2-rounded"),
    ),
    2: (
        Case("TP2", NF4 + OFF + TP2),
        Case("TP2 SP", NF4 + OFF + TP2 + SP),
        Case("TP2 SP recompute full", NF4 + OFF + TP2 + SP + recompute("full")),
        Case("PP2", NF4 + OFF + PP2),
        Case("DP2", NF4 + OFF),
        Case("second half, TP2 SP", NF4 + OFF + TP2 + SP, output="half"),
        Case("gemma2, TP2 SP", NF4 + OFF + TP2 + SP, "gemma2"),
    ),
}


def output_of(folder: Path, name: str) -> Path:
    """Of the case of that name."""
    return folder / "runs" / name.replace(", ", "-")


def run_case(case: Case, folder: Path) -> None:
    """Three updates of adapters that are not zero; the lines of `metrics.jsonl` say what came."""
    output = output_of(folder, case.output or case.name)
    given = [
        *overrides("gdpo_db"),
        *ADAPTERS,
        f"model.restore_from_path={folder / case.base}",
        f"output_dir={output}",
        "lora.export_peft=false",
        "trainer.check_initial_loss=false",
        *case.overrides,
    ]
    run = Run.build(TRAIN.parse(compose(given, TRAIN).plain), data={"train": dataset()})
    with run.holding_output(), run.stop_request() as stop:
        references = run.prepare_reference(stop)
        stray(run.model)
        run.fit(run.build_trainer(references, stop))
    if case.name == "nf4":
        frozen = sum(p.numel() for p in run.model.gpt_chunks[0].decoder.layers.parameters()
                     if not p.requires_grad and p.dim() == 2)  # fmt: skip
        assert frozen == 0, "a matrix of the base is still there"


def main(folder: Path) -> None:
    """See above."""
    torch.set_num_threads(1)
    quiet_libraries()
    sys.modules |= bitsandbytes_stand_in.modules()
    platform = current_platform()
    platform.capabilities = replace(platform.capabilities, four_bit=Support(True))
    join_world(platform, timeout_minutes=2)
    for case in CASES[dist.get_world_size()]:
        run_case(case, folder)
        leave_mesh()
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
