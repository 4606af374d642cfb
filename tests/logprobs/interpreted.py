"""The way in tiles on a CPU: products of widened matrices, kernels under Triton's interpreter.

`TRITON_INTERPRET=1 python -m tests.logprobs.interpreted FOLDER` runs every case; the interpreter is
chosen when Triton is imported, hence a process of its own. `FOLDER/rank<r>.pt` holds case -> values
and gradients, of one rank and of two that share the vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import triton.language as tl
from torch import Tensor, nn
from triton.runtime import interpreter

from nemo_gdpo.logprobs import (
    MainGrad,
    SelectedLogprobs,
    chunked,
    passes,
    selected_logprobs,
    tiles,
)
from nemo_gdpo.logprobs.measure import measure_head

from .synthetic import Inputs, evaluate
from .tile_cases import BEFORE, CASES, RANKS, SHARDED, STRANGE, Case, strange_scores


def set_cuts(case: Case) -> None:
    tiles.TILE_LOGITS, tiles.TILE_TOKENS = case.tile_logits, case.tile_tokens
    passes.SCORE_BLOCK = passes.GRADIENT_BLOCK = passes.ROW_BLOCK = case.block


def run_case(case: Case, group: dist.ProcessGroup | None) -> list[Tensor | None]:
    """[label, EOS, tempered EOS, hidden gradient, weight gradient] of this rank's shard."""
    set_cuts(case)
    whole = case.inputs()
    weight = whole.weight_VH
    if group is not None:
        weight = weight.chunk(RANKS)[group.rank()]
    options = dict(case.options)
    main_grad = None
    if case.main_grad:
        parameter = nn.Parameter(weight)
        total = torch.full(weight.shape, BEFORE)
        vars(parameter).update(main_grad=total, grad_added_to_main_grad=False)
        main_grad = MainGrad.of(parameter)
        assert main_grad is not None
        options["main_grad"] = main_grad
    columns, hidden, gradient = evaluate(
        stacked if case.strided else selected_logprobs,
        Inputs(whole.hidden_TH, weight, whole.labels_T, whole.label_factor_T, whole.eos_factor_T),
        vocab_size=case.vocab_size,
        tp_group=group,
        **options,
    )
    if main_grad is not None:
        assert main_grad.weight.grad_added_to_main_grad
        gradient = main_grad.total_VH
    return [*(None if c is None else c.detach() for c in columns), hidden, gradient]


def stacked(*inputs: Tensor, **options: Any) -> SelectedLogprobs:
    """The columns as training puts them together, which leaves their gradients strided."""
    label, eos, tempered = selected_logprobs(*inputs, **options)
    assert eos is not None
    assert tempered is not None
    return SelectedLogprobs(*torch.stack([label, eos, tempered], dim=1).unbind(dim=1))


def round_to_nearest(self: Any, source: Any, target: Any) -> Any:
    """float32 to bfloat16 as a GPU does it (`cvt.rn.bf16.f32`); the interpreter cuts bits off."""
    if target.scalar != tl.bfloat16:
        return self.cast_impl(source, target)
    rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
    return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), target.scalar)


def run_rank(rank: int, folder: str) -> None:
    """Every sharded case; on rank 0 the others first."""
    torch.set_num_threads(1)
    interpreter.InterpreterBuilder.create_fp_trunc = round_to_nearest
    chunked.runs_in_tiles = lambda hidden, weight: hidden.dtype == torch.bfloat16
    results: dict[str, Any] = {}
    if rank == 0:
        results["one"] = {name: run_case(case, None) for name, case in CASES.items()}
        measured = measure_head(
            torch.device("cpu"), 24, 16, 200, columns=2, into_main_grad=True, repeats=1
        )
        results["measured"] = asdict(measured)
        set_cuts(Case(tile_logits=128))
        results["strange"] = {name: strange_scores(selected_logprobs, name) for name in STRANGE}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    results["two"] = {name: run_case(case, dist.group.WORLD) for name, case in SHARDED.items()}
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(run_rank, args=(sys.argv[1],), nprocs=RANKS)
