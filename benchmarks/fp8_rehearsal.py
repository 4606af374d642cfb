"""What FP8 would do to each objective, rehearsed in fp32 arithmetic on any machine.

    python -m benchmarks.fp8_rehearsal                        all of it: many hours on a CPU
    python -m benchmarks.fp8_rehearsal --steps 0              rounding at step 0 alone
    python -m benchmarks.fp8_rehearsal --objectives dpo gdpo_tb --recipes tensorwise --seeds 1

Step 0: log-probs of pairs under the recipes (`precision=fp8_rehearsal_...`) against those in fp32;
one pass a recipe serves all objectives. Then the validation loss after `--steps` updates. Every job
leaves a file in `--folder`, and the same command goes on where it was stopped. Prints the tables
of what is there; `RESULTS.md` has what they said, and where. The model and the pairs are those of
`make demo`, unless others are given.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_gdpo.config.composition import compose
from nemo_gdpo.config.schema import TRAIN, RunConfig
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_json
from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.objectives import (
    GDPO,
    AnyObjective,
    PairLogps,
    PairTargets,
    TokenLogps,
    build_objective,
)
from nemo_gdpo.precisions import DELAYED, REHEARSALS

OBJECTIVES = {
    **{name: (f"objective={name}",) for name in ("dpo", "ipo", "odpo", "adpo", "spl")},
    **{
        f"gdpo_{balance}{suffix}": ("objective=gdpo", f"objective.balance={balance}", *eos)
        for suffix, eos in (("", ()), ("_eos0.1", ("objective.eos_temperature=0.1",)))
        for balance in ("tb", "subtb", "db")
    },
}
"""Rows of the table -> overrides. ODPO and the rest at the defaults of their sections."""
PRECISIONS = {"fp32": "fp32"} | {recipe: name for name, recipe in REHEARSALS.items()}
BATCH = 8
FEW_STEPS = 10
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    model: Path
    data: Path
    steps: int
    seeds: tuple[int, ...]
    objectives: tuple[str, ...]
    recipes: tuple[str, ...]
    batches: int
    limit_validation: int


# -- jobs, each in a process of its own -----------------------------------------------------------


def config_of(options: Options, objective: str, recipe: str, seed: int, *extra: str) -> RunConfig:
    """The configuration of a job: that of `experiment=demo`, on one rank."""
    given = [
        "experiment=demo",
        "parallel=single",
        *OBJECTIVES[objective],
        f"precision={PRECISIONS[recipe]}",
        f"seed={seed}",
        f"data.seed={seed}",
        f"model.restore_from_path={options.model}",
        f"data.train_path={options.data / 'train.jsonl'}",
        f"data.validation_path={options.data / 'validation.jsonl'}",
        f"output_dir={options.folder / 'runs' / f'{objective}-{recipe}-{seed}'}",
        f"model.global_batch_size={BATCH}",
        "logger.tensorboard=false",
        "export_hf=false",
        *extra,
    ]
    return TRAIN.parse(compose(given, TRAIN).plain)


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
        f"trainer.limit_val_batches={options.limit_validation}",
        f"trainer.check_initial_loss={str(gate).lower()}",
        # The references of all pairs serve all objectives; few updates read few of them.
        *(["reference=resident"] if options.steps < FEW_STEPS else
          ["reference=cache", f"reference_cache_dir={options.folder / 'references'}"]),
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


# -- the tables -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step0:
    """What one step-0 job found."""

    policy: PairLogps
    reference: PairLogps
    targets: PairTargets


def read_step0(path: Path) -> Step0:
    """The file of a step-0 job; the tempered column stands apart, see `with_temperature`."""
    found = load_file(path)

    def side(whose: str, name: str) -> TokenLogps:
        label, eos, tempered = found[f"{whose}.{name}.values_NTC"].unbind(dim=-1)
        mask = found[f"{whose}.{name}.mask_NT"]
        complete = found[f"{whose}.{name}.complete_N"]
        return TokenLogps(label, mask, eos, tempered, complete)

    def pair(whose: str) -> PairLogps:
        return PairLogps(side(whose, "chosen"), side(whose, "rejected"))

    targets = PairTargets(found["chosen_score_N"], found["rejected_score_N"])
    return Step0(pair("policy"), pair("reference"), targets)


def _minus(one: TokenLogps, other: TokenLogps) -> TokenLogps:
    assert one.eos_NT is not None and other.eos_NT is not None
    assert one.tempered_eos_NT is not None and other.tempered_eos_NT is not None
    return replace(
        one,
        label_NT=one.label_NT - other.label_NT,
        eos_NT=one.eos_NT - other.eos_NT,
        tempered_eos_NT=one.tempered_eos_NT - other.tempered_eos_NT,
    )


def moved(one: PairLogps, other: PairLogps) -> PairLogps:
    """By how much every log-prob differs."""
    return PairLogps(_minus(one.chosen, other.chosen), _minus(one.rejected, other.rejected))


def token_movement(change: PairLogps) -> float:
    """Root mean square over the responses' tokens, nats."""
    parts = [side.label_NT[side.mask_NT] for side in (change.chosen, change.rejected)]
    return float(torch.cat(parts).square().mean().sqrt())


