"""Sampling and scoring with a small causal model, many responses at once.

An engine takes longer to start than these models need for thousands of responses, and every run is
measured at several points along its way. So this samples with transformers, in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.film_reviews.inputs import quiet_transformers

ROWS = 256
"""Responses that are sampled at once: more gain nothing on a core."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    text: str
    tokens: tuple[int, ...]
    """The end token included, where it was reached."""
    finished: bool


@dataclass
class CausalLM:
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def load(cls, directory: Path) -> CausalLM:
        """From a Hugging Face directory, in float32; on the GPU where there is one."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        quiet_transformers()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(directory), device)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a text prompt, as training tokenises it."""
        return list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def sample(
    lm: CausalLM,
    prompts: Sequence[str],
    responses: int,
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[list[Response]]:
    """Responses to each prompt, from the plain softmax at a temperature.

    Args:
        prompts: texts.
        responses: to each.
        max_tokens: of a response, its end token included.
        seed: of the draws, which also depend on the order of the prompts.
    """
    ids = [lm.prompt_ids(prompt) for prompt in prompts]
    # Prompts of one length together: without padding no position is masked.
    order = sorted(range(len(prompts)), key=lambda place: len(ids[place]))
    generator = torch.Generator(lm.device).manual_seed(seed)
    found: list[list[Response]] = [[] for _ in prompts]
    jobs = [place for place in order for _ in range(responses)]
    start = 0
    while start < len(jobs):
        length = len(ids[jobs[start]])
        batch = [p for p in jobs[start : start + ROWS] if len(ids[p]) == length]
        rows = torch.tensor([ids[place] for place in batch], device=lm.device)
        for place, tokens in zip(
            batch, _continue(lm, rows, temperature, max_tokens, generator), strict=True
        ):
            end = lm.tokenizer.eos_token_id
            finished = end in tokens
            kept = tokens[: tokens.index(end) + 1] if finished else tokens
            text = lm.tokenizer.decode(kept, skip_special_tokens=True)
            found[place].append(Response(text, tuple(kept), finished))
        start += len(batch)
    return found


def _continue(
    lm: CausalLM, rows: Tensor, temperature: float, max_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """Tokens drawn after each row, with a key-value cache. A row that has ended leaves the batch's
    result alone, and is dropped from the batch when half of it has ended."""
    from transformers import DynamicCache

    end = lm.tokenizer.eos_token_id
    drawn: list[list[int]] = [[] for _ in rows]
    alive = torch.arange(len(rows), device=lm.device)
    cache = DynamicCache(config=lm.model.config)
    step = rows
    for _ in range(max_tokens):
        logits = lm.model(
            input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        for place, value in zip(alive.tolist(), token[:, 0].tolist(), strict=True):
            drawn[place].append(value)
        going = torch.nonzero(token[:, 0] != end)[:, 0]
        if not len(going):
            break
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, token = alive[going], token[going]
        step = token
    return drawn


@torch.no_grad()
def log_softmax_of(lm: CausalLM, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Any:
    """Log-probabilities over the vocabulary at every position of responses to one prompt.

    Returns:
        (log_probs [K, T, V], labels [K, T], mask [K, T]); T is the longest response.
    """
    longest = max(map(len, responses))
    pad = lm.tokenizer.eos_token_id
    rows = [[*prompt, *r, *[pad] * (longest - len(r))] for r in responses]
    tokens = torch.tensor(rows, device=lm.device)
    mask = torch.tensor(
        [[1] * len(r) + [0] * (longest - len(r)) for r in responses], device=lm.device
    ).bool()
    logits = lm.model(input_ids=tokens[:, :-1]).logits[:, len(prompt) - 1 :]
    return logits.log_softmax(-1), tokens[:, len(prompt) :], mask


def sequence_log_probs(
    lm: CausalLM, prompt: Sequence[int], responses: Sequence[Sequence[int]]
) -> Tensor:
    """log p(response | prompt) in nats, [K]."""
    log_probs, labels, mask = log_softmax_of(lm, prompt, responses)
    of_label = log_probs.gather(-1, labels[..., None])[..., 0]
    total: Tensor = (of_label * mask).sum(-1)
    return total


@torch.no_grad()
def likeliest(lm: CausalLM, prompt: str, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """The most probable complete responses to a prompt that a beam search finds, at most `count`.

    A beam of four times that number; without a length penalty, so that scores are log p.
    """
    ids = lm.prompt_ids(prompt)
    end = lm.tokenizer.eos_token_id
    out = lm.model.generate(
        torch.tensor([ids], device=lm.device),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=lm.device),
        do_sample=False,
        num_beams=4 * count,
        num_return_sequences=4 * count,
        length_penalty=0.0,
        early_stopping=False,
        max_new_tokens=max_tokens,
        pad_token_id=end,
    )
    kept = []
    for row in out[:, len(ids) :].tolist():
        if end in row:
            kept.append(tuple(row[: row.index(end) + 1]))
    return list(dict.fromkeys(kept))[:count]
