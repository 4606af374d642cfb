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
from nemo_gdpo.evaluation.metrics.divergence import (
    CausalModel,
    SequenceScores,
    TokenSequence,
    score_batch,
)
from nemo_gdpo.evaluation.models import load_tokenizer, resolve_device
from nemo_gdpo.generation.types import SamplingPoint

ROWS = 256
"""Responses that are sampled at once: more gain nothing on a core."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    text: str
    tokens: tuple[int, ...]
    """The end token included, where it was reached."""
    finished: bool


class CausalLM(CausalModel):
    """A model that is sampled from as well, with its tokenizer.

    Args:
        directory: of Hugging Face, with safetensors; on the GPU where there is one.

    Raises:
        UserError: see `CausalModel`.
    """

    def __init__(self, directory: Path) -> None:
        quiet_transformers()
        super().__init__("model", directory, resolve_device("auto"))
        self.tokenizer = load_tokenizer("model", directory)

    @property
    def network(self) -> Any:
        """The model of transformers."""
        return self._model

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
    cache = DynamicCache(config=lm.network.config)
    step = rows
    for _ in range(max_tokens):
        logits = lm.network(
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


def scores(
    reference: CausalModel,
    policy: CausalModel | None,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
) -> list[SequenceScores]:
    """Log-probabilities of responses to one prompt, and with a policy its exact KL, as `nemo-gdpo
    evaluate` computes them."""
    batch = [TokenSequence(tuple(prompt), tuple(response)) for response in responses]
    return score_batch(reference, policy, batch, SamplingPoint())


@torch.no_grad()
def likeliest(lm: CausalLM, prompt: str, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """The most probable complete responses to a prompt that a beam search finds, at most `count`.

    A beam of four times that number; without a length penalty, so that scores are log p.
    """
    ids = lm.prompt_ids(prompt)
    end = lm.tokenizer.eos_token_id
    out = lm.network.generate(
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