def margins(change: PairLogps) -> Tensor:
    """log p of chosen over rejected responses, [N]."""
    chosen, rejected = (
        side.label_NT.where(side.mask_NT, 0.0).sum(dim=1)
        for side in (change.chosen, change.rejected)
    )
    return chosen - rejected


def residual_movement(objective: AnyObjective, policy: PairLogps, reference: PairLogps) -> float:
    """Root mean square by which what the loss is made of moves, nats.

    That is the log-ratio of a pair (pairwise objectives, GDPO's `tb`), the sum of a
    sub-trajectory's residuals (`subtb`) or one transition's (`db`). All are linear in log-probs, so
    that their movement is GDPO's own residual, without preference, of the log-probs' movements.

    Args:
        objective: of the run.
        policy: by how much the policy's log-probs moved.
        reference: likewise.
    """
    if not isinstance(objective, GDPO):
        return float((margins(policy) - margins(reference)).square().mean().sqrt())
    without = replace(objective, alpha=0.0)
    squares = without(policy, reference, PairTargets()).loss_N.double()
    if objective.balance != "db":
        return float(squares.mean().sqrt())
    transitions = sum(
        int((side.mask_NT.sum(dim=1) - 1).clamp(min=0).sum())
        for side in (policy.chosen, policy.rejected)
    )
    return math.sqrt(2 * float(squares.sum()) / transitions)


def loss_movement(objective: AnyObjective, plain: Step0, other: Step0) -> float:
    """Root mean square of a pair's loss, policy in FP8 over policy in fp32; reference in fp32."""
    losses = [
        objective(policy, plain.reference, plain.targets).loss_N
        for policy in (other.policy, plain.policy)
    ]
    return float((losses[0] - losses[1]).square().mean().sqrt())


def over_seeds(values: Sequence[float]) -> str:
    """Mean, and the least and the greatest."""
    if not values:
        return NOT_MEASURED
    ends = f" ({min(values):.2g} to {max(values):.2g})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{ends}"


def step0_tables(options: Options) -> Iterator[str]:
    """By recipe what log-probs do, by objective what residuals and losses do."""
    seen: dict[str, list[tuple[Step0, Step0]]] = {}
    for recipe in options.recipes:
        paths = [(step0_file(options, "fp32", s), step0_file(options, recipe, s))
                 for s in options.seeds]  # fmt: skip
        seen[recipe] = [
            (read_step0(one), read_step0(other))
            for one, other in paths
            if one.is_file() and other.is_file()
        ]
    yield "| recipe | a token's log p | a pair's margin | margin, policy over its own reference |"
    yield "|---|---|---|---|"
    for recipe, found in seen.items():
        yield _row(
            recipe,
            [token_movement(moved(b.policy, a.policy)) for a, b in found],
            [_rms(margins(moved(b.policy, a.policy))) for a, b in found],
            [_rms(margins(moved(b.policy, b.reference))) for a, b in found],
        )
    yield ""
    yield "| objective | recipe | residual, reference in fp32 | residual, own reference | loss |"
    yield "|---|---|---|---|---|"
    for name in options.objectives:
        objective = build_objective(config_of(options, name, "fp32", 1).objective)
        for recipe, found in seen.items():
            changes = [
                (moved(b.policy, a.policy), moved(b.reference, a.reference)) for a, b in found
            ]
            yield _row(
                f"{name} | {recipe}",
                [residual_movement(objective, p, moved(a.reference, a.reference))
                 for (a, _), (p, _) in zip(found, changes, strict=True)],
                [residual_movement(objective, p, r) for p, r in changes],
                [loss_movement(objective, a, b) for a, b in found],
            )  # fmt: skip


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _row(head: str, *columns: Sequence[float]) -> str:
    return f"| {head} | {' | '.join(over_seeds(column) for column in columns)} |"


