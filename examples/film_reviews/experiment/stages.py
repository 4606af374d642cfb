"""What one job does: labels, reference, training, sampling, evaluation, each by `nemo-gdpo`.

A job leaves `job.json` when it is done. The next call skips a job whose file names the same
settings, and lets the commands themselves resume where an unfinished one stopped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.film_reviews.experiment.arms import Job, needed
from examples.film_reviews.experiment.settings import Settings

DONE = "job.json"
VERSION = 1
"""Raised when a stage changes so that earlier results no longer compare."""


class StageError(RuntimeError):
    """A command failed; the message names its log."""


class StoppedError(RuntimeError):
    """A signal asked to stop."""


class Children:
    """The commands that are running, so that a signal reaches all of them."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """Ask every command to stop, and start no other."""
        self.stopped = True
        for child in list(self._running):
            child.terminate()

    def run(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        """Run to the end.

        Raises:
            StoppedError: a signal came.
            StageError: the command failed.
        """
        if self.stopped:
            raise StoppedError
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode())
            stream.flush()
            child = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
            with self._lock:
                self._running.add(child)
            try:
                if self.stopped:
                    child.terminate()
                status = child.wait()
            finally:
                self._running.discard(child)
        if self.stopped:
            raise StoppedError
        if status:
            raise StageError(f"status {status}: {_last_words(log)} (complete output: {log})")


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("nemo-gdpo: ")]
    return (said or lines or ["no output"])[-1][-400:]


@dataclass
class World:
    """Everything that jobs share."""

    run_dir: Path
    settings: Settings
    base: Path
    """Hugging Face directory of the untouched model."""
    megatron: Path
    """The same, converted."""
    prompts: Path
    train_overrides: tuple[str, ...] = ()
    """Settings of the machine: mesh, precision, logger."""
    generate_overrides: tuple[str, ...] = ()
    keep_models: bool = False
    children: Children = field(default_factory=Children)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def job_dir(self, job: Job) -> Path:
        return self.run_dir / "arms" / job.name

    def data_dir(self, seed: int) -> Path:
        """Pairs drawn and put in order with this seed."""
        return self.run_dir / "data" / f"seed-{seed}"

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """One job at a time makes what several share."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    def command(self, log: Path, *arguments: str) -> None:
        """Run a verb of nemo-gdpo with one thread."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.children.run([sys.executable, "-m", "nemo_gdpo.cli", *arguments], log, environment)


def identity(job: Job, world: World) -> dict[str, Any]:
    """Settings that have to be the same for a finished job to count."""
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "version": VERSION,
                "arm": job.arm.name,
                "objective": job.arm.objective,
                "seed": job.seed,
                "settings": world.settings.plain(),
                "model": model_stamp(world.base),
                "overrides": [*world.train_overrides] if job.arm.objective else [],
            }
        )
    )
    return plain


def model_stamp(directory: Path) -> str:
    """Size of the weights and the configuration's text: another model has another."""
    sizes = sorted((p.name, p.stat().st_size) for p in directory.glob("*.safetensors"))
    return json.dumps([sizes, json.loads((directory / "config.json").read_text())], sort_keys=True)


def finished(job: Job, world: World) -> dict[str, Any] | None:
    """Notes of a finished job, or None."""
    path = world.job_dir(job) / DONE
    if not path.is_file():
        return None
    noted: dict[str, Any] = json.loads(path.read_text())
    return noted if noted["identity"] == identity(job, world) else None


def run_job(job: Job, world: World) -> dict[str, Any]:
    """Run all stages; returns what was noted, seconds of each stage among it.

    Raises:
        StageError: a command failed.
        StoppedError: a signal came.
    """
    directory = world.job_dir(job)
    _forget_other_settings(directory, identity(job, world))
    seconds: dict[str, float] = {}
    noted: dict[str, Any] = {"identity": identity(job, world), "seconds": seconds}
    model = world.base
    if job.arm.objective:
        train_path = _pairs(job, world)
        noted["pairs"] = sum(1 for _ in train_path.open())
        with _timed(seconds, "reference"):
            _reference(job, world, train_path)
        with _timed(seconds, "train"):
            _train(job, world, train_path)
        noted["last_step"] = _last_step(directory / "train")
        model = directory / "train" / "hf"
    with _timed(seconds, "generate"):
        _generate(job, world, model)
    with _timed(seconds, "evaluate" if job.arm.objective else "evaluate base"):
        _evaluate(job, world, model)
    if job.arm.objective:
        _tidy(directory / "train", keep_model=world.keep_models)
    temporary = directory / f".{DONE}"
    temporary.write_text(json.dumps(noted, indent=1) + "\n")
    temporary.replace(directory / DONE)
    return noted


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - begun, 1)


