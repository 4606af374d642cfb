"""Small models and pairs for the stages, the same numbers on every machine.

Weights come from NumPy's generator, whose stream is fixed by its version policy; torch's differs
between devices and releases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

WORDS = tuple(f"w{number}" for number in range(500))
SPECIAL = ("<bos>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "<bos>{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PAIRS = 32
SHAPE: dict[str, Any] = {
    # Sizes that every FP8 recipe can cut over two tensor-parallel ranks.
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": len(WORDS) + len(SPECIAL),
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = 24


@dataclass(frozen=True)
class Family:
    """A model type of transformers, with the fields that make it differ."""

    model_type: str
    fields: dict[str, Any]
    norm_mean: float = 1.0
    """Gemma stores norm weights minus one."""


FAMILIES = {
    "llama": Family("llama", {}),
    "qwen3": Family("qwen3", {}),
    "gemma2": Family(
        "gemma2",
        {
            "query_pre_attn_scalar": 64,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "tie_word_embeddings": True,
        },
        norm_mean=0.0,
    ),
    "gemma3": Family(
        "gemma3_text",
        {
            "query_pre_attn_scalar": 64,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "tie_word_embeddings": True,
        },
        norm_mean=0.0,
    ),
}


def write_model(folder: Path, family: str = "llama") -> Path:
    """A Hugging Face directory with seeded random weights in float32, and a tokenizer of words."""
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    kind = FAMILIES[family]
    config = AutoConfig.for_model(kind.model_type, **{**SHAPE, **kind.fields})
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    draw = np.random.Generator(np.random.PCG64(5))
    tensors = {}
    for name, parameter in sorted(shapes.named_parameters()):
        noise = draw.standard_normal(parameter.shape, dtype=np.float32)
        is_norm = parameter.dim() == 1
        scaled = noise * np.float32(0.1 if is_norm else 0.06) + np.float32(kind.norm_mean * is_norm)
        tensors[name] = torch.from_numpy(scaled)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(shapes).__name__]
    config.save_pretrained(folder)
    generation = GenerationConfig(eos_token_id=1)  # type: ignore[no-untyped-call]
    generation.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    core = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_pairs(path: Path, *, longest: int = 40) -> Path:
    """`PAIRS` preference pairs of random words, of 10 to `longest` words a response."""
    draw = np.random.Generator(np.random.PCG64(9))

    def words(low: int, high: int) -> str:
        return " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), draw.integers(low, high)))

    rows = [
        {
            "id": f"pair-{number}",
            "prompt": [{"role": "user", "content": words(4, 24)}],
            "chosen": [{"role": "assistant", "content": words(10, longest)}],
            "rejected": [{"role": "assistant", "content": words(10, longest)}],
        }
        for number in range(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
