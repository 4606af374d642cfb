"""What every arm trains: one model, one file of pairs, one set of settings, written once.

The model is random and the pairs are random words, both from seeds, so that nothing is downloaded.
The tokenizer has a word for every row of the embedding.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nemo_gdpo.gpu_check.lengths import (
    DIALOGUES,
    INSTRUCTIONS,
    LONGEST,
    SUMMARIES,
    Lengths,
    draw_lengths,
)

SPECIAL = ("<bos>", "<eos>", "<user>", "<assistant>")
TEMPLATE = (
    "<bos>{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
AROUND_PROMPT, AROUND_RESPONSE = 4, 1
"""Special tokens that the template adds."""
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Settings:
    """What the arms have to agree on. Batches count pairs, learning rate and decay are AdamW's."""

    precision: str
    device: str
    """`cpu` (one thread) or `cuda`."""
    batch: int
    micro: int
    """In one forward pass, where rows are padded."""
    updates: int
    """All of them, the first `warm_ups` are not timed."""
    warm_ups: int = 1
    short_warm_ups: bool = False
    """The pairs of updates that are not timed are short."""
    max_length: int = LONGEST
    beta: float = 0.1
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0

    @property
    def pairs(self) -> int:
        """In the file: no pair comes twice."""
        return self.batch * self.updates


@dataclass(frozen=True)
class Workload:
    """A model's shape, the pairs' lengths, and the settings of training."""

    lengths: Lengths
    model: dict[str, Any]
    """Fields of transformers' `LlamaConfig`."""
    settings: Settings
    loss_tolerance: float
    """Within which the losses of an update must agree."""
    is_even: bool = False
    """All pairs have these very lengths, which are no means."""


def _llama(**fields: Any) -> dict[str, Any]:
    return {"max_position_embeddings": LONGEST, "bos_token_id": 0, "eos_token_id": 1, **fields}


SMALL = _llama(
    hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, head_dim=64, vocab_size=49152, tie_word_embeddings=False,
)  # fmt: skip
LLAMA32_1B = _llama(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, vocab_size=128256, tie_word_embeddings=True,
)  # fmt: skip
"""meta-llama/Llama-3.2-1B's config.json, without its scaling of rope."""
TINY = LLAMA32_1B | {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048,
}  # fmt: skip
WORKLOADS = {
    "quick": Workload(
        Lengths(12, 10, 9), TINY,
        Settings("fp32", "cpu", batch=8, micro=4, updates=3, max_length=128, lr=1e-3), 1e-4,
    ),
    "cpu": Workload(
        DIALOGUES, SMALL, Settings("fp32", "cpu", batch=16, micro=4, updates=3), 1e-4
    ),
    "gpu": Workload(
        INSTRUCTIONS, LLAMA32_1B,
        Settings("bf16", "cuda", batch=32, micro=4, updates=6, warm_ups=2, lr=1e-5), 1e-2,
    ),
}  # fmt: skip


MIXES = {"dialogues": DIALOGUES, "instructions": INSTRUCTIONS, "summaries": SUMMARIES}
"""Lengths like those of HH, UltraFeedback and TL;DR."""
CELL = 5.6e8
"""Logits of a timed update of a cell, at most: about 90 CPU seconds of TRL's."""
MOST_PAIRS, FEWEST_PAIRS = 16, 2
SHORT = Lengths(8, 8, 8)


def cell(work: Workload, mix: str | None, vocabulary: int | None) -> Workload:
    """The workload with other lengths, another vocabulary, or both, in about the same time.

    One update is timed, of fewer pairs the more a pair takes, after one of short pairs.

    Args:
        work: what to start from; as it is where nothing else is asked for.
        mix: name in `MIXES`.
        vocabulary: rows of the embedding.
    """
    if mix is None and vocabulary is None:
        return work
    model = work.model if vocabulary is None else work.model | {"vocab_size": vocabulary}
    lengths = work.lengths if mix is None else MIXES[mix]
    pairs = int(CELL / (lengths.useful * model["vocab_size"])) // 2 * 2
    batch = max(FEWEST_PAIRS, min(pairs, MOST_PAIRS, work.settings.batch))
    micro = work.settings.micro if batch % work.settings.micro == 0 else FEWEST_PAIRS
    settings = replace(
        work.settings, batch=batch, micro=micro, updates=2, warm_ups=1, short_warm_ups=True
    )
    return replace(work, lengths=lengths, model=model, settings=settings)


def prepare(name: str, folder: Path, work: Workload | None = None) -> Workload:
    """Write model, tokenizer, pairs and settings below `folder`, unless they are there.

    Args:
        name: of a workload; what the results call it.
        folder: new, or what this wrote.
        work: what it is, where it is not the one of that name.
    """
    work = work or WORKLOADS[name]
    whole = {"workload": name, "lengths": asdict(work.lengths), "model": work.model}
    described = json.dumps(whole | asdict(work.settings), indent=1) + "\n"
    done = folder / SETTINGS
    if not done.is_file() or done.read_text(encoding="utf-8") != described:
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        _write_model(work, folder / "model")
        _write_pairs(work, folder / "pairs.jsonl")
        done.write_text(described, encoding="utf-8")
    return work


def _write_model(work: Workload, folder: Path) -> None:
    """Weights of standard deviation 0.02, norms of one, in the precision of training."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    dtype = torch.float32 if work.settings.precision == "fp32" else torch.bfloat16
    config = LlamaConfig(**work.model, dtype=str(dtype).removeprefix("torch."))
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.ones(parameter.shape, dtype=dtype)
        if parameter.dim() == 1
        else torch.empty(parameter.shape).normal_(0.0, 0.02, generator=draw).to(dtype)
        for name, parameter in sorted(shapes.named_parameters())
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(shapes).__name__]
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=1).save_pretrained(folder)
    _tokenizer(work.model["vocab_size"]).save_pretrained(folder)


def _tokenizer(size: int) -> Any:
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL))))
    core = tokenizers.Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _lengths(work: Workload) -> list[Lengths]:
    """Of the pairs, in their order."""
    settings = work.settings
    short = settings.batch * settings.warm_ups if settings.short_warm_ups else 0
    count = settings.pairs - short
    drawn = [work.lengths] * count if work.is_even else draw_lengths(work.lengths, count, 1)
    return [SHORT] * short + drawn


def _write_pairs(work: Workload, path: Path) -> None:
    """Random words, as many as `draw_lengths` says, cut to `max_length`."""
    draw = random.Random(9)
    most = work.settings.max_length // 2

    def words(tokens: int, around: int) -> str:
        count = max(1, min(tokens, most) - around)
        known = work.model["vocab_size"] - len(SPECIAL)
        return " ".join(f"w{draw.randrange(known)}" for _ in range(count))

    rows = [
        {
            "id": str(number),
            "prompt": [{"role": "user", "content": words(one.prompt, AROUND_PROMPT)}],
            "chosen": [{"role": "assistant", "content": words(one.chosen, AROUND_RESPONSE)}],
            "rejected": [{"role": "assistant", "content": words(one.rejected, AROUND_RESPONSE)}],
        }
        for number, one in enumerate(_lengths(work))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
