"""The jobs, each in a process of its own: log-probs at step 0, and trainings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.fp8_rehearsal.settings import (
    BATCH,
    FEW_PAIRS,
    Options,
    config_of,
    step0_file,
    train_file,
)
from nemo_gdpo.io.files import write_json
from nemo_gdpo.objectives import TokenLogps
from nemo_gdpo.precisions import DELAYED


def _padded(values: Sequence[Tensor]) -> Tensor:
    """[N, T, ...] of different T, one below the other."""
    longest = max(one.shape[1] for one in values)
    shape = [(0, 0) * (one.dim() - 2) + (0, longest - one.shape[1]) for one in values]
    return torch.cat(
        [torch.nn.functional.pad(one, pad) for one, pad in zip(values, shape, strict=True)]
    )


def _side(parts: Sequence[TokenLogps]) -> dict[str, Tensor]:
    columns = [
        torch.stack([part.label_NT, part.eos_NT, part.tempered_eos_NT], dim=-1)  # type: ignore[list-item]
        for part in parts
    ]
    return {
        "values_NTC": _padded(columns),
        "mask_NT": _padded([part.mask_NT for part in parts]),
        "complete_N": torch.cat([part.complete_N for part in parts if part.complete_N is not None]),
    }


def step0_job(options: Options, recipe: str, seed: int, target: Path) -> None:
    """Log-probs of label, EOS and EOS at temperature 0.1: of policy and reference, at step 0.

    Under delayed scaling the reference is what a run computes before training, and the policy what
    it is once a training pass has set the scales. Under the others both are one.
    """
    from nemo_gdpo.data.sampler import PreferenceSampler
    from nemo_gdpo.models.batch import pair_logps
    from nemo_gdpo.training.mesh import leave_world
    from nemo_gdpo.training.run import Run

    config = config_of(options, "gdpo_tb_eos0.1", recipe, seed, "reference=cache")
    run = Run.build(config)
    data = run.data["train"]
    sampler = PreferenceSampler(len(data), seed, data.fingerprint)
    builder = run.batches(data)
    batches = [
        builder.build(sampler.global_batch(number * BATCH, BATCH), None)
        for number in range(options.batches)
    ]
    run.model.prepare_for_inference()
    flat = [one for batch in batches for one in batch]
    found = {"reference": run.model.get_token_logprobs(flat)}
    found["policy"] = found["reference"]
    if config.precision == DELAYED:
        run.model.prepare_for_training()
        kept = [0, 2]  # label and tempered EOS, which this objective reads
        scaled = [
            replace(one, reference_TC=values[:, kept])
            for one, values in zip(flat, found["reference"], strict=True)
        ]
        run.model.prepare_for_training_step()
        run.model.get_loss_and_metrics(scaled[: len(batches[0])], forward_only=False)
        found["policy"] = run.model.get_token_logprobs(flat)
    saved: dict[str, Tensor] = {}
    for whose, values in found.items():
        pairs = [pair_logps(v, one.rows) for v, one in zip(values, flat, strict=True)]
        for side in ("chosen", "rejected"):
            parts = _side([one.chosen if side == "chosen" else one.rejected for one in pairs])
            saved |= {f"{whose}.{side}.{name}": value for name, value in parts.items()}
    for side in ("chosen", "rejected"):
        scores = [
            one.targets.chosen_score_N if side == "chosen" else one.targets.rejected_score_N
            for one in flat
        ]
        saved[f"{side}_score_N"] = torch.cat([score for score in scores if score is not None])
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in saved.items()}, target)
    leave_world()


def train_job(options: Options, objective: str, recipe: str, seed: int, target: Path) -> None:
    """Train, and note the losses; a run that its own check at step 0 stops goes on without it."""
    if not _trained(options, objective, recipe, seed, target, gate=True):
        command = [sys.executable, "-m", "benchmarks.fp8_rehearsal", *sys.argv[1:], "--no-gate"]
        subprocess.run(command, check=True)


def _trained(
    options: Options, objective: str, recipe: str, seed: int, target: Path, *, gate: bool
) -> bool:
    """Whether the run came to its end."""
    from nemo_gdpo.training.mesh import leave_world
    from nemo_gdpo.training.run import Run
    from nemo_gdpo.training.sanity import Step0MismatchError

    config = config_of(
        options, objective, recipe, seed,
        f"trainer.max_steps={options.steps}",
        f"optim.sched.warmup_steps={min(5, options.steps - 1)}",
        f"trainer.limit_val_batches={max(1, options.limit_validation * BATCH // options.batch)}",
        f"trainer.check_initial_loss={str(gate).lower()}",
        # The references of all pairs serve all objectives; few updates read few of them.
        *(["reference=resident"] if options.steps * options.batch < FEW_PAIRS else
          ["reference=cache", f"reference_cache_dir={options.folder / 'references'}"]),
        batch=options.batch,
    )  # fmt: skip
    run = Run.build(config)
    with run.stop_request() as stop:
        trainer = run.build_trainer(run.prepare_reference(stop), stop)
        try:
            losses = [trainer.train_step()["loss"] for _ in range(options.steps)]
        except Step0MismatchError:
            if not gate:
                raise
            leave_world()
            return False
        validation = trainer.validate()["val/loss"]
    leave_world()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, {"losses": losses, "validation": validation, "passed_step0": gate})
    return True


Job = tuple[str, Path, Callable[[], None]]


def jobs(options: Options, *, gate: bool = True) -> Iterator[Job]:
    """(name, the file it leaves, what it does), in order."""
    for seed in options.seeds:
        for recipe in ("fp32", *options.recipes):
            path = step0_file(options, recipe, seed)
            yield (
                f"step0 {recipe} {seed}",
                path,
                lambda r=recipe, s=seed, p=path: step0_job(options, r, s, p),  # type: ignore[misc]
            )
    train: Any = train_job if gate else _without_gate
    for seed in options.seeds if options.steps else ():
        for objective in options.objectives:
            for recipe in ("fp32", *options.recipes):
                path = train_file(options, objective, recipe, seed)
                yield (
                    f"train {objective} {recipe} {seed}",
                    path,
                    lambda o=objective, r=recipe, s=seed, p=path: train(options, o, r, s, p),  # type: ignore[misc]
                )


def _without_gate(options: Options, objective: str, recipe: str, seed: int, target: Path) -> None:
    _trained(options, objective, recipe, seed, target, gate=False)
