"""The model that the experiment aligns: a small writer of film snippets, made from scratch.

Llama's architecture with a vocabulary of its own, trained on the rated snippets until held-out text
gets no more likely. It is small enough that hundreds of updates, which cost a model its diversity,
take a minute on one core; and it is the model that the pairs are sampled from, so that preference
data are on-policy. Everything follows from one seed.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.film_reviews.inputs import quiet_transformers, say
from examples.film_reviews.snippets import read_snippets

END, PAD = "</s>", "<pad>"
NOTE = "writer.json"
VERSION = 1


@dataclass(frozen=True)
class Size:
    """Shape and training of a writer."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    intermediate: int = 704
    epochs: int = 6
    """At most: training ends when held-out text gets less likely."""
    batch: int = 64
    learning_rate: float = 2.0e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    """Of the embeddings and of attention: there are ten thousand sentences only."""
    held_out: float = 0.1
    snippets: int | None = None
    """Of the shuffled snippets; None: all."""


def split(source: Path, size: Size, seed: int) -> tuple[list[str], list[str]]:
    """(texts to train on, held-out texts), different ones only, in a seeded order."""
    texts = list(dict.fromkeys(snippet.text for snippet in read_snippets(source)))
    order = np.random.default_rng([seed, 0]).permutation(len(texts))
    texts = [texts[place] for place in order][: size.snippets]
    held = max(1, int(size.held_out * len(texts)))
    return texts[held:], texts[:held]


def make_writer(source: Path, directory: Path, size: Size, seed: int) -> None:
    """Write the model as a Hugging Face directory, unless the same one is there.

    Args:
        source: the vaderSentiment source package.
        directory: of the model; appears when it is complete.
        size: shape and training.
        seed: of the split, the weights and the order.
    """
    wanted = {"version": VERSION, "seed": seed, "source": source.name, **asdict(size)}
    note = directory / NOTE
    if note.is_file() and json.loads(note.read_text())["made of"] == wanted:
        say(f"writer: reused {directory}")
        return
    import torch

    quiet_transformers()
    train, held_out = split(source, size, seed)
    tokenizer = _tokenizer(train, size)
    torch.manual_seed(seed)
    model = _model(tokenizer, size)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(f"writer: {count / 1e6:.1f} M parameters on {len(train)} snippets")
    losses = _train(model, tokenizer, train, held_out, size, seed)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.config.attention_dropout = 0.0  # of this training alone
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    facts = {"made of": wanted, "parameters": count, "held-out nats a token": losses}
    (partial / NOTE).write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _tokenizer(texts: Sequence[str], size: Size) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _model(tokenizer: Any, size: Size) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            attention_dropout=size.dropout,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _batches(
    rows: list[list[int]], batch: int, order: np.random.Generator | None
) -> Iterator[list[list[int]]]:
    """Rows of similar length together; the batches in a drawn order."""
    jitter = order.random(len(rows)) * 8 if order is not None else np.zeros(len(rows))
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]) + jitter[i])
    starts = list(range(0, len(rows), batch))
    if order is not None:
        order.shuffle(starts)
    for start in starts:
        yield [rows[i] for i in by_length[start : start + batch]]


def _loss(model: Any, rows: list[list[int]], pad: int) -> tuple[Any, int]:
    """Summed nats of all tokens but each row's first, and their number."""
    import torch
    from torch.nn import functional

    longest = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in rows])
    logits = model(input_ids=tokens[:, :-1], attention_mask=(tokens[:, :-1] != pad).long()).logits
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total, int((labels >= 0).sum())


def _train(
    model: Any, tokenizer: Any, train: list[str], held_out: list[str], size: Size, seed: int
) -> list[float]:
    """Trains in place and keeps the weights that held-out text likes best; its losses by epoch."""
    import torch

    rows, held = (
        [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
        for texts in (train, held_out)
    )
    order = np.random.default_rng([seed, 1])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=size.weight_decay
    )
    steps = size.epochs * math.ceil(len(rows) / size.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    dropout = torch.nn.Dropout(size.dropout)
    model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: dropout(out) if model.training else out
    )
    best: dict[str, Any] = {}
    losses: list[float] = []
    for epoch in range(size.epochs):
        model.train()
        for batch in _batches(rows, size.batch, order):
            total, count = _loss(model, batch, tokenizer.pad_token_id)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval()
        losses.append(_held_out_loss(model, held, tokenizer.pad_token_id, size.batch))
        say(f"writer: epoch {epoch + 1}: {losses[-1]:.3f} nats a held-out token")
        if losses[-1] > min(losses):
            break
        best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return losses


def _held_out_loss(model: Any, rows: list[list[int]], pad: int, batch: int) -> float:
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for some in _batches(rows, batch, None):
            nats, tokens = _loss(model, some, pad)
            total, count = total + float(nats), count + tokens
    return total / count