def training_table(options: Options) -> Iterator[str]:
    """Validation loss after the updates, and how far it is from that in fp32 on the same seed."""
    yield f"| objective | recipe | validation loss after {options.steps} steps | less fp32's |"
    yield "|---|---|---|---|"
    for name in options.objectives:
        plain = _validations(options, name, "fp32")
        yield f"| {name} | fp32 | {over_seeds([v for v, _ in plain.values()])} | |"
        for recipe in options.recipes:
            found = _validations(options, name, recipe)
            gaps = [found[s][0] - plain[s][0] for s in found if s in plain]
            mark = "" if all(passed for _, passed in found.values()) else " (stopped at step 0)"
            values = over_seeds([value for value, _ in found.values()])
            yield f"| {name} | {recipe}{mark} | {values} | {over_seeds(gaps)} |"


def _validations(options: Options, name: str, recipe: str) -> dict[int, tuple[float, bool]]:
    paths = {seed: train_file(options, name, recipe, seed) for seed in options.seeds}
    read = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.is_file()}
    return {seed: (one["validation"], one["passed_step0"]) for seed, one in read.items()}


# -- the program ----------------------------------------------------------------------------------


def step0_file(options: Options, recipe: str, seed: int) -> Path:
    """What a step-0 job leaves."""
    return options.folder / "step0" / f"{recipe}-{seed}-{options.batches}.safetensors"


def train_file(options: Options, objective: str, recipe: str, seed: int) -> Path:
    """What a training job leaves."""
    return options.folder / "trained" / f"{objective}-{recipe}-{seed}-{options.steps}.json"


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


def demo_material(folder: Path, model: Path | None) -> tuple[Path, Path]:
    """Model and pairs of `make demo`."""
    from examples.film_reviews.inputs import base_model, rated_snippets
    from examples.film_reviews.pairs import Pairing
    from examples.film_reviews.prepare import prepare

    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        base_model(folder / "base-hf")
    prepare(rated_snippets(), folder / "data", Pairing())
    return model or folder / "base-hf", folder / "data"


def _options(argv: list[str] | None) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fp8_rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/fp8_rehearsal"), help="default: %(default)s")
    add("--model", type=Path, help="Hugging Face directory; default: the demo's")
    add("--steps", type=int, default=30, help="updates; 0: step 0 alone; default: %(default)s")
    add("--seeds", type=int, default=3, help="how many, from 1 on; default: %(default)s")
    add("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    recipes = list(REHEARSALS.values())
    add("--recipes", nargs="+", choices=recipes, default=recipes)
    add("--batches", type=int, default=4, help="of 8 pairs, at step 0; default: %(default)s")
    add("--limit-validation", type=int, default=2, help="batches; default: %(default)s")
    add("--tables", action="store_true", help="run nothing, print what is there")
    add("--job", help=argparse.SUPPRESS)
    add("--no-gate", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    folder = given.folder.absolute()
    if given.job or given.tables:
        model, data = given.model or folder / "base-hf", folder / "data"
    else:
        model, data = demo_material(folder, given.model)
    options = Options(
        folder, model.absolute(), data, given.steps, tuple(range(1, given.seeds + 1)),
        tuple(given.objectives), tuple(given.recipes), given.batches, given.limit_validation,
    )  # fmt: skip
    return options, given


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the tables.

    Raises:
        UserError: a job failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options, given = _options(argv)
    todo = list(jobs(options, gate=not given.no_gate))
    if given.job:
        quiet_libraries()
        next(act for name, _, act in todo if name == given.job)()
        return
    arguments = sys.argv[1:] if argv is None else argv
    for name, path, _ in [] if given.tables else todo:
        if path.is_file():
            continue
        print(f"job: {name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.fp8_rehearsal", *arguments, "--job", name]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"job {name} failed; the same command begins with it again")
    for line in step0_tables(options):
        print(line)
    if options.steps:
        print()
        for line in training_table(options):
            print(line)


if __name__ == "__main__":
    main()
