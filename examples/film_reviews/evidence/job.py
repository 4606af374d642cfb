"""One job: train one arm with one seed, measure it along the way, write its record.

`python -m examples.film_reviews.evidence.job --arm dpo-b0.1 --seed 1 ...`, as the experiment does.
A job that was stopped goes on where training stopped. Models are removed once they are measured.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import date
from math import gcd
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence.arms import BY_NAME, Job
from examples.film_reviews.evidence.measure import Kept, Untouched, Values, draw, measure
from examples.film_reviews.evidence.records import BASE, SCHEMA
from examples.film_reviews.evidence.sampling import CausalLM
from examples.film_reviews.evidence.settings import SETTINGS
from examples.film_reviews.evidence.world import World
from examples.film_reviews.pairs import write_atomically
from nemo_gdpo.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER_ERROR, UserError
from nemo_gdpo.io.processes import end_with_parent
from nemo_gdpo.rounds import child as rounds_child

VERB = rounds_child.MODULE
DRAW_SEED = 1000
"""Of the measured responses: a job's seed is added, the same for every arm and update."""


def train_overrides(job: Job, world: World, train_path: Path) -> list[str]:
    """Overrides of `nemo-gdpo train`."""
    s = world.settings
    unpaired = job.arm.data == "unpaired"
    return [
        *job.arm.overrides(),
        "parallel=single",
        "precision=fp32",
        f"model.restore_from_path={world.megatron}",
        f"model.global_batch_size={s.batch}",
        f"model.micro_batch_size={s.micro_batch}",
        f"data.train_path={train_path}",
        f"data.format={'unpaired' if unpaired else 'trl'}",
        f"data.validation_path={'null' if unpaired else world.data(job.seed) / 'validation.jsonl'}",
        "data.max_prompt_length=32",
        "data.max_length=96",
        "data.truncation_mode=error",
        f"data.seed={job.seed}",
        f"seed={job.seed}",
        f"optim.lr={s.learning_rate}",
        f"optim.sched.warmup_steps={s.warmup}",
        "optim.sched.name=constant",
        f"trainer.max_steps={s.updates}",
        f"trainer.save_interval={gcd(*s.saves)}",
        f"trainer.keep_checkpoints={s.updates}",
        "logger.tensorboard=false",
        "export_hf=false",
        f"output_dir={world.job_dir(job) / 'train'}",
    ]


def train_path(job: Job, world: World) -> Path:
    """The pairs to train on: the seed's, selected ones, or a random draw of as many as another arm
    asked labels for.

    Raises:
        UserError: that arm has no record.
    """
    directory = world.data(job.seed)
    source = job.arm.labels_of
    if source is None:
        name = "train" if job.arm.data == "pairs" else job.arm.data
        return directory / f"{name}.jsonl"
    other = world.known(Job(BY_NAME[source], job.seed))
    if other is None:
        raise UserError(f"{job.name}: needs the record of {source}, which is not finished")
    lines = (directory / "train.jsonl").read_text().splitlines()
    # An update takes a whole batch of different pairs; the record says how many it was.
    asked = min(max(int(other["labels"]), world.settings.batch), len(lines))
    drawn = sorted(random.Random(job.seed).sample(range(len(lines)), asked))
    path = world.job_dir(job) / "pairs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines[index] + "\n" for index in drawn))
    return path


class Child:
    """The running command: a signal to this process goes on to it."""

    def __init__(self) -> None:
        self.running: subprocess.Popen[bytes] | None = None
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        self.stopped = True
        if self.running is not None:
            self.running.terminate()
        else:
            raise SystemExit(EXIT_REQUEUE)

    def run(self, *arguments: str) -> None:
        """A command of nemo-gdpo, to its end; its output goes to this process's.

        Raises:
            SystemExit: it failed, or was stopped.
        """
        # By the module whose process ends with this one: it would hold the run's directory.
        self.running = subprocess.Popen([sys.executable, "-m", VERB, *arguments])
        status = self.running.wait()
        self.running = None
        if self.stopped:
            raise SystemExit(EXIT_REQUEUE)
        if status:
            raise SystemExit(EXIT_FAILED)


