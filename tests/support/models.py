"""Tiny random models, made and saved by transformers: one of every family, and Llamas.

Importable without pytest: ranks and tests both read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.support.tiers import usual
from tests.support.tokenizers import LLAMA3, build_tokenizer

VOCAB, END = 101, 2
"""101 is prime: every tensor-parallel size pads it."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": None,
}
WINDOW = 5
"""Far shorter than the sequences of the tests, so that a window that is missing shows."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Kind:
    """One model: a configuration class of transformers, and what it is given besides `SHAPE`."""

    config: type[PreTrainedConfig]
    changes: dict[str, Any]
    norm_mean: float = 1.0
    """Around which norm weights are drawn: Gemma stores them minus one."""


_GEMMA2 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 10,
    "sliding_window": WINDOW,
    # Small enough to bend the scores and logits of these models.
    "attn_logit_softcapping": 0.7,
    "final_logit_softcapping": 3.0,
}
_GEMMA3 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 10,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    },
}
KINDS: dict[str, Kind] = {
    "llama_tied": Kind(LlamaConfig, {"tie_word_embeddings": True}),
    "llama_untied": Kind(LlamaConfig, {"tie_word_embeddings": False, "head_dim": 24}),
    "llama_linear": Kind(
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama_llama3": Kind(LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "llama_yarn": Kind(LlamaConfig, {"rope_parameters": YARN_ROPE}),
    # The tests' sequences are longer than the model's own length.
    "llama_dynamic": Kind(
        LlamaConfig,
        {
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "mistral": Kind(MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": Kind(Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2_windows": Kind(
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": Kind(Qwen3Config, {"head_dim": 24}),
    "gemma": Kind(GemmaConfig, {"head_dim": 24}, norm_mean=0.0),
    "gemma2": Kind(Gemma2Config, _GEMMA2, norm_mean=0.0),
    "gemma3": Kind(Gemma3TextConfig, _GEMMA3, norm_mean=0.0),
    "gemma3_untied": Kind(
        Gemma3TextConfig,
        {**_GEMMA3, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},
        norm_mean=0.0,
    ),
}

STORED_IN_BF16 = "stored_in_bf16"
"""Name of a further model, `llama_untied` with its weights in bfloat16."""
_ALL = (*KINDS, STORED_IN_BF16)
_BOTH = ("fp32", "bf16")
_ON_PARTS = tuple(usual(_ALL, {"llama_tied", "qwen2", "gemma3_untied"}.__contains__))
"""Models on meshes whose splits another mesh combines: `make test-all` has all of them there."""
MESHES: dict[int, dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]]] = {
    1: {"alone": ({"vocab_divisible_by": 16}, _ALL, _BOTH)},
    4: {
        "TP2 PP2": ({"tensor": 2, "pipeline": 2, "vocab_divisible_by": 16}, _ALL, _BOTH),
        # 101 tokens in 256 rows: the second rank holds padding only.
        "TP2": ({"tensor": 2, "vocab_divisible_by": 128}, _ON_PARTS, ("fp32",)),
        "PP2": ({"pipeline": 2, "vocab_divisible_by": 16}, _ON_PARTS, ("fp32",)),
        "PP2 VPP2": (
            {"pipeline": 2, "virtual_pipeline": 2, "vocab_divisible_by": 96},
            ("llama_tied", "gemma3_untied"),
            _BOTH,
        ),
    },
}
"""Ranks -> meshes on which weights are compared: fields of `ParallelLayout`, models, precisions."""

NO_WINDOWS: dict[str, Any] = {"layer_windows": None}
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "llama_linear": {"rope scaling": {"rotary_scaling": None}},
    "llama_llama3": {"rope scaling": {"rotary_scaling": None}},
    "llama_yarn": {
        "rope scaling": {"rotary_scaling": None},
        "attention factor": {"rotary_scaling": {**YARN_ROPE, "attention_factor": 1.0}},
    },
    "llama_dynamic": {"rope scaling": {"rotary_scaling": None}},
    "mistral": {"windows": NO_WINDOWS, "size of window": {"layer_windows": [WINDOW + 1] * 4}},
    "qwen2_windows": {
        "windows": NO_WINDOWS,
        "layers of windows": {"layer_windows": [WINDOW, WINDOW, None, None]},
    },
    "gemma": {
        "scale of embeddings": {"embedding_scale": None},
        "zero-centred norms": {"zero_centered_norms": False},
        "activation": {"activation": "silu"},
    },
    "gemma2": {
        "soft-cap of scores": {"attention_softcap": None},
        "soft-cap of logits": {"logit_softcap": None},
        "scale of queries": {"softmax_scale": None},
        "windows": NO_WINDOWS,
        "layers of windows": {"layer_windows": [None, WINDOW] * 2},
    },
    "gemma3": {
        "rope base of windowed layers": {"local_rotary_base": None},
        "rope scaling": {"rotary_scaling": None},
        "scale of queries": {"softmax_scale": None},
        "windows": NO_WINDOWS,
    },
}
"""Kind -> feature -> the fields of the description that switch it off."""


def configuration(kind: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a kind, with fields changed."""
    one = KINDS[kind]
    return one.config(**{**SHAPE, **one.changes, **changes})


def build(kind: str, *, seed: int = 11, **changes: Any) -> PreTrainedModel:
    """A model with random values in every tensor, norms and biases too; eager attention."""
    config = configuration(kind, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            is_norm = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(noise * (0.2 if is_norm else 0.1) + KINDS[kind].norm_mean * is_norm)
    model.generation_config = GenerationConfig(eos_token_id=END, max_new_tokens=5)
    return model.eval()


def save(kind: str, directory: Path, *, seed: int = 11, **changes: Any) -> Path:
    """`build` as a Hugging Face directory."""
    build(kind, seed=seed, **changes).save_pretrained(directory)
    return directory


def load(directory: Path) -> PreTrainedModel:
    """A directory by transformers in float32, with the attention that has soft-caps."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def tokens(rows: int = 2, length: int = 40) -> torch.Tensor:
    """Fixed tokens [rows, length], longer than the window and than the original contexts."""
    draw = torch.Generator().manual_seed(3)
    return torch.randint(3, VOCAB, (rows, length), generator=draw)


LLAMA_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""2 layers, 4 heads, 2 KV groups."""


def llama(*, seed: int = 7, scale: float = 0.1, **fields: Any) -> LlamaForCausalLM:
    """A Llama of `LLAMA_SHAPE` and `fields` with random values in every tensor, norms too."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(LLAMA_SHAPE | fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale + (parameter.dim() == 1))
    return model.eval()


def llama3_tokenizer(*, pad: str | None = None) -> Any:
    """A tokenizer with Llama 3's special tokens and chat template, and words of the test data."""
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return build_tokenizer(
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        extra=headers,
        pad=pad,
        template=LLAMA3,
        adds_bos=True,
    )


def save_model(directory: Path, *, seed: int = 7, **changes: Any) -> Path:
    """A Hugging Face directory of `llama`, with a tokenizer that has a chat template."""
    tokenizer = llama3_tokenizer()
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    fields = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop,
    }
    model = llama(seed=seed, **(fields | changes))
    model.generation_config = GenerationConfig(eos_token_id=stop)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