def _forget_other_settings(directory: Path, wanted: dict[str, Any]) -> None:
    """Remove what a job with other settings left: it cannot be resumed."""
    note = directory / "settings.json"
    if directory.exists() and (not note.is_file() or json.loads(note.read_text()) != wanted):
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted, indent=1) + "\n")


def _pairs(job: Job, world: World) -> Path:
    """The pairs to train on: all, or a random draw of as many as another arm asked labels for."""
    everything = world.data_dir(job.seed) / "train.jsonl"
    source = needed(job)
    if source is None:
        return everything
    other = finished(source, world)
    if other is None:
        raise StageError(f"{job.name} needs {source.name}, which is not finished")
    asked = int(other["last_step"]["adpo/queries_total"])
    lines = everything.read_text().splitlines()
    drawn = sorted(random.Random(job.seed).sample(range(len(lines)), min(asked, len(lines))))
    path = world.job_dir(job) / "pairs.jsonl"
    path.write_text("".join(lines[index] + "\n" for index in drawn))
    return path


def _train_overrides(job: Job, world: World, train_path: Path) -> list[str]:
    settings = world.settings
    own_pairs = job.arm.labels_of is not None
    cache = (
        world.job_dir(job) / "reference"
        if own_pairs
        else world.run_dir / "reference" / f"seed-{job.seed}" / job.arm.cache.replace("+", "-")
    )
    return [
        "experiment=demo",
        *job.arm.overrides(),
        f"model.restore_from_path={world.megatron}",
        f"data.train_path={train_path}",
        f"data.validation_path={world.data_dir(job.seed) / 'validation.jsonl'}",
        f"data.seed={job.seed}",
        f"seed={job.seed}",
        f"model.global_batch_size={settings.batch}",
        f"model.micro_batch_size={settings.micro_batch}",
        f"optim.lr={settings.learning_rate}",
        f"optim.sched.warmup_steps={settings.warmup}",
        f"trainer.max_steps={settings.updates}",
        "trainer.max_epochs=null",
        "logger.tensorboard=false",
        f"reference_cache_dir={cache}",
        f"output_dir={world.job_dir(job) / 'train'}",
        *world.train_overrides,
    ]


def _reference(job: Job, world: World, train_path: Path) -> None:
    overrides = _train_overrides(job, world, train_path)
    (cache,) = (o.split("=", 1)[1] for o in overrides if o.startswith("reference_cache_dir="))
    with world.alone(cache):
        done = Path(cache) / ".done"
        if done.is_file():
            return
        world.command(world.job_dir(job) / "reference.log", "reference", *overrides)
        done.touch()


def _train(job: Job, world: World, train_path: Path) -> None:
    if (world.job_dir(job) / "train" / "hf" / "config.json").is_file():
        return
    overrides = _train_overrides(job, world, train_path)
    world.command(world.job_dir(job) / "train.log", "train", *overrides)


def _last_step(train_dir: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((train_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return entry


def _generate(job: Job, world: World, model: Path) -> None:
    settings = world.settings
    temperatures = ",".join(str(t) for t in settings.temperatures)
    world.command(
        world.job_dir(job) / "generate.log",
        "generate",
        f"model.restore_from_path={model}",
        f"data.prompts_path={world.prompts}",
        f"generation.num_samples={settings.samples}",
        f"generation.temperature=[{temperatures}]",
        f"generation.max_tokens={settings.max_tokens}",
        f"generation.seed={job.seed}",
        f"output_dir={world.job_dir(job) / 'generations'}",
        *world.generate_overrides,
    )


def _evaluate(job: Job, world: World, model: Path) -> None:
    directory, name = world.job_dir(job), job.arm.name
    overrides = [
        f"evaluation.runs={{{name}: {_quoted(directory / 'generations')}}}",
        f"evaluation.reference_model={world.base}",
        f"evaluation.bootstrap.resamples={world.settings.resamples}",
        "evaluation.samples.prompts=8",
        f"output_dir={directory / 'evaluation'}",
    ]
    if job.arm.objective:
        overrides.append(f"evaluation.models={{{name}: {_quoted(model)}}}")
        overrides.append(f"evaluation.training={{{name}: {_quoted(directory / 'train')}}}")
    world.command(directory / "evaluate.log", "evaluate", *overrides)


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _tidy(train_dir: Path, *, keep_model: bool) -> None:
    """Checkpoints are three times the model's size, and there are dozens of jobs."""
    for name in ("checkpoints", "data", "logs", *(() if keep_model else ("hf",))):
        shutil.rmtree(train_dir / name, ignore_errors=True)
