"""One of two ranks: runs in which something is not finite, at some updates, on one rank.

`python -m tests.parallel.skip_main FOLDER` under RANK and WORLD_SIZE. FOLDER holds `model` and
`train.jsonl`; `FOLDER/rank<N>.json` gets what became of every run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.models.preference_model import PreferenceModel
from nemo_gdpo.platform import current_platform
from nemo_gdpo.training import run as run_module
from nemo_gdpo.training.mesh import join_world, leave_world
from nemo_gdpo.training.trainer import PreferenceTrainer
from tests.parallel.failing_main import carried_out, configuration

Fault = Callable[[set[int]], contextlib.AbstractContextManager[Any]]
_step = 0


@contextlib.contextmanager
def _steps_known() -> Iterator[None]:
    """`_step` is the update that is being made."""
    original = PreferenceTrainer.train_step

    def step(self: PreferenceTrainer) -> dict[str, Any]:
        global _step
        _step = self.progress.step
        return original(self)

    with mock.patch.object(PreferenceTrainer, "train_step", step):
        yield


@contextlib.contextmanager
def bad_pairs(steps: set[int]) -> Iterator[None]:
    """The log-probs of rank 1's first pair are not finite, and so are its gradients."""
    original = PreferenceModel._loss

    def loss(self: PreferenceModel, values_TC: torch.Tensor, batch: Any) -> Any:
        if _step in steps and dist.get_rank() == 1 and torch.is_grad_enabled():
            first = int(batch.rows.response_lengths_N[0])
            values_TC = torch.cat([values_TC[:first] * float("nan"), values_TC[first:]])
        return original(self, values_TC, batch)

    with _steps_known(), mock.patch.object(PreferenceModel, "_loss", loss):
        yield


@contextlib.contextmanager
def bad_gradient(steps: set[int]) -> Iterator[None]:
    """The gradient norm is not finite on rank 1 alone."""
    from megatron.core.optimizer.optimizer import MegatronOptimizer

    original = MegatronOptimizer.get_grad_norm

    def norm(self: Any) -> Any:
        found = original(self)
        return float("inf") if _step in steps and dist.get_rank() == 1 else found

    with _steps_known(), mock.patch.object(MegatronOptimizer, "get_grad_norm", norm):
        yield


@contextlib.contextmanager
def bad_reference(steps: set[int]) -> Iterator[None]:
    """The resident reference is not finite."""
    original = PreferenceModel.get_reference_logprobs

    def reference(self: PreferenceModel, micro_batches: list[Any]) -> list[torch.Tensor]:
        found = original(self, micro_batches)
        return [values * float("nan") for values in found] if _step in steps else found

    with _steps_known(), mock.patch.object(PreferenceModel, "get_reference_logprobs", reference):
        yield


@dataclass(frozen=True)
class Case:
    fault: Fault
    steps: frozenset[int]
    more: tuple[str, ...] = ()
    after: str | None = None
    """Go on from the first checkpoint of this case's run."""
    extra: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "pairs": Case(bad_pairs, frozenset({1})),
    "pairs again": Case(bad_pairs, frozenset({1}), after="pairs"),
    "pairs bf16": Case(bad_pairs, frozenset({1}), ("precision=bf16",)),
    "pairs distributed": Case(bad_pairs, frozenset({1}), ("optim.use_distributed_optimizer=true",)),
    "gradient": Case(bad_gradient, frozenset({1, 2})),
    "first": Case(bad_pairs, frozenset({0})),
    "too many": Case(bad_pairs, frozenset({1, 2, 3}), ("trainer.max_skipped_steps=2",)),
    "none allowed": Case(bad_gradient, frozenset({1}), ("trainer.max_skipped_steps=0",)),
    "reference": Case(bad_reference, frozenset({1}), ("reference=resident",)),
}


def begun_from(folder: Path, earlier: str, output: Path) -> None:
    """A copy of an earlier case's run as it was after its first update."""
    if dist.get_rank() == 0:
        shutil.copytree(folder / earlier, output)
        for path in (output / "checkpoints").glob("step_*"):
            if path.name != "step_00000001":
                shutil.rmtree(path)
    dist.barrier()


def main(folder: Path) -> None:
    """All cases, in one world."""
    quiet_libraries()
    join_world(current_platform(), timeout_minutes=5)
    found: dict[str, Any] = {}
    with mock.patch.object(run_module, "leave_world", lambda: None):
        for name, case in CASES.items():
            output = folder / name
            if case.after is not None:
                begun_from(folder, case.after, output)
            config = configuration(
                folder, output, "trainer.max_steps=4", "trainer.save_interval=1",
                "trainer.keep_checkpoints=9", "data.validation_path=null", "objective=dpo",
                *case.more,
            )  # fmt: skip
            with case.fault(set(case.steps)):
                found[name] = carried_out("train_plain", config)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
