"""A trained tiny model, exported, and answers sampled from it with vLLM: made once for all tests.

vLLM's CPU engine takes heads of 32 and more, so the model has wider ones than the other tests'.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from nemo_gdpo.generation.store import read_generations
from tests.support.commands import Result, cli, common, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model

NUM_SAMPLES = 4
MAX_TOKENS = 16
PROMPTS: dict[str, Any] = {
    "one": [{"role": "user", "content": "good film"}],
    "two": [
        {"role": "user", "content": "was it long"},
        {"role": "assistant", "content": "very"},
        {"role": "user", "content": "and dull"},
    ],
    "text": "the review was a",
    "text 2": "liked it very much and",
}


@dataclass(frozen=True)
class Trained:
    """Directory in which a training run left its model."""

    output: Path
    data: Path
    prompts: Path

    @property
    def hf(self) -> Path:
        return self.output / "hf"

    @property
    def checkpoint(self) -> Path:
        (found,) = (self.output / "checkpoints").glob("step_*")
        return found

    @cached_property
    def model(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(self.hf, dtype=torch.float32)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.hf)

    def logits(self, token_ids: list[int]) -> Tensor:
        """transformers' logits [tokens, vocabulary]."""
        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0]

    def overrides(self, output: Path, *more: str) -> list[str]:
        """Arguments of `generate`: four prompts at two temperatures, four answers each."""
        return [
            f"model.restore_from_path={self.hf}",
            f"data.prompts_path={self.prompts}",
            f"output_dir={output}",
            f"generation.num_samples={NUM_SAMPLES}",
            "generation.temperature=[0.7,1.0]",
            f"generation.max_tokens={MAX_TOKENS}",
            "generation.seed=3",
            "generation.logprobs=tokens",
            *more,
        ]


Rows = dict[tuple[str, float], dict[str, Any]]


def rows(directory: Path) -> Rows:
    """(prompt id, temperature) -> row; no row occurs twice."""
    found = [row for _, row in read_generations(directory)]
    keyed = {(row["id"], row["sampling"]["temperature"]): row for row in found}
    assert len(keyed) == len(found)
    return keyed


def generate(*overrides: str) -> Result:
    """The command, in a separate process."""
    return cli("generate", *overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two updates of DPO: enough for the export to differ from what training began with."""
    root = tmp_path_factory.mktemp("generating")
    start = save_model(root / "start", head_dim=32)
    data = write_jsonl(root / "pairs.jsonl", pairs(8))
    prompts = write_jsonl(
        root / "prompts.jsonl", [{"id": key, "prompt": text} for key, text in PROMPTS.items()]
    )
    overrides = common(start, data, root / "run", "objective=dpo", *steps(2), "export_hf=true")
    done = cli("train", *overrides, "optim.lr=0.02", "optim.sched.name=constant")
    assert done.status == 0, done.err
    return Trained(root / "run", data, prompts)


@dataclass(frozen=True)
class Sampled:
    """A directory of samples and what the command said."""

    directory: Path
    result: Result

    @cached_property
    def rows(self) -> Rows:
        return rows(self.directory)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "manifest.json").read_text())
        return found


@pytest.fixture(scope="session")
def sampled(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """One uninterrupted run, everything in flight at once."""
    directory = tmp_path_factory.mktemp("sampled") / "out"
    done = generate(*trained.overrides(directory))
    assert done.status == 0, done.err
    return Sampled(directory, done)
