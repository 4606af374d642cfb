"""Whether a stage's results are all there, and a hash of each: what the next ones rely on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from nemo_gdpo.config.generation import GenerateConfig
from nemo_gdpo.config.lora import ADAPTER_CONFIG
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.conversion.atomic import why_incomplete
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.generation.prompts import read_prompts
from nemo_gdpo.generation.rows import parse_row
from nemo_gdpo.generation.store import SKIPPED, read_generations, row_key, shards
from nemo_gdpo.generation.sweep import sampling_points
from nemo_gdpo.io.files import file_sha256
from nemo_gdpo.io.jsonl import read_objects
from nemo_gdpo.rounds.answers import ANSWERS
from nemo_gdpo.rounds.groups import STATS
from nemo_gdpo.rounds.metrics import METRICS
from nemo_gdpo.rounds.plan import Stage
from nemo_gdpo.rounds.score import SCORES
from nemo_gdpo.rounds.settings import Settings

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def why_unfinished(settings: Settings, stage: Stage) -> str | None:
    """What is missing of a stage's results; None where all are there.

    Weights are judged by names and sizes. Everything else here is written whole or not at all, so
    that what is there is complete.
    """
    if stage.kind == "generate":
        return _missing_samples(settings.generate(stage.round))
    if stage.kind == "train":
        return _missing_models(settings.train(stage.round))
    return next((f"{path} is missing" for path in files_of(settings, stage) if not path.is_file()),
                None)  # fmt: skip


def files_of(settings: Settings, stage: Stage) -> list[Path]:
    """The files of a stage that scores or makes training data, the last one written last."""
    place = settings.place(stage)
    if stage.kind == "score":
        return [place / name for name in (ANSWERS, SCORES, METRICS)]
    return [settings.pairs(stage.round), place / STATS]


def _missing_samples(config: GenerateConfig) -> str | None:
    directory, prompts = Path(config.output_dir), Path(str(config.data.prompts_path))
    if not shards(directory) or not prompts.is_file():
        return f"{directory} has no samples"
    there = {row_key(row, where) for where, row in read_generations(directory)}
    skipped = directory / SKIPPED
    left_out = (
        {plain["id"] for _, _, plain in read_objects(skipped)} if skipped.is_file() else set()
    )
    for given in read_prompts(prompts):
        for point in sampling_points(config.generation):
            if given.id not in left_out and (given.id, point) not in there:
                return f"{directory} has no sample of {given.id!r} at {point.label()}"
    return None


def models_of(config: RunConfig) -> list[Path]:
    """What a round's training writes for the next ones."""
    output = Path(config.output_dir)
    adapter = [output / "peft"] if config.lora.is_exported else []
    return [*adapter, *([output / "hf"] if config.export_hf else [])]


def _missing_models(config: RunConfig) -> str | None:
    for directory in models_of(config):
        reason = why_incomplete(directory) if directory.is_dir() else "it does not exist"
        if reason is not None:
            return f"{directory}: {reason}"
    return None


def fingerprints(settings: Settings, stage: Stage) -> dict[str, str]:
    """Name -> SHA-256 of each result, whatever order rows were finished in."""
    if stage.kind == "generate":
        return {"samples": _samples_hash(settings.place(stage))}
    if stage.kind == "train":
        found = {}
        for directory in models_of(settings.train(stage.round)):
            is_adapter = (directory / ADAPTER_CONFIG).is_file()
            found[directory.name] = (
                file_sha256(directory / ADAPTER_WEIGHTS)
                if is_adapter
                else weights_fingerprint(directory)
            )
        return found
    return {path.name: file_sha256(path) for path in files_of(settings, stage)[:-1]}


def _samples_hash(directory: Path) -> str:
    """Of texts and ends: log-probabilities may differ in the last digit with what shared a
    batch."""
    return _hash_of(
        json.dumps([row.id, row.sampling.to_dict(), row.prompt, row.outputs, row.finish_reasons])
        for row, _ in (parse_row(plain, where) for where, plain in read_generations(directory))
    )


def _hash_of(lines: Iterable[str]) -> str:
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()
