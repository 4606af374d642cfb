"""Short trainings by the project's own run, watched: what step 0 and every update gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo.config.recipes import run_config
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.gpu_check.findings import NotHereError
from nemo_gdpo.platform import detect_capabilities
from nemo_gdpo.training.mesh import leave_mesh
from nemo_gdpo.training.run import Run
from nemo_gdpo.training.trainer import PreferenceTrainer

COMPARED = ("loss", "grad_norm", "logps/chosen", "logps/rejected")
"""Entries of metrics.jsonl that a trajectory is compared by."""


class _Watching(PreferenceTrainer):
    """Keeps the values of every pair of the first batch."""

    first: Mapping[str, torch.Tensor] | None = None

    def _check_step0(self, indices: list[int], per_pair: dict[str, torch.Tensor]) -> None:
        self.first = {name: values.double().cpu() for name, values in per_pair.items()}
        super()._check_step0(indices, per_pair)


@dataclass(frozen=True)
class Watched:
    """What a run gave."""

    first: Mapping[str, torch.Tensor]
    """Values of each pair at step 0, float64 [N]; empty for a run that resumed."""
    steps: list[dict[str, Any]]
    """Lines of metrics.jsonl."""

    def step0_gap(self) -> float:
        """Greatest |log p(policy) - log p(reference)| of a response, in nats."""
        return max(
            float((self.first[f"logps/{side}"] - self.first[f"reference_logps/{side}"]).abs().max())
            for side in ("chosen", "rejected")
        )

    def logp_gap(self, other: Watched) -> float:
        """Greatest difference of a response's log p between two runs at step 0, in nats."""
        return max(
            float((self.first[name] - other.first[name]).abs().max())
            for name in ("logps/chosen", "logps/rejected")
        )

    def drift(self, other: Watched, *, first_step: int = 0) -> float:
        """Greatest relative difference of `COMPARED` from `first_step` on."""
        mine = [step for step in self.steps if step["step"] >= first_step]
        theirs = [step for step in other.steps if step["step"] >= first_step]
        return max(
            float(abs(a[name] - b[name]) / max(abs(b[name]), 1e-6))
            for a, b in zip(mine, theirs, strict=True)
            for name in COMPARED
        )


def probe_config(model: Path, pairs: Path, output_dir: Path, *overrides: str) -> RunConfig:
    """A training of 4 updates of 8 pairs with GDPO, both columns of the head in use."""
    return run_config(
        "objective=gdpo",
        f"model.restore_from_path={model}",
        f"data.train_path={pairs}",
        f"output_dir={output_dir}",
        "model.global_batch_size=8",
        "model.micro_batch_size=2",
        "data.packing=false",
        "data.max_length=128",
        "data.max_prompt_length=64",
        "optim.lr=1e-3",
        "trainer.max_steps=4",
        "trainer.max_epochs=null",
        "trainer.max_skipped_steps=0",
        "logger.tensorboard=false",
        "export_hf=false",
        *overrides,
    )


def train(config: RunConfig) -> Watched:
    """Train as configured on the ranks that are there. Collective.

    Raises:
        UserError, RunError: as a training would.
    """
    run = Run.build(config)
    with run.stop_request() as stop:
        trainer = run.build_trainer(run.prepare_reference(stop), stop, _Watching)
        run.fit(trainer)
    assert isinstance(trainer, _Watching)
    steps = (run.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    leave_mesh()
    return Watched(trainer.first or {}, [json.loads(line) for line in steps])


def require_precision(precision: str) -> None:
    """Leave the stage where the machine cannot run this precision through Transformer Engine.

    Raises:
        NotHereError: with the reason.
    """
    capabilities = detect_capabilities()
    if not capabilities.transformer_engine.ok:
        raise NotHereError(capabilities.transformer_engine.reason)
    reason = capabilities.why_not(precision)
    if reason is not None:
        raise NotHereError(reason)
