"""Rounds of a tiny model on four prompts, which vLLM samples from on a CPU; how far they came."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.data import write_jsonl
from tests.support.models import save_model

PROMPTS = ("good film", "dull review", "very long", "liked it")


def prepare(place: Path) -> Path:
    """The model and the prompts; returns the folder."""
    save_model(place / "model", head_dim=32)  # the least that vLLM takes on a CPU
    turns = [[{"role": "user", "content": text}] for text in PROMPTS]
    rows = [{"id": f"p{n}", "prompt": turn} for n, turn in enumerate(turns)]
    write_jsonl(place / "prompts.jsonl", rows)
    return place


def overrides(place: Path, output: str, *more: str) -> list[str]:
    """Of `nemo-gdpo rounds`: three updates a round on answers scored by their lengths."""
    return [
        f"model.restore_from_path={place / 'model'}",
        f"rounds.prompts_path={place / 'prompts.jsonl'}",
        f"output_dir={place / output}",
        "rounds.rewards=[{kind: python, entry_point: 'tests.rounds.stand_in:words_of'}]",
        "rounds.encoder=null",
        "generation.num_samples=8",
        "generation.max_tokens=48",
        "generation.logprobs=cumulative",
        # A random model ends by chance only.
        "generation.stop=[e,a]",
        "constraints.max_words=20",
        "model.global_batch_size=4",
        "model.micro_batch_size=2",
        "data.packing=false",
        "data.max_length=96",
        "data.max_prompt_length=48",
        "optim.lr=1e-3",
        "logger.tensorboard=false",
        "trainer.max_steps=3",
        "trainer.max_epochs=null",
        *more,
    ]


def stages_done(output: Path) -> list[str]:
    """As rounds.json has them."""
    path = output / "rounds.json"
    return list(json.loads(path.read_text())["stages"]) if path.is_file() else []
