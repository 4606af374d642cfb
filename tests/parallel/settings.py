"""What every case of the launches trains on: tiny random models, pairs of tokens, settings.

Importable without pytest: ranks and tests both read it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.types import TokenizedPair, TokenizedResponse
from tests.support import models
from tests.support.datasets import dataset_of

VOCAB, END, PAD = models.VOCAB, models.END, 0
PAIRS, BATCH, STEPS = 12, 8, 3
"""Three batches of 8 of 12 pairs are two epochs; one batch straddles them."""
CLIP, WEIGHT_DECAY, LEARNING_RATE, BETAS, EPS = 1.0, 0.1, 5e-4, (0.9, 0.95), 1e-6

FAMILIES = ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
MODELS = {
    "tied": "llama_tied",
    "untied": "llama_untied",
    # The original context is shorter than the sequences, so that all three bands are used.
    "llama3": "llama_llama3",
    **{family: family for family in FAMILIES},
}
"""Name here -> kind in `tests.support.models`."""

RANK, ALPHA = 4, 8.0
"""Of adapters."""
ADAPTERS = (f"lora.rank={RANK}", f"lora.alpha={ALPHA}")

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 0.3},
    "ipo": {"name": "ipo", "beta": 0.3},
    "odpo": {"name": "odpo", "beta": 0.3, "alpha": 1.0, "offset": "log1p"},
    "adpo": {"name": "adpo", "beta": 0.3, "gamma": 0.56},
    "gdpo_db": {"name": "gdpo", "balance": "db", "alpha": 0.5, "eos_temperature": 0.7},
    "gdpo_subtb": {"name": "gdpo", "balance": "subtb", "alpha": 0.5, "subtb_lambda": 0.9},
    "gdpo_tb": {"name": "gdpo", "balance": "tb", "alpha": 1.0},
}
"""Name of a setting -> the `objective` section; nothing in it is left to a differing default."""
GROUPED: dict[str, dict[str, Any]] = {
    "gflownet_tb": {"name": "gflownet", "balance": "tb", "beta": 2.0, "reward_temperature": 0.9},
}
"""The same of objectives that compare the answers of a group, which only some cases train on."""


def save_models(folder: Path, kind: str) -> None:
    """Two Hugging Face directories, `reference` and `policy`; the second strays from the first.

    Were they equal, half of the losses would be constants that a wrong log-prob cannot move.
    """
    model = models.build(MODELS[kind])
    model.save_pretrained(folder / kind / "reference")
    draw = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.01)
    model.save_pretrained(folder / kind / "policy")


def adapter(layer: int, target: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    """A and B of one matrix: B is not zero, so that A has a gradient from the first update on.

    Args:
        layer: from 0.
    """
    draw = torch.Generator().manual_seed(7 + 100 * layer + sum(target.encode()))
    return {
        "lora_A": torch.randn(RANK, inputs, generator=draw) * 0.15,
        "lora_B": torch.randn(outputs, RANK, generator=draw) * 0.15,
    }


def _response(draw: random.Random, words: int, *, complete: bool) -> TokenizedResponse:
    ids = tuple(draw.randrange(3, VOCAB) for _ in range(words))
    return TokenizedResponse((*ids, END) if complete else ids, complete)


def dataset(kind: str = "pairs") -> PreferenceDataset:
    """The data of a case.

    Args:
        kind: "pairs"; "weighted", with margins as well; "weights of one"; "rows of pairs", the two
            responses of each as unpaired rows in one place; "unpaired", where other rows share
            a place, the last of them alone; or "groups", pairs that are answers of groups.
    """
    data = _pairs()
    if kind in ("pairs", "groups"):
        return data
    if kind in ("rows of pairs", "unpaired"):
        return dataset_of(_unpaired(data, kind), end_token_id=END, pad_token_id=PAD)
    given = {
        "weighted": lambda number: {"weight": 0.25 + number % 4, "margin": 0.1 * (number % 3)},
        "weights of one": lambda number: {"weight": 1.0},
    }[kind]
    pairs = [replace(pair, **given(number)) for number, pair in enumerate(data)]
    return dataset_of(pairs, end_token_id=END, pad_token_id=PAD)


def _unpaired(data: PreferenceDataset, kind: str) -> list[TokenizedPair]:
    rows = [
        (*one, label)
        for pair in data
        for one, label in zip(pair.sequences, (True, False), strict=True)
    ]
    if kind == "unpaired":  # any with any, and an odd number of them
        random.Random(7).shuffle(rows)
        rows.pop()
    found = []
    for number in range(0, len(rows), 2):
        first, second = rows[number], rows[min(number + 1, len(rows) - 1)]
        found.append(
            TokenizedPair(
                id=data[number // 2].id,
                prompt_ids=first[0],
                chosen=first[1],
                rejected=second[1],
                weight=0.5 if number + 1 == len(rows) else 1.0,
                labels=(first[2], second[2]),
                second_prompt_ids=second[0],
            )
        )
    return found


def _pairs() -> PreferenceDataset:
    """Pairs of unequal lengths; one response is its end token alone, two were cut."""
    draw = random.Random(5)
    pairs = []
    for number in range(PAIRS):
        words = (draw.randrange(2, 14), 0 if number == 3 else draw.randrange(2, 14))
        chosen, rejected = (
            _response(draw, count, complete=(number, side) not in {(5, 0), (7, 1)})
            for side, count in enumerate(words)
        )
        pairs.append(
            TokenizedPair(
                id=f"pair-{number}",
                prompt_ids=(1, *(draw.randrange(3, VOCAB) for _ in range(draw.randrange(1, 10)))),
                chosen=chosen,
                rejected=rejected,
                chosen_score=2.0 + number % 3,
                rejected_score=1.0 - number % 2,
            )
        )
    return dataset_of(pairs, end_token_id=END, pad_token_id=PAD)


def overrides(objective: str) -> list[str]:
    """The configuration that all cases of an objective share."""
    settings = dict((OBJECTIVES | GROUPED)[objective])
    group = settings.pop("name")
    return [
        f"objective={group}",
        *(f"objective.{key}={value}" for key, value in settings.items()),
        "optim=adamw_constant",
        f"optim.lr={LEARNING_RATE}",
        f"optim.weight_decay={WEIGHT_DECAY}",
        f"optim.betas=[{BETAS[0]},{BETAS[1]}]",
        f"optim.eps={EPS}",
        "data.train_path=none.jsonl",
        "data.max_length=64",
        "data.max_prompt_length=32",
        "data.seed=3",
        f"model.global_batch_size={BATCH}",
        "model.micro_batch_size=2",
        "data.packing=false",
        "model.make_vocab_size_divisible_by=16",
        # Smaller than a micro-batch, so that chunks are really put together.
        "model.logprob_chunk_tokens=24",
        f"trainer.gradient_clip_val={CLIP}",
        f"trainer.max_steps={STEPS}",
        "trainer.max_epochs=null",
        "logger.tensorboard=false",
    ]
