"""Where everything of the experiment lies, and the inputs that its jobs share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.film_reviews.evidence.arms import Job
from examples.film_reviews.evidence.material import openings, write_pairs, write_selected
from examples.film_reviews.evidence.measure import Untouched, encoder, find_modes
from examples.film_reviews.evidence.sampling import CausalLM
from examples.film_reviews.evidence.settings import SETTINGS, Settings
from examples.film_reviews.evidence.writer import Size, make_writer, split
from examples.film_reviews.inputs import base_model, cli, rated_snippets, say
from examples.film_reviews.pairs import write_atomically
from nemo_gdpo.errors import UserError

WRITER_SEED, OTHER_SEED = 1, 2
OTHER = Size(hidden=128, layers=4, heads=2, intermediate=352)
"""A quarter of the writer: it only has to tell sentences from salad."""
VERSION = 1
"""Raised when something changes so that earlier records no longer compare."""


@dataclass(frozen=True)
class World:
    """Directories of one profile."""

    run_dir: Path
    records_dir: Path
    profile: str

    @property
    def settings(self) -> Settings:
        return SETTINGS[self.profile]

    @property
    def model(self) -> Path:
        """The untouched model, as Hugging Face has it."""
        return self.run_dir / "model"

    @property
    def megatron(self) -> Path:
        return self.run_dir / "model-megatron"

    @property
    def other(self) -> Path:
        """An independent model of the same texts, for perplexity."""
        return self.run_dir / "other"

    def data(self, seed: int) -> Path:
        return self.run_dir / "data" / f"seed-{seed}"

    def kept(self, seed: int) -> Path:
        """Responses of the untouched model at temperature 1."""
        return self.run_dir / "kept" / f"seed-{seed}.npz"

    def job_dir(self, job: Job) -> Path:
        return self.run_dir / "jobs" / job.name

    def record(self, job: Job) -> Path:
        return self.records_dir / f"{job.name}.json"

    def prompts(self) -> list[str]:
        """The held-out prompts that everything is measured with."""
        return list(json.loads((self.run_dir / "prompts.json").read_text())["measured"])

    def identity(self, job: Job) -> dict[str, Any]:
        """What has to be the same for a record to count."""
        plain: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "version": VERSION,
                    "profile": self.profile,
                    "arm": job.arm.name,
                    "objective": job.arm.objective,
                    "data": job.arm.data,
                    "seed": job.seed,
                    "settings": self.settings.plain(),
                }
            )
        )
        return plain

    def known(self, job: Job) -> dict[str, Any] | None:
        """The record of a finished job; None without one, or with one of other settings."""
        path = self.record(job)
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        return record if record["identity"] == self.identity(job) else None

    def fingerprint(self) -> str:
        """Of the untouched model's weights: records of different models do not compare."""
        digest = hashlib.sha256()
        for path in sorted(self.model.glob("*.safetensors")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def refuse_other_models(self, done: list[Job]) -> None:
        """Refuse to add to records that another model's runs left.

        Raises:
            UserError: naming one of them.
        """
        own = self.fingerprint()
        for job in done:
            record = self.known(job)
            if record is not None and record["model"] != own:
                raise UserError(
                    f"{self.record(job)}: made from another model than {self.model} (weights "
                    "differ where another processor trained them); add nothing to these records: "
                    "give another --results-dir"
                )

    def untouched(self, lm: CausalLM, other: CausalLM) -> Untouched:
        """The models as measuring takes them."""
        modes = json.loads((self.run_dir / "modes.json").read_text())
        return Untouched(
            lm=lm,
            other=other,
            modes=[[tuple(mode) for mode in found] for found in modes["modes"]],
            mode_log_probs=modes["log_probs"],
            encode=encoder(lm.device),
        )


def make_inputs(world: World, seeds: list[int], selected: bool) -> None:
    """Models, prompts, modes and pairs: what is there is kept.

    Args:
        world: where.
        seeds: that pairs are drawn for.
        selected: whether any arm trains on pairs that are selected for diversity.
    """
    settings = world.settings
    world.run_dir.mkdir(parents=True, exist_ok=True)
    source = rated_snippets()
    size = settings.writer or Size()
    if settings.writer is None:
        base_model(world.model)
    else:
        make_writer(source, world.model, size, WRITER_SEED)
    make_writer(source, world.other, OTHER if world.profile != "quick" else size, OTHER_SEED)
    if not (world.megatron / "model_config.json").is_file():
        cli("convert", "hf-to-megatron", str(world.model), str(world.megatron))
    train, held_out = split(source, size, WRITER_SEED)
    measured = openings(held_out, settings.prompt_words)[: settings.prompts]
    seen = [p for p in openings(train, settings.prompt_words) if p not in set(measured)]
    _write_json(world.run_dir / "prompts.json", {"measured": measured})
    lm = CausalLM(world.model)
    if not (world.run_dir / "modes.json").is_file():
        say(f"modes: the {settings.modes} most probable responses to each prompt")
        found = find_modes(lm, measured, settings.modes, settings.max_tokens)
        _write_json(world.run_dir / "modes.json", found)
    for seed in seeds:
        directory = world.data(seed)
        if not (directory / "unpaired.jsonl").is_file():
            counts = write_pairs(lm, seen, directory, settings, seed)
            say(f"pairs, seed {seed}: {counts.text()}")
        if selected and not (directory / "redipo.jsonl").is_file():
            write_selected(lm, encoder(lm.device), seen, directory, settings, seed)
            say(f"selected pairs, seed {seed}")


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value) + "\n")
