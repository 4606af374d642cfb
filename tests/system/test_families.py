"""`train` from a Hugging Face directory to an export, for families that are not Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from tests.support import models
from tests.support.commands import Result, common, metrics, several, steps
from tests.support.data import pairs, write_jsonl
from tests.support.tokenizers import GEMMA, build_tokenizer

CASES = {
    # Its gate: (alpha * rejected_log_reward)^2, the policy being its reference.
    "gemma2": ("objective=gdpo", 64.0),
    "gemma3": ("objective=dpo", 0.693147),
    "qwen3": ("objective=dpo", 0.693147),
}


def save_with_tokenizer(kind: str, directory: Path) -> Path:
    """A model of the zoo with a Gemma-like tokenizer and chat template."""
    tokenizer = build_tokenizer(
        bos="<bos>",
        eos="<eos>",
        extra=["<start_of_turn>", "<end_of_turn>"],
        template=GEMMA,
        adds_bos=True,
    )
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model = models.build(kind, vocab_size=len(tokenizer), eos_token_id=stop)
    model.generation_config = GenerationConfig(eos_token_id=stop)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train-families")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, Result]:
    data = write_jsonl(root / "pairs.jsonl", pairs(12))
    cases = {}
    for kind, (objective, _) in CASES.items():
        model = save_with_tokenizer(kind, root / kind / "hf")
        run = common(model, data, root / kind / "run", objective, *steps(2))
        cases[kind] = ["train", *run, "export_hf=true"]
    return several(root / "logs", cases)


@pytest.mark.parametrize("kind", CASES)
def test_it_trains_from_its_own_reference_and_the_export_reloads(
    runs: dict[str, Result], root: Path, kind: str
) -> None:
    assert runs[kind].status == 0, runs[kind].err[-3000:]
    entries = metrics(root / kind / "run")
    assert entries[0]["loss"] == pytest.approx(CASES[kind][1], rel=1e-5)
    assert [entry["step"] for entry in entries] == [0, 1]
    before = load_file(root / kind / "hf" / "model.safetensors")
    after = load_file(root / kind / "run" / "hf" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    model = models.load(root / kind / "run" / "hf")
    with torch.no_grad():
        assert model(models.tokens() % model.config.vocab_size).logits.isfinite().all()
