"""Tiny random Llama models, saved by transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from tests.support.models import llama

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VOCAB = 101
"""No multiple of any padding."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # not hidden_size / num_attention_heads
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
ModelMaker = Callable[..., Path]


def build(**changes: Any) -> LlamaForCausalLM:
    """A model with random weights in every tensor, norms too."""
    return llama(scale=0.2, **(SHAPE | changes))


@pytest.fixture
def make_model(tmp_path: Path) -> ModelMaker:
    """Save a tiny model with tokenizer-like files beside it; returns the directory."""

    def make(
        name: str = "hf",
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "5GB",
        **changes: Any,
    ) -> Path:
        directory = tmp_path / name
        model = build(**changes).to(dtype)
        model.generation_config = GenerationConfig(eos_token_id=2, max_new_tokens=5)
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        (directory / "tokenizer.json").write_text('{"version": "1.0"}')
        (directory / "chat_template.jinja").write_text("{{ messages }}")
        (directory / "LICENSE").write_text("licence text")
        (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
        (directory / "modeling_evil.py").write_text("raise SystemExit")
        return directory

    return make


@pytest.fixture
def logits() -> Callable[[Path], torch.Tensor]:
    """Logits [2, 7, vocab] of a saved model on fixed tokens, by transformers."""

    def compute(directory: Path) -> torch.Tensor:
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokens = torch.arange(14).reshape(2, 7) * 7 % VOCAB
        with torch.no_grad():
            return model(tokens).logits

    return compute