def run(job: Job, world: World, child: Child) -> None:
    """Do all of it; the record is written last."""
    from nemo_gdpo.conversion.convert import convert_megatron_to_hf

    seconds: dict[str, float] = {}
    directory = world.job_dir(job)
    directory.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"pairs": 0, "labels": 0, "seconds": seconds}
    models = [(0, world.model)]
    if job.arm.objective:
        began = time.monotonic()
        pairs = train_path(job, world)
        child.run("train", *train_overrides(job, world, pairs))
        seconds["train"] = round(time.monotonic() - began, 1)
        facts |= _trained(directory / "train", pairs)
        models = []
        for update in world.settings.saves:
            target = directory / f"hf-{update}"
            checkpoint = directory / "train" / "checkpoints" / f"step_{update:08d}"
            convert_megatron_to_hf(checkpoint, target)
            models.append((update, target))
    began = time.monotonic()
    lm = CausalLM(world.model)
    untouched = world.untouched(lm, CausalLM(world.other))
    points = [point for m in models for point in _measured(job, world, untouched, *m)]
    seconds["measure"] = round(time.monotonic() - began, 1)
    record = {
        "schema": SCHEMA,
        "identity": world.identity(job),
        "arm": job.arm.name,
        "family": job.arm.family,
        "seed": job.seed,
        "model": world.fingerprint(),
        "day": date.today().isoformat(),
        **facts,
        "prompts": world.prompts(),
        "points": points,
    }
    world.records_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(world.record(job), json.dumps(record, allow_nan=False) + "\n")
    shutil.rmtree(directory / "train" / "checkpoints", ignore_errors=True)
    for _, model in models:
        if model != world.model:
            shutil.rmtree(model)


def _trained(output_dir: Path, pairs: Path) -> dict[str, Any]:
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    number = sum(1 for _ in pairs.open())
    asked = last.get("adpo/queries_total")
    names = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")
    return {
        "pairs": number,
        "labels": number if asked is None else int(asked),
        "last": {name: round(last[name], 5) for name in names if name in last},
    }


def _measured(
    job: Job, world: World, untouched: Untouched, update: int, model: Path
) -> list[dict[str, Any]]:
    """One point for each temperature."""
    s = world.settings
    is_base = job.arm.name == BASE
    temperatures = s.temperatures if is_base else (1.0,)
    if job.arm.scaled and update == s.saves[-1]:
        temperatures += s.last_temperatures
    lm = untouched.lm if is_base else CausalLM(model)
    kept_path = world.kept(job.seed)
    # Temperature 1 first: the others are compared with it.
    points = []
    for temperature in sorted(temperatures, key=lambda t: t != 1.0):
        sampled = draw(
            lm,
            world.prompts(),
            untouched,
            responses=s.responses,
            temperature=temperature,
            max_tokens=s.max_tokens,
            seed=DRAW_SEED + job.seed,
        )
        plain = temperature == 1.0
        if is_base and plain:
            kept_path.parent.mkdir(parents=True, exist_ok=True)
            sampled.save(kept_path)
        kept = None if is_base and plain else Kept.load(kept_path)
        values: Values = measure(lm, world.prompts(), sampled, untouched, kept, exact=plain)
        points.append(
            {
                "update": update,
                "temperature": temperature,
                "responses": s.responses,
                "metrics": values,
            }
        )
    return points


def main(argv: list[str] | None = None) -> int:
    """Run one job; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True, choices=list(BY_NAME))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--profile", required=True, choices=list(SETTINGS))
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--records-dir", required=True, type=Path)
    options = parser.parse_args(argv)
    world = World(options.run_dir, options.records_dir, options.profile)
    end_with_parent(signal.SIGTERM)
    try:
        run(Job(BY_NAME[options.arm], options.seed), world, Child())
    except UserError as error:
        print(f"experiment: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
