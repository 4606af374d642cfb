"""Prompts, and preference pairs sampled from the model that will be aligned.

A prompt is the first words of a snippet: held-out ones to measure with, others to train on. Both
responses of a pair are the model's own, at temperature 1; the reward is VADER's sentiment of the
whole sentence, and the label is drawn by Bradley-Terry, so that a small difference is noted the
wrong way round now and then. Scores state how strong the preference is, |difference of rewards|, in
the direction of the label: a person who prefers the worse answer says so, and how much.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.film_reviews.evidence.measure import Vectors, rewards
from examples.film_reviews.evidence.sampling import CausalLM, Response, sample
from examples.film_reviews.evidence.settings import Settings
from examples.film_reviews.pairs import write_atomically
from nemo_gdpo.config.pairs import PairsSection
from nemo_gdpo.errors import UserError
from nemo_gdpo.evaluation.metrics.diversity import cosine_similarity
from nemo_gdpo.pairing.methods import Candidates, NoPair, mean_distance, pick

LEAST = 0.05
"""Least share of prompts that give a pair; below it the model does not write sentences."""


def openings(texts: Sequence[str], words: int) -> list[str]:
    """The first words of each text, different ones only; of a text that goes on after them."""
    found = [" ".join(text.split()[:words]) for text in texts if len(text.split()) > 2 * words]
    return list(dict.fromkeys(found))


@dataclass
class Counts:
    """What came of the draws."""

    asked: int = 0
    ties: int = 0
    pairs: int = 0
    against_the_reward: int = 0

    def text(self) -> str:
        return (
            f"{self.pairs} pairs of {self.asked} prompts; {self.ties} without a difference in "
            f"reward; {self.against_the_reward} labels against the reward"
        )


def labelled(first: float, second: float, temperature: float, draw: float) -> bool:
    """Whether the first is preferred: Bradley-Terry, with a uniform draw from 0 to 1."""
    return draw < 1.0 / (1.0 + float(np.exp(-(first - second) / temperature)))


def write_pairs(
    lm: CausalLM, prompts: Sequence[str], directory: Path, settings: Settings, seed: int
) -> Counts:
    """train.jsonl, validation.jsonl and unpaired.jsonl of one seed.

    Args:
        lm: the untouched model.
        prompts: to train on, as many as there are; a seed draws its own.
        directory: gets the files.
        settings: how many, and how they are labelled.
        seed: of all draws.

    Raises:
        UserError: the model hardly ever finishes a sentence.
    """
    random = np.random.default_rng([seed, 2])
    wanted = settings.pairs + settings.validation
    rows: list[dict[str, Any]] = []
    counts = Counts()
    while len(rows) < wanted:
        # A fifth more than are missing: some have no difference in reward.
        number = min(len(prompts), int(1.2 * (wanted - len(rows))) + 8)
        some = [prompts[place] for place in random.permutation(len(prompts))[:number]]
        drawn = _sampled(lm, some, 2, settings, seed=int(random.integers(2**31)))
        for prompt, responses in zip(some, drawn, strict=True):
            counts.asked += 1
            row = _pair(f"pair-{len(rows)}", prompt, responses, settings, random.random())
            if row is None:
                counts.ties += 1
            elif len(rows) < wanted:
                rows.append(row)
        if len(rows) < LEAST * counts.asked:
            raise UserError(
                f"{directory}: {len(rows)} of {counts.asked} prompts gave two finished sentences "
                "of different sentiment; the writer needs more training or more tokens"
            )
    counts.pairs = len(rows)
    counts.against_the_reward = sum(row["chosen_reward"] < row["rejected_reward"] for row in rows)
    directory.mkdir(parents=True, exist_ok=True)
    train = rows[: settings.pairs]
    _write(directory / "train.jsonl", train)
    _write(directory / "validation.jsonl", rows[settings.pairs :])
    _write(directory / "unpaired.jsonl", _unpaired(train))
    return counts


def _sampled(
    lm: CausalLM, prompts: Sequence[str], number: int, settings: Settings, *, seed: int
) -> list[list[Response]]:
    return sample(lm, prompts, number, temperature=1.0, max_tokens=settings.max_tokens, seed=seed)


def _pair(
    name: str, prompt: str, responses: Sequence[Response], settings: Settings, draw: float
) -> dict[str, Any] | None:
    """None for two of the same reward, for an empty response, and for one that was cut."""
    if not all(r.finished and r.text.strip() for r in responses):
        return None
    first, second = rewards(prompt, [r.text for r in responses])
    if first == second:
        return None
    is_first = labelled(first, second, settings.label_temperature, draw)
    order = (0, 1) if is_first else (1, 0)
    values = (first, second)
    gap = settings.score_scale * abs(first - second)
    return _row(name, prompt, [responses[i].text for i in order], [values[i] for i in order], gap)


def _row(
    name: str, prompt: str, texts: Sequence[str], values: Sequence[float], gap: float
) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": prompt,
        "chosen": texts[0],
        "rejected": texts[1],
        "chosen_score": round(gap, 4),
        "rejected_score": 0.0,
        "chosen_reward": values[0],
        "rejected_reward": values[1],
    }


def _unpaired(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same responses one by one, with their label."""
    return [
        {
            "id": f"{row['id']}-{side}",
            "prompt": row["prompt"],
            "response": row[side],
            "label": side == "chosen",
        }
        for row in rows
        for side in ("chosen", "rejected")
    ]


def write_selected(
    lm: CausalLM,
    encode: Any,
    prompts: Sequence[str],
    directory: Path,
    settings: Settings,
    seed: int,
) -> None:
    """divpo.jsonl and redipo.jsonl: pairs chosen from several answers to a prompt, by the reward
    and by how far an answer lies from the others."""
    random = np.random.default_rng([seed, 3])
    number = min(len(prompts), settings.pairs + settings.pairs // 4)
    some = [prompts[place] for place in random.permutation(len(prompts))[:number]]
    drawn = _sampled(lm, some, settings.answers, settings, seed=int(random.integers(2**31)))
    flat = encode([response.text for answers in drawn for response in answers])
    vectors = np.split(flat, len(drawn))
    for method in ("divpo", "redipo"):
        rules = PairsSection(method=method)
        rows: list[dict[str, Any]] = []
        for place, (prompt, answers) in enumerate(zip(some, drawn, strict=True)):
            found = _selected(prompt, answers, vectors[place], rules, seed=seed)
            if found is not None and len(rows) < settings.pairs:
                texts, values = found
                rows.append(_row(f"pair-{len(rows)}", prompt, texts, values, 0.0))
        _write(directory / f"{method}.jsonl", rows)


def _selected(
    prompt: str, answers: Sequence[Response], vectors: Vectors, rules: PairsSection, *, seed: int
) -> tuple[list[str], list[float]] | None:
    kept = list(
        {r.text: place for place, r in enumerate(answers) if r.finished and r.text.strip()}.values()
    )
    if len(kept) < 2:
        return None
    texts = [answers[place].text for place in kept]
    values = rewards(prompt, texts)
    candidates = Candidates(
        score_K=np.array(values),
        words_K=np.array([len(text.split()) for text in texts]),
        rarity_K=mean_distance(cosine_similarity(vectors[kept])),
    )
    picked = pick(candidates, rules, seed=seed, prompt=prompt)
    if isinstance(picked, NoPair):
        return None
    return [texts[place] for place in picked], [values[place] for place in picked]


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
